# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import hypothesis
import numpy as np
import pytest
import tensorflow_federated as tff
from hypothesis import strategies as st

from hetlora_tff.aggregation.padded_mean import SparsityWeightedMeanFactory

pytestmark = pytest.mark.usefixtures('tff_runtime')

VALUE = tff.to_type(
  collections.OrderedDict(
    first=collections.OrderedDict(a=(np.float32, [2]), b=(np.float32, [1, 2])),
    second=collections.OrderedDict(a=(np.float32, [3])),
  )
)
PER_ENTRY = tff.to_type(collections.OrderedDict(first=np.float32, second=np.float32))
SCALAR = tff.TensorType(np.float32)


def _value(numbers):
  numbers = np.asarray(numbers, np.float32)
  return collections.OrderedDict(
    first=collections.OrderedDict(a=numbers[:2], b=numbers[2:4].reshape(1, 2)),
    second=collections.OrderedDict(a=numbers[4:]),
  )


def _numbers(value):
  parts = [value['first']['a'], value['first']['b'], value['second']['a']]
  return np.concatenate([np.ravel(part) for part in parts])


def _weight(first, second):
  return collections.OrderedDict(first=np.float32(first), second=np.float32(second))


@pytest.fixture(scope='module')
def per_entry():
  return SparsityWeightedMeanFactory().create(VALUE, PER_ENTRY)


@pytest.fixture(scope='module')
def scalar():
  return SparsityWeightedMeanFactory().create(VALUE, SCALAR)


def _run(process, values, weights):
  output = process.next(process.initialize(), [_value(v) for v in values], weights)
  return _numbers(output.result), output.measurements


def test_three_clients_by_hand(per_entry, scalar):
  values = np.arange(21.0).reshape(3, 7)
  result, _ = _run(per_entry, values, [_weight(1, 0), _weight(2, 1), _weight(1, 3)])
  np.testing.assert_allclose(result, [7, 8, 9, 10, 16.25, 17.25, 18.25], rtol=1e-6)
  result, _ = _run(scalar, values, [np.float32(1), np.float32(0), np.float32(3)])
  np.testing.assert_allclose(result, np.arange(7) + 10.5, rtol=1e-6)


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from([1e-12, 1.0, 1e6]))
def test_weighted_mean_of_each_entry(per_entry, scalar, number, seed, scale):
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(number, 7))
  weights = scale * rng.uniform(0.1, 1.0, size=(number, 2))
  shares = weights / weights.sum(0)
  expected = np.concatenate([shares[:, 0] @ values[:, :4], shares[:, 1] @ values[:, 4:]])
  result, _ = _run(per_entry, values, [_weight(*w) for w in weights])
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
  result, _ = _run(scalar, values, [np.float32(w) for w in weights[:, 0]])
  np.testing.assert_allclose(result, shares[:, 0] @ values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('smallest', [1e-12, 1e-30, 2e-38])
def test_equal_tiny_weights_are_uniform(per_entry, smallest):
  values = np.arange(21.0).reshape(3, 7)
  result, _ = _run(per_entry, values, [_weight(smallest, smallest)] * 3)
  np.testing.assert_allclose(result, np.arange(7) + 7, rtol=1e-5)


def test_subnormal_weights_give_a_number_inside_the_values(per_entry):
  result, _ = _run(per_entry, np.ones([3, 7]), [_weight(1e-39, 1e-44)] * 3)
  # Arithmetic that flushes subnormals to zero sees no weight at all.
  assert np.all((result >= 0.0) & (result <= 1.01))


def test_zero_weights_give_zero(per_entry, scalar):
  values = np.arange(14.0).reshape(2, 7)
  result, _ = _run(per_entry, values, [_weight(0, 1), _weight(0, 0)])
  np.testing.assert_array_equal(result, [0, 0, 0, 0, 4, 5, 6])
  result, _ = _run(scalar, values, [np.float32(0)] * 2)
  np.testing.assert_array_equal(result, np.zeros(7))


def test_no_client_gives_zero(per_entry):
  result, measurements = _run(per_entry, [], [])
  np.testing.assert_array_equal(result, np.zeros(7))
  assert measurements['non_finite_clients'] == 0


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_a_non_finite_client_is_left_out_and_counted(per_entry, scalar, broken):
  values = np.arange(21.0).reshape(3, 7)
  values[1, 5] = broken  # In `second` only: the client's `first` does not count either.
  result, measurements = _run(per_entry, values, [_weight(1, 1)] * 3)
  np.testing.assert_allclose(result, np.arange(7) + 7, rtol=1e-6)
  assert measurements['non_finite_clients'] == 1
  result, measurements = _run(scalar, values, [np.float32(1), np.float32(0), np.float32(1)])
  np.testing.assert_allclose(result, np.arange(7) + 7, rtol=1e-6)
  assert measurements['non_finite_clients'] == 1


@pytest.mark.parametrize('broken', [np.nan, np.inf])
def test_a_non_finite_weight_is_left_out_and_counted(per_entry, broken):
  values = np.arange(21.0).reshape(3, 7)
  weights = [_weight(1, 1), _weight(1, broken), _weight(1, 1)]
  result, measurements = _run(per_entry, values, weights)
  np.testing.assert_allclose(result, np.arange(7) + 7, rtol=1e-6)
  assert measurements['non_finite_clients'] == 1


def test_a_product_that_overflows_is_left_out_and_counted(per_entry):
  values = np.ones([3, 7])
  values[1] = 1e30
  weights = [_weight(1, 1), _weight(1e30, 1), _weight(1, 1)]
  result, measurements = _run(per_entry, values, weights)
  np.testing.assert_allclose(result, np.ones(7), rtol=1e-6)
  assert measurements['non_finite_clients'] == 1


def test_only_non_finite_clients_give_zero(scalar):
  result, measurements = _run(scalar, np.full([2, 7], np.nan), [np.float32(1)] * 2)
  np.testing.assert_array_equal(result, np.zeros(7))
  assert measurements['non_finite_clients'] == 2


def test_type_signature(per_entry, scalar):
  for process, weight_type in ((per_entry, PER_ENTRY), (scalar, SCALAR)):
    parameter = process.next.type_signature.parameter
    assert parameter[1] == tff.FederatedType(VALUE, tff.CLIENTS)
    assert parameter[2] == tff.FederatedType(weight_type, tff.CLIENTS)
    result = process.next.type_signature.result
    assert result.result == tff.FederatedType(VALUE, tff.SERVER)
    assert [name for name, _ in tff.structure.iter_elements(result.measurements.member)] == [
      'mean_value',
      'mean_weight',
      'non_finite_clients',
    ]


def test_sums_are_those_of_the_inner_factories():
  secure = tff.aggregators.SecureSumFactory
  process = SparsityWeightedMeanFactory(
    secure(upper_bound_threshold=1.0), secure(upper_bound_threshold=2.0), secure(1)
  ).create(VALUE, PER_ENTRY)
  tff.test.assert_not_contains_unsecure_aggregation(process.next)


@pytest.mark.parametrize(
  ('value_type', 'weight_type'),
  [
    (tff.TensorType(np.int32), SCALAR),
    (VALUE, tff.TensorType(np.int32)),
    (VALUE, tff.to_type(collections.OrderedDict(first=np.float32))),
    (VALUE, tff.to_type(collections.OrderedDict(second=np.float32, first=np.float32))),
    (VALUE, tff.to_type([np.float32, np.float32])),
    (tff.TensorType(np.float32), PER_ENTRY),
  ],
  ids=['int values', 'int weights', 'too few', 'other order', 'no names', 'no structure'],
)
def test_refuses_types_that_do_not_fit(value_type, weight_type):
  with pytest.raises(TypeError):
    SparsityWeightedMeanFactory().create(value_type, weight_type)
