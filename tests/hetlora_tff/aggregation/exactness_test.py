# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from hetlora_tff.aggregation.exactness import build_deviation_from_exact
from tests.hetlora_tff.aggregation import oracles

pytestmark = pytest.mark.usefixtures('tff_runtime')

SCALING = 1.7
RANKS = (1, 3, 6)
# The first is small beside its stack, the second large: a dense product and Gram matrices.
SHAPES = {'small': (6, 5, 7), 'large': (4, 90, 110)}
SCALAR = np.float32
PER_MODULE = collections.OrderedDict((path, np.float32) for path in SHAPES)
PER_ROW = (np.float32, [6])


def _adapters_type(container):
  def matrix(*shape):
    return tff.TensorType(np.float32, shape)

  def entry(rank, d_in, d_out):
    members = {'a': matrix(rank, d_in), 'b': matrix(d_out, rank)}
    if container is CorrectedFactors:
      members['residual'] = matrix(d_out, d_in)
    return container(**members)

  return tff.to_type(
    collections.OrderedDict((path, entry(*shape)) for path, shape in SHAPES.items())
  )


@pytest.fixture(scope='module')
def measure():
  """The computation for a weight type and a container, made once."""
  made = {}

  def run(weight_type, clients, before, after, container=LoraFactors):
    key = repr(weight_type), container
    if key not in made:
      made[key] = build_deviation_from_exact(
        _adapters_type(container), tff.to_type(weight_type), SCALING
      )
    return made[key](
      [_as(LoraFactors, factors) for factors, _ in clients],
      [weight for _, weight in clients],
      _as(container, before),
      _as(container, after),
    )

  return run


def _as(container, adapters):
  names = ('a', 'b', 'residual')
  return collections.OrderedDict(
    (path, container(**dict(zip(names, map(np.float32, members), strict=False))))
    for path, members in adapters.items()
  )


def _factors(rng, rank=6, residual=False):
  adapters = {}
  for path, (max_rank, d_in, d_out) in SHAPES.items():
    held = np.arange(max_rank) < rank
    members = [rng.normal(size=(max_rank, d_in)) * held[:, None]]
    members.append(rng.normal(size=(d_out, max_rank)) * held)
    if residual:
      members.append(rng.normal(size=(d_out, d_in)))
    adapters[path] = tuple(member.astype(np.float32) for member in members)
  return adapters


def _weight(weight_type, number, rank):
  if weight_type is PER_MODULE:
    return collections.OrderedDict(small=np.float32(number), large=np.float32(number * rank))
  if weight_type is PER_ROW:
    return np.where(np.arange(6) < rank, np.float32(number), np.float32(0))
  return np.float32(number)


def _clients(rng, weight_type, ranks=RANKS):
  return [
    (_factors(rng, rank), _weight(weight_type, 0.5 + k, rank)) for k, rank in enumerate(ranks)
  ]


WEIGHT_TYPES = pytest.mark.parametrize(
  'weight_type', [SCALAR, PER_MODULE, PER_ROW], ids=['scalar', 'per module', 'per row']
)


@WEIGHT_TYPES
@pytest.mark.parametrize('container', [LoraFactors, CorrectedFactors, collections.OrderedDict])
def test_equals_its_oracle(measure, weight_type, container):
  rng = np.random.default_rng(0)
  residual = container is CorrectedFactors
  clients = _clients(rng, weight_type)
  before, after = _factors(rng, residual=residual), _factors(rng, residual=residual)
  result = measure(weight_type, clients, before, after, container)
  expected = oracles.deviation_from_exact(clients, before, after, SCALING)
  assert result == pytest.approx(expected, rel=1e-5)
  turned = measure(weight_type, clients[::-1], before, after, container)
  assert turned == pytest.approx(result, rel=1e-5)


def test_rows_that_nobody_weighs_keep_the_server(measure):
  rng = np.random.default_rng(1)
  before = _factors(rng)
  clients = _clients(rng, PER_ROW, ranks=(1, 3))
  expected = oracles.deviation_from_exact(clients, before, before, SCALING)
  assert measure(PER_ROW, clients, before, before) == pytest.approx(expected, rel=1e-5)
  kept = {
    path: tuple(
      np.where(np.arange(member.shape[axis]).reshape([-1, 1][:: 1 - 2 * axis]) < 1, c, member)
      for axis, member, c in zip((0, 1), before[path], clients[0][0][path], strict=True)
    )
    for path in SHAPES
  }
  assert measure(PER_ROW, clients[:1], before, kept) < 1e-6


def test_modules_that_nobody_weighs_keep_the_server(measure):
  rng = np.random.default_rng(2)
  before, asked = _factors(rng), _factors(rng)
  weight = collections.OrderedDict(small=np.float32(1), large=np.float32(0))
  after = {'small': asked['small'], 'large': before['large']}
  assert measure(PER_MODULE, [(asked, weight)], before, after) < 1e-6
  assert measure(PER_MODULE, [(asked, weight)], before, asked) > 0.1


@pytest.mark.parametrize('ranks', [RANKS, [3] * 20])
def test_an_exact_round_deviates_by_rounding_alone(measure, ranks):
  rng = np.random.default_rng(3)
  clients = _clients(rng, SCALAR, ranks)
  before = _factors(rng, residual=True)
  exact = oracles.mean_product(clients)
  after = {}
  for path, (a, b, residual) in before.items():
    change = residual + SCALING * exact[path]
    after[path] = (a, np.zeros_like(b), change)
  assert measure(SCALAR, clients, before, after, CorrectedFactors) < 1e-6


def test_one_client_whose_factors_are_taken_over_deviates_by_rounding_alone(measure):
  rng = np.random.default_rng(4)
  [client] = _clients(rng, SCALAR, [6])
  assert measure(SCALAR, [client], _factors(rng), client[0]) < 1e-6


def test_mean_of_one_factor_is_exact_and_of_both_is_not(measure):
  """FFA-LoRA's point (arXiv:2403.12313), and why the number is measured."""
  rng = np.random.default_rng(5)
  clients = _clients(rng, SCALAR, [6, 6])
  before = _factors(rng)
  mean = oracles.zero_pad_mean(clients)
  assert measure(SCALAR, clients, before, mean) > 0.1
  for factors, _ in clients:
    for path in SHAPES:
      factors[path] = (before[path][0], factors[path][1])
  mean = oracles.zero_pad_mean(clients)
  assert measure(SCALAR, clients, before, mean) < 1e-6


@pytest.mark.parametrize('broken', [np.nan, np.inf])
def test_empty_and_non_finite_clients_are_left_out(measure, broken):
  rng = np.random.default_rng(6)
  clients = _clients(rng, SCALAR)
  before, after = _factors(rng), _factors(rng)
  result = measure(SCALAR, clients, before, after)
  empty, bad = (_factors(rng), np.float32(0)), (_factors(rng), np.float32(1))
  bad[0]['large'][1][3, 2] = broken
  assert measure(SCALAR, [empty, *clients, bad], before, after) == pytest.approx(result, rel=1e-6)


@WEIGHT_TYPES
def test_nobody_gives_zero(measure, weight_type):
  rng = np.random.default_rng(7)
  before = _factors(rng)
  assert measure(weight_type, [], before, before) == 0
  nothing = [(_factors(rng), _weight(weight_type, 0, 3))]
  assert measure(weight_type, nothing, before, before) == 0


@pytest.mark.parametrize(
  'weight_type',
  [np.int32, (np.float32, [5]), (np.float32, [6, 1]), collections.OrderedDict(small=np.float32)],
  ids=['int', 'too few', 'a matrix', 'a module less'],
)
def test_refuses_weights_that_do_not_fit(weight_type):
  with pytest.raises(TypeError, match='Weights'):
    build_deviation_from_exact(_adapters_type(LoraFactors), tff.to_type(weight_type), 1.0)
