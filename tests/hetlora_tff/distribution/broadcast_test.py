# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.adapters.layout import adapters_type, model_weights_type
from hetlora_tff.distribution.broadcast import build_truncating_broadcast
from tests.hetlora_tff import toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')


def test_every_client_receives_all_ranks():
  shapes = toy_model.LinearModel().module_shapes(toy_model.CONFIG)
  type_ = model_weights_type(adapters_type(shapes, toy_model.MAX_RANK))
  process = build_truncating_broadcast(type_)
  assert isinstance(process, tff.learning.templates.DistributionProcess)
  assert process.next.type_signature.parameter[1] == tff.FederatedType(type_, tff.SERVER)
  adapters = toy_model.random_adapters(1)

  @tff.federated_computation(
    tff.FederatedType(type_, tff.SERVER), tff.FederatedType(np.int32, tff.CLIENTS)
  )
  def received(weights, clients):
    result = process.next(process.initialize(), weights).result
    return tff.federated_zip(collections.OrderedDict(weights=result, client=clients))

  clients = received(tff.learning.models.ModelWeights(adapters, ()), [1, 2, 3])
  assert [client['client'] for client in clients] == [1, 2, 3]
  for client in clients:
    got = client['weights'].trainable
    np.testing.assert_array_equal(toy_model.flat(got), toy_model.flat(adapters))
