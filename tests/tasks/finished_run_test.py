# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A finished run is read, and any other directory is refused by name in one line."""

import json
import pathlib

import pytest

import privacy
from tasks.errors import UserError
from tasks.finished_run import FinishedRun
from tests.tasks import synthetic_runs


@pytest.fixture(name='directory')
def directory_fixture(tmp_path):
  return synthetic_runs.write(tmp_path / 'run', final_loss=4.25, seed=3)


def test_reads_what_the_run_says(directory):
  run = FinishedRun.read(directory)
  assert (run.method, run.seed, run.base_loss, run.final_loss) == ('hetlora', 3, 5.56, 4.25)
  assert (run.base_rouge_l, run.final_rouge_l) == (0.05, 0.12)
  assert run.per_round('round_seconds').tolist() == [9.0] * synthetic_runs.ROUNDS
  assert run.messages() == 10 * synthetic_runs.ROUNDS


def test_a_slow_first_round_leaves_the_median_alone(directory):
  text = (directory / 'metrics.csv').read_text()
  (directory / 'metrics.csv').write_text(text.replace(',9.0,', ',90.0,', 1))
  run = FinishedRun.read(directory)
  assert run.per_round('round_seconds')[0] == 90
  assert run.median('round_seconds') == 9
  assert run.median('nosuch') is None


def test_a_run_before_there_were_methods_is_hetlora(directory):
  text = (directory / 'config.json').read_text().replace('"method": "hetlora", ', '')
  (directory / 'config.json').write_text(text)
  assert 'method' not in text
  assert FinishedRun.read(directory).method == 'hetlora'


@pytest.mark.parametrize(
  ('name', 'content', 'said'),
  [
    ('config.json', None, r'run holds no run \(no config.json\)'),
    ('summary.json', None, r'run holds an unfinished run .* --resume --output-dir \S+run\.'),
    ('metrics.csv', None, r'metrics\.csv: cannot be read'),
    ('environment.json', None, 'run does not say which data'),
    ('environment.json', '{"inputs": {"data_sha256": "0"}}', 'run does not say which data'),
    ('environment.json', '[]', r'environment\.json must hold a JSON object'),
    ('config.json', '{', r'config\.json is not JSON'),
    ('summary.json', '{"base": 1, "final": {"loss": 4}}', r'summary\.json.* has no held-out loss'),
    ('summary.json', '{"base": {"loss": 4}, "final": {"loss": NaN}}', 'has no held-out loss'),
    ('metrics.csv', 'round,loss\n0\n', r'metrics\.csv: line 2 has 1 cells'),
  ],
)
def test_refuses_what_is_no_finished_run(directory, name, content, said):
  if content is None:
    (directory / name).unlink()
  else:
    (directory / name).write_text(content)
  with pytest.raises(UserError, match=said) as caught:
    FinishedRun.read(directory)
  assert '\n' not in str(caught.value)


def test_a_budget_may_end_a_run_early(directory):
  synthetic_runs.change_json(directory / 'config.json', rounds=99, target_epsilon=3.0)
  synthetic_runs.change_json(directory / 'summary.json', rounds=synthetic_runs.ROUNDS)
  assert FinishedRun.read(directory).messages() == 10 * synthetic_runs.ROUNDS


@pytest.mark.parametrize(
  ('report', 'epsilons'),
  [
    (None, (None, None)),
    ({}, (None, None)),
    ({'headline': []}, (None, None)),
    ({'headline': {'epsilon': 2.5, 'projected_epsilon': None}}, (2.5, None)),
    ({'headline': {'epsilon': None, 'projected_epsilon': 3}}, (None, 3)),
  ],
)
def test_reads_the_headline_of_a_privacy_report(directory, report, epsilons):
  if report is not None:
    (directory / 'privacy_report.json').write_text(json.dumps(report))
  run = FinishedRun.read(directory)
  assert (run.epsilon, run.projected_epsilon) == epsilons


def test_reads_the_headline_that_the_report_has(directory):
  """The fields are those of the schema, so that a change there is noticed here."""
  schema = json.loads((pathlib.Path(privacy.__file__).parent / 'report_schema.json').read_text())
  assert {'epsilon', 'projected_epsilon'} <= set(schema['properties']['headline']['properties'])


def test_a_privacy_report_that_is_not_json_is_named(directory):
  (directory / 'privacy_report.json').write_text('{')
  with pytest.raises(UserError, match=r'privacy_report\.json is not JSON'):
    FinishedRun.read(directory)


def test_runs_before_there_was_privacy_are_not_private(directory):
  assert not FinishedRun.read(directory).is_private
  synthetic_runs.change_json(directory / 'config.json', privacy='central')
  assert FinishedRun.read(directory).is_private


def test_refuses_the_result_of_fewer_rounds_than_planned(directory):
  synthetic_runs.change_json(directory / 'config.json', rounds=99)
  with pytest.raises(UserError, match=rf'holds {synthetic_runs.ROUNDS} of 99 rounds; finish it'):
    FinishedRun.read(directory)


def test_refuses_a_directory_that_does_not_exist(tmp_path):
  with pytest.raises(UserError, match='absent holds no run'):
    FinishedRun.read(tmp_path / 'absent')
