# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.aggregation.zero_pad_mean import ZeroPadMeanFactory

pytestmark = pytest.mark.usefixtures('tff_runtime')

VALUE = tff.to_type(
  collections.OrderedDict(b=(np.float32, [2]), deep=[(np.float32, [1]), np.float64])
)
SCALAR = tff.TensorType(np.float32)


def _value(numbers):
  return collections.OrderedDict(
    b=np.float32(numbers[:2]), deep=[np.float32(numbers[2:3]), np.float64(numbers[3])]
  )


@pytest.fixture(scope='module')
def process():
  return ZeroPadMeanFactory().create(VALUE, SCALAR)


def _run(process, rows, weights):
  values = [_value(row) for row in rows]
  output = process.next(process.initialize(), values, [np.float32(w) for w in weights])
  result = output.result
  return [*result['b'], *result['deep'][0], result['deep'][1]], output.measurements


def test_any_structure_by_hand(process):
  result, _ = _run(process, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]], [3, 1, 0])
  np.testing.assert_allclose(result, [2, 3, 4, 5], rtol=1e-6)


def test_a_product_that_overflows_is_left_out_and_counted(process):
  result, measurements = _run(process, [[1, 1, 1, 1], [1, 1, 1e30, 1]], [1, 1e30])
  np.testing.assert_allclose(result, np.ones(4), rtol=1e-6)
  assert measurements['non_finite_clients'] == 1


def test_measurements_and_sums_are_those_of_the_inner_factories():
  secure = tff.aggregators.SecureSumFactory
  value_type = tff.TensorType(np.float32, [2])
  factory = ZeroPadMeanFactory(
    secure(upper_bound_threshold=1.0), secure(upper_bound_threshold=2.0), secure(1)
  )
  process = factory.create(value_type, SCALAR)
  tff.test.assert_not_contains_unsecure_aggregation(process.next)
  measurements = process.next.type_signature.result.measurements.member
  names = [name for name, _ in tff.structure.iter_elements(measurements)]
  assert names == ['mean_value', 'mean_weight', 'non_finite_clients']
