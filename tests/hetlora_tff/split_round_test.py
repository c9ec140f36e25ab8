# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A round in parts is the round in one piece, for every method."""

import collections
import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff import aggregation, full_fine_tuning
from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors
from hetlora_tff.clients.training import LocalTraining
from hetlora_tff.distribution.select import RankSelect
from hetlora_tff.process import build_hetlora_process
from hetlora_tff.split_round import build_split_round
from tests.hetlora_tff import toy_full_model, toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

# The last of them has no examples.
RANKS = [4, 1, 3, 2, 4]
CLIENTS = [
  toy_model.client_data(rank, toy_model.examples(seed, number))
  for seed, (rank, number) in enumerate(zip(RANKS, [3, 5, 4, 2, 0], strict=True))
]


def parts(aggregator, trained=TrainedFactors.BOTH):
  training = LocalTraining(prune_decay=1.0, trained=trained)
  return {'aggregator': aggregator, 'training': training}


METHODS = {
  'hetlora': {},
  'svd': parts(aggregation.ProductSvdFactory()),
  'coverage': parts(aggregation.RankCoverageMeanFactory()),
  'stacking': parts(aggregation.StackingFactory()),
  'fedex': parts(aggregation.ResidualCorrectedMeanFactory()),
  'ffa': parts(aggregation.ZeroPadMeanFactory(), TrainedFactors.B),
  'rolora': parts(aggregation.ZeroPadMeanFactory(), TrainedFactors.ALTERNATING),
}
QUICK = ('hetlora', 'svd')


@functools.cache
def build(method):
  process = build_hetlora_process(
    toy_model.LinearModel(),
    toy_model.CONFIG,
    client_optimizer=tff.learning.optimizers.build_sgdm(0.05),
    **METHODS[method],
  )
  return process, build_split_round(process)


def start(process):
  weights = process.layout.weights(toy_model.random_adapters(5))
  return process.as_learning_process().set_model_weights(process.initialize(), weights)


def positioned(clients):
  return [
    collections.OrderedDict(client=client, position=np.int32(position))
    for position, client in enumerate(clients)
  ]


def split_next(split, state, clients, cuts):
  """A round of parts that end at these positions, the clients of each in reverse order."""
  clients = positioned(clients)
  broadcast = split.prepare(state)
  bounds = zip([0, *cuts], [*cuts, len(clients)], strict=True)
  return split.finish(state, [split.partial(broadcast, clients[a:b][::-1]) for a, b in bounds])


def assert_close(got, expected):
  tf.nest.assert_same_structure(got, expected, check_types=True)
  for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
    assert np.asarray(one).dtype == np.asarray(other).dtype
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def models(process, state):
  """What the server would add to each frozen weight: factors alone are not unique."""
  return {
    path: f.b @ f.a + getattr(f, 'residual', 0.0)
    for path, f in process.get_model_weights(state).items()
  }


@pytest.mark.parametrize(
  'method',
  [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in METHODS],
)
def test_parts_make_the_same_round(method):
  process, split = build(method)
  state = start(process)
  expected = process.next(state, CLIENTS)
  got = split_next(split, state, CLIENTS, [2])
  if method in ('svd', 'stacking'):
    assert_close(models(process, got.state), models(process, expected.state))
  else:
    assert_close(got.state, expected.state)
  assert_close(got.metrics, expected.metrics)
  ranks = [int(device['rank']) for device in expected.device_state]
  assert sorted(map(tuple, got.ranks.tolist())) == list(enumerate(ranks))
  # On from there, in other parts, of which one is empty.
  expected = process.next(expected.state, CLIENTS[:3])
  got = split_next(split, got.state, CLIENTS[:3], [1, 1])
  assert_close(models(process, got.state), models(process, expected.state))


@pytest.mark.slow
def test_few_bits_are_added_across_parts():
  process = build_hetlora_process(
    toy_model.LinearModel(),
    toy_model.CONFIG,
    client_optimizer=tff.learning.optimizers.build_sgdm(0.05),
    aggregator=aggregation.ZeroPadMeanFactory(aggregation.QuantizedSumFactory(16)),
  )
  state = start(process)
  expected = models(process, process.next(state, CLIENTS).state)
  got = models(process, split_next(build_split_round(process), state, CLIENTS, [2]).state)
  for path, product in expected.items():
    # Another graph rounds floats otherwise, and so draws otherwise: a step is 3e-5 of the largest.
    np.testing.assert_allclose(got[path], product, atol=1e-3)


@pytest.mark.slow
def test_the_whole_model_in_parts():
  process = full_fine_tuning.build_full_process(
    toy_full_model.LinearFullModel(), client_optimizer=tff.learning.optimizers.build_sgdm(0.05)
  )
  state = process.initialize()
  expected = process.next(state, CLIENTS)
  got = split_next(build_split_round(process), state, CLIENTS, [3])
  assert_close(got.state, expected.state)
  assert_close(got.metrics, expected.metrics)


def test_nobody_at_all():
  process, split = build('hetlora')
  state = start(process)
  expected = process.as_learning_process().next(state, [])
  got = split.finish(state, [])
  assert_close(got.state, expected.state)
  assert_close(got.metrics, expected.metrics)
  assert got.ranks.shape == (0, 2)


@pytest.mark.slow
def test_refuses_rounds_with_more_messages():
  selects = RankSelect(
    AdapterLayout(
      toy_model.LinearModel().module_shapes(toy_model.CONFIG), toy_model.CONFIG
    ).adapters_type(toy_model.MAX_RANK),
    toy_model.CONFIG,
  )
  for parts in ({'measures_deviation': True}, {'distributor': selects}):
    process = build_hetlora_process(toy_model.LinearModel(), toy_model.CONFIG, **parts)
    with pytest.raises(ValueError, match='cannot be split'):
      build_split_round(process)
