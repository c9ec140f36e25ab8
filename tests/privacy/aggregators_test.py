# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections
import dataclasses

import dp_accounting
import numpy as np
import pytest
import tensorflow_federated as tff

# No public name reads the event out of an aggregator's state.
from tensorflow_federated.python.aggregators import differential_privacy

from hetlora_tff import aggregation
from hetlora_tff.adapters.factors import LoraFactors
from privacy.aggregators import build_dp_aggregator, build_dp_sum
from privacy.banded import banded_coefficients
from privacy.events import round_event
from privacy.spec import Clipping, DpSpec, Mechanism, Relation, Sampling
from tests.privacy.scale import check_scale, check_uncorrelated

pytestmark = pytest.mark.usefixtures('tff_runtime')

SHAPE = [60, 50]
VALUE = tff.to_type(
  collections.OrderedDict(
    factors=LoraFactors(a=tff.TensorType(np.float32, SHAPE), b=tff.TensorType(np.float32, SHAPE)),
    bias=(np.float32, SHAPE),
  )
)
Z, CLIP, CLIENTS = 2.0, 3.0, 25.0
CORRELATED = {'sampling': Sampling.MIN_SEPARATION, 'min_separation': 3}
SPECS = {
  'gaussian': DpSpec(Z, CLIP, CLIENTS),
  'adaptive': DpSpec(Z, CLIP, CLIENTS, clipping=Clipping.ADAPTIVE),
  'tree': DpSpec(Z, CLIP, CLIENTS, Mechanism.TREE, **CORRELATED),
  'restarted_tree': DpSpec(Z, CLIP, CLIENTS, Mechanism.TREE, restart_every=2, **CORRELATED),
  'banded': DpSpec(Z, CLIP, CLIENTS, Mechanism.BANDED, **CORRELATED),
}
# Of the first round, in units of z S: the count of an adaptive clip takes its part, TFF's
# `clipped_count_stddev` being n / 20; a banded matrix has columns of norm 1.
FIRST_SCALE = dict.fromkeys(SPECS, 1.0) | {
  'adaptive': (Z**-2 - (0.1 * CLIENTS) ** -2) ** -0.5 / Z,
  'banded': np.linalg.norm(banded_coefficients(3)),
}


# A restart changes which nodes a tree has, and neither mean nor keys.
_UNRESTARTED = [name for name in SPECS if name != 'restarted_tree']


def _value(*fills):
  a, b, bias = (np.full(SHAPE, fill, np.float32) for fill in fills)
  return collections.OrderedDict(factors=LoraFactors(a, b), bias=bias)


def _numbers(result):
  return np.float64([result['factors'].a, result['factors'].b, result['bias']])


def _rounds(process, count, state=None):
  """Numbers of rounds without clients, the last state and measurements."""
  state = process.initialize() if state is None else state
  results, measurements = [], None
  for _ in range(count):
    output = process.next(state, [])
    state, measurements = output.state, output.measurements
    results.append(_numbers(output.result))
  return np.array(results), state, measurements


@pytest.fixture(scope='module', params=SPECS)
def name(request):
  return request.param


@pytest.fixture(scope='module')
def sums():
  return {name: build_dp_sum(spec).create(VALUE) for name, spec in SPECS.items()}


@pytest.fixture(scope='module')
def quiet():
  """Processes of the specs without noise."""
  specs = {name: dataclasses.replace(spec, noise_multiplier=0.0) for name, spec in SPECS.items()}
  return {name: build_dp_sum(spec).create(VALUE) for name, spec in specs.items()}


def test_noise_has_the_scale_and_no_correlation(name, sums):
  stddev = Z * CLIP * FIRST_SCALE[name]
  results, _, _ = _rounds(sums[name], 1)
  check_scale(results[0], stddev)
  check_uncorrelated(results[0, 0], results[0, 1])
  check_uncorrelated(results[0, 1], results[0, 2])
  again, _, _ = _rounds(sums[name], 1)
  check_scale(again, stddev)
  check_uncorrelated(results[0], again[0])


def test_independent_noise_differs_from_round_to_round(sums):
  for name in ('gaussian', 'adaptive'):
    results, state, _ = _rounds(sums[name], 2)
    check_uncorrelated(*results)
    # Run again from one state, as after a kill.
    check_uncorrelated(_rounds(sums[name], 1, state)[0], _rounds(sums[name], 1, state)[0])


def test_correlated_noise_repeats_from_a_state(sums):
  for name in ('tree', 'restarted_tree', 'banded'):
    _, state, _ = _rounds(sums[name], 1)
    first, second = (_rounds(sums[name], 2, state)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_sums_of_a_tree_have_less_noise(sums):
  results, _, _ = _rounds(sums['tree'], 4)
  cumulative = np.cumsum(results, 0)
  # Honaker's estimate of a full tree of height h: 1 / (2 - 2^-h) of a node's variance.
  for leaf, variance in [(1, 1), (2, 2 / 3), (3, 5 / 3), (4, 4 / 7)]:
    check_scale(cumulative[leaf - 1], Z * CLIP * np.sqrt(variance))
  restarted, _, _ = _rounds(sums['restarted_tree'], 4)
  check_scale(restarted[:2].sum(0), Z * CLIP * np.sqrt(2 / 3))
  check_scale(restarted[2:].sum(0), Z * CLIP * np.sqrt(2 / 3))
  check_uncorrelated(restarted[:2].sum(0), restarted[2:].sum(0))


@pytest.mark.parametrize('name', _UNRESTARTED)
def test_the_mean_divides_by_the_public_number(name):
  process = build_dp_aggregator(SPECS[name]).create(VALUE)
  state = process.initialize()
  check_scale(_numbers(process.next(state, []).result), Z * CLIP * FIRST_SCALE[name] / CLIENTS)


def test_the_number_of_clients_that_came_divides_nothing():
  quiet = DpSpec(0.0, CLIP, CLIENTS)
  process = build_dp_aggregator(quiet).create(VALUE)
  for clients in (1, 3):
    result = process.next(process.initialize(), [_value(1e-3, 2e-3, 0)] * clients).result
    np.testing.assert_allclose(result['factors'].b, np.full(SHAPE, clients * 2e-3 / CLIENTS))


def test_a_projection_scales_the_noise_to_its_cohort():
  projected = {'population_size': 10_000, 'noise_cohort_size': 100}
  spec = dataclasses.replace(SPECS['gaussian'], **projected)
  results, _, _ = _rounds(build_dp_sum(spec).create(VALUE), 1)
  check_scale(results, Z * CLIP / 4)
  # Too few clients for an adaptive clip here, not in production.
  spec = DpSpec(Z, CLIP, 5.0, clipping=Clipping.ADAPTIVE, **projected)
  results, state, _ = _rounds(build_dp_sum(spec).create(VALUE), 1)
  check_scale(results, CLIP * (Z**-2 - 10.0**-2) ** -0.5 / 20)
  count = differential_privacy.extract_dp_event_from_state(state).events[1]
  # A standard deviation of n / 20 on a sum of +-0.5.
  np.testing.assert_allclose(count.noise_multiplier, 5.0 / 20 / 0.5)


def test_the_worst_client_moves_the_sum_by_the_clip(name, quiet):
  process = quiet[name]
  state = process.initialize()
  others = [_value(1e-3, 0, 0), _value(0, -9, 9)]
  before = _numbers(process.next(state, others).result)
  for worst in (_value(0, 0, 1e9), _value(-1, 1, -1), _value(1e30, 1e30, 3e38)):
    after = _numbers(process.next(state, [*others, worst]).result)
    np.testing.assert_allclose(np.linalg.norm(after - before), CLIP, rtol=1e-6)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_client_that_is_not_finite_contributes_zeros(name, quiet, bad):
  process = quiet[name]
  state = process.initialize()
  before, after = (
    _numbers(process.next(state, [_value(1e-3, 2, 0), *more]).result)
    for more in ([], [_value(1, bad, 1)])
  )
  np.testing.assert_array_equal(before, after)


def test_the_event_of_the_state_is_that_of_the_spec(sums):
  for relation in (Relation.ZERO_OUT_ONE, Relation.REPLACE_ONE):
    for name in ('gaussian', 'adaptive'):
      spec = dataclasses.replace(SPECS[name], relation=relation)
      _, state, _ = _rounds(sums[name], 1)
      event = differential_privacy.extract_dp_event_from_state(state)
      parts = event.events if isinstance(event, dp_accounting.ComposedDpEvent) else [event]
      # Gaussians compose to one of the inverse root of the summed squared inverses.
      multiplier = np.sum([float(part.noise_multiplier) ** -2 for part in parts]) ** -0.5
      moved = 2 if relation is Relation.REPLACE_ONE else 1
      expected = round_event(spec, amplified=False)
      assert isinstance(expected, dp_accounting.GaussianDpEvent)
      np.testing.assert_allclose(multiplier / moved, expected.noise_multiplier, rtol=1e-6)


def test_correlated_noise_has_no_event_of_a_round(sums):
  for name in ('tree', 'banded'):
    _, state, _ = _rounds(sums[name], 1)
    event = differential_privacy.extract_dp_event_from_state(state)
    assert isinstance(event, dp_accounting.UnsupportedDpEvent)


def test_an_adaptive_clip_is_released_once(sums):
  # Were the count's noise drawn once for the state and once for the measurement, their mean would
  # tell more than is accounted.
  _, state, measurements = _rounds(sums['adaptive'], 3)
  assert state.query_state.sum_state.l2_norm_clip == measurements['dp_query_metrics']['clip']
  assert (
    state.query_state.quantile_estimator_state.current_estimate
    == (measurements['dp_query_metrics']['clip'])
  )


def test_an_adaptive_clip_follows_the_clients():
  spec = DpSpec(0.0, CLIP, 4.0, clipping=Clipping.ADAPTIVE, clip_learning_rate=0.5)
  process = build_dp_sum(spec).create(VALUE)
  state = process.initialize()
  state = process.next(state, [_value(1e-3, 0, 0)] * 3 + [_value(1, 0, 0)]).state
  np.testing.assert_allclose(
    state.query_state.sum_state.l2_norm_clip, CLIP * np.exp(-0.5 * 0.25), rtol=1e-6
  )


@pytest.mark.parametrize('name', _UNRESTARTED)
def test_seeded_noise_repeats(name):
  spec = dataclasses.replace(SPECS[name], insecure_seed=7)
  runs = [_rounds(build_dp_sum(spec).create(VALUE), 2)[0] for _ in range(2)]
  np.testing.assert_array_equal(*runs)
  # The rounds of a tree and of a band are correlated by design.
  if name in ('gaussian', 'adaptive'):
    check_uncorrelated(*runs[0])


def test_seeded_noise_of_sum_and_count_differ():
  spec = dataclasses.replace(SPECS['adaptive'], insecure_seed=7)
  results, _, measurements = _rounds(build_dp_sum(spec).create(VALUE), 1)
  # The clip changes by the factor exp(-0.2 noise of the count / n).
  count_noise = np.log(measurements['dp_query_metrics']['clip'] / CLIP) / -0.2 * 20
  first_entries = results[0, :, 0, 0] / (Z * CLIP * FIRST_SCALE['adaptive'])
  assert np.all(np.abs(first_entries - count_noise) > 1e-3)


def test_an_inner_sum_replaces_the_plain_one():
  secure = tff.aggregators.SecureSumFactory(upper_bound_threshold=CLIP)
  for build in (build_dp_sum, build_dp_aggregator):
    tff.test.assert_not_contains_unsecure_aggregation(
      build(SPECS['gaussian'], secure).create(VALUE).next
    )


@pytest.mark.parametrize('build', [build_dp_sum, build_dp_aggregator])
def test_refuses_weights_which_tff_would_drop(build):
  for inner in (tff.aggregators.MeanFactory(), aggregation.SparsityWeightedMeanFactory()):
    with pytest.raises(TypeError, match='TFF would drop the weights'):
      build(SPECS['gaussian'], inner)


@pytest.mark.parametrize('build', [build_dp_sum, build_dp_aggregator])
def test_an_adaptive_clip_needs_many_clients(build):
  too_few = dataclasses.replace(SPECS['adaptive'], clients_per_round=20.0)
  with pytest.raises(ValueError, match=r'more than 10 \* noise_multiplier = 20 clients'):
    build(too_few)
  build(dataclasses.replace(too_few, clients_per_round=20.1))


@pytest.mark.parametrize(
  'value_type',
  [
    tff.TensorType(np.int32),
    tff.TensorType(np.float64, [2]),
    tff.TensorType(np.float32, [None, 2]),
    tff.SequenceType(np.float32),
    tff.to_type([]),
  ],
)
def test_refuses_other_values(value_type):
  with pytest.raises(TypeError, match='float32'):
    build_dp_sum(SPECS['gaussian']).create(value_type)


# The coverage mean: rows are averaged over the expected number of clients that hold them.

FACTORS = tff.to_type(
  collections.OrderedDict(
    only=LoraFactors(
      a=tff.TensorType(np.float32, [3, 1000]), b=tff.TensorType(np.float32, [1000, 3])
    )
  )
)


def _coverage(spec, expected):
  factory = aggregation.RankCoverageMeanFactory(
    expected,
    value_sum_factory=build_dp_sum(spec),
    count_sum_factory=aggregation.WithheldSumFactory(),
  )
  return factory.create(FACTORS, tff.TensorType(np.float32, [3]))


def _factors(fill):
  a, b = np.full([3, 1000], fill, np.float32), np.full([1000, 3], fill, np.float32)
  return collections.OrderedDict(only=LoraFactors(a, b))


def test_coverage_divides_the_noise_by_the_expected_clients():
  process = _coverage(DpSpec(Z, CLIP, CLIENTS), [8.0, 2.0, 0.0])
  result = process.next(process.initialize(), [], []).result['only']
  for rows in (result.a, result.b.T):
    check_scale(rows[0], Z * CLIP / 8)
    check_scale(rows[1], Z * CLIP / 2)
    np.testing.assert_array_equal(rows[2], np.zeros(1000))


def test_coverage_clips_each_client_before_the_division():
  process = _coverage(DpSpec(0.0, CLIP, CLIENTS), [8.0, 2.0, 0.0])
  others = [_factors(1e-3)], [np.float32([1, 1, 0])]
  before = process.next(process.initialize(), *others)
  for worst, weight in [(1e9, [1, 1, 0]), (3e38, [1, 0, 0]), (-7, [0, 1, 1]), (1, [1e9, 1, 1])]:
    after = process.next(
      process.initialize(), [*others[0], _factors(worst)], [*others[1], np.float32(weight)]
    )
    moved = [
      (np.float64(getattr(after.result['only'], f)) - getattr(before.result['only'], f)) * scale
      for f, scale in (('a', np.array([[8], [2], [0]])), ('b', np.array([[8, 2, 0]])))
    ]
    norm = np.sqrt(sum(np.sum(np.square(m)) for m in moved))
    # The row that nobody is expected to hold takes its part of the clip, and is not released.
    held = np.sum(np.asarray(weight) > 0)
    released = np.sum(np.asarray(weight[:2]) > 0)
    np.testing.assert_allclose(norm, CLIP * np.sqrt(released / held), rtol=1e-5)
    assert after.measurements['non_finite_clients'] == 0


def test_coverage_leaves_out_a_client_that_is_not_finite():
  process = _coverage(DpSpec(0.0, CLIP, CLIENTS), [8.0, 2.0, 1.0])
  values, weights = [_factors(1e-3), _factors(np.inf)], [np.ones(3, np.float32)] * 2
  results = [
    process.next(process.initialize(), values[:n], weights[:n]).result['only'].a for n in (1, 2)
  ]
  np.testing.assert_array_equal(*results)
