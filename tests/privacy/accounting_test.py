# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Epsilons against published values, direct integrals and the other accountant."""

import dataclasses
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from privacy import accounting, events
from privacy.accounting import UnsupportedEventError
from privacy.secure_sum import SecureSumSpec
from privacy.spec import DpSpec, Mechanism, Relation, Sampling


def _gaussian(multiplier, count=1):
  return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(multiplier), count)


def _sampled(probability, multiplier, count):
  event = dp_accounting.PoissonSampledDpEvent(
    probability, dp_accounting.GaussianDpEvent(multiplier)
  )
  return dp_accounting.SelfComposedDpEvent(event, count)


_POISSON = DpSpec(
  noise_multiplier=1.0,
  l2_clip_norm=1.0,
  clients_per_round=100,
  sampling=Sampling.POISSON,
  population_size=10_000,
)
_TREE = DpSpec(
  noise_multiplier=1.0,
  l2_clip_norm=1.0,
  clients_per_round=100,
  mechanism=Mechanism.TREE,
  sampling=Sampling.MIN_SEPARATION,
  min_separation=10,
  restart_every=32,
)


_SUMS = SecureSumSpec(bits=16, largest_cohort=100, l2_clip_norm=1.0, coordinates=10**6)
_SKELLAM = DpSpec(
  noise_multiplier=4.0,
  l2_clip_norm=1.0,
  clients_per_round=100,
  mechanism=Mechanism.SKELLAM,
  secure_sum=_SUMS,
  smallest_cohort=60,
)


def test_known_run():
  # q = 0.01, z = 1, 100 rounds, delta = 1e-5: what tutorials of dp_accounting come to.
  assert accounting.epsilon(_sampled(0.01, 1.0, 100), 1e-5, 'rdp') == pytest.approx(1.214, abs=1e-3)
  assert accounting.epsilon(_sampled(0.01, 1.0, 100), 1e-5) == pytest.approx(0.718, abs=1e-3)
  assert accounting.epsilon(_gaussian(1.0, 100), 1e-5, 'rdp') == pytest.approx(96.04, abs=0.01)
  assert accounting.epsilon(_gaussian(1.0, 100), 1e-5) == pytest.approx(91.82, abs=0.01)


def test_replaced_client_costs_as_much_as_half_the_noise():
  replaced = dataclasses.replace(_POISSON, relation=Relation.REPLACE_ONE, amplified=False)
  halved = dataclasses.replace(_POISSON, noise_multiplier=0.5)
  replaced, halved = (events.run_event(spec, 1, amplified=False) for spec in (replaced, halved))
  for accountant in accounting.Accountant:
    once = accounting.epsilon(replaced, 1e-5, accountant, Relation.REPLACE_ONE)
    assert once == accounting.epsilon(halved, 1e-5, accountant)


@pytest.mark.parametrize('spec', [_POISSON, _TREE])
def test_rounding_costs_as_much_as_that_much_less_noise(spec):
  sums = dataclasses.replace(_SUMS, largest_cohort=10_000, bits=12)
  rounded = dataclasses.replace(spec, secure_sum=sums)
  # S' = 1 + 1000 / 2 / 2047.
  less = dataclasses.replace(spec, noise_multiplier=spec.noise_multiplier / (1 + 500 / 2047))
  for accountant in accounting.Accountant:
    found, expected = (
      accounting.epsilon(events.run_event(x, 20, amplified=x.amplified), 1e-5, accountant)
      for x in (rounded, less)
    )
    assert found == pytest.approx(expected, rel=1e-6)


def test_noise_of_clients_is_bounded_by_renyi_dp_alone():
  event = events.run_event(_SKELLAM, 10, amplified=False)
  # On so fine a grid it is Gaussian noise, of a clip that rounding has made longer.
  accountant = dp_accounting.rdp.RdpAccountant(range(2, 200))
  accountant.compose(_gaussian(4.0 / (1 + 500 / 32767), 10))
  assert accounting.epsilon(event, 1e-6, 'rdp') == pytest.approx(
    accountant.get_epsilon(1e-6), rel=1e-3
  )
  starts = events.planned(_SKELLAM, 10)
  assert accounting.claimed_epsilon(_SKELLAM, starts, 1e-6) == accounting.epsilon(
    event, 1e-6, 'rdp'
  )
  with pytest.raises(UnsupportedEventError, match='RDP'):
    accounting.epsilon(event, 1e-6)
  with pytest.raises(UnsupportedEventError, match='rho'):
    accounting.zcdp_rho(event)


def test_replaced_client_costs_more_under_noise_of_clients():
  replaced = dataclasses.replace(_SKELLAM, relation=Relation.REPLACE_ONE)
  halved = dataclasses.replace(_SKELLAM, noise_multiplier=2.0)
  epsilons = [
    accounting.claimed_epsilon(spec, events.planned(spec, 3), 1e-6) for spec in (replaced, halved)
  ]
  assert epsilons[0] == pytest.approx(epsilons[1], rel=1e-4)


@pytest.mark.parametrize('multiplier', [0.2, 1.0, 30.0])
@pytest.mark.parametrize('delta', [0.3, 1e-3, 1e-9])
def test_gaussian_has_that_delta_at_that_epsilon(multiplier, delta):
  epsilon = accounting.epsilon(_gaussian(multiplier), delta)
  # The integral of max(0, p - e^epsilon q) over the line, where p and q are 1 apart.
  first = multiplier**2 * epsilon - 0.5
  found, _ = integrate.quad(
    lambda x: max(
      0.0,
      stats.norm.pdf(x, -1, multiplier)
      - math.exp(min(epsilon + stats.norm.logpdf(x, 0, multiplier), 700)),
    ),
    -first - 1 - 12 * multiplier,
    -first - 1 + (1 if epsilon > 0 else 12 * multiplier),
    epsabs=0,
    limit=500,
    points=[-first - 1],
  )
  assert found <= delta * (1 + 1e-6)
  if epsilon > 0:
    assert found >= delta * (1 - 1e-4)


def test_sampled_gaussian_has_no_more_than_that_delta():
  probability, multiplier, delta = 0.05, 1.0, 1e-4
  epsilon = accounting.epsilon(_sampled(probability, multiplier, 1), delta)
  x = np.linspace(-15, 16, 2_000_001)
  p = stats.norm.pdf(x, 0, multiplier)
  q = (1 - probability) * p + probability * stats.norm.pdf(x, 1, multiplier)
  found = max(
    np.maximum(0, one - math.exp(epsilon) * other).sum() * (x[1] - x[0])
    for one, other in ((p, q), (q, p))
  )
  assert found <= delta
  assert found >= 0.99 * delta


@pytest.mark.parametrize('multiplier', [0.05, 1e-3, 1e-6])
def test_little_noise_is_bounded_at_once(multiplier):
  # 16 rounds at 0.05 took the accountant of the library two minutes.
  mu = 4 / multiplier
  epsilon = accounting.epsilon(_gaussian(multiplier, 16), 1e-5)
  assert mu**2 / 2 < epsilon < mu**2 / 2 + 5 * mu


@pytest.mark.parametrize('multiplier', [1e4, 1e7, 1e12])
def test_much_noise_is_bounded(multiplier):
  assert accounting.epsilon(_gaussian(multiplier), 0.1) == 0
  # At most what the first order says, epsilon <= sqrt(2 log(1.25 / delta)) / z, or a millionth.
  bound = max(math.sqrt(2 * math.log(1.25 / 1e-12)) / multiplier, 1e-5)
  assert 0 < accounting.epsilon(_gaussian(multiplier), 1e-12) < bound
  assert 0 <= accounting.epsilon(_sampled(0.5, multiplier, 3), 1e-12) < 2 * bound


def test_smallest_deltas_have_finite_bounds():
  for delta in (1e-14, 1e-100, 1e-300):
    without = accounting.epsilon(_gaussian(1.0, 10), delta)
    assert without < accounting.rho_to_epsilon(5.0, delta) < math.inf
    for accountant in accounting.Accountant:
      assert accounting.epsilon(_sampled(0.01, 1.0, 10), delta, accountant) < 1.1 * without


@settings(deadline=None, derandomize=True, max_examples=8)
@given(
  probability=st.floats(1e-3, 1.0),
  multiplier=st.floats(0.5, 20.0),
  rounds=st.integers(1, 500),
  log_delta=st.floats(-9, -2),
)
def test_accountants_and_claims_are_in_order(probability, multiplier, rounds, log_delta):
  delta = 10**log_delta
  sampled = _sampled(probability, multiplier, rounds)
  pld = accounting.epsilon(sampled, delta)
  # Losses are rounded up to a grid, so a tiny epsilon may be a little too large.
  assert pld <= accounting.epsilon(sampled, delta, 'rdp') + 1e-4
  assert pld <= accounting.epsilon(_gaussian(multiplier, rounds), delta)
  assert accounting.epsilon(_sampled(probability, 1.1 * multiplier, rounds), delta) <= pld * 1.001
  assert accounting.epsilon(sampled, 2 * delta) <= pld
  exact = accounting.epsilon(_gaussian(multiplier, rounds), delta)
  assert exact <= accounting.rho_to_epsilon(rounds / 2 / multiplier**2, delta) + 1e-9


@pytest.mark.parametrize(
  ('probability', 'multiplier', 'rounds', 'grid'),
  [
    (0.01, 1.0, 300, 1e-4),
    (0.2, 3.0, 50, 1e-4),
    (0.05, 0.6, 20, 2e-4),
    (0.02, 15.0, 1000, 1e-5),
    (0.001, 0.5, 20, 1e-4),
  ],
)
def test_coarse_grid_is_above_a_fine_one_by_little(probability, multiplier, rounds, grid):
  fine = privacy_loss_distribution.from_gaussian_mechanism(
    multiplier, value_discretization_interval=grid, sampling_prob=probability
  )
  fine = fine.self_compose(rounds).get_epsilon_for_delta(1e-6)
  epsilon = accounting.epsilon(_sampled(probability, multiplier, rounds), 1e-6)
  assert fine * (1 - 1e-6) <= epsilon <= fine * 1.002


def test_gaussians_compose_in_any_shape():
  parts = [dp_accounting.GaussianDpEvent(2.0), _gaussian(4.0, 4), dp_accounting.NoOpDpEvent()]
  composed = dp_accounting.ComposedDpEvent(parts)
  assert accounting.zcdp_rho(composed) == pytest.approx(0.25)
  once = accounting.epsilon(_gaussian(math.sqrt(2)), 1e-6)
  assert accounting.epsilon(composed, 1e-6) == pytest.approx(once)
  whole = dp_accounting.PoissonSampledDpEvent(1.0, composed)
  assert accounting.epsilon(whole, 1e-6) == pytest.approx(once)
  # Both parts of an adaptive clip see one sample.
  part = dp_accounting.PoissonSampledDpEvent(0.1, composed)
  alone = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(math.sqrt(2)))
  sampled = accounting.epsilon(part, 1e-6)
  assert sampled == pytest.approx(accounting.epsilon(alone, 1e-6))
  # In samples of their own they cost less.
  apart = [dp_accounting.PoissonSampledDpEvent(0.1, one) for one in parts[:2]]
  assert accounting.epsilon(dp_accounting.ComposedDpEvent(apart), 1e-6) < sampled
  empty = dp_accounting.PoissonSampledDpEvent(0.0, dp_accounting.GaussianDpEvent(0.1))
  assert accounting.epsilon(empty, 1e-6) == 0


def test_samples_compose_in_any_shape():
  one = dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.0))
  shapes = dp_accounting.ComposedDpEvent([one, _sampled(0.05, 1.0, 2), one])
  for accountant in accounting.Accountant:
    together = accounting.epsilon(_sampled(0.05, 1.0, 4), 1e-5, accountant)
    assert accounting.epsilon(shapes, 1e-5, accountant) == together


def test_deltas_are_those_of_single_ones():
  event = _sampled(0.05, 1.0, 50)
  for accountant in accounting.Accountant:
    together = accounting.epsilons(event, [1e-7, 1e-5, 0.1], accountant)
    assert together == [accounting.epsilon(event, d, accountant) for d in (1e-7, 1e-5, 0.1)]
    assert together == sorted(together, reverse=True)


def test_nothing_started_costs_nothing():
  assert accounting.epsilon(dp_accounting.NoOpDpEvent(), 1e-9, 'rdp') == 0
  assert accounting.epsilon(dp_accounting.NoOpDpEvent(), 1e-9) == 0
  assert accounting.zcdp_rho(dp_accounting.NoOpDpEvent()) == 0
  assert accounting.rho_to_epsilon(0.0, 1e-9) == 0


def test_rho_is_that_of_the_trees():
  event = events.run_event(dataclasses.replace(_TREE, noise_multiplier=2.0), 32, amplified=False)
  # Leaves 0, 10, 20 and 30: 4 + 4 + 4 + (2 of eight 2) ... as the trees count them.
  assert accounting.zcdp_rho(event) == pytest.approx(
    events.squared_sensitivity(events.forest(events.planned(_TREE, 32)), min_separation=10) / 8
  )


@pytest.mark.parametrize(
  'event',
  [
    dp_accounting.GaussianDpEvent(0.0),
    dp_accounting.GaussianDpEvent(-1.0),
    dp_accounting.GaussianDpEvent(1e-320),
    dp_accounting.GaussianDpEvent(math.nan),
    _gaussian(2e-7, 10),
    dp_accounting.NonPrivateDpEvent(),
    dp_accounting.UnsupportedDpEvent(),
    dp_accounting.LaplaceDpEvent(1.0),
    dp_accounting.ComposedDpEvent([_gaussian(1.0), dp_accounting.UnsupportedDpEvent()]),
    dp_accounting.SampledWithoutReplacementDpEvent(100, 10, dp_accounting.GaussianDpEvent(1.0)),
    dp_accounting.PoissonSampledDpEvent(1.5, dp_accounting.GaussianDpEvent(1.0)),
    dp_accounting.PoissonSampledDpEvent(math.nan, dp_accounting.GaussianDpEvent(1.0)),
    dp_accounting.PoissonSampledDpEvent(0.1, _sampled(0.1, 1.0, 1)),
    dp_accounting.PoissonSampledDpEvent(0.1, events.SkellamDpEvent(4.0, 1.0, 1.0)),
    dp_accounting.ComposedDpEvent([_gaussian(1.0), events.SkellamDpEvent(4.0, 1.0, 1.0)]),
    events.SkellamDpEvent(0.0, 1.0, 1.0),
    events.SkellamDpEvent(math.nan, 1.0, 1.0),
    _sampled(0.1, 0.0, 3),
  ],
)
def test_what_has_no_bound_gets_no_number(event):
  for accountant in accounting.Accountant:
    with pytest.raises(UnsupportedEventError):
      accounting.epsilon(event, 1e-5, accountant)
  with pytest.raises(UnsupportedEventError):
    accounting.zcdp_rho(event)


def test_samples_have_no_rho_and_no_bound_for_replaced_clients():
  with pytest.raises(UnsupportedEventError):
    accounting.zcdp_rho(_sampled(0.1, 1.0, 3))
  with pytest.raises(UnsupportedEventError):
    accounting.epsilon(_sampled(0.1, 1.0, 3), 1e-5, relation=Relation.REPLACE_ONE)


@pytest.mark.parametrize('delta', [0.0, 1.0, -1e-5, math.nan])
def test_delta_is_between_0_and_1(delta):
  with pytest.raises(ValueError, match='delta'):
    accounting.epsilon(_gaussian(1.0), delta)
  with pytest.raises(ValueError, match='delta'):
    accounting.rho_to_epsilon(1.0, delta)
  with pytest.raises(ValueError, match='delta'):
    accounting.calibrate(_POISSON, 10, 1.0, delta)


def _epsilon(spec, rounds):
  return accounting.claimed_epsilon(spec, events.planned(spec, rounds), 1e-5)


@pytest.mark.parametrize(
  ('spec', 'rounds', 'target'),
  [
    (_POISSON, 100, 2.0),
    (dataclasses.replace(_POISSON, amplified=False), 100, 2.0),
    (dataclasses.replace(_POISSON, amplified=False), 1, 1e-3),
    (_TREE, 100, 8.0),
    (dataclasses.replace(_POISSON, noise_cohort_size=10), 20, 0.3),
    (_SKELLAM, 20, 2.0),
    (dataclasses.replace(_SKELLAM, secure_sum=dataclasses.replace(_SUMS, bits=2)), 1, 50.0),
  ],
)
def test_calibrated_noise_is_the_least_with_four_digits(spec, rounds, target):
  calibrated = accounting.calibrate(spec, rounds, target, 1e-5)
  multiplier = calibrated.noise_multiplier
  assert calibrated == dataclasses.replace(spec, noise_multiplier=multiplier)
  assert float(f'{multiplier:.4g}') == multiplier
  assert _epsilon(calibrated, rounds) <= target
  less = multiplier - 10 ** (math.floor(math.log10(multiplier)) - 3)
  assert _epsilon(dataclasses.replace(spec, noise_multiplier=less), rounds) > target


def test_calibration_finds_noise_on_a_grid_too_fine_for_more():
  # A multiplier of 1 would have clients draw noise of variance 4.6e9, above 2^32.
  fine = dataclasses.replace(
    _SKELLAM, noise_multiplier=0.1, secure_sum=dataclasses.replace(_SUMS, bits=20)
  )
  with pytest.raises(ValueError, match='squared steps'):
    dataclasses.replace(fine, noise_multiplier=1.0)
  calibrated = accounting.calibrate(fine, 1, 100.0, 1e-5)
  assert 0.05 < calibrated.noise_multiplier < 0.5


def test_calibration_knows_its_limits():
  # As published with dp_accounting's own calibration: 0.7367.
  assert accounting.calibrate(_POISSON, 100, 2.0, 1e-5).noise_multiplier == pytest.approx(
    0.7367, abs=1.1e-4
  )
  assert accounting.calibrate(_TREE, 10, 1e9, 1e-5).noise_multiplier == 0.001
  for rounds, target in ((0, 1.0), (10, 0.0), (10, -1.0), (10, math.inf), (10, math.nan)):
    with pytest.raises(ValueError, match='budget'):
      accounting.calibrate(_POISSON, rounds, target, 1e-5)
  with pytest.raises(ValueError, match='No noise'):
    accounting.calibrate(_TREE, 10, 1e-9, 1e-12)


@pytest.mark.parametrize(
  'spec',
  [
    _POISSON,
    dataclasses.replace(_TREE, noise_multiplier=20.0),
    dataclasses.replace(
      _SKELLAM, noise_multiplier=20.0, secure_sum=dataclasses.replace(_SUMS, bits=15)
    ),
  ],
)
def test_affordable_rounds_are_the_most_within_the_budget(spec):
  rounds = accounting.affordable_rounds(spec, 1.5, 1e-5, at_most=2_000)
  assert 0 < rounds < 2_000
  assert _epsilon(spec, rounds) <= 1.5 < _epsilon(spec, rounds + 1)
  assert accounting.affordable_rounds(spec, 1.5, 1e-5, at_most=3) == 3
  assert accounting.affordable_rounds(spec, 1e-6, 1e-5, at_most=100) == 0
