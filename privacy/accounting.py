# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""From events to epsilon and back: two accountants, zCDP, and the noise or the rounds for a budget.

Every figure is an upper bound. Without amplification and without noise of clients all events are
Gaussian, and Gaussians compose to one; its epsilon has a closed form (Balle and Wang,
arXiv:1805.06530), which is what privacy loss distributions only approximate, and slowly. Skellam
noise, which clients add, has a bound by Renyi DP alone.
"""

import collections
import dataclasses
import decimal
import enum
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import dp_accounting
from dp_accounting import pld
from dp_accounting.rdp import rdp_privacy_accountant
from scipy import optimize

from privacy import events, gaussian, skellam
from privacy.spec import DpSpec, Mechanism, Relation

# Of a sampled round: steps of the grid that its losses are rounded up to, within so many deviations
# of the unsampled loss (all but e^-50 of them), and steps per deviation where that is coarser. The
# bound is above the truth by the square of a step, relatively; the time goes with their number.
_GRID_STEPS, _GRID_DEVIATIONS, _STEPS_PER_DEVIATION = 20_000, 10.0, 20
# A finer grid loses more to floating point than it gains.
_LEAST_STEP = 1e-6
# More than what floating point was seen to take from a delta in compositions of up to 10^4 rounds.
_GRID_DELTA_ERROR = 1e-11
# Sensitivities of a Gaussian with noise 1 below which, with sampling, the accountants are slow, and
# above which floating point cannot be relied on. A lesser one has a lesser epsilon.
_LEAST_SAMPLED_MU, _MOST_MU = 3e-3, 1e7
# The default ones are too large for the large epsilons of runs without a cohort to speak of.
_RENYI_ORDERS = (1.005, 1.01, 1.02, 1.05, *rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
# Between which noise is looked for, and how far off its logarithm may be before it is rounded up.
_MULTIPLIERS, _ROOT_ERROR = (1e-3, 1e6), 1e-5


class UnsupportedEventError(ValueError):
  """There is no bound for this event: no epsilon may be printed for it."""


class Accountant(enum.Enum):
  """Privacy loss distributions, exact where there is no sampling; or Renyi DP, looser and older."""

  PLD = 'pld'
  RDP = 'rdp'


class _Sampled(NamedTuple):
  """Rounds that are one Gaussian, sensitivity `mu` and noise 1, on a Poisson sample each."""

  probability: float
  mu: float
  count: int


class _Parts(NamedTuple):
  """What an event is made of.

  One Gaussian with sensitivity `mu` and noise 1, sampled ones, and sums under Skellam noise.
  """

  mu: float
  sampled: tuple[_Sampled, ...] = ()
  integers: tuple[skellam.Sums, ...] = ()

  @property
  def unsampled_mu(self) -> float:
    """Sensitivity of the one Gaussian that everything is without sampling."""
    return math.hypot(self.mu, *(part.mu * math.sqrt(part.count) for part in self.sampled))

  def under(self, multiplier: float) -> '_Parts':
    """The same with so many times the noise."""
    return _Parts(
      self.mu / multiplier,
      tuple(part._replace(mu=part.mu / multiplier) for part in self.sampled),
      tuple(part._replace(variance=part.variance * multiplier**2) for part in self.integers),
    )


def epsilon(
  event: dp_accounting.DpEvent,
  delta: float,
  accountant: Accountant | str = Accountant.PLD,
  relation: Relation = Relation.ADD_OR_REMOVE_ONE,
) -> float:
  """The least epsilon that an accountant can show for an event at a delta.

  Args:
    event: from `privacy.events`, with the sensitivity under `relation` inside.
    delta: in (0, 1).
    accountant: or its name.
    relation: of neighbours. Adding or removing a client and zeroing it are the same for sums with
      public denominators; for REPLACE_ONE a sampled event has no bound here.

  Raises:
    UnsupportedEventError: if the event has no bound by this accountant: no noise, or of a kind that
      is not known, or Skellam noise and not RDP.
    ValueError: if `delta` is out of range.
  """
  return epsilons(event, [delta], accountant, relation)[0]


def epsilons(
  event: dp_accounting.DpEvent,
  deltas: Sequence[float],
  accountant: Accountant | str = Accountant.PLD,
  relation: Relation = Relation.ADD_OR_REMOVE_ONE,
) -> list[float]:
  """`epsilon` at several deltas, for the price of one composition."""
  parts = _parts(event)
  if parts.sampled and relation is Relation.REPLACE_ONE:
    raise UnsupportedEventError('There is no bound here for replaced clients in Poisson samples.')
  for delta in deltas:
    _check_delta(delta)
  return _epsilons(parts, deltas, Accountant(accountant))


def claimed_epsilon(spec: DpSpec, starts: Sequence[events.Start], delta: float) -> float:
  """What a run claims once these rounds were started: the figure that a budget is held against.

  By `claiming_accountant`, with the amplification and for the relation of the spec.

  Args:
    spec: of the run; of the production run, where the spec projects.
    starts: in order, repeated ones included.
    delta: in (0, 1).

  Raises:
    UnsupportedEventError: if the spec has no noise.
    ValueError: if `delta` is out of range.
  """
  event = events.started_event(spec, starts, amplified=bool(spec.amplified))
  relation = spec.relation or Relation.ADD_OR_REMOVE_ONE
  return epsilon(event, delta, claiming_accountant(spec), relation)


def claiming_accountant(spec: DpSpec) -> Accountant:
  """The one whose figure a run claims: the tightest that can bound its noise."""
  return Accountant.RDP if spec.mechanism is Mechanism.SKELLAM else Accountant.PLD


def zcdp_rho(event: dp_accounting.DpEvent) -> float:
  """The rho of zero-concentrated DP (arXiv:1605.02065) of an event without sampling.

  Raises:
    UnsupportedEventError: if the event has no bound, or is sampled, or has Skellam noise.
  """
  parts = _parts(event)
  if parts.sampled:
    raise UnsupportedEventError('There is no rho here for Poisson samples.')
  if parts.integers:
    raise UnsupportedEventError('There is no rho here for Skellam noise.')
  return parts.mu**2 / 2


def rho_to_epsilon(rho: float, delta: float) -> float:
  """An epsilon at a delta that every mechanism with this rho has; a Gaussian one has a lesser one.

  By Renyi DP of the best order (arXiv:2004.00010, Prop. 12).

  Args:
    rho: at least 0.
    delta: in (0, 1).

  Raises:
    ValueError: if a number is out of range.
  """
  if not 0 <= rho < math.inf:
    raise ValueError(f'`rho` must be at least 0, got {rho}.')
  _check_delta(delta)

  def bound(log_excess: float) -> float:
    excess = math.exp(log_excess)
    order = 1 + excess
    return rho * order - (math.log(delta) + math.log(order)) / excess - math.log1p(1 / excess)

  # A bound at every order; the best is near 1 + sqrt(log(1 / delta) / rho).
  near = math.log(-math.log(delta) / max(rho, 1e-30)) / 2
  best = optimize.minimize_scalar(bound, bounds=(near - 5, near + 5), method='bounded')
  return max(0.0, float(best.fun)) if rho > 0 else 0.0


def calibrate(spec: DpSpec, rounds: int, target_epsilon: float, delta: float) -> DpSpec:
  """The spec with the least noise that keeps a run within a budget.

  Args:
    spec: its noise multiplier only has to be possible with the rest, or 0. A projection is
      calibrated as the run it projects to.
    rounds: of the run, at least 1, each of which starts once.
    target_epsilon: the budget, positive.
    delta: in (0, 1).

  Returns:
    The spec with a noise multiplier of four significant digits, of at least 0.001, with which the
    epsilon of the run, with the amplification that the spec claims, is at most the target.

  Raises:
    ValueError: if a number is out of range, or no noise is enough.
  """
  if rounds < 1 or not 0 < target_epsilon < math.inf:
    raise ValueError(f'Needs a round and a budget, got {rounds} rounds at {target_epsilon}.')
  _check_delta(delta)
  spec = dataclasses.replace(spec, noise_multiplier=spec.noise_multiplier or 1.0)
  parts = _parts(_claimed_event(spec, rounds))
  claiming = claiming_accountant(spec)

  def excess(log_multiplier: float, accountant: Accountant = claiming) -> float:
    times = math.exp(log_multiplier) / spec.noise_multiplier
    (bound,) = _epsilons(parts.under(times), [delta], accountant)
    # Nearly a straight line, but for an epsilon of 0.
    return math.log(max(bound, target_epsilon * 1e-3) / target_epsilon)

  least, most = (math.log(multiplier) for multiplier in _MULTIPLIERS)
  if excess(most) > 0:
    raise ValueError(f'No noise multiplier up to {_MULTIPLIERS[1]:g} gives {target_epsilon}.')
  high = most
  # Renyi DP is quick, and asks for little more noise.
  if excess(most, Accountant.RDP) < 0 < excess(least, Accountant.RDP):
    high = _root(lambda x: excess(x, Accountant.RDP), least, most)
  while excess(high) > 0:
    high += 0.5
  low = high - 0.5
  while low > least and excess(low) <= 0:
    low -= 1.0
  root = _root(excess, low, high) if excess(low) > 0 else least
  digits = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING)
  # The search ends on either side of the root.
  multiplier = digits.create_decimal(math.exp(root - _ROOT_ERROR))
  while True:
    calibrated = dataclasses.replace(spec, noise_multiplier=float(multiplier))
    if epsilon(_claimed_event(calibrated, rounds), delta, claiming) <= target_epsilon:
      return calibrated
    multiplier = digits.next_plus(multiplier)


def affordable_rounds(spec: DpSpec, target_epsilon: float, delta: float, *, at_most: int) -> int:
  """How many rounds, each of which starts once, a budget allows.

  Args:
    spec: of the run, with the amplification that counts.
    target_epsilon: the budget.
    delta: in (0, 1).
    at_most: where to stop looking, for runs whose rounds cost nothing after some time.

  Raises:
    UnsupportedEventError: if the spec has no noise.
    ValueError: if `delta` is out of range.
  """

  def fits(rounds: int) -> bool:
    event = _claimed_event(spec, rounds)
    return epsilon(event, delta, claiming_accountant(spec)) <= target_epsilon

  if fits(at_most):
    return at_most
  low, high = 0, at_most
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


def _root(function: Callable[[float], float], low: float, high: float) -> float:
  return optimize.root_scalar(function, bracket=(low, high), xtol=_ROOT_ERROR).root


def _claimed_event(spec: DpSpec, rounds: int) -> dp_accounting.DpEvent:
  return events.run_event(spec, rounds, amplified=bool(spec.amplified))


def _check_delta(delta: float):
  if not 0 < delta < 1:
    raise ValueError(f'`delta` must be in (0, 1), got {delta}.')


def _parts(event: dp_accounting.DpEvent) -> _Parts:
  """Takes an event apart; Gaussians become one, whatever order they came in.

  Raises:
    UnsupportedEventError: if there is anything else in it, or no noise.
  """
  squared, counts, integers = 0.0, collections.Counter(), collections.Counter()
  pending = [(event, 1)]
  while pending:
    part, count = pending.pop()
    if count == 0 or isinstance(part, dp_accounting.NoOpDpEvent):
      continue
    if isinstance(part, dp_accounting.GaussianDpEvent):
      squared += count * _mu(part) ** 2
    elif isinstance(part, events.SkellamDpEvent):
      integers[part] += count
    elif isinstance(part, dp_accounting.SelfComposedDpEvent):
      pending.append((part.event, count * part.count))
    elif isinstance(part, dp_accounting.ComposedDpEvent):
      pending += [(inner, count) for inner in part.events]
    elif isinstance(part, dp_accounting.PoissonSampledDpEvent):
      # Gaussians of one sample are one Gaussian of it.
      inner = _parts(part.event)
      if inner.sampled or inner.integers or not 0 <= part.sampling_probability <= 1:
        raise UnsupportedEventError(f'There is no bound for {part}.')
      if part.sampling_probability == 1:
        squared += count * inner.mu**2
      elif part.sampling_probability * inner.mu > 0:
        counts[part.sampling_probability, inner.mu] += count
    else:
      raise UnsupportedEventError(f'There is no bound for {type(part).__name__}.')
  sampled = tuple(_Sampled(q, mu, count) for (q, mu), count in counts.items())
  sums = tuple(skellam.Sums(part.variance, part.l1, part.l2, n) for part, n in integers.items())
  parts = _Parts(math.sqrt(squared), sampled, sums)
  _check_noise(parts)
  return parts


def _check_noise(parts: _Parts):
  enough = all(_MOST_MU**2 * part.variance > part.l2**2 for part in parts.integers)
  if parts.unsampled_mu > _MOST_MU or not enough:
    raise UnsupportedEventError('There is too little noise for a bound.')
  if parts.integers and parts.unsampled_mu > 0:
    raise UnsupportedEventError('There is no bound here for Skellam noise beside another.')


def _mu(event: dp_accounting.GaussianDpEvent) -> float:
  if not event.noise_multiplier * _MOST_MU >= 1:
    raise UnsupportedEventError(
      f'There is too little noise for a bound: a noise multiplier of {event.noise_multiplier:g}.'
    )
  return 1 / event.noise_multiplier


def _event(parts: _Parts) -> dp_accounting.DpEvent:
  composed: list[dp_accounting.DpEvent] = []
  if parts.mu > 0:
    composed.append(dp_accounting.GaussianDpEvent(1 / parts.mu))
  for part in parts.sampled:
    gaussian = dp_accounting.GaussianDpEvent(1 / part.mu)
    sampled = dp_accounting.PoissonSampledDpEvent(part.probability, gaussian)
    composed.append(dp_accounting.SelfComposedDpEvent(sampled, part.count))
  return dp_accounting.ComposedDpEvent(composed)


def _epsilons(parts: _Parts, deltas: Sequence[float], accountant: Accountant) -> list[float]:
  if parts.integers:
    if accountant is not Accountant.RDP:
      raise UnsupportedEventError('Skellam noise has a bound by Renyi DP (RDP) alone.')
    return [skellam.epsilon(parts.integers, delta) for delta in deltas]
  mu = parts.unsampled_mu
  if accountant is Accountant.PLD:
    unsampled = [gaussian.epsilon(mu, delta) for delta in deltas]
    sampled = _loss_distribution
  else:
    unsampled = [rho_to_epsilon(mu**2 / 2, delta) for delta in deltas]
    sampled = _renyi
  if not parts.sampled:
    return unsampled
  at_least = tuple(part._replace(mu=max(part.mu, _LEAST_SAMPLED_MU)) for part in parts.sampled)
  # Sampling never hurts: where it helps less than a grid or an order loses, the bound without it is
  # the better one.
  return [
    min(pair) for pair in zip(unsampled, sampled(_Parts(parts.mu, at_least), deltas), strict=True)
  ]


def _loss_distribution(parts: _Parts, deltas: Sequence[float]) -> list[float]:
  step = max(_grid_step(part) for part in parts.sampled)
  accountant = pld.PLDAccountant(value_discretization_interval=step)
  try:
    accountant.compose(_event(parts))
  except OverflowError:  # Losses beyond what a float holds: no bound by this way.
    return [math.inf] * len(deltas)
  return [
    float(accountant.get_epsilon(delta - _GRID_DELTA_ERROR))
    if delta > _GRID_DELTA_ERROR
    else math.inf
    for delta in deltas
  ]


def _grid_step(part: _Sampled) -> float:
  loss = part.mu**2 / 2 + _GRID_DEVIATIONS * part.mu
  # log(1 + q (e^loss - 1)), with e^loss out.
  largest = loss + math.log(part.probability + (1 - part.probability) * math.exp(-loss))
  deviation = part.probability * part.mu
  return max(largest / _GRID_STEPS, deviation / _STEPS_PER_DEVIATION, _LEAST_STEP)


def _renyi(parts: _Parts, deltas: Sequence[float]) -> list[float]:
  accountant = rdp_privacy_accountant.RdpAccountant(_RENYI_ORDERS)
  accountant.compose(_event(parts))
  return [float(accountant.get_epsilon(delta)) for delta in deltas]
