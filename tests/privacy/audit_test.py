# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The lower bound on epsilon: binomial tails, mechanisms of known epsilon, how often it errs."""

import math

import numpy as np
import pytest
from scipy import stats

from privacy import audit

_DELTA = 1e-3


def _gaussian_mu(epsilon, delta):
  """Separation of two unit Gaussians that is exactly (epsilon, delta) (Balle and Wang 2018)."""

  def excess(mu):
    upper = stats.norm.cdf(mu / 2 - epsilon / mu)
    return upper - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu) - delta

  low, high = 0.01, 20.0
  while high - low > 1e-9:
    middle = (low + high) / 2
    low, high = (low, middle) if excess(middle) > 0 else (middle, high)
  return low


def _two_valued(rng, probability, number):
  """Scores on both sides of the only threshold."""
  return np.where(rng.random(number) < probability, 1.0, -1.0)


def test_counts_are_bounded_by_the_binomial_tails():
  planted = np.concatenate([np.ones(300), -np.ones(700)])
  held_out = np.concatenate([np.ones(40), -np.ones(1960)])
  bound = audit.epsilon_lower_bound(planted, held_out, _DELTA, thresholds=[0.0])

  def solved(probability_of):
    low, high = 0.0, 1.0
    while high - low > 1e-12:
      middle = (low + high) / 2
      low, high = (middle, high) if probability_of(middle) < 0.025 else (low, middle)
    return low

  # The rates at which so many, or so few, would be seen in one of forty audits.
  hits = solved(lambda rate: stats.binom.sf(299, 1000, rate))
  false = 1 - solved(lambda rate: stats.binom.cdf(40, 2000, 1 - rate))
  assert bound.epsilon == pytest.approx(math.log((hits - _DELTA) / false), rel=1e-6)
  assert (bound.planted, bound.held_out, bound.threshold) == (1000, 2000, 0.0)


def test_both_tails_count():
  # Every planted canary scores above the threshold, and so do half of the others.
  planted, held_out = np.ones(1000), np.tile([1.0, -1.0], 500)
  bound = audit.epsilon_lower_bound(planted, held_out, 0.0, thresholds=[0.0])
  assert math.log(0.45 / 0.005) < bound.epsilon < math.log(0.5 * 1000 / 3)
  swapped = audit.epsilon_lower_bound(held_out, -planted, 0.0, thresholds=[0.0])
  assert swapped.epsilon == pytest.approx(bound.epsilon, abs=0.01)


@pytest.mark.parametrize('number', [10, 100, 1000, 10_000])
def test_what_few_canaries_can_prove_is_limited(number):
  bound = audit.epsilon_lower_bound(np.full(number, 100.0), np.zeros(number), 0.0)
  assert bound.epsilon == bound.ceiling
  assert bound.epsilon <= math.log(number / 3)
  if number >= 100:
    assert bound.epsilon >= math.log(number / 6)
  assert bound.auc == 1.0


def test_delta_is_no_evidence():
  # A mechanism that gives a client away in 2 % of all runs and tells nothing otherwise.
  planted, held_out = np.zeros(5000), np.zeros(5000)
  planted[:100] = 10.0
  assert audit.epsilon_lower_bound(planted, held_out, 0.03).epsilon == 0.0
  bound = audit.epsilon_lower_bound(planted, held_out, 1e-3)
  assert bound.epsilon > 2
  assert bound.threshold > 0


@pytest.mark.parametrize('epsilon', [0.5, 1.5, 4.0])
def test_gaussians_of_that_epsilon_pass_and_of_half_the_noise_do_not(epsilon):
  rng = np.random.default_rng(5)
  mu = _gaussian_mu(epsilon, _DELTA)
  for _ in range(100):
    planted, held_out = rng.normal(mu, size=1000), rng.normal(size=10_000)
    bound = audit.epsilon_lower_bound(planted, held_out, _DELTA)
    assert bound.epsilon <= epsilon
    assert bound.auc == pytest.approx(stats.norm.cdf(mu / math.sqrt(2)), abs=0.04)
  found = [
    audit.epsilon_lower_bound(
      rng.normal(2 * mu, size=4000), rng.normal(size=40_000), _DELTA
    ).epsilon
    for _ in range(20)
  ]
  assert sum(bound > epsilon for bound in found) >= 19


def test_it_errs_as_seldom_as_it_says_and_not_much_less():
  # The worst mechanism for one threshold: both rates are on the edge of what epsilon allows.
  rng = np.random.default_rng(3)
  epsilon, false = 1.0, 0.2
  hits = math.exp(epsilon) * false + _DELTA

  def error_rate(confidence, thresholds):
    wrong = 0
    for _ in range(2000):
      scores = _two_valued(rng, hits, 500), _two_valued(rng, false, 500)
      bound = audit.epsilon_lower_bound(
        *scores, _DELTA, confidence=confidence, thresholds=thresholds
      )
      wrong += bound.epsilon > epsilon
    return wrong / 2000

  assert error_rate(0.95, [0.0]) <= 0.05
  # A bound without slack would err half the time; one with too much never.
  assert 0.02 < error_rate(0.5, [0.0]) <= 0.5
  assert error_rate(0.5, [0.0, 0.1, 0.2, 0.3, 0.4]) < 0.02


def test_the_best_threshold_is_taken():
  rng = np.random.default_rng(4)
  scores = rng.normal(3.0, size=1000), rng.normal(size=10_000)
  bound = audit.epsilon_lower_bound(*scores, _DELTA)
  share = 1 - 0.05 / len(audit.THRESHOLDS)
  each = [
    audit.epsilon_lower_bound(*scores, _DELTA, confidence=share, thresholds=[level]).epsilon
    for level in audit.THRESHOLDS
  ]
  assert bound.epsilon == pytest.approx(max(each))
  assert bound.threshold == audit.THRESHOLDS[int(np.argmax(each))]
  assert len(set(each)) == len(each)


def test_nothing_is_proved_by_scores_of_chance():
  rng = np.random.default_rng(6)
  for _ in range(100):
    bound = audit.epsilon_lower_bound(rng.normal(size=1000), rng.normal(size=1000), 0.0)
    assert bound.epsilon <= 0.2
    assert bound.auc == pytest.approx(0.5, abs=0.06)
  bound = audit.epsilon_lower_bound(np.zeros(10), np.zeros(10), 0.0)
  assert (bound.epsilon, bound.threshold, bound.auc) == (0.0, None, 0.5)


@pytest.mark.parametrize(
  ('argument', 'value'),
  [
    ('planted', []),
    ('planted', [1.0, math.nan]),
    ('held_out', [math.inf]),
    ('held_out', [[1.0]]),
    ('thresholds', []),
    ('delta', 1.0),
    ('delta', -0.1),
    ('delta', math.nan),
    ('confidence', 1.0),
    ('confidence', 0.0),
  ],
)
def test_refuses_what_cannot_be_and_names_it(argument, value):
  arguments = {'planted': [1.0], 'held_out': [0.0], 'delta': 0.1, argument: value}
  with pytest.raises(ValueError, match=f'`{argument}`'):
    audit.epsilon_lower_bound(**arguments)
