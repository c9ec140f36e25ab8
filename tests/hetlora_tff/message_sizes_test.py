# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is counted is what is moved."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.aggregation import num_scales, quantized_sum
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining, build_train_on_client
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.distribution.select import RankSelect
from hetlora_tff.message_sizes import MessageSizes
from tests.hetlora_tff import toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

_LAYOUT = AdapterLayout(toy_model.LinearModel().module_shapes(toy_model.CONFIG), toy_model.CONFIG)
_MESSAGE_TYPE = _LAYOUT.adapters_type(toy_model.MAX_RANK)
_SIZES = MessageSizes(_LAYOUT, _LAYOUT.server_type, _MESSAGE_TYPE)
# Tags and shapes of a few tensors, beside their bytes.
_OVERHEAD = 200


def _weights():
  return tff.learning.models.ModelWeights(toy_model.random_adapters(1), ())


def _bytes(value):
  return sum(np.asarray(tensor).nbytes for tensor in tf.nest.flatten(value))


def test_select_hands_a_client_what_its_rank_counts():
  ranks = range(1, toy_model.MAX_RANK + 1)
  select = RankSelect(_MESSAGE_TYPE, toy_model.CONFIG)
  received = select.next(_weights(), [[rank] for rank in ranks])
  sizes = dataclasses.replace(_SIZES, selects_rank=True)
  assert [_bytes(r) for r in received] == [sizes.download(rank) for rank in ranks]
  assert _bytes(received[0]) == 4 * sum(sum(shape) for shape in toy_model.SHAPES.values())
  assert _bytes(received[-1]) == _SIZES.download(1) == _bytes(_weights())


@pytest.fixture(scope='module', name='update')
def update_fixture():
  """What a client of rank 2 has to say."""
  train = build_train_on_client(
    toy_model.LinearModel(),
    _LAYOUT,
    LocalTraining(padding=Padding.UPDATE, weights=ClientWeighting.UNIFORM),
    tff.learning.optimizers.build_sgdm(0.05),
  )
  return train(_weights(), toy_model.client_data(2, toy_model.examples(1, 3))).update


def _check_counts(value, value_type, counted):
  assert _bytes(value) == counted
  serialized, _ = tff.framework.serialize_value(value, value_type)
  assert counted <= serialized.ByteSize() <= counted + _OVERHEAD


def test_a_trained_client_sends_what_is_counted(update):
  _check_counts(update, _MESSAGE_TYPE, _SIZES.upload(2))


@pytest.mark.parametrize('bits', [4, 8, 16])
def test_a_trained_client_sends_the_bits_that_are_counted(update, bits):
  message = quantized_sum.build_message(_MESSAGE_TYPE, bits)
  sizes = dataclasses.replace(_SIZES, upload_bits=bits, upload_scales=num_scales(_MESSAGE_TYPE))
  _check_counts(message(update), message.type_signature.result, sizes.upload(2))
