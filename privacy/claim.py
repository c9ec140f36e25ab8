# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What can be claimed of a run, computed from its ledger and not from what the run said."""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from privacy import accounting, events
from privacy.ledger import Ledger
from privacy.spec import DpSpec, Mechanism

# The first that can bound the noise is the tightest, and gives the headline.
ACCOUNTANTS = ('pld', 'rdp')


class Guarantee(enum.Enum):
  """What is claimed: of this run, of a production run that it stands for, or nothing."""

  DIFFERENTIAL_PRIVACY = 'differential_privacy'
  PROJECTED = 'projected'
  NONE = 'none'


class Bound(NamedTuple):
  """An epsilon at a delta, by one accountant, with amplification by sampling or without it."""

  accountant: str
  amplified: bool
  epsilon: float
  delta: float


class Audited(NamedTuple):
  """A lower bound on epsilon at a delta, which an empirical test found."""

  epsilon: float
  delta: float

  def refutes(self, bound: Bound) -> bool:
    """Whether both cannot be true: what holds at a delta holds at every larger one."""
    return self.epsilon > bound.epsilon and self.delta >= bound.delta


@dataclasses.dataclass(frozen=True)
class Claim:
  """What can be claimed of a run.

  Attributes:
    guarantee: what is claimed.
    reasons: why it is no guarantee of this run; empty where it is.
    spec: the mechanism, or None where there is no ledger; so the next three.
    delta: of the claim.
    target_epsilon: the budget, or None without one.
    event: what was started, as a JSON object.
    bounds: epsilons of what was started, the headline first; empty where nothing is claimed.
    rho: zero-concentrated DP without amplification; None where nothing is claimed, and for noise
      that clients add.
    rounds: started rounds, all of which count: repeated and interrupted ones too.
    torn: of them, those known by a torn line only.
    last_round: the largest round number.
    entries: of the ledger; 0 without one.
    head: hash of its last entry.
    config_sha256: digest of the configuration that it was begun with.
  """

  guarantee: Guarantee
  reasons: Sequence[str]
  spec: DpSpec | None = None
  delta: float | None = None
  target_epsilon: float | None = None
  event: Mapping[str, Any] | None = None
  bounds: Sequence[Bound] = ()
  rho: float | None = None
  rounds: int = 0
  torn: int = 0
  last_round: int = 0
  entries: int = 0
  head: str = ''
  config_sha256: str = ''

  @classmethod
  def none(cls, reasons: Sequence[str]) -> 'Claim':
    """Nothing is claimed of a run without a ledger, for these reasons."""
    return cls(Guarantee.NONE, tuple(reasons))

  @classmethod
  def of(
    cls, ledger: Ledger, problems: Sequence[str] = (), audited: Audited | None = None
  ) -> 'Claim':
    """What can be claimed of a ledger.

    Args:
      ledger: with its first entry; every started round counts.
      problems: what voids a claim and is not in the ledger.
      audited: what an audit found; a claim below it is void.
    """
    spec, run = ledger.spec, ledger.run or {}
    claim = cls(
      Guarantee.NONE,
      (*problems, *spec.guarantee_problems()),
      spec,
      run.get('delta'),
      run.get('target_epsilon'),
      event=events.to_json(ledger.event(amplified=bool(spec.amplified))),
      rounds=len(ledger.rounds),
      torn=sum(entry['kind'] == 'torn' for entry in ledger.rounds),
      last_round=max((entry.get('round', 0) for entry in ledger.rounds), default=0),
      entries=ledger.anchor.entries,
      head=ledger.anchor.head,
      config_sha256=run.get('config_sha256', ''),
    )
    if claim.delta is None:
      return dataclasses.replace(claim, reasons=('The ledger names no delta.', *claim.reasons))
    if problems or (claim.reasons and not spec.is_projection):
      return claim
    try:
      bounds = _bounds(ledger, claim.delta)
      rho = None  # Skellam noise has none that is of use.
      if spec.mechanism is not Mechanism.SKELLAM:
        rho = accounting.zcdp_rho(ledger.event(amplified=False))
    except accounting.UnsupportedEventError as error:
      return dataclasses.replace(claim, reasons=(*claim.reasons, str(error)))
    if spec.is_projection:
      return dataclasses.replace(claim, guarantee=Guarantee.PROJECTED, bounds=bounds, rho=rho)
    if audited is not None and audited.refutes(bounds[0]):
      return dataclasses.replace(
        claim,
        reasons=(
          f'The audit found an epsilon of at least {audited.epsilon:.3g}, where the ledger comes to'
          f' {bounds[0].epsilon:.3g}: the mechanism does not do what its specification says.',
        ),
      )
    return dataclasses.replace(
      claim, guarantee=Guarantee.DIFFERENTIAL_PRIVACY, bounds=bounds, rho=rho
    )

  @property
  def epsilon(self) -> float | None:
    """The headline, of this run or projected; None where nothing is claimed."""
    return self.bounds[0].epsilon if self.bounds else None

  @property
  def target_met(self) -> bool | None:
    """Whether the budget holds; None without one, and for a projection, which never meets one."""
    if self.target_epsilon is None or self.guarantee is Guarantee.PROJECTED:
      return None
    return self.epsilon is not None and self.epsilon <= self.target_epsilon


def _bounds(ledger: Ledger, delta: float) -> tuple[Bound, ...]:
  """Epsilons of all accountants, with amplification first where it is claimed.

  Raises:
    UnsupportedEventError: if the tightest accountant cannot bound what was started.
  """
  bounds, first = [], accounting.claiming_accountant(ledger.spec).value
  able = ACCOUNTANTS[ACCOUNTANTS.index(first) :]
  for amplified in (True, False) if ledger.spec.amplified else (False,):
    event = ledger.event(amplified=amplified)
    for accountant in able:
      epsilon = accounting.epsilon(event, delta, accountant)
      if math.isfinite(epsilon):
        bounds.append(Bound(accountant, amplified, epsilon, delta))
  if not bounds or bounds[0].accountant != first:
    raise accounting.UnsupportedEventError('No finite epsilon bounds what was started.')
  return tuple(bounds)
