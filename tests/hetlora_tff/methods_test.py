# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole rounds of every method against its NumPy oracle, through `build_hetlora_process`."""

import functools

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff import aggregation
from hetlora_tff.adapters.layout import TrainedFactors
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining
from hetlora_tff.process import build_hetlora_process
from tests.hetlora_tff import method_oracles, toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

SERVER = toy_model.random_adapters(5)
RANKS = [1, 3, toy_model.MAX_RANK, 2]
DATA = [toy_model.examples(seed, number) for seed, number in ((1, 3), (2, 5), (3, 4), (4, 0))]

# What stands in for each method: aggregator, and what clients train and send.
METHODS = {
  'homlora': (aggregation.ZeroPadMeanFactory, {}),
  'naive': (aggregation.ZeroPadMeanFactory, {}),
  'coverage': (aggregation.RankCoverageMeanFactory, {}),
  'svd': (aggregation.ProductSvdFactory, {}),
  'stacking': (aggregation.StackingFactory, {}),
  'fedex': (aggregation.ResidualCorrectedMeanFactory, {}),
  'ffa': (aggregation.ZeroPadMeanFactory, {'trained': TrainedFactors.B}),
  'rolora': (
    aggregation.ZeroPadMeanFactory,
    {'trained': TrainedFactors.ALTERNATING, 'padding': Padding.UPDATE},
  ),
}


@functools.cache
def build(name, measures_deviation=False, model=toy_model.LinearModel):
  factory, training = METHODS[name]
  return build_hetlora_process(
    model(),
    toy_model.CONFIG,
    training=LocalTraining(prune_decay=1.0, **training),
    client_optimizer=tff.learning.optimizers.build_sgdm(method_oracles.METHOD.client_rate),
    aggregator=factory(),
    measures_deviation=measures_deviation,
  )


def start(process, adapters=SERVER):
  """The initial state with these adapters; as far as the layout holds both factors."""
  weights = process.layout.weights(adapters)
  return process.as_learning_process().set_model_weights(process.initialize(), weights)


def server_of(process, state, rounds_done=0):
  """The process's server as an oracle's."""
  held = process.get_model_weights(state)
  server = method_oracles.initial({p: (np.array(f.a), np.array(f.b)) for p, f in held.items()})
  for path, factors in held.items():
    if hasattr(factors, 'residual'):
      server.residual[path] = np.array(factors.residual, np.float64)
  return method_oracles.Server(server.adapters, server.residual, rounds_done)


def ranks_of(name):
  return [toy_model.MAX_RANK] * len(RANKS) if name == 'homlora' else RANKS


def clients_of(name, order=slice(None), data=DATA):
  pairs = list(zip(ranks_of(name), data, strict=True))[order]
  return [toy_model.client_data(r, d) for r, d in pairs]


def oracle_round(name, server, state_after, process):
  oracle_clients = [(r, toy_model.batches(d)) for r, d in zip(RANKS, DATA, strict=True)]
  if name == 'stacking':
    fresh = {p: a for p, (a, _) in server_of(process, state_after).adapters.items()}
    return method_oracles.stacking(server, oracle_clients, fresh)
  return getattr(method_oracles, name)(server, oracle_clients)


def assert_same_model(process, state, server):
  now = server_of(process, state).update()
  for path, expected in server.update().items():
    np.testing.assert_allclose(now[path], expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('name', METHODS)
def test_three_rounds_are_the_oracles(name):
  process = build(name)
  state = start(process)
  server = server_of(process, state)
  for _ in range(3):
    state = process.next(state, clients_of(name)).state
    server = oracle_round(name, server, state, process)
    assert_same_model(process, state, server)


@pytest.mark.parametrize('name', METHODS)
def test_the_order_of_clients_changes_nothing(name):
  process = build(name)
  state = process.next(start(process), clients_of(name)).state
  other = process.next(start(process), clients_of(name, slice(None, None, -1))).state
  assert_same_model(process, other, server_of(process, state))


@pytest.mark.parametrize('broken', [np.nan, np.inf])
@pytest.mark.parametrize('name', METHODS)
def test_a_client_that_diverges_is_left_out_and_counted(name, broken):
  process = build(name)
  x, y = toy_model.examples(8, 4)
  x[1, 0] = broken
  # In place of the client without examples, which changes nothing either.
  output = process.next(start(process), clients_of(name, data=[*DATA[:3], (x, y)]))
  assert output.metrics['client_work']['non_finite_clients'] == 1
  expected = process.next(start(process), clients_of(name)).state
  assert_same_model(process, output.state, server_of(process, expected))


@pytest.mark.parametrize('cohort', ['nobody', 'nothing'])
@pytest.mark.parametrize('name', METHODS)
def test_a_round_without_an_update_keeps_the_model(name, cohort):
  process = build(name)
  state = start(process)
  clients = [] if cohort == 'nobody' else clients_of(name, slice(3, None))
  # TFF has no value for device states of nobody.
  after = process.as_learning_process().next(state, clients).state
  if name == 'stacking':  # Its factors are drawn anew, and what they held is not merged.
    state = start(process, {p: f._replace(b=0 * f.b) for p, f in SERVER.items()})
  assert_same_model(process, after, server_of(process, state))


def test_svd_sends_every_rank_its_best_approximation():
  process = build('svd')
  state = process.next(start(process), clients_of('svd')).state
  oracle_clients = [(r, toy_model.batches(d)) for r, d in zip(RANKS, DATA, strict=True)]
  means = method_oracles.mean_product(method_oracles.initial(SERVER), oracle_clients)
  for path, factors in process.get_model_weights(state).items():
    mean = means[path]
    singular = np.linalg.svd(mean, compute_uv=False)
    for rank in range(1, min(toy_model.MAX_RANK, *mean.shape) + 1):
      got = np.linalg.norm(mean - factors.b[:, :rank] @ factors.a[:rank])
      assert got == pytest.approx(np.sqrt(np.sum(singular[rank:] ** 2)), rel=1e-4, abs=1e-5)


def test_ffa_and_rolora_leave_the_frozen_factor_bit_for_bit():
  process = build('ffa')
  first = process.get_model_weights(process.initialize())
  after = process.get_model_weights(process.next(process.initialize(), clients_of('ffa')).state)
  assert all(np.array_equal(after[p].a, first[p].a) for p in first)
  assert not any(np.array_equal(after[p].b, first[p].b) for p in first)
  process = build('rolora')
  one = process.next(start(process), clients_of('rolora')).state
  two = process.next(one, clients_of('rolora')).state
  held = [process.get_model_weights(state) for state in (start(process), one, two)]
  for path in SERVER:
    assert np.array_equal(held[0][path].a, held[1][path].a)
    assert np.array_equal(held[1][path].b, held[2][path].b)


@pytest.mark.parametrize('name', METHODS)
def test_deviation_is_that_of_the_oracle(name):
  process = build(name, measures_deviation=True)
  state = start(process)
  server = server_of(process, state)
  output = process.next(state, clients_of(name))
  measured = float(output.metrics['deviation_from_exact'])
  # SVD, too, as long as the server's rank is that of the whole matrix.
  exact = {'stacking', 'fedex', 'ffa', 'rolora', 'svd'}
  if name in exact:
    assert measured < 1e-6
    return
  clients = [(r, toy_model.batches(d)) for r, d in zip(ranks_of(name), DATA, strict=True)]
  after = oracle_round(name, server, output.state, process)
  mean = method_oracles.mean_by_row if name == 'coverage' else method_oracles.mean_product
  expected = method_oracles.deviation(server, after, mean(server, clients))
  assert expected > 1e-3
  assert measured == pytest.approx(expected, rel=1e-3)


def test_measuring_sees_the_training_that_was_aggregated():
  # A runtime that trained a second time for the measurement would throw other dice.
  process = build('fedex', measures_deviation=True, model=toy_model.DiceModel)
  output = process.next(start(process), clients_of('fedex'))
  assert float(output.metrics['deviation_from_exact']) < 1e-6


def test_bytes_are_those_of_the_messages():
  numbers = {path: sum(sizes) for path, sizes in toy_model.SHAPES.items()}
  both = 4 * toy_model.MAX_RANK * sum(numbers.values())
  dense = 4 * sum(d_in * d_out for d_in, d_out in toy_model.SHAPES.values())
  only_b = 4 * toy_model.MAX_RANK * sum(d_out for _, d_out in toy_model.SHAPES.values())
  packed = 4 * toy_model.MAX_RANK * sum(max(sizes) for sizes in toy_model.SHAPES.values())
  expected = {
    'naive': (both, both),
    'svd': (both, both),
    'stacking': (both + dense, both),
    'fedex': (both + dense, both),
    'ffa': (only_b, only_b),
    'rolora': (both + 4, packed),
  }
  for name, (down, up) in expected.items():
    sizes = build(name).sizes
    assert (sizes.download(2), sizes.upload(2)) == (down, up), name
