# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bounds on Skellam noise against its distribution, summed up number by number."""

import functools
import math

import numpy as np
import pytest
from dp_accounting import rdp
from scipy import special, stats

from privacy import gaussian, skellam

_MOVES = (1, 2, 5, 30)
_ORDERS = (2, 3, 4, 8, 32, 128)


@functools.cache
def _log_pmf(variance, reach):
  """Log probabilities of -reach to reach, by the continued fraction of ratios of Bessel functions.

  `I_n / I_{n-1} = 1 / (2 n / v + I_{n+1} / I_n)`, from far out: no underflow where SciPy has one.
  """
  ratios = np.zeros(reach + 1)
  ratio = 0.0
  for n in range(reach + 60, 0, -1):
    ratio = 1 / (2 * n / variance + ratio)
    if n <= reach:
      ratios[n] = ratio
  half = np.concatenate([[0.0], np.cumsum(np.log(ratios[1:]))])
  whole = np.concatenate([half[:0:-1], half])
  return whole - special.logsumexp(whole)


def _divergence(order, variance, move):
  reach = int(60 * math.sqrt(variance) + 2 * order * move + 300)
  log_p = _log_pmf(variance, reach)
  return special.logsumexp(order * log_p[move:] + (1 - order) * log_p[:-move]) / (order - 1)


def _delta(epsilon, variance, move):
  """The least delta at an epsilon, of integers that move by so much under Skellam noise."""
  log_p = _log_pmf(variance, int(60 * math.sqrt(variance) + 300))
  p, q = np.exp(log_p[move:]), np.exp(epsilon + log_p[:-move])
  return float(np.maximum(0.0, p - q).sum())


def test_oracle_is_the_distribution():
  x = np.arange(-10, 11)
  found = _log_pmf(2.0, 30)[20:41]
  np.testing.assert_allclose(found, stats.skellam.logpmf(x, 1.0, 1.0), rtol=1e-12)


@pytest.mark.parametrize('variance', [0.05, 0.5, 2.0, 10.0, 100.0, 1000.0])
def test_no_divergence_is_above_its_bound(variance):
  for move in _MOVES:
    for order in _ORDERS:
      bound = skellam.renyi_divergence(order, variance, move, move)
      assert _divergence(order, variance, move) <= bound * (1 + 1e-9)


def test_bound_is_near_at_large_variances():
  ratios = [
    _divergence(order, 1000.0, move) / skellam.renyi_divergence(order, 1000.0, move, move)
    for move, order in ((1, 2), (1, 32), (5, 8), (10, 4), (30, 2))
  ]
  # So a bound with 0.98 of the first term would be broken by the test above.
  assert min(ratios) > 0.98


def test_bound_by_hand():
  # 3 * 3 / 4 + min((5 * 3 + 6 * 3) / 16, 3 * 3 / 4), and with more variance the other way round.
  assert skellam.renyi_divergence(3, 2.0, 3, math.sqrt(3)) == pytest.approx(9 / 4 + 33 / 16)
  assert skellam.renyi_divergence(3, 1.0, 3, math.sqrt(3)) == pytest.approx(9 / 2 + 9 / 2)


@pytest.mark.parametrize('order', [2, 17, 1000])
def test_large_variance_is_gaussian(order):
  l2 = 1e6
  bound = skellam.renyi_divergence(order, (3 * l2) ** 2, 1e8, l2)
  assert bound == pytest.approx(order / 18, rel=1e-6)


def test_coordinates_add_up():
  # Noise is independent: divergences of the coordinates add, and so do l1 and squared l2.
  moves, variance, order = (1, 1, 2, 4), 20.0, 5
  exact = sum(_divergence(order, variance, move) for move in moves)
  assert exact <= skellam.renyi_divergence(order, variance, sum(moves), math.hypot(*moves))


@pytest.mark.parametrize(
  ('order', 'variance', 'l1'), [(1, 1, 1), (2.5, 1, 1), (2, 0, 1), (2, 1, -1)]
)
def test_what_has_no_bound_is_refused(order, variance, l1):
  with pytest.raises(ValueError, match=r'order|variance'):
    skellam.renyi_divergence(order, variance, l1, 1)


@pytest.mark.parametrize('variance', [4.0, 100.0, 900.0])
@pytest.mark.parametrize('move', [1, 10])
@pytest.mark.parametrize('delta', [1e-2, 1e-5, 1e-9])
def test_epsilon_has_no_more_than_that_delta(variance, move, delta):
  epsilon = skellam.epsilon([skellam.Sums(variance, move, move, 1)], delta)
  assert _delta(epsilon, variance, move) <= delta
  # Renyi DP and its conversion lose about a third, not more.
  if variance == 900.0 and epsilon > 0.05:
    assert _delta(0.65 * epsilon, variance, move) > delta


@pytest.mark.parametrize('multiplier', [0.5, 3.0, 40.0])
@pytest.mark.parametrize('count', [1, 50])
def test_epsilon_of_fine_grids_is_that_of_gaussian_noise(multiplier, count):
  l2 = 1e5
  sums = skellam.Sums((multiplier * l2) ** 2, 100 * l2, l2, count)
  epsilon = skellam.epsilon([sums], 1e-6)
  accountant = rdp.RdpAccountant(range(2, 1000))
  accountant.compose(rdp.rdp_privacy_accountant.dp_event.GaussianDpEvent(multiplier), count)
  assert epsilon == pytest.approx(accountant.get_epsilon(1e-6), rel=2e-3)
  assert epsilon >= gaussian.epsilon(math.sqrt(count) / multiplier, 1e-6)


def test_sums_compose():
  one = skellam.Sums(50.0, 3.0, 2.0, 1)
  assert skellam.epsilon([one, one], 1e-5) == skellam.epsilon([one._replace(count=2)], 1e-5)
  assert skellam.epsilon([], 1e-5) == 0
  assert skellam.epsilon([one._replace(variance=60.0)], 1e-5) < skellam.epsilon([one], 1e-5)


@pytest.mark.parametrize('variance', [1e-6, 0.3, 4.0, 1e3])
def test_tail_is_below_its_bound(variance):
  deviation = math.sqrt(variance)
  for margin in {int(k * deviation) for k in (0, 1, 3, 5, 8)}:
    # Both ends, of three coordinates.
    exact = 1 - (1 - 2 * stats.skellam.sf(margin, variance / 2, variance / 2)) ** 3
    assert exact <= skellam.tail_bound(variance, 3, margin) * (1 + 1e-9)


def test_tail_bound_is_near():
  # Chernoff's loses a factor of about 1 / (x sqrt(2 pi)) at x deviations.
  exact = 2 * stats.skellam.sf(150, 450.0, 450.0)
  assert skellam.tail_bound(900.0, 1, 150) < 20 * exact


@pytest.mark.parametrize('variance', [0.0, 1e-4, 1.0, 1e4, 1e18])
@pytest.mark.parametrize('coordinates', [1, 10**6])
def test_margin_is_the_least(variance, coordinates):
  margin = skellam.wrap_margin(variance, coordinates, 1e-6)
  assert skellam.tail_bound(variance, coordinates, margin) <= 1e-6
  assert margin == 0 or skellam.tail_bound(variance, coordinates, margin - 1) > 1e-6
  if variance == 1e18:  # As of a Gaussian: exp(-x^2 / 2) = 1e-6 / (2 d).
    deviations = math.sqrt(2 * math.log(2 * coordinates / 1e-6))
    assert margin == pytest.approx(1e9 * deviations, rel=1e-6)


def test_margins_have_limits():
  for changes in ((-1.0, 1, 0.1), (1.0, 0, 0.1), (1.0, 1, 0.0), (1.0, 1, 1.0), (math.nan, 1, 0.1)):
    with pytest.raises(ValueError, match='variance'):
      skellam.wrap_margin(*changes)
