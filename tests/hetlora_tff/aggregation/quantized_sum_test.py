# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.aggregation import quantized_sum
from hetlora_tff.aggregation.quantized_sum import QuantizedSumFactory

pytestmark = pytest.mark.usefixtures('tff_runtime')

BITS = (4, 8, 16)
RANK, D_IN, D_OUT = 3, 7, 5
VALUE = tff.to_type(
  collections.OrderedDict(
    module=LoraFactors(a=(np.float32, [RANK, D_IN]), b=(np.float32, [D_OUT, RANK])),
    bias=(np.float64, [D_OUT]),
    number=np.float32,
  )
)
NUMBERS = RANK * D_IN + D_OUT * RANK + D_OUT + 1
# One for each rank of each factor, and one for each of the others.
SCALES = 2 * RANK + 2


@pytest.fixture(scope='module', name='processes')
def processes_fixture():
  return {bits: QuantizedSumFactory(bits).create(VALUE) for bits in BITS}


def _value(seed):
  """Ranks that differ by a factor of 1,000 each."""
  rng = np.random.default_rng(seed)
  sizes = 1000.0 ** np.arange(RANK)
  a, b = rng.normal(size=(RANK, D_IN)), rng.normal(size=(D_OUT, RANK))
  return collections.OrderedDict(
    module=LoraFactors(np.float32(a * sizes[:, np.newaxis]), np.float32(b * sizes)),
    bias=rng.normal(size=D_OUT),
    number=np.float32(rng.normal()),
  )


def _sum(process, values):
  return process.next(process.initialize(), values).result


def _parts(value):
  """What shares a scale, one array each."""
  a, b = value['module']
  return [*np.asarray(a), *np.asarray(b).T, np.asarray(value['bias']), np.asarray(value['number'])]


@pytest.mark.parametrize('bits', BITS)
def test_every_number_is_off_by_less_than_a_step_of_its_own_scale(processes, bits):
  value = _value(0)
  result = _sum(processes[bits], [value])
  assert np.asarray(result['bias']).dtype == np.float64
  for got, sent in zip(_parts(result), _parts(value), strict=True):
    largest = np.abs(sent).max()
    assert np.abs(got - sent).max() <= largest / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(np.abs(got).max(), largest, rtol=1e-6)
  off = [np.abs(g - s).max() for g, s in zip(_parts(result), _parts(value), strict=True)]
  assert max(off) > 0


@pytest.mark.parametrize('bits', BITS)
def test_a_sum_is_of_all_clients_and_zeros_stay_zeros(processes, bits):
  values = [_value(seed) for seed in range(4)]
  for value in values:
    value['module'].a[2], value['module'].b[:, 2] = 0, 0
  result = _sum(processes[bits], values)
  assert not np.any(result['module'].a[2])
  assert not np.any(result['module'].b[:, 2])
  exact = np.sum([v['module'].a for v in values], 0)
  steps = np.sum([np.abs(v['module'].a).max(1) for v in values], 0) / (2 ** (bits - 1) - 1)
  assert np.all(np.abs(result['module'].a - exact) <= steps[:, np.newaxis] + 1e-6)


def test_the_mean_over_draws_is_the_number():
  """Other draws come from another first number."""
  number, draws = 0.3, 2000
  process = QuantizedSumFactory(4).create(tff.TensorType(np.float32, [40]))
  values = [np.float32([1 + 1e-6 * k, *[number] * 39]) for k in range(draws)]
  mean = _sum(process, values)[1:] / draws
  # 2.1 steps: 2 nine times out of ten, else 3.
  deviation = 0.3 / 7 / draws**0.5
  assert np.abs(mean - number).max() < 5 * deviation
  assert np.std(mean) > deviation / 2


@pytest.mark.parametrize('bits', BITS)
def test_a_round_that_is_run_again_is_the_same(processes, bits):
  first, again = (_sum(processes[bits], [_value(0)]) for _ in range(2))
  for one, other in zip(_parts(first), _parts(again), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_counts_as_zeros(processes, bad):
  broken = _value(1)
  broken['bias'][1] = bad
  alone, beside = (_sum(processes[8], values) for values in ([_value(0)], [_value(0), broken]))
  for one, other in zip(_parts(alone), _parts(beside), strict=True):
    np.testing.assert_array_equal(one, other)
  assert not any(np.any(part) for part in _parts(_sum(processes[8], [])))


@pytest.mark.parametrize(('bits', 'size'), [(4, (NUMBERS + 1) // 2), (8, NUMBERS), (16, NUMBERS)])
def test_two_tensors_leave_a_client(bits, size):
  sent = quantized_sum.build_message(VALUE, bits).type_signature.result
  dtype = {4: np.uint8, 8: np.int8, 16: np.int16}[bits]
  assert sent == tff.to_type(
    collections.OrderedDict(integers=(dtype, [size]), scales=(np.float32, [SCALES]))
  )
  assert quantized_sum.num_scales(VALUE) == SCALES


def test_other_bits_and_values_are_refused():
  with pytest.raises(ValueError, match='`bits` must be one of 4, 8, 16, got 5'):
    QuantizedSumFactory(5)
  for value_type in (tff.TensorType(np.int32, [3]), tff.TensorType(np.float32, [None])):
    with pytest.raises(TypeError, match='floats of known shapes'):
      QuantizedSumFactory(8).create(value_type)
