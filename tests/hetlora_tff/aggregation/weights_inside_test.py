# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from hypothesis import strategies as st

from hetlora_tff.aggregation.weights_inside import SummedDenominatorFactory, WeightInsideFactory
from privacy import DpSpec, build_dp_aggregator, build_dp_sum
from privacy.clipping import clip_to_norm

pytestmark = pytest.mark.usefixtures('tff_runtime')

VALUE = tff.to_type(
  collections.OrderedDict(
    first=collections.OrderedDict(a=(np.float32, [2]), b=(np.float32, [1, 2])),
    second=collections.OrderedDict(a=(np.float32, [3])),
  )
)
SCALAR = tff.TensorType(np.float32)
MODULE = tff.to_type(collections.OrderedDict(first=np.float32, second=np.float32))
CLIP = 2.0
NORMALISER = 4.0
SCALE = 0.5


def _value(numbers):
  numbers = np.asarray(numbers, np.float32)
  return collections.OrderedDict(
    first=collections.OrderedDict(a=numbers[:2], b=numbers[2:4].reshape(1, 2)),
    second=collections.OrderedDict(a=numbers[4:]),
  )


def _numbers(structure):
  """All numbers in one vector; TFF returns a record's members in dictionaries."""
  return np.concatenate([np.ravel(t) for t in tf.nest.flatten(structure)]).astype(np.float64)


def _module(first, second):
  return collections.OrderedDict(first=np.float32(first), second=np.float32(second))


def _identity(structure):
  return structure


def _inside(weight_type, inner=None, clip=None, **kwargs):
  clip = clip or clip_to_norm(CLIP)
  inner = inner or tff.aggregators.SumFactory()
  return WeightInsideFactory(inner, NORMALISER, clip, **kwargs).create(VALUE, weight_type)


def _noised(weight_type, inner=None, clip=None, floor=0.5):
  """A process that measures the sum of the records."""
  inner = tff.aggregators.add_measurements(
    inner or build_dp_sum(DpSpec(0.0, 1.0, 1.0)), server_measurement_fn=lambda record: record
  )
  clip = clip or clip_to_norm(CLIP)
  factory = SummedDenominatorFactory(inner, NORMALISER, clip, CLIP, SCALE, floor)
  return factory.create(VALUE, weight_type)


def _next(process, values, weights):
  return process.next(process.initialize(), [_value(v) for v in values], weights)


@pytest.fixture(scope='module')
def inside():
  return {'scalar': _inside(SCALAR), 'module': _inside(MODULE)}


@pytest.fixture(scope='module')
def noised():
  return {'scalar': _noised(SCALAR), 'module': _noised(MODULE)}


def test_two_clients_by_hand():
  values = [np.ones(7), np.full(7, 2.0)]
  process = _inside(SCALAR, clip=_identity, mean_weight=0.5)
  result = _next(process, values, [np.float32(1), np.float32(6)]).result
  np.testing.assert_allclose(_numbers(result), np.full(7, (0.25 * 1 + 1 * 2) / 0.5))
  process = _inside(MODULE, clip=_identity)
  result = _next(process, values, [_module(1, 2), _module(8, -1)]).result
  np.testing.assert_allclose(_numbers(result), [2.25] * 4 + [0.5] * 3)


def test_the_weight_is_not_lost_in_the_clip(inside):
  # Both far above the bound: weighing first would make their norms equal.
  norms = [
    np.linalg.norm(_numbers(_next(inside['scalar'], [np.full(7, 1e3)], [np.float32(w)]).result))
    for w in (1, 2)
  ]
  np.testing.assert_allclose(norms, [CLIP / 4, CLIP / 2], rtol=1e-6)


def test_a_noised_denominator_by_hand():
  process = _noised(MODULE, tff.aggregators.SumFactory(), _identity, floor=1.0)
  values = [np.ones(7), np.full(7, 2.0)]
  output = _next(process, values, [_module(4, 1), _module(2, 1)])
  np.testing.assert_allclose(_numbers(output.measurements['numerator']), [1] * 4 + [0.375] * 3)
  np.testing.assert_allclose(_numbers(output.measurements['denominator']), [0.75, 0.25])
  np.testing.assert_allclose(_numbers(output.result), [2 / 1.5] * 4 + [0.75 / 1.0] * 3)


WEIGHTS = {'scalar': np.float32(1e9), 'module': _module(1e9, 1e9)}


@pytest.mark.parametrize('kind', ['scalar', 'module'])
def test_the_worst_client_moves_the_sum_by_the_clip(inside, kind):
  others, weights = [np.ones(7), -np.ones(7)], [WEIGHTS[kind]] * 3
  before = _next(inside[kind], others, weights[:2]).result
  after = _next(inside[kind], [*others, np.full(7, 1e9)], weights).result
  moved = np.linalg.norm(_numbers(after) - _numbers(before))
  np.testing.assert_allclose(moved, CLIP, rtol=1e-5)


@pytest.mark.parametrize('kind', ['scalar', 'module'])
def test_the_worst_client_moves_the_noised_release_by_one(noised, kind):
  others, weights = [np.ones(7), -np.ones(7)], [WEIGHTS[kind]] * 3
  before = _next(noised[kind], others, weights[:2]).measurements
  after = _next(noised[kind], [*others, np.full(7, 1e9)], weights).measurements
  moved = np.linalg.norm(_numbers(after) - _numbers(before))
  np.testing.assert_allclose(moved, 1.0, rtol=1e-5)


NUMBERS = st.floats(-1e30, 1e30) | st.sampled_from([np.nan, np.inf, -np.inf, 1e38, 0.0])


@hypothesis.settings(max_examples=12)
@hypothesis.given(
  numbers=st.lists(NUMBERS, min_size=7, max_size=7), weights=st.tuples(NUMBERS, NUMBERS)
)
def test_no_client_moves_anything_further(inside, noised, numbers, weights):
  for kind, weight in (('scalar', np.float32(weights[0])), ('module', _module(*weights))):
    result = _numbers(_next(inside[kind], [numbers], [weight]).result)
    assert np.linalg.norm(result) <= CLIP * (1 + 1e-6)
    release = _numbers(_next(noised[kind], [numbers], [weight]).measurements)
    assert np.linalg.norm(release) <= 1 + 1e-6


@pytest.mark.parametrize('kind', ['scalar', 'module'])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_client_that_is_not_finite_contributes_zeros(inside, noised, kind, bad):
  good = np.arange(7) / 7
  one, nothing = {'scalar': (np.float32(1), np.float32(bad)), 'module': (_module(1, 1),) * 2}[kind]
  nothing = _module(1, bad) if kind == 'module' else nothing
  for process in (inside[kind], noised[kind]):
    alone = _next(process, [good], [one]).result
    with_bad_value = _next(process, [good, [bad, *good[1:]]], [one, one]).result
    with_bad_weight = _next(process, [good, good], [one, nothing]).result
    np.testing.assert_array_equal(_numbers(alone), _numbers(with_bad_value))
    np.testing.assert_array_equal(_numbers(alone), _numbers(with_bad_weight))


def test_nobody_there_is_noise_and_not_a_division_by_zero():
  spec = DpSpec(noise_multiplier=1.0, l2_clip_norm=CLIP, clients_per_round=4.0)
  unit = DpSpec(noise_multiplier=1.0, l2_clip_norm=1.0, clients_per_round=4.0)
  for process in (
    _inside(SCALAR, build_dp_aggregator(spec), mean_weight=0.5),
    _noised(MODULE, build_dp_sum(unit)),
  ):
    result = _numbers(_next(process, [], []).result)
    assert np.all(np.isfinite(result))
    assert np.all(result != 0)
  stock = tff.aggregators.MeanFactory().create(VALUE, SCALAR)
  assert np.all(np.isnan(_numbers(_next(stock, [], []).result)))


def test_a_noised_denominator_below_the_floor_is_the_floor(noised):
  # w = 1/40, far below the floor of 0.5: the result is S g / S / 0.5.
  result = _numbers(_next(noised['scalar'], [np.full(7, 0.1)], [np.float32(0.1)]).result)
  np.testing.assert_allclose(result, np.full(7, 0.1 / 40 / 0.5), rtol=1e-5)


def test_noised_results_follow_the_weights():
  spec = DpSpec(0.01, CLIP, 2.0, insecure_seed=3)
  unit = DpSpec(0.01, 1.0, 2.0, insecure_seed=3)
  for process in (_inside(SCALAR, build_dp_aggregator(spec)), _noised(SCALAR, build_dp_sum(unit))):
    values = [np.full(7, 0.5), np.full(7, -0.5)]
    results = [
      _numbers(_next(process, values, list(np.float32(weights))).result)
      for weights in ([4, 1], [4, 1], [1, 4])
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert np.all(results[0] > 0.05)
    assert np.all(results[2] < -0.05)


def test_no_sum_but_the_inner_one():
  secure = tff.aggregators.SecureSumFactory(upper_bound_threshold=1.0)
  for process in (
    _inside(MODULE, secure),
    _noised(MODULE, secure),
    _inside(SCALAR, build_dp_aggregator(DpSpec(1.0, CLIP, 2.0), secure)),
  ):
    tff.test.assert_not_contains_unsecure_aggregation(process.next)


@pytest.mark.parametrize(
  ('name', 'value'),
  [('normaliser', 0.0), ('normaliser', np.inf), ('mean_weight', 0.0), ('mean_weight', 1.5)],
)
def test_weight_inside_names_the_argument(name, value):
  arguments = {'normaliser': 1.0, 'clip': _identity, name: value}
  with pytest.raises(ValueError, match=name):
    WeightInsideFactory(tff.aggregators.SumFactory(), **arguments)


@pytest.mark.parametrize('name', ['normaliser', 'l2_clip_norm', 'denominator_scale', 'floor'])
def test_a_noised_denominator_names_the_argument(name):
  numbers = dict.fromkeys(('normaliser', 'l2_clip_norm', 'denominator_scale', 'floor'), 1.0)
  numbers[name] = -1.0
  with pytest.raises(ValueError, match=name):
    SummedDenominatorFactory(tff.aggregators.SumFactory(), clip=_identity, **numbers)


@pytest.mark.parametrize('factory', [_inside, _noised])
def test_refuses_weights_of_another_kind(factory):
  for weight_type in (tff.TensorType(np.int32), tff.to_type(collections.OrderedDict(x=np.float32))):
    with pytest.raises(TypeError, match='eights'):
      factory(weight_type, tff.aggregators.SumFactory())
