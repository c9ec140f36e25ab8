# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the privacy report: its figures, its words, and when it claims nothing."""

import dataclasses
import json
import math
import pathlib

import dp_accounting
import hypothesis
import jsonschema
import pytest
from dp_accounting import pld, rdp
from hypothesis import strategies as st

from privacy import claim, report, wording
from privacy.ledger import Ledger
from privacy.secure_sum import SecureSumSpec
from privacy.spec import Clipping, DpSpec, Mechanism, Relation, Sampling

_SCHEMA = json.loads(pathlib.Path(report.__file__).with_name('report_schema.json').read_text())
_FACTS = report.Facts(
  unit='one client',
  released=['the model'],
  not_covered=['evaluation'],
  withheld={'train_loss': 'it is exact.'},
  weighting='all the same',
  public_data='the base model',
  tuning='none',
  secure_aggregation='none',
)
_POISSON = DpSpec(
  noise_multiplier=1.0,
  l2_clip_norm=0.5,
  clients_per_round=10,
  sampling=Sampling.POISSON,
  population_size=1000,
)
_FIXED = DpSpec(noise_multiplier=8.0, l2_clip_norm=1.0, clients_per_round=10)
_TREE = DpSpec(
  noise_multiplier=6.0,
  l2_clip_norm=1.0,
  clients_per_round=10,
  mechanism=Mechanism.TREE,
  sampling=Sampling.MIN_SEPARATION,
  min_separation=4,
  max_participations=2,
)
_SUMS = SecureSumSpec(bits=16, largest_cohort=10, l2_clip_norm=1.0, coordinates=10_000)
_SKELLAM = dataclasses.replace(
  _FIXED, mechanism=Mechanism.SKELLAM, noise_multiplier=5.0, secure_sum=_SUMS, smallest_cohort=7
)
_SPECS = {
  'skellam': _SKELLAM,
  'skellam without noise': dataclasses.replace(_SKELLAM, noise_multiplier=0.0),
  'secure sum': dataclasses.replace(_FIXED, secure_sum=_SUMS),
  'adaptive secure sum': dataclasses.replace(
    _FIXED,
    clients_per_round=100,
    clipping=Clipping.ADAPTIVE,
    secure_sum=dataclasses.replace(_SUMS, largest_cohort=100),
  ),
  'poisson': _POISSON,
  'fixed': _FIXED,
  'tree': _TREE,
  'restarting tree': dataclasses.replace(_TREE, restart_every=8),
  'banded': dataclasses.replace(_TREE, mechanism=Mechanism.BANDED),
  'separated': dataclasses.replace(_TREE, mechanism=Mechanism.GAUSSIAN),
  'adaptive': dataclasses.replace(_POISSON, clipping=Clipping.ADAPTIVE),
  'replace': dataclasses.replace(_FIXED, relation=Relation.REPLACE_ONE),
  'projection': dataclasses.replace(
    _POISSON, noise_cohort_size=1000, population_size=100_000, noise_multiplier=0.8
  ),
  'no noise': dataclasses.replace(_POISSON, noise_multiplier=0.0),
  'seeded': dataclasses.replace(_POISSON, insecure_seed=3),
  'no population': dataclasses.replace(_FIXED, population_size=None),
  'weak': dataclasses.replace(_FIXED, noise_multiplier=0.3),
}


def _ledger(path, spec, rounds=16, delta=1e-5, target=None):
  ledger = Ledger(path / 'ledger.jsonl')
  ledger.begin(spec, 'c' * 64, delta=delta, target_epsilon=target)
  for number in range(1, rounds + 1):
    if not spec.is_correlated:
      ledger.start_round(number)
    else:
      tree, leaf = divmod(number - 1, spec.restart_every or rounds)
      ledger.start_round(number, tree=tree, leaf=leaf)
  return ledger


def _report(path, spec, facts=_FACTS, **more):
  return report.PrivacyReport.from_ledger(_ledger(path, spec, **more), facts)


def _below(path, name='below'):
  (path / name).mkdir()
  return path / name


def _validate(content):
  jsonschema.Draft202012Validator(_SCHEMA).validate(content)


@pytest.mark.parametrize('name', _SPECS)
def test_json_follows_the_schema(tmp_path, name):
  content = _report(tmp_path, _SPECS[name], target=3.0).to_json()
  _validate(json.loads(json.dumps(content, allow_nan=False)))


def test_without_a_ledger_json_follows_the_schema():
  facts = dataclasses.replace(_FACTS, problems=['There is no ledger.'])
  made = report.PrivacyReport.from_ledger(None, facts)
  _validate(made.to_json())
  assert made.claim.guarantee is claim.Guarantee.NONE
  assert made.to_markdown().startswith('# No privacy guarantee\n\nThere is no ledger.\n')


@pytest.mark.parametrize(
  'change',
  [
    {'guarantee': 'none'},
    {'guarantee': 'projected', 'projected_epsilon': None},
    {'reasons': ['something']},
    {'epsilon': None},
    {'projected_epsilon': 2.0},
    {'delta': None},
    {'delta': 0},
    {'unknown': 1},
  ],
)
def test_schema_refuses_a_headline_that_contradicts_itself(tmp_path, change):
  content = _report(tmp_path, _POISSON).to_json()
  _validate(content)
  with pytest.raises(jsonschema.ValidationError):
    _validate({**content, 'headline': {**content['headline'], **change}})


def test_headline_is_amplified_pld_beside_all_other_figures(tmp_path):
  made = _report(tmp_path, _POISSON, rounds=100)
  gaussian = dp_accounting.GaussianDpEvent(1.0)
  events = {True: dp_accounting.PoissonSampledDpEvent(0.01, gaussian), False: gaussian}
  accountants = {'pld': pld.PLDAccountant, 'rdp': rdp.RdpAccountant}
  for bound in made.claim.bounds:
    if bound[:2] == ('pld', False):
      assert bound.epsilon == pytest.approx(91.8, abs=0.05)  # The library takes a minute for it.
      continue
    accountant = accountants[bound.accountant]()
    accountant.compose(events[bound.amplified], 100)
    assert bound.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=0.02)
  ways = [(bound.accountant, bound.amplified) for bound in made.claim.bounds]
  assert ways == [('pld', True), ('rdp', True), ('pld', False), ('rdp', False)]
  assert made.claim.rho == pytest.approx(50)
  headline = made.to_json()['headline']
  assert headline['epsilon'] == made.claim.bounds[0].epsilon == pytest.approx(0.718, rel=0.01)
  assert headline['amplified'] is True
  assert made.headline == 'User-level differential privacy: epsilon 0.719 at delta 1e-5'


def test_noise_of_clients_has_one_figure(tmp_path):
  made = _report(tmp_path, _SKELLAM, target=100.0)
  content = made.to_json()
  assert content['headline']['accountant'] == 'rdp'
  assert [bound.accountant for bound in made.claim.bounds] == ['rdp']
  assert content['zcdp_rho'] is None
  assert [figure.name for figure in made.figures()] == ['epsilon', 'delta', 'budget']
  # Of Gaussian noise with the same multiplier on a clip of S' = 1 + 50 / 32767.
  accountant = rdp.RdpAccountant(range(2, 200))
  accountant.compose(dp_accounting.GaussianDpEvent(5 / (1 + 50 / 32767)), 16)
  assert made.claim.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
  assert made.claim.target_met is True
  assert 'PLD' not in made.to_markdown()


def test_grid_is_in_the_report(tmp_path):
  sums = _report(tmp_path, _SKELLAM).to_json()['mechanism']['secure_sum']
  assert sums['inflation'] == pytest.approx(1 + 50 / 32767)
  assert sums['step'] == pytest.approx(1 / 32767)
  assert 0 < sums['wrap_probability'] <= 1e-6
  plain = _report(_below(tmp_path), _SPECS['secure sum'])
  assert plain.to_json()['mechanism']['secure_sum']['wrap_probability'] == 0
  # A longer clip under the same noise: 16 rounds of (S' / (z S))^2 / 2.
  assert plain.claim.rho == pytest.approx(16 * ((1 + 50 / 32767) / 8) ** 2 / 2)


def test_no_amplification_is_claimed_without_poisson_sampling(tmp_path):
  made = _report(tmp_path, _FIXED)
  assert {bound.amplified for bound in made.claim.bounds} == {False}
  assert made.to_json()['headline']['amplified'] is False
  assert 'with amplification' not in made.to_markdown()
  assert 'make no use of the sampling' in made.to_markdown()


def test_every_started_round_counts(tmp_path):
  once = _report(tmp_path, _FIXED, rounds=4)
  ledger = _ledger(_below(tmp_path), _FIXED, rounds=4)
  ledger.start_round(4)
  ledger.start_round(4)
  again = report.PrivacyReport.from_ledger(ledger, _FACTS)
  assert (once.claim.rounds, again.claim.rounds, again.claim.last_round) == (4, 6, 4)
  assert again.claim.rho == pytest.approx(1.5 * once.claim.rho)


def test_torn_line_counts_as_a_round(tmp_path):
  whole = _report(tmp_path, _FIXED, rounds=3)
  path = tmp_path / 'ledger.jsonl'
  path.write_bytes(path.read_bytes() + b'{"index": 4, "ki')
  torn = report.PrivacyReport.from_ledger(Ledger(path), _FACTS)
  assert (torn.claim.rounds, torn.claim.torn) == (4, 1)
  assert torn.claim.rho == pytest.approx(4 / 3 * whole.claim.rho)
  assert '| of them known by a torn line only | 1 |' in torn.to_markdown()


@pytest.mark.parametrize('name', ['no noise', 'seeded'])
def test_no_epsilon_is_printed_without_a_guarantee(tmp_path, name):
  made = _report(tmp_path, _SPECS[name], target=3.0)
  content = made.to_json()
  assert content['headline']['guarantee'] == 'none'
  assert content['headline']['reasons']
  assert content['epsilons'] == []
  assert content['zcdp_rho'] is None
  assert content['target']['met'] is False
  assert made.figures() == []
  assert made.headline == 'No privacy guarantee'
  assert 'differential privacy: epsilon' not in made.to_markdown()


def test_problem_outside_the_ledger_voids_the_claim(tmp_path):
  facts = dataclasses.replace(_FACTS, problems=['Rounds are missing.'])
  for name in ('poisson', 'projection'):
    made = _report(_below(tmp_path, name), _SPECS[name], facts)
    assert made.claim.guarantee is claim.Guarantee.NONE
    assert made.claim.reasons[0] == 'Rounds are missing.'
    assert made.claim.bounds == ()


def test_projection_is_no_guarantee_and_meets_no_target(tmp_path):
  made = _report(tmp_path, _SPECS['projection'], target=100.0)
  content = made.to_json()
  assert content['headline']['guarantee'] == 'projected'
  assert content['headline']['epsilon'] is None
  assert content['headline']['projected_epsilon'] == pytest.approx(made.claim.bounds[0].epsilon)
  assert content['target'] == {'epsilon': 100.0, 'met': None}
  assert content['mechanism']['noise_cohort_size'] == 1000
  assert content['mechanism']['noise_stddev'] == pytest.approx(0.8 * 0.5 / 100)
  assert made.headline.startswith('No guarantee for this run; projected epsilon ')
  assert '1,000 clients in a round out of 100,000' in ' '.join(made.statement)
  assert all('projected' in figure.name for figure in made.figures()[:5])


@pytest.mark.parametrize(('target', 'met'), [(0.5, False), (100.0, True), (None, None)])
def test_says_whether_the_budget_holds(tmp_path, target, met):
  made = _report(tmp_path, _FIXED, target=target)
  assert made.claim.target_met is met
  kept = {True: 'kept', False: 'passed', None: None}[met]
  budget = [figure.note for figure in made.figures() if figure.name == 'budget']
  assert budget == ([kept] if kept else [])


def test_nothing_started_costs_nothing(tmp_path):
  made = _report(tmp_path, _POISSON, rounds=0)
  assert made.claim.epsilon == 0
  assert made.statement[0] == wording.NOTHING_STARTED
  _validate(made.to_json())


@pytest.mark.parametrize(
  ('audit', 'refuted'),
  [
    ({'epsilon_lower_bound': 9.0, 'delta': 1e-5}, True),
    ({'epsilon_lower_bound': 9.0, 'delta': 1e-3}, True),
    ({'epsilon_lower_bound': 9.0, 'delta': 1e-7}, False),
    ({'epsilon_lower_bound': 0.1, 'delta': 1e-5}, False),
  ],
)
def test_audit_may_refute_the_claim(tmp_path, audit, refuted):
  made = _report(tmp_path, _POISSON, dataclasses.replace(_FACTS, audit=audit))
  assert (made.claim.guarantee is claim.Guarantee.NONE) == refuted
  if refuted:
    assert made.claim.reasons[0].startswith('The audit found an epsilon of at least 9, where')
    assert made.claim.bounds == ()
  _validate(made.to_json())


def test_known_draws_leave_the_larger_figure(tmp_path):
  made = _report(tmp_path, _POISSON)
  larger = wording.bound(made.claim.bounds[2].epsilon)
  assert f'Against those who learn it, epsilon is {larger}.' in ' '.join(made.statement)
  unclaimed = _report(_below(tmp_path), dataclasses.replace(_POISSON, amplified=False))
  assert 'who learn it' not in ' '.join(unclaimed.statement)
  assert unclaimed.claim.bounds[0].epsilon == made.claim.bounds[2].epsilon


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('poisson', 'every client takes part by itself with probability 0.01'),
    ('projection', 'Of the projected run: Poisson sampling'),
    ('no noise', 'No noise was added.'),
    ('seeded', '- Everything: nothing is claimed.'),
    ('poisson', 'in which one client does not exist'),
    ('poisson', 'below one over the 1,000 clients'),
    ('fixed', 'in which one client sends zeros whenever it takes part'),
    ('fixed', 'knows no population'),
    ('replace', 'has any other data'),
    ('tree', 'by a binary tree'),
    ('tree', 'more than 2 times or twice within fewer than 4 rounds'),
    ('restarting tree', 'after every 8 rounds'),
    ('banded', 'banded Toeplitz matrix'),
    ('separated', 'independent in each round'),
    ('adaptive', 'then follows the noised 0.5 quantile'),
    ('weak', 'This is weak: an epsilon above 10'),
    ('seeded', 'whoever knows it can subtract it'),
    ('skellam', 'At least 7 clients whose noise nobody else knows'),
    ('skellam', 'Central trust, noise of clients'),
    ('skellam', '| Norm after rounding | at most 1.00153 times the clip norm'),
    ('skellam', '| Fewest shares of noise | 7'),
    ('skellam', '2110.04995'),
    ('skellam', 'difference of two Poisson draws'),
    ('skellam without noise', 'No noise was added.'),
    ('secure sum', 'The sum is simulated: the integers reach the server in the clear.'),
    ('secure sum', 'impossible: no sum reaches the modulus'),
    ('secure sum', '| Modulus | 2^20, for up to 10 clients |'),
    ('adaptive secure sum', 'steps of 3.052e-05 clip norms'),
  ],
)
def test_words_follow_the_specification(tmp_path, name, said):
  text = _report(tmp_path, _SPECS[name]).to_markdown()
  assert said in text


def test_delta_above_one_over_the_population_is_pointed_out(tmp_path):
  assert 'NOT below one over the 1,000' in _report(tmp_path, _POISSON, delta=0.01).to_markdown()


def test_markdown_has_every_field_and_escapes_cells(tmp_path):
  facts = dataclasses.replace(
    _FACTS, software={'a|b': '1'}, observed={'rounds': 3}, checks=['compared']
  )
  text = _report(tmp_path, _FIXED, facts).to_markdown()
  for title in (
    'Figures', 'What must hold', 'What is released', 'What is not covered', 'What is withheld',
    'Setting and trust', 'Unit of privacy', 'Neighbouring runs', 'Mechanism', 'Participation',
    'Accounting', 'Tuning', 'Public data', 'Numerics and randomness', 'Secure aggregation',
    'Audit', 'Verification',
  ):  # fmt: skip
    assert f'\n## {title}\n' in text
  assert '| version of a\\|b | 1 |' in text
  assert '| observed rounds | 3 |' in text
  assert '- compared\n' in text


@hypothesis.given(st.floats(1e-12, 1e9))
def test_bounds_are_rounded_up_to_three_digits(value):
  shown = float(wording.bound(value).replace(',', ''))
  assert value * (1 - 1e-9) <= shown <= value * 1.0101


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (0, '0'), (1e-5, '1e-5'), (0.00231, '2.31e-3'), (0.0199, '0.0199'), (0.9991, '1.00'),
    (1.8712, '1.88'), (2, '2.00'), (96.01, '96.1'), (1234.5, '1,240'), (6.4e10, '6.4e10'),
  ],
)  # fmt: skip
def test_bounds_read_well(value, text):
  assert wording.bound(value) == text


@pytest.mark.parametrize(('epsilon', 'delta'), [(0.5, 1e-5), (2.0, 0.05), (0.001, 0.1)])
def test_share_of_right_answers_is_that_of_the_worst_mechanism(epsilon, delta):
  rest = (1 - delta) / (1 + math.exp(epsilon))
  # Of all (epsilon, delta)-private mechanisms, none tells two runs apart better.
  one = (delta, 0, rest * math.exp(epsilon), rest)
  other = (0, delta, rest, rest * math.exp(epsilon))
  right = sum(map(max, one, other)) / 2
  text = wording.protection(epsilon, delta, Relation.ADD_OR_REMOVE_ONE)[1]
  percent = float(text.partition(' in at most ')[2].partition(' %')[0])
  assert 100 * right - 1e-6 <= percent <= 100 * right + 0.1


def test_huge_epsilons_have_words():
  sentences = wording.protection(5000.0, 1e-5, Relation.ZERO_OUT_ONE)
  assert 'at most e^5,000 times' in sentences[0]
  assert 'is right in nearly all cases' in sentences[1]
