# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.adapters.layout import TrainedFactors
from hetlora_tff.aggregation.held_rows import keep_held_rows
from privacy import DpSpec, build_dp_sum

pytestmark = pytest.mark.usefixtures('tff_runtime')

# Modules of rank 4 and 1; the devices hold 2.
FACTORS = collections.OrderedDict(
  wide=LoraFactors(a=np.ones([4, 3], np.float32), b=np.ones([5, 4], np.float32)),
  narrow=LoraFactors(a=np.ones([1, 3], np.float32), b=np.ones([5, 1], np.float32)),
)
HELD = np.array([1, 1, 0, 0])
MESSAGES = {
  TrainedFactors.BOTH: FACTORS,
  TrainedFactors.B: collections.OrderedDict((path, f.b) for path, f in FACTORS.items()),
  TrainedFactors.ALTERNATING: collections.OrderedDict(
    (path, np.ones([f.a.shape[0], 5], np.float32)) for path, f in FACTORS.items()
  ),
}


def _type_of(message):
  """TFF type of a message."""
  return tff.to_type(
    collections.OrderedDict(
      (
        path,
        LoraFactors(*((m.dtype, m.shape) for m in entry))
        if isinstance(entry, LoraFactors)
        else (entry.dtype, entry.shape),
      )
      for path, entry in message.items()
    )
  )


def _run(inner, trained, *weights, clients=None):
  process = keep_held_rows(inner, trained, 2).create(
    _type_of(MESSAGES[trained]), *(tff.TensorType(np.float32) for _ in weights)
  )
  values = [MESSAGES[trained]] * 2 if clients is None else clients
  return process.next(process.initialize(), values, *weights).result


def _rows(trained, entry):
  """The matrices of an entry with the rank first."""
  if trained is TrainedFactors.BOTH:
    return [entry.a, entry.b.T]
  return [entry.T if trained is TrainedFactors.B else entry]


@pytest.mark.parametrize('trained', TrainedFactors)
def test_rows_that_no_device_holds_are_zero(trained):
  result = _run(tff.aggregators.SumFactory(), trained)
  for rows in _rows(trained, result['wide']):
    np.testing.assert_array_equal(rows, np.outer(2 * HELD, np.ones(rows.shape[1])))
  for rows in _rows(trained, result['narrow']):
    np.testing.assert_array_equal(rows, np.full(rows.shape, 2))


def test_a_weighted_factory_stays_weighted():
  factory = keep_held_rows(tff.aggregators.MeanFactory(), TrainedFactors.BOTH, 2)
  assert isinstance(factory, tff.aggregators.WeightedAggregationFactory)
  weights = [np.float32(1), np.float32(3)]
  result = _run(tff.aggregators.MeanFactory(), TrainedFactors.BOTH, weights)
  np.testing.assert_array_equal(result['wide'].a[:, 0], HELD)


def test_noise_stays_in_the_rows_that_are_held():
  spec = DpSpec(noise_multiplier=1.0, l2_clip_norm=1.0, clients_per_round=2.0)
  result = _run(build_dp_sum(spec), TrainedFactors.BOTH, clients=[])
  for rows in _rows(TrainedFactors.BOTH, result['wide']):
    np.testing.assert_array_equal(np.all(rows != 0, axis=1), HELD == 1)
    np.testing.assert_array_equal(np.any(rows != 0, axis=1), HELD == 1)


def test_measurements_are_those_of_the_inner_factory():
  inner = tff.aggregators.add_measurements(
    tff.aggregators.SumFactory(), server_measurement_fn=lambda result: result
  )
  process = keep_held_rows(inner, TrainedFactors.B, 2).create(_type_of(MESSAGES[TrainedFactors.B]))
  output = process.next(process.initialize(), [MESSAGES[TrainedFactors.B]])
  np.testing.assert_array_equal(output.measurements['wide'], np.ones([5, 4]))
  np.testing.assert_array_equal(output.result['wide'][0], HELD)


def test_refuses_what_is_no_message():
  with pytest.raises(ValueError, match='held_rank'):
    keep_held_rows(tff.aggregators.SumFactory(), TrainedFactors.B, 0)
  for trained in TrainedFactors:
    for value_type in (tff.TensorType(np.float32, [4, 3]), tff.to_type([(np.float32, [4, 3])])):
      with pytest.raises(TypeError):
        keep_held_rows(tff.aggregators.SumFactory(), trained, 2).create(value_type)
  with pytest.raises(TypeError, match='matrix by module'):
    keep_held_rows(tff.aggregators.SumFactory(), TrainedFactors.B, 2).create(_type_of(FACTORS))
