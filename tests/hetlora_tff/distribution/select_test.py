# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.adapters.layout import adapters_type
from hetlora_tff.distribution.select import RankSelect
from tests.hetlora_tff import toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')


@pytest.fixture(scope='module')
def select():
  shapes = toy_model.LinearModel().module_shapes(toy_model.CONFIG)
  return RankSelect(adapters_type(shapes, toy_model.MAX_RANK), toy_model.CONFIG)


def test_each_client_receives_exactly_its_slice(select):
  adapters = toy_model.random_adapters(1)
  ranks = [3, 1, 4, 1]
  received = select.next(tff.learning.models.ModelWeights(adapters, ()), [[rank] for rank in ranks])
  assert len(received) == len(ranks)
  for rank, client in zip(ranks, received, strict=True):
    for path, (a, b) in adapters.items():
      np.testing.assert_array_equal(client.trainable[path].a, a[:rank])
      np.testing.assert_array_equal(client.trainable[path].b, b[:, :rank])


def test_type_signature(select):
  shapes = toy_model.LinearModel().module_shapes(toy_model.CONFIG)
  parameter, result = select.next.type_signature.parameter, select.next.type_signature.result
  sliced = adapters_type(shapes, None)
  assert parameter[0].member.trainable == adapters_type(shapes, toy_model.MAX_RANK)
  assert parameter[1].compact_representation() == '{int32*}@CLIENTS'
  assert result.placement is tff.CLIENTS
  assert result.member.trainable == sliced
