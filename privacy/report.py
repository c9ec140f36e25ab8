# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The report of a private run for those who sign off: one content, as JSON and as text.

Its fields are those that Ponomareva et al. (How to DP-fy ML, arXiv:2303.00654) and NIST SP 800-226
ask of a claim. No TensorFlow here: a reviewer's laptop can compute it again.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from privacy import wording
from privacy.claim import Audited, Claim, Guarantee
from privacy.ledger import Ledger
from privacy.spec import DpSpec, Sampling

_FORMAT, _VERSION = 'hetlora_privacy_report', 1
_LIBRARY = 'dp-accounting'


@dataclasses.dataclass(frozen=True)
class Facts:
  """What no ledger holds; whoever writes the report answers for it.

  Attributes:
    unit: what one client is.
    released: what others get to see.
    not_covered: what of it the figures say nothing about.
    withheld: measurements left empty, and why, by name.
    weighting: how clients are weighed.
    public_data: what came from elsewhere than clients.
    tuning: how the settings were chosen.
    secure_aggregation: whether, and by which protocol.
    problems: why there is no guarantee, whatever the ledger says.
    observed: participation as it happened, by name; None where it is secret or unknown.
    audit: the result of an empirical test, with `epsilon_lower_bound` and `delta`; None without.
    checks: what was compared with what, and held.
    software: versions by name.
  """

  unit: str
  released: Sequence[str]
  not_covered: Sequence[str]
  withheld: Mapping[str, str]
  weighting: str
  public_data: str
  tuning: str
  secure_aggregation: str
  problems: Sequence[str] = ()
  observed: Mapping[str, Any] | None = None
  audit: Mapping[str, Any] | None = None
  checks: Sequence[str] = ()
  software: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Section(NamedTuple):
  """A part of the report for people: paragraphs, rows of (name, value), points."""

  title: str
  paragraphs: Sequence[str] = ()
  rows: Sequence[tuple[str, str]] = ()
  points: Sequence[str] = ()


class Figure(NamedTuple):
  """A number of the claim, as text, with what it is of."""

  name: str
  value: str
  note: str


@dataclasses.dataclass(frozen=True)
class PrivacyReport:
  """What a run guarantees to its clients, and what it does not.

  Attributes:
    claim: what its ledger allows to say.
    facts: what no ledger holds.
  """

  claim: Claim
  facts: Facts

  @classmethod
  def from_ledger(cls, ledger: Ledger | None, facts: Facts) -> 'PrivacyReport':
    """Computes the report of a run.

    Args:
      ledger: with its first entry; None for a run without one, and then `facts.problems` says why.
      facts: what it does not hold.
    """
    if ledger is None:
      return cls(Claim.none(facts.problems), facts)
    audit, audited = facts.audit or {}, None
    if audit:
      audited = Audited(audit['epsilon_lower_bound'], audit['delta'])
    return cls(Claim.of(ledger, facts.problems, audited), facts)

  @property
  def headline(self) -> str:
    """The claim in one line."""
    claim = self.claim
    if claim.guarantee is Guarantee.NONE or not claim.bounds:
      return 'No privacy guarantee'
    figure = f'epsilon {wording.bound(claim.bounds[0].epsilon)}'
    at = f'delta {wording.bound(claim.bounds[0].delta)}'
    if claim.guarantee is Guarantee.PROJECTED:
      return f'No guarantee for this run; projected {figure} at {at}'
    return f'User-level differential privacy: {figure} at {at}'

  @property
  def statement(self) -> list[str]:
    """What the claim means, in plain sentences."""
    claim, spec = self.claim, self.claim.spec
    if spec is None or not claim.bounds:
      return [*claim.reasons, wording.NOTHING_CLAIMED]
    bound = claim.bounds[0]
    sentences = [wording.NOTHING_STARTED]
    if claim.rounds:
      sentences = wording.protection(bound.epsilon, bound.delta, spec.relation)
    if bound.amplified:
      known = next(x for x in claim.bounds if not x.amplified)
      sentences.append(wording.if_draws_are_known(known.epsilon))
    sentences.append(wording.LIMITS)
    if claim.guarantee is Guarantee.PROJECTED:
      return [*claim.reasons, wording.projected(spec), *sentences]
    return sentences

  def to_json(self) -> dict[str, Any]:
    """The report as `report_schema.json` describes it."""
    claim, facts, spec = self.claim, self.facts, self.claim.spec
    holds = claim.guarantee is Guarantee.DIFFERENTIAL_PRIVACY
    return {
      'format': _FORMAT,
      'version': _VERSION,
      'headline': {
        'guarantee': claim.guarantee.value,
        'epsilon': claim.epsilon if holds else None,
        'projected_epsilon': None if holds else claim.epsilon,
        'delta': claim.delta,
        'accountant': claim.bounds[0].accountant if claim.bounds else None,
        'amplified': bool(claim.bounds and claim.bounds[0].amplified),
        'relation': spec.to_json()['relation'] if spec else None,
        'reasons': list(claim.reasons),
        'statement': ' '.join(self.statement),
      },
      'epsilons': [bound._asdict() for bound in claim.bounds],
      'zcdp_rho': claim.rho,
      'setting': self._setting(),
      'unit': facts.unit,
      'relation': wording.relation(spec.relation if spec else None),
      'released': list(facts.released),
      'not_covered': self._not_covered(),
      'withheld': [{'name': name, 'reason': why} for name, why in facts.withheld.items()],
      'mechanism': _mechanism(spec) if spec else None,
      'weighting': facts.weighting,
      'participation': self._participation(),
      'target': (
        {'epsilon': claim.target_epsilon, 'met': claim.target_met} if claim.target_epsilon else None
      ),
      'accounting': {'library': _library(), 'event': claim.event} if claim.event else None,
      'conditions': wording.conditions(spec) if spec and claim.bounds else [],
      'tuning': facts.tuning,
      'public_data': facts.public_data,
      'numerics': self._numerics(),
      'secure_aggregation': facts.secure_aggregation,
      'audit': None if facts.audit is None else dict(facts.audit),
      'ledger': (
        {'entries': claim.entries, 'head': claim.head, 'config_sha256': claim.config_sha256}
        if claim.entries
        else None
      ),
      'checks': list(facts.checks),
      'software': dict(facts.software),
    }

  def sections(self) -> list[Section]:
    """The report below headline, statement and figures, in the order of the fields of a claim."""
    facts, spec, content = self.facts, self.claim.spec, self.to_json()
    sections = [
      Section('What must hold', points=content['conditions']),
      Section('What is released', points=facts.released),
      Section('What is not covered', points=content['not_covered']),
      Section('What is withheld', rows=list(facts.withheld.items())),
      Section('Setting and trust', [content['setting']]),
      Section('Unit of privacy', [facts.unit]),
      Section('Neighbouring runs', [content['relation']]),
      Section('Mechanism', rows=self._mechanism_rows()),
      Section('Participation', [self._assumed(spec)] if spec else (), self._turns()),
      Section('Accounting', rows=self._accounting_rows()),
      Section('Tuning', [facts.tuning]),
      Section('Public data', [facts.public_data]),
      Section('Numerics and randomness', [content['numerics']]),
      Section('Secure aggregation', [facts.secure_aggregation]),
      Section('Audit', *self._audit()),
      Section('Verification', rows=self._ledger_rows(), points=facts.checks),
    ]
    return [section for section in sections if any(section[1:])]

  def figures(self) -> list[Figure]:
    """The numbers of the claim, the headline first; none where nothing is claimed."""
    claim, spec = self.claim, self.claim.spec
    if spec is None or not claim.bounds:
      return []
    projected = 'projected ' if claim.guarantee is Guarantee.PROJECTED else ''
    found = [
      Figure(f'{projected}epsilon', wording.bound(bound.epsilon), wording.way(*bound[:2]))
      for bound in claim.bounds
    ]
    if claim.rho is not None:
      rho = wording.bound(claim.rho)
      found.append(Figure(f'{projected}rho', rho, 'zCDP, without amplification'))
    delta = claim.bounds[0].delta
    found.append(Figure('delta', wording.bound(delta), wording.beside(delta, spec.population_size)))
    if claim.target_epsilon is not None:
      kept = {True: 'kept', False: 'passed', None: 'a projection never meets a budget'}
      found.append(Figure('budget', f'{claim.target_epsilon:g}', kept[claim.target_met]))
    return found

  def to_markdown(self) -> str:
    """The whole report as text."""
    lines = [f'# {self.headline}', '', *_paragraphs(self.statement)]
    figures = [(f'{name}, {note}', value) for name, value, note in self.figures()]
    if figures:
      lines += _markdown(Section('Figures', rows=figures))
    for section in self.sections():
      lines += _markdown(section)
    return '\n'.join(lines).rstrip() + '\n'

  def _not_covered(self) -> list[str]:
    if self.claim.guarantee is Guarantee.NONE:
      return ['Everything: nothing is claimed.']
    return [*self.facts.not_covered, *wording.NOT_COVERED]

  def _setting(self) -> str:
    if self.claim.spec is None:
      return wording.NO_SETTING
    setting = wording.setting(self.claim.spec)
    return f'{setting} {wording.AGAINST}' if self.claim.bounds else setting

  def _assumed(self, spec: DpSpec) -> str:
    texts = [wording.participation(spec)]
    return ' '.join(texts + [wording.use_of_participation(spec)] * bool(self.claim.bounds))

  def _numerics(self) -> str:
    return wording.numerics(self.claim.spec) if self.claim.spec else wording.NO_NOISE

  def _participation(self) -> dict[str, Any] | None:
    claim, spec = self.claim, self.claim.spec
    if spec is None:
      return None
    poisson = spec.sampling is Sampling.POISSON
    return {
      'rounds_started': claim.rounds,
      'rounds_torn': claim.torn,
      'last_round': claim.last_round,
      'sampling_probability': spec.sampling_probability if poisson else None,
      'assumed': self._assumed(spec),
      'observed': None if self.facts.observed is None else dict(self.facts.observed),
    }

  def _turns(self) -> list[tuple[str, str]]:
    claim = self.claim
    if claim.spec is None:
      return []
    rows = [('rounds started, all of which count', f'{claim.rounds:,}')]
    if claim.torn:
      rows.append(('of them known by a torn line only', f'{claim.torn:,}'))
    rows.append(('last round', f'{claim.last_round:,}'))
    observed = self.facts.observed
    if observed is None:
      return [*rows, ('observed participation', wording.unobserved(claim.spec))]
    return rows + [(f'observed {k.replace("_", " ")}', str(v)) for k, v in observed.items()]

  def _mechanism_rows(self) -> list[tuple[str, str]]:
    spec = self.claim.spec
    return [*wording.mechanism(spec), ('Weights', self.facts.weighting)] if spec else []

  def _accounting_rows(self) -> list[tuple[str, str]]:
    claim = self.claim
    if claim.event is None or claim.spec is None:
      return []
    rows = wording.accountants(claim.spec)
    return [('library', _library()), *rows, ('event', json.dumps(claim.event))]

  def _audit(self) -> tuple[list[str], list[tuple[str, str]]]:
    audit = self.facts.audit
    if audit is None:
      return ['No audit was made.'], []
    return [wording.AUDIT], [(name.replace('_', ' '), str(value)) for name, value in audit.items()]

  def _ledger_rows(self) -> list[tuple[str, str]]:
    claim = self.claim
    rows = [(f'version of {name}', version) for name, version in self.facts.software.items()]
    if not claim.entries:
      return rows
    return [
      ('ledger entries', f'{claim.entries:,}'),
      ('hash of the last entry', claim.head),
      ('digest of the configuration', claim.config_sha256),
      *rows,
    ]


def _mechanism(spec: DpSpec) -> dict[str, Any]:
  fields = {**spec.to_json(), 'noise_stddev': spec.noise_stddev}
  if spec.secure_sum is None:
    return fields
  sums = spec.secure_sum
  return {
    **fields,
    'secure_sum': {
      **sums.to_json(),
      'step': sums.step,
      'sum_bits': sums.sum_bits,
      'inflation': spec.inflation,
      'wrap_probability': spec.wrap_probability,
    },
  }


def _library() -> str:
  return f'{_LIBRARY} {importlib.metadata.version(_LIBRARY)}'


def _paragraphs(texts: Sequence[str]) -> list[str]:
  return [line for text in texts for line in (text, '')]


def _markdown(section: Section) -> list[str]:
  lines = [f'## {section.title}', '', *_paragraphs(section.paragraphs)]
  if section.rows:
    cells = [[cell.replace('|', '\\|') for cell in row] for row in section.rows]
    lines += ['| | |', '|---|---|', *(f'| {name} | {value} |' for name, value in cells), '']
  if section.points:
    lines += [*(f'- {point}' for point in section.points), '']
  return lines
