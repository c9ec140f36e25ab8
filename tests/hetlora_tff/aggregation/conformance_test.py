# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""One battery for all aggregation factories: what holds for every one of them.

Each case has an oracle of its own (`oracles.py`), and no formula of a factory is shared by another:
a broken one turns its own cases red.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
import tensorflow_federated as tff
from hypothesis import strategies as st

from hetlora_tff import aggregation
from hetlora_tff.adapters.factors import LoraFactors
from tests.hetlora_tff.aggregation import oracles

pytestmark = pytest.mark.usefixtures('tff_runtime')

MAX_RANK = 6
# Rank of the server, d_in, d_out; the second module has a smaller rank, as a rank pattern gives.
SHAPES = {'block/query': (6, 7, 5), 'block/value': (4, 9, 11)}
RANKS = (1, 3, 6)
EXPECTED_CLIENTS = (3.0, 2.0, 2.0, 1.0, 0.0, 0.5)


def _module_weights(weight):
  return collections.OrderedDict(
    (path, np.float32(weight * (1 + index))) for index, path in enumerate(SHAPES)
  )


def _factors(result):
  return {path: (np.asarray(f['a']), np.asarray(f['b'])) for path, f in _plain(result).items()}


def _product(result):
  return {path: np.float64(b) @ np.float64(a) for path, (a, b) in _factors(result).items()}


def _corrected(result):
  return {path: tuple(np.asarray(f[i]) for i in 'abr') for path, f in _plain(result, 'abr').items()}


def _plain(result, names='ab'):
  """Members by first letter, out of either container."""
  return {
    path: f if isinstance(f, dict) else dict(zip(names, f, strict=True))
    for path, f in result.items()
  }


@dataclasses.dataclass(frozen=True)
class Case:
  """A factory, what it is sent and what its result is compared with."""

  name: str
  factory: tff.aggregators.WeightedAggregationFactory
  oracle: Callable[[list], dict]
  read: Callable[[Any], dict]
  weight_type: Any
  weight_of: Callable[[float, int], Any]


def _scalar(name, factory, oracle, read):
  return Case(name, factory, oracle, read, np.float32, lambda weight, rank: np.float32(weight))


def _by_row(name, factory, oracle):
  def weight_of(weight, rank):
    return np.where(np.arange(MAX_RANK) < rank, np.float32(weight), np.float32(0))

  return Case(name, factory, oracle, _factors, (np.float32, [MAX_RANK]), weight_of)


CASES = [
  Case(
    'sparsity',
    aggregation.SparsityWeightedMeanFactory(),
    oracles.sparsity_weighted_mean,
    _factors,
    collections.OrderedDict((path, np.float32) for path in SHAPES),
    lambda weight, rank: _module_weights(weight),
  ),
  _scalar('zero_pad', aggregation.ZeroPadMeanFactory(), oracles.zero_pad_mean, _factors),
  _by_row('coverage', aggregation.RankCoverageMeanFactory(), oracles.rank_coverage_mean),
  _by_row(
    'coverage_expected',
    aggregation.RankCoverageMeanFactory(EXPECTED_CLIENTS),
    lambda clients: oracles.rank_coverage_mean(clients, EXPECTED_CLIENTS),
  ),
  _scalar(
    'svd',
    aggregation.ProductSvdFactory(),
    lambda clients: oracles.truncated_product(clients, MAX_RANK),
    _product,
  ),
  _scalar(
    'stacking',
    aggregation.StackingFactory(),
    oracles.mean_product,
    lambda result: {path: np.asarray(value) for path, value in result.items()},
  ),
  _scalar(
    'fedex',
    aggregation.ResidualCorrectedMeanFactory(),
    oracles.residual_corrected_mean,
    _corrected,
  ),
]


def _value_type(container):
  return tff.to_type(
    collections.OrderedDict(
      (
        path,
        container(
          a=tff.TensorType(np.float32, [rank, d_in]), b=tff.TensorType(np.float32, [d_out, rank])
        ),
      )
      for path, (rank, d_in, d_out) in SHAPES.items()
    )
  )


@pytest.fixture(scope='module')
def process_of():
  """The process of a case, made once."""
  made = {}

  def get(case, container=LoraFactors):
    key = case.name, container
    if key not in made:
      made[key] = case.factory.create(_value_type(container), tff.to_type(case.weight_type))
    return made[key]

  return get


@pytest.fixture(scope='module', params=CASES, ids=lambda case: case.name)
def case(request):
  return request.param


def _client(rng, rank):
  """Padded factors of a rank: zeros above it."""
  factors = {}
  for path, (max_rank, d_in, d_out) in SHAPES.items():
    held = np.arange(max_rank) < rank
    a = rng.normal(size=(max_rank, d_in)) * held[:, np.newaxis]
    b = rng.normal(size=(d_out, max_rank)) * held
    factors[path] = (a.astype(np.float32), b.astype(np.float32))
  return factors


def _clients(case, seed=0, ranks=RANKS, weights=(2.0, 0.5, 1.25)):
  rng = np.random.default_rng(seed)
  return [
    (_client(rng, rank), case.weight_of(weight, rank))
    for rank, weight in zip(ranks, weights, strict=True)
  ]


def _run(process, case, clients, container=LoraFactors):
  values = [
    collections.OrderedDict((path, container(a=a, b=b)) for path, (a, b) in factors.items())
    for factors, _ in clients
  ]
  output = process.next(process.initialize(), values, [weight for _, weight in clients])
  return case.read(output.result), output.measurements


def _assert_close(result, expected, tolerance=1e-6):
  assert list(result) == list(expected)
  for path in expected:
    arrays = expected[path] if isinstance(expected[path], tuple) else (expected[path],)
    found = result[path] if isinstance(result[path], tuple) else (result[path],)
    # A residual is a difference: it is as exact as what it is the difference of.
    scale = max(np.linalg.norm(wanted) for wanted in arrays)
    for actual, wanted in zip(found, arrays, strict=True):
      assert actual.shape == wanted.shape
      assert np.linalg.norm(actual - wanted) <= tolerance * scale


def test_equals_its_oracle_with_an_empty_client(case, process_of):
  clients = _clients(case)
  empty = (_client(np.random.default_rng(9), 6), case.weight_of(0.0, 6))
  result, measurements = _run(process_of(case), case, [clients[0], empty, *clients[1:]])
  _assert_close(result, case.oracle(clients))
  assert measurements['non_finite_clients'] == 0


@hypothesis.settings(max_examples=8)
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  ranks=st.lists(st.integers(1, MAX_RANK), min_size=1, max_size=5),
  scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_equals_its_oracle(case, process_of, seed, ranks, scale):
  weights = scale * np.random.default_rng(seed).uniform(0.1, 1.0, len(ranks))
  clients = _clients(case, seed, ranks, weights)
  result, _ = _run(process_of(case), case, clients)
  _assert_close(result, case.oracle(clients), 5e-6)


def test_permuting_the_clients_changes_nothing(case, process_of):
  clients = _clients(case)
  result, _ = _run(process_of(case), case, clients)
  for order in ((2, 1, 0), (1, 2, 0)):
    permuted, _ = _run(process_of(case), case, [clients[k] for k in order])
    _assert_close(permuted, result)


def test_containers_of_either_kind_are_taken(case, process_of):
  clients = _clients(case)
  result, _ = _run(process_of(case), case, clients)
  plain = collections.OrderedDict
  again, _ = _run(process_of(case, plain), case, clients, plain)
  _assert_close(again, result, 1e-7)


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('factor', [0, 1])
def test_a_non_finite_client_is_left_out_and_counted(case, process_of, broken, factor):
  clients = _clients(case)
  factors = _client(np.random.default_rng(9), 3)
  factors['block/value'][factor][0, 0] = broken
  bad = (factors, case.weight_of(1.0, 3))
  result, measurements = _run(process_of(case), case, [clients[0], bad, *clients[1:]])
  _assert_close(result, case.oracle(clients))
  assert measurements['non_finite_clients'] == 1


def test_a_non_finite_weight_is_left_out_and_counted(case, process_of):
  clients = _clients(case)
  bad = (_client(np.random.default_rng(9), 3), case.weight_of(np.nan, 3))
  result, measurements = _run(process_of(case), case, [bad, *clients])
  _assert_close(result, case.oracle(clients))
  assert measurements['non_finite_clients'] == 1


@pytest.mark.parametrize('number', [0, 2])
def test_nobody_with_a_weight_gives_zero(case, process_of, number):
  clients = _clients(case, 0, [3] * number, [0.0] * number)
  result, measurements = _run(process_of(case), case, clients)
  for arrays in result.values():
    for array in arrays if isinstance(arrays, tuple) else (arrays,):
      np.testing.assert_array_equal(array, np.zeros_like(array))
  assert measurements['non_finite_clients'] == 0


def test_type_signature(case, process_of):
  process = process_of(case)
  value_type = _value_type(LoraFactors)
  assert process.next.type_signature.parameter[1] == tff.FederatedType(value_type, tff.CLIENTS)
  weight_type = tff.FederatedType(tff.to_type(case.weight_type), tff.CLIENTS)
  assert process.next.type_signature.parameter[2] == weight_type
  if not isinstance(case.factory, aggregation.ProductAggregationFactory):
    assert process.next.type_signature.result.result == tff.FederatedType(value_type, tff.SERVER)


def test_refuses_what_are_no_floats(case):
  with pytest.raises(TypeError, match='int32'):
    case.factory.create(tff.TensorType(np.int32), tff.to_type(case.weight_type))
  with pytest.raises(TypeError, match='int32'):
    case.factory.create(_value_type(LoraFactors), tff.TensorType(np.int32))


@pytest.mark.parametrize('case', CASES[2:], ids=lambda case: case.name)
@pytest.mark.parametrize(
  'entry',
  [
    collections.OrderedDict(b=(np.float32, [5, 2]), a=(np.float32, [2, 7])),
    collections.OrderedDict(a=(np.float32, [2, 7]), b=(np.float32, [5, 3])),
    collections.OrderedDict(a=(np.float32, [None, 7]), b=(np.float32, [5, None])),
    collections.OrderedDict(a=(np.float32, [2, 7])),
    (np.float32, [2, 7]),
    [(np.float32, [2, 7]), (np.float32, [5, 2])],
  ],
  ids=['other order', 'two ranks', 'no rank', 'one factor', 'a matrix', 'no names'],
)
def test_factories_of_factors_refuse_other_modules_by_name(case, entry):
  value_type = tff.to_type(collections.OrderedDict(odd=entry))
  with pytest.raises(TypeError, match='odd'):
    case.factory.create(value_type, tff.to_type(case.weight_type))


@pytest.mark.parametrize('name', ['zero_pad', 'svd', 'stacking', 'fedex'])
def test_factories_with_one_weight_refuse_more(name):
  case = next(case for case in CASES if case.name == name)
  for weight_type in ((np.float32, [MAX_RANK]), CASES[0].weight_type):
    with pytest.raises(TypeError, match='scalar'):
      case.factory.create(_value_type(LoraFactors), tff.to_type(weight_type))
