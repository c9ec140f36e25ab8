# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the privacy report of a run directory: what it reads, compares, writes and refuses."""

import json
import pathlib
import re
import subprocess
import sys

import jsonschema
import pytest

import privacy
from tasks import privacy_plots, privacy_report
from tasks.errors import UserError
from tests.tasks import synthetic_private_runs

_SCHEMA = json.loads(pathlib.Path(privacy.__file__).with_name('report_schema.json').read_text())
_NAMES = ['privacy_report.html', 'privacy_report.json', 'privacy_report.md']
_PLOTS = [privacy_plots.DELTA, privacy_plots.ROUNDS]


@pytest.fixture(name='write')
def write_fixture(tmp_path, monkeypatch):
  """Writes a run whose report has no plots, which take most of the time."""
  monkeypatch.setattr(privacy_plots, 'curves', lambda *_: {})
  return lambda kind, **more: synthetic_private_runs.write(tmp_path / 'run', kind, **more)


def _written(directory):
  """The JSON of a run's report, checked against its schema."""
  privacy_report.write_privacy_report(directory)
  content = json.loads((directory / 'privacy_report.json').read_text())
  jsonschema.Draft202012Validator(_SCHEMA).validate(content)
  return content


def _change(path, **changes):
  synthetic_private_runs.write_json(path, {**json.loads(path.read_text()), **changes})


@pytest.mark.parametrize('kind', synthetic_private_runs.KINDS)
def test_writes_all_files(tmp_path, kind):
  directory = synthetic_private_runs.write(tmp_path / 'run', kind)
  content = _written(directory)
  assert sorted(path.name for path in directory.glob('*privacy*')) == _NAMES
  claims = content['headline']['guarantee'] != 'none'
  assert sorted(path.stem for path in directory.glob('plots/*')) == (_PLOTS if claims else [])
  expected = {'projection': 'projected', 'none': 'none', 'no_noise': 'none', 'seeded': 'none'}
  assert content['headline']['guarantee'] == expected.get(kind, 'differential_privacy')


def test_page_stands_alone_and_says_what_the_text_says(write):
  directory = write('poisson')
  report = privacy_report.write_privacy_report(directory)
  page = (directory / 'privacy_report.html').read_text()
  assert not re.search(r'url\(|@import|https?://|<script', page)
  assert set(re.findall(r'(?:src|srcset|href)="([^:]*):', page)) == {'data'}
  plain = ' '.join(re.sub('<[^>]*>', ' ', page).split())
  for text in (*report.statement, *(text for s in report.sections() for text in s.points)):
    assert text.replace("'", '&#39;') in plain
  assert report.to_markdown() == (directory / 'privacy_report.md').read_text()


def test_texts_of_files_are_escaped(write):
  directory = write('fixed', task='</title><script>alert(1)</script>')
  privacy_report.write_privacy_report(directory)
  assert '<script' not in (directory / 'privacy_report.html').read_text()


def test_figures_come_from_the_ledger_and_not_from_what_the_run_said(write):
  directory = write('fixed')
  _written(directory)
  first = _written(directory)
  _change(directory / 'privacy_report.json', headline={'epsilon': 0.01}, epsilons=[])
  _change(directory / 'environment.json', epsilon=0.01)
  synthetic_private_runs.write_json(directory / 'summary.json', {'epsilon': 0.01})
  assert _written(directory) == first


@pytest.mark.parametrize(
  'changes',
  [
    {'noise_multiplier': 80.0},
    {'noise_multiplier': None, 'target_epsilon': 1.0},
    {'delta': 1e-3},
    {'l2_clip_norm': 0.1},
    {'target_epsilon': 9.0},
  ],
)
def test_settings_that_contradict_the_ledger_void_the_claim(tmp_path, changes):
  directory = synthetic_private_runs.write(tmp_path / 'run', 'fixed')
  assert 'config.json describes the mechanism' in ' '.join(_written(directory)['checks'])
  assert len(list(directory.glob('plots/*'))) == 2
  _change(directory / 'config.json', **changes)
  headline = _written(directory)['headline']
  assert headline['guarantee'] == 'none'
  assert headline['reasons'] == ['config.json and ledger.jsonl describe different mechanisms.']
  assert not list(directory.glob('plots/*'))


def test_rounds_without_a_ledger_entry_void_the_claim(write):
  directory = write('fixed', rounds=4)
  with (directory / 'metrics.csv').open('a') as file:
    file.write('5,,4.0,55.0\n')
  reasons = _written(directory)['headline']['reasons']
  assert reasons == ['1 of the rounds in metrics.csv are not in the ledger.']


def test_torn_line_may_be_the_missing_round(write):
  directory = write('fixed', rounds=4, torn=True)
  with (directory / 'metrics.csv').open('a') as file:
    file.write('5,,4.0,55.0\n')
  content = _written(directory)
  assert content['headline']['guarantee'] == 'differential_privacy'
  assert content['participation']['rounds_started'] == 5
  assert content['participation']['rounds_torn'] == 1


def test_private_run_without_a_ledger_has_no_guarantee(write):
  directory = write('poisson')
  (directory / 'ledger.jsonl').unlink()
  content = _written(directory)
  assert content['headline']['guarantee'] == 'none'
  assert 'no ledger.jsonl' in content['headline']['reasons'][0]
  assert content['mechanism'] is None


def test_edited_ledger_is_refused_and_the_report_kept(write):
  directory = write('fixed')
  _written(directory)
  before = (directory / 'privacy_report.json').read_bytes()
  path = directory / 'ledger.jsonl'
  path.write_text(
    path.read_text().replace('"round": 3', '"round": 9').replace('"round":3', '"round":9')
  )
  with pytest.raises(UserError, match=r'ledger\.jsonl.*line 4') as raised:
    privacy_report.write_privacy_report(directory)
  assert '\n' not in str(raised.value)
  assert (directory / 'privacy_report.json').read_bytes() == before


def test_ledger_that_lost_its_end_is_refused(write):
  directory = write('fixed')
  _written(directory)
  path = directory / 'ledger.jsonl'
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-2]))
  with pytest.raises(UserError, match=r'ledger\.jsonl'):
    privacy_report.write_privacy_report(directory)


def test_ledger_may_grow_between_reports(write):
  directory = write('fixed', rounds=4)
  entries = _written(directory)['ledger']['entries']
  privacy.Ledger(directory / 'ledger.jsonl').start_round(5)
  content = _written(directory)
  assert content['ledger']['entries'] == entries + 1
  assert f'goes on from the last report, which saw {entries} entries' in ' '.join(content['checks'])


def test_observed_participation_is_told_only_where_it_is_no_secret(write, tmp_path):
  draws = [[0, 1], [2, 3], [1, 4, 5]]
  observed = _written(write('fixed', draws=draws))['participation']['observed']
  assert observed == {
    'rounds': 3, 'max_participations': 2, 'min_separation': 2, 'smallest_cohort': 2,
    'largest_cohort': 3,
  }  # fmt: skip
  secret = synthetic_private_runs.write(tmp_path / 'secret', 'poisson', draws=draws)
  assert _written(secret)['participation']['observed'] is None
  texts = [(secret / name).read_text() for name in _NAMES]
  assert not any('largest cohort' in text or 'largest_cohort' in text for text in texts)


@pytest.mark.parametrize(
  ('draws', 'said'),
  [
    ([[0], [1], [2], [0], [1]], 'twice within 5 rounds'),
    ([[0] if i % 5 == 0 else [i] for i in range(21)], 'more than 4 times'),
  ],
)
def test_draws_that_break_the_limits_void_the_claim(write, draws, said):
  content = _written(write('tree', draws=draws))
  assert content['headline']['guarantee'] == 'none'
  assert said in content['headline']['reasons'][0]


def test_draws_within_the_limits_keep_the_claim(write):
  content = _written(write('tree', draws=[[i % 5] for i in range(16)]))
  assert content['headline']['guarantee'] == 'differential_privacy'
  assert content['participation']['observed']['max_participations'] == 4


def test_audit_is_reported_and_may_refute(write):
  directory = write('fixed')
  synthetic_private_runs.write_json(
    directory / 'audit.json', {'epsilon_lower_bound': 50.0, 'delta': 1e-4, 'confidence': 0.95}
  )
  content = _written(directory)
  assert content['audit']['confidence'] == 0.95
  assert content['headline']['guarantee'] == 'none'


def test_names_withheld_measurements_and_those_that_were_not(write):
  directory = write('fixed')
  withheld = {entry['name'] for entry in _written(directory)['withheld']}
  assert withheld >= {'train_loss', 'cohort_clients', 'upload_bytes', 'round_seconds'}
  (directory / 'metrics.csv').write_text('round,train_loss\n0,\n1,3.5\n')
  content = _written(directory)
  assert 'train_loss' not in {entry['name'] for entry in content['withheld']}
  assert any(text.startswith('train_loss in metrics.csv') for text in content['not_covered'])


def test_says_what_evaluation_gives_away(write):
  directory = write('fixed')
  said = ' '.join(_written(directory)['not_covered'])
  assert 'Mean losses' in said
  assert 'samples.json' not in said
  synthetic_private_runs.write_json(directory / 'samples.json', [{'tuned': 'text'}])
  assert 'samples.json: single held-out clients' in ' '.join(_written(directory)['not_covered'])


def test_says_that_clients_trained_on_other_machines(write):
  directory = write('fixed')
  assert 'remote workers' not in ' '.join(_written(directory)['not_covered'])
  _change(directory / 'environment.json', remote_workers=True)
  assert 'remote workers' in ' '.join(_written(directory)['not_covered'])


def test_says_that_evaluation_was_declared_to_be_public(write):
  directory = write('fixed', public_eval_clients=True)
  assert 'declared that they are no secret' in ' '.join(_written(directory)['not_covered'])


def test_works_for_a_run_that_was_just_begun(write):
  directory = write('poisson', rounds=0)
  for name in ('metrics.csv', 'environment.json'):
    (directory / name).unlink()
  content = _written(directory)
  assert content['headline']['epsilon'] == 0
  assert not list(directory.glob('plots/*'))


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('config.json', '{"task": '),
    ('config.json', '{"unknown_key": 1}'),
    ('metrics.csv', 'round,eval_loss\n0,abc\n'),
    ('environment.json', '[]'),
    ('audit.json', '{'),
    ('ledger.jsonl', 'no ledger\nat all\n'),
    ('secrets/draws.jsonl', '{"no": "draw"}\n'),
    ('privacy_report.json', '{'),
  ],
)
def test_malformed_file_is_named_in_one_line(write, name, text):
  directory = write('fixed')
  (directory / name).write_text(text)
  with pytest.raises(UserError, match=re.escape(name)) as raised:
    privacy_report.write_privacy_report(directory)
  assert '\n' not in str(raised.value)


def test_directory_without_a_run_is_refused(tmp_path):
  with pytest.raises(UserError, match='holds no run'):
    privacy_report.write_privacy_report(tmp_path)


def test_needs_no_tensorflow():
  code = (
    'import sys\nfrom tasks import privacy_report\n'
    "print(*(name for name in sys.modules if name.startswith('tensorflow')))"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == '\n'


def test_a_clip_without_noise_is_told_and_claims_nothing(write):
  directory = write('none', secure_aggregation=True, l2_clip_norm=2.0)
  content = _written(directory)
  assert content['headline']['guarantee'] == 'none'
  text = (directory / 'privacy_report.md').read_text()
  assert 'no update was clipped' not in text
  assert 'nothing bounds what one client changes' not in text


def test_a_secure_run_that_was_never_settled_has_a_report(write):
  directory = write('poisson', secure_aggregation=True)
  _change(directory / 'config.json', population_size=None, secure_coordinates=None)
  assert 'Simulated' in _written(directory)['secure_aggregation']
