# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.aggregation.coverage_mean import RankCoverageMeanFactory
from hetlora_tff.aggregation.zero_pad_mean import ZeroPadMeanFactory

pytestmark = pytest.mark.usefixtures('tff_runtime')

VALUE = tff.to_type(
  collections.OrderedDict(
    only=LoraFactors(a=tff.TensorType(np.float32, [2, 1]), b=tff.TensorType(np.float32, [2, 2]))
  )
)
ROWS = tff.TensorType(np.float32, [3])


def _value(a, b):
  return collections.OrderedDict(
    only=LoraFactors(a=np.float32(a).reshape(2, 1), b=np.float32(b).reshape(2, 2))
  )


def _run(factory, values, weights, weight_type=ROWS):
  process = factory.create(VALUE, weight_type)
  output = process.next(process.initialize(), values, [np.float32(w) for w in weights])
  return output.result['only'], output.measurements


def test_two_clients_by_hand():
  values = [_value([2, 0], [[4, 0], [6, 0]]), _value([4, 8], [[8, 1], [10, 3]])]
  weights = [[1, 0, 0], [3, 3, 0]]
  result, _ = _run(RankCoverageMeanFactory(), values, weights)
  np.testing.assert_allclose(result.a, [[3.5], [8]])
  np.testing.assert_allclose(result.b, [[7, 1], [9, 3]])
  result, _ = _run(RankCoverageMeanFactory([4, 0.5, 0]), values, weights)
  np.testing.assert_allclose(result.a, [[1.5], [16]])
  np.testing.assert_allclose(result.b, [[3, 2], [4, 6]])


def test_full_ranks_are_the_plain_mean():
  rng = np.random.default_rng(0)
  values = [_value(rng.normal(size=2), rng.normal(size=4)) for _ in range(4)]
  weights = rng.uniform(0.1, 2, 4)
  covered, _ = _run(RankCoverageMeanFactory(), values, [np.full(3, w) for w in weights])
  plain, _ = _run(ZeroPadMeanFactory(), values, weights, tff.TensorType(np.float32))
  for one, other in zip(covered, plain, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_expected_clients_sum_no_weights():
  summed = tff.aggregators.SecureSumFactory(upper_bound_threshold=1.0)
  count = tff.aggregators.SecureSumFactory(1)
  process = RankCoverageMeanFactory(
    [2, 1, 1], value_sum_factory=summed, count_sum_factory=count
  ).create(VALUE, ROWS)
  tff.test.assert_not_contains_unsecure_aggregation(process.next)
  measurements = process.next.type_signature.result.measurements.member
  names = [name for name, _ in tff.structure.iter_elements(measurements)]
  assert names == ['mean_value', 'non_finite_clients']


@pytest.mark.parametrize('expected', [[1, -1, 1], [1, np.nan, 1], [[1, 1, 1]], 2.0])
def test_refuses_other_expectations(expected):
  with pytest.raises(ValueError, match='expected_clients'):
    RankCoverageMeanFactory(expected)


def test_refuses_what_does_not_fit_together():
  with pytest.raises(ValueError, match='weight_sum_factory'):
    RankCoverageMeanFactory([1.0], weight_sum_factory=tff.aggregators.SumFactory())
  with pytest.raises(ValueError, match='2 entries'):
    RankCoverageMeanFactory([1, 1]).create(VALUE, ROWS)
  with pytest.raises(TypeError, match=r'only.*rank 2'):
    RankCoverageMeanFactory().create(VALUE, tff.TensorType(np.float32, [1]))
  for weight_type in (tff.TensorType(np.float32), tff.TensorType(np.float32, [2, 1])):
    with pytest.raises(TypeError, match='one float per row'):
      RankCoverageMeanFactory().create(VALUE, weight_type)
