# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The bounds of a secure sum: of the norm after rounding, of the error, and of the modulus."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secure_sum import Rounding, SecureSumSpec


def _spec(**changes):
  return SecureSumSpec(
    **{'bits': 8, 'largest_cohort': 10, 'l2_clip_norm': 1.0, 'coordinates': 4, **changes}
  )


def _drawn(x, step, generator):
  """Each coordinate of `x` on one of the two grid points around it, with the right mean."""
  below = np.floor(x / step)
  return step * (below + (generator.random(x.shape) < x / step - below))


def _outward(x, step):
  """The grid point away from zero: the worst that any draw may do."""
  return step * np.sign(x) * np.ceil(np.abs(x) / step - 1e-9)


def test_grid_is_symmetric_with_the_range_at_its_end():
  spec = _spec(bits=8, value_range=2.54)
  assert spec.levels == 127
  assert spec.step == pytest.approx(0.02)
  assert _spec(bits=2).step == _spec(bits=2).l2_clip_norm == 1.0


def test_norms_after_rounding_by_hand():
  # R = S = 1.27 at 8 bits: s = 0.01; d = 400: sqrt(d) s = 0.2.
  spec = _spec(l2_clip_norm=1.27, coordinates=400)
  assert spec.rounded_clip == pytest.approx(1.37)
  assert dataclasses.replace(spec, rounding=Rounding.STOCHASTIC).rounded_clip == pytest.approx(1.47)
  # Prop. 22 of arXiv:2102.06387 at beta = e^-1/2, where sqrt(2 log(1 / beta)) = 1:
  # S^2 + s^2 d / 4 + s (S + s sqrt(d) / 2) = 1.6129 + 0.01 + 0.0137.
  conditional = dataclasses.replace(spec, rounding=Rounding.CONDITIONAL).rounded_clip
  assert conditional == pytest.approx(math.sqrt(1.6366))
  assert SecureSumSpec(8, 10, value_range=1.0).rounded_clip is None


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
  seed=st.integers(0, 2**32 - 1),
  bits=st.integers(2, 12),
  coordinates=st.integers(1, 300),
  spread=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_no_rounding_passes_its_norm(seed, bits, coordinates, spread):
  generator = np.random.default_rng(seed)
  x = generator.normal(size=coordinates) * np.exp(spread * generator.normal(size=coordinates))
  x /= np.linalg.norm(x) * (1 + 1e-12)
  spec = _spec(bits=bits, coordinates=coordinates)
  room = 1 + 1e-12
  nearest = spec.step * np.rint(x / spec.step)
  assert np.linalg.norm(nearest) <= spec.rounded_clip * room
  stochastic = dataclasses.replace(spec, rounding=Rounding.STOCHASTIC)
  assert np.linalg.norm(_outward(x, spec.step)) <= stochastic.rounded_clip * room


@pytest.mark.parametrize('coordinates', [1, 9, 1000])
def test_norms_after_rounding_are_attained(coordinates):
  # All coordinates alike, just above the middle of a cell, or just above a grid point.
  step = 0.01
  for rounding, place in ((Rounding.NEAREST, 3.5), (Rounding.STOCHASTIC, 3.0)):
    clip = (place + 1e-6) * step * math.sqrt(coordinates)
    spec = _spec(l2_clip_norm=clip, coordinates=coordinates, rounding=rounding, bits=12)
    spec = dataclasses.replace(spec, value_range=step * spec.levels)
    attained = np.linalg.norm(np.full(coordinates, 4 * step))
    assert 0.999 * spec.rounded_clip <= attained <= spec.rounded_clip


@pytest.mark.parametrize('coordinates', [16, 400, 10_000])
@pytest.mark.parametrize('place', [0.5, 0.1, 2.5, 20.02])
def test_conditional_rounding_keeps_its_norm_as_often_as_the_paper_says(coordinates, place):
  generator = np.random.default_rng(7)
  step = 1e-3
  x = np.full(coordinates, place * step)
  spec = _spec(
    bits=16,
    l2_clip_norm=float(np.linalg.norm(x)),
    value_range=step * (2**15 - 1),
    coordinates=coordinates,
    rounding=Rounding.CONDITIONAL,
  )
  norms = [np.linalg.norm(_drawn(x, spec.step, generator)) for _ in range(400)]
  kept = np.mean(np.array(norms) <= spec.rounded_clip)
  # 1 - beta = 0.393, minus four deviations of the count.
  assert kept >= 1 - math.exp(-0.5) - 4 * 0.5 / math.sqrt(400)


@pytest.mark.parametrize('bits', [2, 5, 16])
@pytest.mark.parametrize('coordinates', [1, 4, 10**6])
def test_conditions_pay(bits, coordinates):
  plain = _spec(bits=bits, coordinates=coordinates, rounding=Rounding.STOCHASTIC)
  conditional = dataclasses.replace(plain, rounding=Rounding.CONDITIONAL)
  assert 1 < conditional.rounded_clip < plain.rounded_clip


@pytest.mark.parametrize('rounding', [Rounding.NEAREST, Rounding.STOCHASTIC])
def test_error_of_a_sum_is_attained(rounding):
  spec = _spec(bits=8, value_range=1.27, rounding=rounding)
  # 30 clients, all just above the middle of a cell, or just above a grid point.
  value = (2.5 if rounding is Rounding.NEAREST else 2.0) * spec.step + 1e-9
  rounded = 3 * spec.step
  assert 30 * (rounded - value) == pytest.approx(spec.error_of_sum(30))
  assert spec.error_of_sum(30) == pytest.approx(0.15 if rounding is Rounding.NEAREST else 0.3)


@pytest.mark.parametrize('bits', [2, 8, 16, 32])
@pytest.mark.parametrize('cohort', [1, 7, 1000, 2**29])
@pytest.mark.parametrize('margin', [0, 5, 10**6])
def test_modulus_has_room_for_the_largest_sum_and_no_more_bits_than_needed(bits, cohort, margin):
  spec = _spec(bits=bits, largest_cohort=cohort, noise_margin=margin)
  # Totals from -most to most are apart modulo the modulus.
  most = cohort * spec.levels + margin
  assert spec.modulus > 2 * most
  assert spec.modulus // 2 < cohort * (2**bits - 1) + 1 + 2 * margin
  assert dataclasses.replace(spec, modulus_bits=spec.sum_bits + 1).modulus == 2 * spec.modulus
  with pytest.raises(ValueError, match=f'needs {spec.sum_bits} to 62'):
    dataclasses.replace(spec, modulus_bits=spec.sum_bits - 1)


def test_sums_that_do_not_fit_are_refused_with_the_bits_that_would():
  with pytest.raises(ValueError, match='modulus of 67 bits, above 62; `bits` 27 would fit'):
    _spec(bits=32, largest_cohort=2**35)
  assert _spec(bits=27, largest_cohort=2**35).sum_bits == 62
  with pytest.raises(ValueError, match='no `bits` would fit'):
    _spec(bits=8, noise_margin=2**62)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'bits': 1}, '`bits`'),
    ({'bits': 33}, '`bits`'),
    ({'bits': 8.5}, '`bits`'),
    ({'largest_cohort': 0}, 'largest_cohort'),
    ({'coordinates': 0}, 'coordinates'),
    ({'coordinates': None}, 'coordinates'),
    ({'noise_margin': -1}, 'noise_margin'),
    ({'modulus_bits': 63}, 'modulus_bits'),
    ({'value_range': 0.5}, '`value_range` 0.5 is below `l2_clip_norm` 1; it needs at least 1'),
    ({'value_range': math.inf}, 'value_range'),
    ({'value_range': math.nan}, 'value_range'),
    ({'l2_clip_norm': 0.0}, 'l2_clip_norm'),
    ({'l2_clip_norm': None}, '`value_range` or'),
    ({'l2_clip_norm': None, 'value_range': 1.0, 'rounding': Rounding.CONDITIONAL}, 'l2_clip_norm'),
  ],
)
def test_what_cannot_be_summed_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    _spec(**changes)


@pytest.mark.parametrize('spec', [_spec(), _spec(rounding=Rounding.CONDITIONAL, modulus_bits=20)])
def test_json_and_back(spec):
  assert SecureSumSpec.from_json(spec.to_json()) == spec
  for broken in ({**spec.to_json(), 'more': 1}, {**spec.to_json(), 'rounding': 'up'}, {'bits': 8}):
    with pytest.raises(ValueError, match=r'secure sum|up'):
      SecureSumSpec.from_json(broken)


def test_what_is_no_whole_number_is_refused_by_name():
  for name in ('bits', 'largest_cohort', 'coordinates'):
    for value in ('a', 2.5, None if name != 'coordinates' else math.nan):
      with pytest.raises(ValueError, match=f'`{name}` must be a whole number'):
        _spec(**{name: value})


def test_a_rounding_may_be_given_by_its_name():
  assert _spec(rounding='stochastic').rounding is Rounding.STOCHASTIC
  with pytest.raises(ValueError, match='upwards'):
    _spec(rounding='upwards')
