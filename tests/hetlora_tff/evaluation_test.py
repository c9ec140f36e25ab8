# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The federated evaluation against NumPy, and what one bad client may not spoil."""

import functools

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff import evaluation
from hetlora_tff import process as process_lib
from hetlora_tff.adapters import factors as lora
from hetlora_tff.clients.training import LocalTraining
from tests.hetlora_tff import toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

SERVER = toy_model.random_adapters(5)
EMPTY = toy_model.examples(1, 0)


@functools.cache
def build(tiers=None):
  return evaluation.build_hetlora_eval_process(
    toy_model.LinearModel(), toy_model.CONFIG, tiers=tiers
  )


def evaluate(process, adapters, ranks, data):
  weights = tff.learning.models.ModelWeights(adapters, ())
  state = process.set_model_weights(process.initialize(), weights)
  clients = [toy_model.client_data(r, d) for r, d in zip(ranks, data, strict=True)]
  return process.next(state, clients).metrics


def loss_at_rank(adapters, rank, data):
  """Sum of squared errors of the model that a device of this rank runs; float64."""
  x, y = (part.astype(np.float64) for part in data)
  value = x
  for path, weight in toy_model.frozen_weights().items():
    a, b = adapters[path]
    value = value @ (weight + toy_model.CONFIG.scaling * b[:, :rank] @ a[:rank]).T
  return np.sum(np.square(value - y))


def poisoned(number, value=np.nan):
  x, y = toy_model.examples(9, number)
  y[-1, 0] = value
  return x, y


def test_sums_of_each_tier_are_those_of_the_truncated_model():
  ranks = [1, 2, 3, 4, 3]
  data = [toy_model.examples(seed, number) for seed, number in enumerate([1, 5, 2, 4, 3])]
  metrics = evaluate(build((2, 4)), SERVER, ranks, data)
  losses = [loss_at_rank(SERVER, r, d) for r, d in zip(ranks, data, strict=True)]
  # The toy's losses differ between the ranks, or the wrong rank would pass.
  assert len({round(loss_at_rank(SERVER, r, data[1]), 3) for r in range(1, 5)}) == 4
  np.testing.assert_allclose(metrics['loss'], [sum(losses[:2]), sum(losses[2:])], rtol=1e-5)
  np.testing.assert_array_equal(metrics['predictions'], [6, 9])
  np.testing.assert_array_equal(metrics['clients'], [2, 3])
  np.testing.assert_array_equal(metrics['non_finite_clients'], [0, 0])


def test_tier_per_rank_by_default_and_a_tier_without_clients_is_zero():
  ranks, data = [1, 2, 4], [toy_model.examples(seed, 3) for seed in (1, 2, 3)]
  metrics = evaluate(build(), SERVER, ranks, data)
  losses = [loss_at_rank(SERVER, r, d) for r, d in zip(ranks, data, strict=True)]
  np.testing.assert_allclose(metrics['loss'], [*losses[:2], 0, losses[2]], rtol=1e-5)
  np.testing.assert_array_equal(metrics['predictions'], [3, 3, 0, 3])
  np.testing.assert_array_equal(metrics['clients'], [1, 1, 0, 1])


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_client_with_a_loss_that_is_not_finite_is_counted_and_left_out(value):
  good = toy_model.examples(1, 3)
  metrics = evaluate(
    build((2, 4)), SERVER, [1, 2, 2, 4], [good, poisoned(4, value), good, poisoned(2, value)]
  )
  expected = loss_at_rank(SERVER, 1, good) + loss_at_rank(SERVER, 2, good)
  np.testing.assert_allclose(metrics['loss'], [expected, 0], rtol=1e-5)
  np.testing.assert_array_equal(metrics['predictions'], [6, 0])
  np.testing.assert_array_equal(metrics['clients'], [3, 1])
  np.testing.assert_array_equal(metrics['non_finite_clients'], [1, 1])
  assert metrics['non_finite_clients'].dtype == np.int64


def test_client_without_examples_counts_as_a_client_only():
  metrics = evaluate(build((2, 4)), SERVER, [1, 4], [EMPTY, toy_model.examples(1, 2)])
  np.testing.assert_array_equal(metrics['predictions'], [0, 2])
  np.testing.assert_array_equal(metrics['clients'], [1, 1])
  np.testing.assert_array_equal(metrics['non_finite_clients'], [0, 0])
  assert metrics['loss'][0] == 0


@pytest.mark.parametrize('tiers', [[], [0, 4], [2, 3], [2, 5], [4, 2], [2, 2, 4]])
def test_tiers_that_do_not_ascend_to_max_rank_are_refused(tiers):
  with pytest.raises(ValueError, match='`tiers` must ascend to max_rank 4'):
    evaluation.build_hetlora_eval_process(toy_model.LinearModel(), toy_model.CONFIG, tiers=tiers)


@pytest.mark.parametrize('ranks', [0, toy_model.MAX_RANK + 1, [], [1, 2]])
def test_client_without_exactly_one_valid_rank_fails(ranks):
  with pytest.raises(Exception, match=r'exactly one rank, and it must be in \[1, 4\]'):
    evaluate(build((2, 4)), SERVER, [ranks], [toy_model.examples(1, 2)])


def test_model_weights_round_trip_and_next_leaves_them():
  process = build((2, 4))
  state = process.initialize()
  assert not np.any(toy_model.flat(process.get_model_weights(state).trainable))
  weights = tff.learning.models.ModelWeights(SERVER, ())
  state = process.set_model_weights(state, weights)
  state = process.next(state, [toy_model.client_data(2, toy_model.examples(1, 2))]).state
  got = process.get_model_weights(state)
  assert got.non_trainable == ()
  assert isinstance(got.trainable['first'], lora.LoraFactors)
  np.testing.assert_array_equal(toy_model.flat(got.trainable), toy_model.flat(SERVER))


def test_evaluates_beside_tffs_training_loop():
  training = process_lib.build_hetlora_process(
    toy_model.LinearModel(),
    toy_model.CONFIG,
    training=LocalTraining(),
    client_optimizer=tff.learning.optimizers.build_sgdm(0.01),
  ).as_learning_process()
  process, data = build((2, 4)), toy_model.examples(1, 4)
  clients = [toy_model.client_data(2, data)]
  seen = {}

  def evaluation_fn(state, held_out):
    weights = training.get_model_weights(state)
    metrics = process.next(process.set_model_weights(process.initialize(), weights), held_out)
    seen[len(seen)] = loss_at_rank(weights.trainable, 2, data)
    return dict(metrics.metrics)

  class Recorder(tff.program.ReleaseManager):
    def __init__(self):
      self.loss = {}

    async def release(self, value, key):
      self.loss[key] = value['evaluation/loss']

  recorder = Recorder()
  tff.simulation.run_training_process(
    training_process=training,
    training_selection_fn=lambda unused_round: clients,
    total_rounds=1,
    evaluation_fn=evaluation_fn,
    evaluation_selection_fn=lambda unused_round: clients,
    metrics_managers=[recorder],
  )
  assert seen.keys() == recorder.loss.keys() == {0, 1}
  assert seen[1] < seen[0]
  for round_number, expected in seen.items():
    np.testing.assert_allclose(recorder.loss[round_number], [expected, 0], rtol=1e-5)
