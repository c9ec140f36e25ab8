# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finalizers alone, and beside stock parts; `methods_test` has them in whole rounds."""

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff import aggregation, finalizers
from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining, build_train_on_client
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.clients.work import HetLoraClientWork
from tests.hetlora_tff import toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

SHAPES = toy_model.LinearModel().module_shapes(toy_model.CONFIG)
SERVER = toy_model.random_adapters(5)
NEW = toy_model.random_adapters(6)


def _next(finalizer, layout, aggregate):
  output = finalizer.next(finalizer.initialize(), layout.weights(SERVER), aggregate)
  return layout.adapters(output.result)


def test_replacing_takes_the_aggregate_and_scales_its_residual():
  layout = AdapterLayout(SHAPES, toy_model.CONFIG, carries_residual=True)
  aggregate = {p: CorrectedFactors(f.a, f.b, f.b @ f.a) for p, f in NEW.items()}
  type_ = tff.tensorflow.computation(layout.adapters, layout.server_type).type_signature.result
  held = _next(finalizers.build_replacing_finalizer(layout, type_), layout, aggregate)
  for path, factors in NEW.items():
    np.testing.assert_array_equal(held[path].a, factors.a)
    np.testing.assert_array_equal(held[path].b, factors.b)
    expected = toy_model.CONFIG.scaling * factors.b @ factors.a
    np.testing.assert_allclose(held[path].residual, expected, rtol=1e-6)


def test_replacing_keeps_rows_that_would_be_dead_and_modules_that_nobody_sent():
  layout = AdapterLayout(SHAPES, toy_model.CONFIG)
  aggregate = {p: LoraFactors(f.a.copy(), f.b.copy()) for p, f in NEW.items()}
  aggregate['first'].a[3], aggregate['first'].b[:, 3] = 0.0, 0.0
  aggregate['second'].a[:], aggregate['second'].b[:] = 0.0, 0.0
  type_ = layout.server_type.trainable
  held = _next(finalizers.build_replacing_finalizer(layout, type_), layout, aggregate)
  np.testing.assert_array_equal(held['first'].a[:3], NEW['first'].a[:3])
  np.testing.assert_array_equal(held['first'].a[3], SERVER['first'].a[3])
  np.testing.assert_array_equal(held['first'].b, aggregate['first'].b)
  np.testing.assert_array_equal(held['second'].a, SERVER['second'].a)
  np.testing.assert_array_equal(held['second'].b, SERVER['second'].b)


def test_merging_draws_a_anew_in_every_round():
  layout = AdapterLayout(SHAPES, toy_model.CONFIG, carries_residual=True)
  finalizer = finalizers.build_merging_finalizer(layout, layout.server_type.non_trainable)
  state, weights = finalizer.initialize(), layout.weights(SERVER)
  aggregate = {p: f.b @ f.a for p, f in NEW.items()}
  for number in (1, 2):
    output = finalizer.next(state, weights, aggregate)
    state, weights = output.state, output.result
    for path, factors in layout.adapters(weights).items():
      np.testing.assert_array_equal(factors.a, layout.initial_a(number)[path])
      assert not np.any(factors.b)
      expected = number * toy_model.CONFIG.scaling * aggregate[path]
      np.testing.assert_allclose(factors.residual, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ('factory', 'build', 'carries'),
  [
    (aggregation.ProductSvdFactory, finalizers.build_replacing_finalizer, False),
    (aggregation.ResidualCorrectedMeanFactory, finalizers.build_replacing_finalizer, True),
    (aggregation.StackingFactory, finalizers.build_merging_finalizer, True),
  ],
)
def test_aggregator_and_finalizer_pass_through_compose_learning_process(factory, build, carries):
  layout = AdapterLayout(SHAPES, toy_model.CONFIG, carries_residual=carries)
  training = LocalTraining(prune_decay=1.0, padding=Padding.NONE, weights=ClientWeighting.UNIFORM)
  work = HetLoraClientWork(
    build_train_on_client(
      toy_model.LinearModel(), layout, training, tff.learning.optimizers.build_sgdm(0.01)
    )
  )
  aggregator = factory().create(work.message_type, work.weight_type)
  composed = tff.learning.templates.compose_learning_process(
    tff.tensorflow.computation(layout.initial_weights),
    tff.learning.templates.build_broadcast_process(layout.server_type),
    work.process,
    aggregator,
    build(layout, aggregator.next.type_signature.result.result.member),
  )
  data = [toy_model.client_data(2, toy_model.examples(1, 4))]
  output = composed.next(composed.initialize(), data)
  assert output.metrics['client_work']['trained_clients'] == 1
  held = layout.adapters(composed.get_model_weights(output.state))
  start = layout.adapters(layout.initial_weights())
  moved = [
    np.abs(np.asarray(f.b) @ np.asarray(f.a)).max() + np.abs(getattr(f, 'residual', 0.0)).max()
    for f in held.values()
  ]
  assert min(moved) > 0.0
  assert all(not np.any(f.b) for f in start.values())
