# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections
import dataclasses

import numpy as np
import pytest
import tensorflow_federated as tff

# No public name reads the event out of an aggregator's state.
from tensorflow_federated.python.aggregators import differential_privacy

from hetlora_tff.adapters.factors import LoraFactors
from privacy.aggregators import build_dp_aggregator, build_dp_sum
from privacy.events import round_event
from privacy.secure_aggregators import build_secure_aggregator
from privacy.secure_sum import Rounding, SecureSumSpec
from privacy.spec import Clipping, DpSpec, Mechanism, Sampling
from tests.privacy.scale import check_scale

pytestmark = pytest.mark.usefixtures('tff_runtime')

SHAPE = [60, 20]
VALUE = tff.to_type(
  collections.OrderedDict(
    factors=LoraFactors(a=tff.TensorType(np.float32, SHAPE), b=tff.TensorType(np.float32, SHAPE)),
    bias=(np.float32, SHAPE),
  )
)
ENTRIES = 3 * 60 * 20
Z, CLIP, CLIENTS = 2.0, 3.0, 25
# Coarse, so that rounding shows.
GRID = SecureSumSpec(8, CLIENTS, l2_clip_norm=CLIP, coordinates=ENTRIES)
CORRELATED = {'sampling': Sampling.MIN_SEPARATION, 'min_separation': 3, 'secure_sum': GRID}
ADAPTIVE_GRID = dataclasses.replace(GRID, l2_clip_norm=1.0, value_range=None)
SPECS = {
  'gaussian': DpSpec(Z, CLIP, CLIENTS, secure_sum=GRID),
  'adaptive': DpSpec(Z, CLIP, CLIENTS, clipping=Clipping.ADAPTIVE, secure_sum=ADAPTIVE_GRID),
  'tree': DpSpec(Z, CLIP, CLIENTS, Mechanism.TREE, **CORRELATED),
  'banded': DpSpec(Z, CLIP, CLIENTS, Mechanism.BANDED, **CORRELATED),
  'skellam': DpSpec(
    Z, CLIP, CLIENTS, Mechanism.SKELLAM, secure_sum=GRID, smallest_cohort=CLIENTS - 5
  ),
}


def _value(*fills):
  a, b, bias = (np.full(SHAPE, fill, np.float32) for fill in fills)
  return collections.OrderedDict(factors=LoraFactors(a, b), bias=bias)


def _numbers(result):
  return np.float64([result['factors'].a, result['factors'].b, result['bias']])


def _sum(process, values, state=None):
  state = process.initialize() if state is None else state
  return _numbers(process.next(state, values).result)


def _lowered(process):
  """The form in which a production system takes the process."""

  @tff.federated_computation(process.next.type_signature.parameter)
  def next_fn(state, value):
    output = process.next(state, value)
    return output.state, output.result

  return tff.backends.mapreduce.get_distribute_aggregate_form_for_computation(next_fn)


@pytest.fixture(scope='module', params=SPECS)
def name(request):
  return request.param


@pytest.fixture(scope='module')
def quiet():
  """Processes of the specs without noise."""
  specs = {name: dataclasses.replace(spec, noise_multiplier=0.0) for name, spec in SPECS.items()}
  # With one share of no noise, any cohort is released.
  specs['skellam'] = dataclasses.replace(specs['skellam'], smallest_cohort=1)
  return {name: build_dp_sum(spec).create(VALUE) for name, spec in specs.items()}


@pytest.fixture(scope='module')
def sums():
  return {name: build_dp_sum(spec).create(VALUE) for name, spec in SPECS.items()}


def test_a_private_secure_sum_lets_nothing_else_out(name, sums):
  tff.test.assert_not_contains_unsecure_aggregation(sums[name].next)
  assert isinstance(_lowered(sums[name]), tff.backends.mapreduce.DistributeAggregateForm)


# Both ways to a mean: by TFF's factory, and by the one whose clients make the noise.
@pytest.mark.parametrize('kind', ['gaussian', 'skellam'])
def test_a_private_secure_mean_lets_nothing_else_out(kind):
  process = build_dp_aggregator(SPECS[kind]).create(VALUE)
  tff.test.assert_not_contains_unsecure_aggregation(process.next)


def test_the_check_sees_a_plain_sum():
  process = build_dp_sum(dataclasses.replace(SPECS['gaussian'], secure_sum=None)).create(VALUE)
  with pytest.raises(AssertionError):
    tff.test.assert_not_contains_unsecure_aggregation(process.next)


def test_the_sum_is_that_of_the_values_up_to_rounding(name, quiet):
  values = [_value(0.01, -0.02, 0.03), _value(0.0, 0.02, 0.01), _value(-0.01, 0, 0.02)]
  total = _sum(quiet[name], values)
  expected = np.broadcast_to(np.float64([0, 0, 0.06])[:, np.newaxis, np.newaxis], total.shape)
  error = np.max(np.abs(total - expected))
  assert 0 < error < GRID.error_of_sum(3) + 1e-6
  np.testing.assert_array_equal(_sum(quiet[name], []), np.zeros([3, *SHAPE]))


def test_zeros_are_decoded_as_zeros(name, quiet):
  assert not np.any(_sum(quiet[name], [_value(0, 0, 0.05), _value(0, 0, 1e9)])[:2])


def test_the_worst_client_moves_the_sum_by_the_rounded_clip_at_most(name, quiet):
  others = [_value(1e-3, 0, 0), _value(0, -9, 9)]
  before = _sum(quiet[name], others)
  half = 0.5001 * GRID.step
  for worst in (_value(0, 0, 1e9), _value(half, -half, half), _value(1e30, 1e30, 3e38)):
    moved = np.linalg.norm(_sum(quiet[name], [*others, worst]) - before)
    assert moved <= GRID.rounded_clip * (1 + 1e-6)
  # Rounding takes it beyond the clip, which is why it is accounted.
  below_clip = 2.55 * GRID.step
  assert np.sqrt(ENTRIES * 2 / 3) * below_clip < CLIP
  moved = _sum(quiet[name], [*others, _value(below_clip, below_clip, 0)]) - before
  assert np.linalg.norm(moved) > CLIP * 1.05


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_client_that_is_not_finite_contributes_zeros(name, quiet, bad):
  value = _value(0.1, 0.02, 0)
  np.testing.assert_array_equal(
    _sum(quiet[name], [value]), _sum(quiet[name], [value, _value(1, bad, 1)])
  )


def test_the_servers_noise_is_that_of_a_plain_sum(sums):
  stddev = {
    'gaussian': Z * CLIP,
    'tree': Z * CLIP,
    'adaptive': CLIP * (Z**-2 - (0.1 * CLIENTS) ** -2) ** -0.5,
  }
  for name, scale in stddev.items():
    check_scale(_sum(sums[name], []), scale)


def test_an_adaptive_clip_takes_the_grid_with_it():
  spec = dataclasses.replace(SPECS['adaptive'], noise_multiplier=0.0, clip_learning_rate=1.0)
  process = build_dp_sum(spec).create(VALUE)
  state = process.initialize()
  clients = [_value(1, 1, 1)] * 20 + [_value(1e-5, 0, 0)] * 5
  for _ in range(3):
    clip = state.query_state.sum_state.l2_norm_clip
    output = process.next(state, clients)
    state = output.state
    # A fifth was below, by an exact count, and half are to be.
    np.testing.assert_allclose(
      state.query_state.sum_state.l2_norm_clip, clip * np.exp(0.5 - 0.2), rtol=1e-5
    )
    np.testing.assert_allclose(
      _numbers(output.result) / clip, 20 / np.sqrt(ENTRIES), atol=CLIENTS * ADAPTIVE_GRID.step
    )


def test_the_event_of_the_state_counts_the_inflation(sums):
  assert SPECS['gaussian'].inflation > 1.05
  for name in ('gaussian', 'adaptive'):
    state = sums[name].next(sums[name].initialize(), []).state
    event = differential_privacy.extract_dp_event_from_state(state)
    parts = getattr(event, 'events', [event])
    multiplier = np.sum([float(part.noise_multiplier) ** -2 for part in parts]) ** -0.5
    expected = round_event(SPECS[name], amplified=False)
    np.testing.assert_allclose(multiplier, expected.noise_multiplier, rtol=1e-6)


# Without noise: metrics and weights.

METRICS = tff.to_type(
  collections.OrderedDict(loss=(np.float64, [2]), examples=np.int32, factors=LoraFactors(
    a=tff.TensorType(np.float32, [2, 3]), b=tff.TensorType(np.float32, [3])
  ))
)  # fmt: skip


def _metrics(loss, examples):
  return collections.OrderedDict(
    loss=np.float64([loss, -loss]),
    examples=np.int32(examples),
    factors=LoraFactors(np.full([2, 3], loss, np.float32), np.zeros(3, np.float32)),
  )


@pytest.mark.parametrize('rounding', [Rounding.NEAREST, Rounding.STOCHASTIC])
def test_floats_are_rounded_and_integers_exact(rounding):
  spec = SecureSumSpec(12, 4, value_range=100.0, rounding=rounding)
  process = build_secure_aggregator(spec).create(METRICS)
  assert process.next.type_signature.result.result.member == METRICS
  tff.test.assert_not_contains_unsecure_aggregation(process.next)
  assert isinstance(_lowered(process), tff.backends.mapreduce.DistributeAggregateForm)
  values = [_metrics(1.23, 100), _metrics(-0.5, 7), _metrics(1e30, 2**31 - 1), _metrics(np.nan, 9)]
  output = process.next(process.initialize(), values)
  assert output.result['examples'] == 207
  for part in (output.result['loss'] * [1, -1], output.result['factors'].a):
    np.testing.assert_allclose(part, np.full_like(part, 100.73), atol=spec.error_of_sum(3))
  np.testing.assert_array_equal(output.result['factors'].b, np.zeros(3))
  empty = process.next(process.initialize(), [])
  assert empty.result['examples'] == 0
  np.testing.assert_array_equal(empty.result['loss'], np.zeros(2))


def test_the_largest_cohort_fits():
  spec = SecureSumSpec(4, 6, value_range=7.0)
  process = build_secure_aggregator(spec).create(tff.TensorType(np.int32))
  for end in (7, -7):
    assert process.next(process.initialize(), [end] * 6).result == 6 * end


def test_a_clip_holds_for_the_joint_norm():
  spec = SecureSumSpec(16, 3, l2_clip_norm=CLIP, coordinates=ENTRIES, rounding=Rounding.CONDITIONAL)
  process = build_secure_aggregator(spec).create(VALUE)
  for values in ([_value(9, -9, 9)], [_value(0, 0, 5), _value(0, 0, 1e30)]):
    excess = np.linalg.norm(_sum(process, values)) / len(values) - CLIP
    # Rounding is random: below the clip by some half steps, above it no further than the bound.
    assert -10 * spec.step < excess <= spec.rounded_clip - CLIP


@pytest.mark.parametrize(
  'value_type',
  [
    tff.TensorType(np.bool_),
    tff.TensorType(np.uint32),
    tff.TensorType(np.str_),
    tff.TensorType(np.float32, [None]),
    tff.SequenceType(np.float32),
    tff.to_type([]),
  ],
)
def test_refuses_other_values(value_type):
  with pytest.raises(TypeError, match='float or signed integer'):
    build_secure_aggregator(SecureSumSpec(8, 2, value_range=1.0)).create(value_type)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    (SecureSumSpec(8, 2, value_range=0.5), 'whole `value_range`, got 0.5'),
    (SecureSumSpec(8, 2, value_range=128.0), '128 need `bits` 9, got 8'),
    (GRID, 'is of floats'),
    (SecureSumSpec(8, 400, value_range=127.0), 'sum of 400 integers up to 127 .* int16'),
  ],
)
def test_refuses_integers_that_do_not_fit(spec, message):
  with pytest.raises(ValueError, match=message):
    build_secure_aggregator(spec).create(tff.TensorType(np.int16))


def test_integers_fit_with_the_bits_that_are_named():
  spec = SecureSumSpec(9, 2, value_range=128.0)
  process = build_secure_aggregator(spec).create(tff.TensorType(np.int16))
  assert process.next(process.initialize(), [np.int16(128), np.int16(-1)]).result == 127
