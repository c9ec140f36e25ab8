# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import types

import numpy as np
import pytest

from tasks import same_rounds

NUMBERS = 4000


def _draws(seed, scale=1.0, shift=0.0, draws=3):
  rng = np.random.default_rng(seed)
  return shift + scale * rng.normal(size=(draws, NUMBERS))


@pytest.mark.parametrize('seed', range(5))
def test_two_sources_of_one_distribution_are_the_same(seed):
  # A part without noise, equal in both, counts for nothing.
  still = np.ones((3, 100))
  first, second = (np.hstack([_draws([seed, source]), still]) for source in range(2))
  found = same_rounds.statistics(first, second)
  assert found.is_same
  assert found.noisy == NUMBERS


@pytest.mark.parametrize(
  'other',
  [
    _draws(1, scale=2 / 3),
    _draws(1, scale=3 / 2),
    _draws(1, shift=0.5),
    _draws(1, scale=0.0),
    _draws(0),
    _draws(0)[::-1],
  ],
  ids=['too little', 'too much', 'shifted', 'none', 'the same draws', 'the same draws mixed'],
)
def test_others_are_not(other):
  assert not same_rounds.statistics(_draws(0), other).is_same


def test_numbers_without_noise_must_be_equal():
  first, second = (
    np.hstack([_draws(seed), np.full((3, 1), value)]) for seed, value in ((0, 1.0), (1, 9.0))
  )
  assert not same_rounds.statistics(first, second).is_same


class _Process:
  """A process whose state is a vector, and its deployed form."""

  def __init__(self, round_fn):
    self._round = round_fn

  def next(self, state, client_data):
    state = self._round(state + len(client_data))
    return types.SimpleNamespace(state=state)

  def initial_state(self):
    return np.zeros(NUMBERS)

  def tensors(self, state):
    return {'all': state}

  def model_weights(self, state):
    return {'weights': state}


class _Deployed(_Process):
  def next(self, state, client_data):
    return super().next(state, client_data).state, None


@pytest.mark.parametrize('chance', [0.01, 0.5])
def test_numbers_rounded_by_chance_may_stay_still(chance):
  rng = np.random.default_rng(7)
  first, second = (np.float64(rng.random((3, NUMBERS)) < chance) for _ in range(2))
  assert same_rounds.statistics(first, second).is_same
  assert not same_rounds.statistics(first, 1.5 * second).is_same


def test_without_chance_both_must_end_in_one_state():
  found = same_rounds.compare(_Process(np.copy), _Deployed(np.copy), ['x', 'y'], repeats=1)
  assert found == {'result': 'equal states', 'clients': 2, 'rounds': 1, 'numbers': NUMBERS}
  for repeats in (1, 3):
    other = _Deployed(lambda state: np.nextafter(state, 9.0))
    with pytest.raises(ValueError, match=r'another state|other distributions'):
      same_rounds.compare(_Process(np.copy), other, ['x'], repeats=repeats)


def test_with_noise_both_must_have_one_distribution():
  rng = np.random.default_rng(0)

  def noised(scale):
    return lambda state: state + scale * rng.normal(size=NUMBERS)

  found = same_rounds.compare(_Process(noised(1)), _Deployed(noised(1)), ['x'], repeats=3)
  assert found['result'] == 'equal in distribution'
  with pytest.raises(ValueError, match='other distributions: ratio of variances 0'):
    same_rounds.compare(_Process(noised(1)), _Deployed(noised(2 / 3)), ['x'], repeats=3)


@pytest.mark.parametrize(('scale', 'is_stated'), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_noise_is_as_large_as_it_is_stated(scale, is_stated):
  rng = np.random.default_rng(0)
  noised = _Deployed(lambda state: state + 0.1 * scale * rng.normal(size=NUMBERS))
  if is_stated:
    assert same_rounds.noise_ratio(noised, ['x'], 0.1) == pytest.approx(1.0, abs=0.05)
    return
  with pytest.raises(ValueError, match=r'(0\.6|1\.[45])\d* times what the mechanism states'):
    same_rounds.noise_ratio(noised, ['x'], 0.1)


def test_no_noise_is_not_what_is_stated():
  with pytest.raises(ValueError, match='is 0 times'):
    same_rounds.noise_ratio(_Deployed(np.copy), ['x'], 0.1)


def test_rounding_by_chance_adds_to_noise_as_far_as_it_may():
  rng = np.random.default_rng(0)
  noised = _Deployed(lambda state: state + 0.12 * rng.normal(size=NUMBERS))
  same_rounds.noise_ratio(noised, ['x'], 0.1, rounding=0.12**2 - 0.1**2)
  with pytest.raises(ValueError, match=r'1\.19 times'):
    same_rounds.noise_ratio(noised, ['x'], 0.1)
