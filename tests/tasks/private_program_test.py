# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Private runs of the program in this process; `tests/integration` runs the command."""

import collections
import contextlib
import csv
import dataclasses
import json
import shutil
import stat

import numpy as np
import pytest
import tensorflow as tf

import privacy
from hetlora_tff.clients import training
from privacy import accounting, events
from tasks import compare, console, program, registry, samplers
from tasks.errors import UserError
from tasks.experiment import Experiment
from tests.integration import tiny_world
from tests.tasks import kills, shared_builds

# The tiny task trains six clients.
_PRIVATE = {
  'privacy': 'central',
  'noise_multiplier': 1.0,
  'delta': 0.01,
  'rounds': 3,
  'clients_per_round': 2,
  'decode_examples': 0,
}
_TREE = {**_PRIVATE, 'privacy': 'tree', 'min_separation': 3}
_EMPTY_IN_PRIVATE = (
  'train_loss', 'upload_bytes', 'download_bytes', 'round_seconds', 'cohort_clients',
  'pruned_clients', 'non_finite_clients', 'mean_rank', 'trained_parameters', 'client_flops',
  'deviation_from_exact', 'input_seconds', 'eval_client_perplexity_worst_decile',
)  # fmt: skip
# What no training of the tiny task gives: a mean loss of 23765.5.
_LOSS, _COUNT = 6083968.0, 256.0


@pytest.fixture(scope='module', name='preset')
def preset_fixture(tmp_path_factory, tff_runtime):
  del tff_runtime
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, 'TASKS', tiny_world.TASKS)
    patch.setenv('HETLORA_CACHE', str(tmp_path_factory.mktemp('cache')))
    shared_builds.share(patch)
    yield tiny_world.save_preset(tmp_path_factory.mktemp('preset') / 'tiny')


def _train(preset, directory, *, resume=False, verbosity=console.Verbosity.NORMAL, **changes):
  config = tiny_world.run_config(preset, **{**_PRIVATE, **changes})
  return program.train(
    config, directory, resume=resume, command=['hetlora', 'train'], verbosity=verbosity
  )


def _rows(directory):
  with open(directory / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def _report(directory):
  return json.loads((directory / 'privacy_report.json').read_text())


def _all_bytes(directory):
  return {p: p.read_bytes() for p in directory.rglob('*') if p.is_file()}


def test_tensorboard_is_refused_before_anything_is_loaded(preset, tmp_path):
  config = tiny_world.run_config(preset, **_PRIVATE)
  with pytest.raises(UserError, match='--tensorboard'):
    program.train(config, tmp_path / 'run', resume=False, command=[], tensorboard=True)
  assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module', name='known')
def known_fixture():
  """Clients whose losses, counts and sizes are known numbers."""
  true_stats, traced = training.client_stats, []

  def stats(*arguments):
    traced.append(arguments)
    result = true_stats(*arguments)
    known = {'loss': tf.constant(_LOSS), 'predictions': tf.constant(_COUNT)}
    return collections.OrderedDict((k, known.get(k, v)) for k, v in result.items())

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training, 'client_stats', stats)
    numbers = (_LOSS / _COUNT, _LOSS, 2 * _LOSS)
    yield [repr(n).encode() for n in numbers] + [np.float64(n).tobytes() for n in numbers]
  assert traced  # Otherwise no search could have found anything.


@pytest.fixture(scope='module', name='private')
def private_fixture(preset, known, tmp_path_factory):
  """A finished run under Poisson sampling."""
  directory = tmp_path_factory.mktemp('private') / 'run'
  shown = directory.parent / 'shown'
  # A worker of its own may log what it is given.
  with shared_builds.own_worker(), shown.open('w') as file, contextlib.redirect_stderr(file):
    _train(preset, directory, verbosity=console.Verbosity.VERBOSE)
  return directory


@pytest.fixture(scope='module', name='calibrated')
def calibrated_fixture(preset, tmp_path_factory):
  """A finished run whose noise follows from its target; nobody comes to its second round."""
  directory = tmp_path_factory.mktemp('calibrated') / 'run'
  poisson = samplers._poisson

  def nobody_second(*arguments):
    cohort = poisson(*arguments)
    return lambda attempt: cohort(attempt) if attempt != 1 else []

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(samplers, '_poisson', nobody_second)
    _train(preset, directory, noise_multiplier=None, target_epsilon=3.0, rounds=2)
  return directory


def test_nothing_of_training_clients_is_in_a_file(private, known):
  for path, content in _all_bytes(private).items():
    assert not [number for number in known if number in content], path
    # In a checkpoint, which holds what the process knows, also as the process would have it.
    if 'checkpoints' in path.parts:
      assert np.float32(_LOSS).tobytes() not in content


@pytest.mark.slow
def test_the_search_finds_what_a_run_without_privacy_tells(preset, known, tmp_path):
  config = tiny_world.run_config(preset, rounds=1)
  program.train(config, tmp_path / 'run', resume=False, command=['hetlora', 'train'])
  content = (tmp_path / 'run' / 'metrics.csv').read_bytes()
  assert [number for number in known if number in content]


def test_columns_about_training_clients_stay_empty(private):
  rows = _rows(private)
  assert [int(row['round']) for row in rows] == [0, 1, 2, 3]
  assert all(row[name] == '' for row in rows for name in _EMPTY_IN_PRIVATE)
  assert rows[-1]['eval_perplexity']
  withheld = json.dumps(_report(private))
  assert all(name in withheld for name in _EMPTY_IN_PRIVATE)


def test_what_was_drawn_and_single_held_out_clients_are_secret(private):
  assert not (private / 'samples.json').exists()
  assert not {'tiers', 'distribution', 'personalization'} & set(
    json.loads((private / 'summary.json').read_text())
  )
  assert not (private / 'evaluation_final.json').exists()
  assert stat.S_IMODE((private / 'secrets').stat().st_mode) == 0o700
  for name in ('sampling', 'draws.jsonl'):
    assert stat.S_IMODE((private / 'secrets' / name).stat().st_mode) == 0o600
  assert 'data_sha256' not in (private / 'environment.json').read_text()
  key = (private / 'secrets' / 'sampling').read_bytes()
  public = {p: c for p, c in _all_bytes(private).items() if 'secrets' not in p.parts}
  assert not [p for p, content in public.items() if key in content or key.hex().encode() in content]


def test_log_is_secret_and_the_screen_shows_no_time(private, known):
  path = private / 'secrets' / 'log.jsonl'
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  assert not (private / 'log.jsonl').exists()
  events = [json.loads(line) for line in path.read_text().splitlines()]
  assert [e['round'] for e in events if e['event'] == 'round_finished'] == [1, 2, 3]
  # How long the evaluation of the base takes is told: no round may train beside it.
  in_order = [(e['event'], e.get('round')) for e in events]
  assert in_order.index(('evaluated', 0)) < in_order.index(('round_started', 1))
  shown = (private.parent / 'shown').read_text()
  assert 'round_finished round=1\n' in shown
  assert 'checkpoint_saved round=1\n' in shown
  assert 'seconds' not in shown
  assert 'clients=' not in shown
  assert not [number for number in known if number in shown.encode()]


@pytest.mark.slow
def test_every_start_counts_through_ten_kills(preset, tmp_path, monkeypatch):
  directory, trained = tmp_path / 'run', collections.Counter()
  client_data = Experiment.client_data

  def count(self, cohort, ranks, number):
    trained[number] += 1
    return client_data(self, cohort, ranks, number)

  monkeypatch.setattr(Experiment, 'client_data', count)

  def run(began):
    resume = began and (directory / 'config.json').exists()
    _train(preset, directory, resume=resume, rounds=12, eval_every=12)

  kills.run_through_kills(10, 24, run)
  assert [int(row['round']) for row in _rows(directory)] == list(range(13))
  assert trained.total() > 12  # Some were done again.
  ledger = privacy.Ledger(directory / 'ledger.jsonl')
  counted = collections.Counter(entry['round'] for entry in ledger.rounds)
  assert all(counted[number] >= times for number, times in trained.items())
  assert set(counted) == set(range(1, 13))
  epsilon = privacy.epsilon(ledger.event(amplified=True), 0.01)
  assert _report(directory)['headline']['epsilon'] == pytest.approx(epsilon, rel=1e-3)


def test_report_has_the_epsilon_of_the_rounds_that_were_started(private):
  headline = _report(private)['headline']
  event = privacy.Ledger(private / 'ledger.jsonl').event(amplified=True)
  assert headline['guarantee'] == 'differential_privacy'
  assert headline['epsilon'] == pytest.approx(accounting.epsilon(event, 0.01), rel=1e-3)
  assert headline['amplified'] is True
  assert event.count == 3


def test_evaluation_gives_the_same_result_from_the_files(private):
  summary = json.loads((private / 'summary.json').read_text())
  evaluated = program.evaluate_run(private)
  assert evaluated['final']['loss'] == pytest.approx(summary['final']['loss'], rel=1e-6)
  assert 'distribution' not in json.loads((private / 'evaluation.json').read_text())


def test_target_is_kept_and_the_noise_is_calibrated_to_it(calibrated):
  assert 2.9 < _report(calibrated)['headline']['epsilon'] <= 3.0
  kept = json.loads((calibrated / 'config.json').read_text())
  assert kept['noise_multiplier'] > 0.5
  assert kept['population_size'] == 6


def test_a_round_to_which_nobody_comes_releases_noise_and_counts(calibrated):
  draws = (calibrated / 'secrets' / 'draws.jsonl').read_text().splitlines()
  assert [bool(json.loads(line)['clients']) for line in draws][1:] == [False]
  assert len(privacy.Ledger(calibrated / 'ledger.jsonl').rounds) == 2
  assert np.isfinite(float(_rows(calibrated)[-1]['eval_loss']))


def test_budget_stops_a_run_and_keeps_its_model(preset, tmp_path):
  one_round = accounting.epsilon(_poisson_event(2), 0.01)
  summary = _train(preset, tmp_path / 'run', target_epsilon=1.01 * one_round, rounds=5)
  assert summary['rounds'] == 2
  assert len(privacy.Ledger(tmp_path / 'run' / 'ledger.jsonl').rounds) == 2
  assert _report(tmp_path / 'run')['headline']['epsilon'] <= 1.01 * one_round
  assert (tmp_path / 'run' / 'adapter').is_dir()
  # Asked again, it does nothing but finish again.
  again = _train(preset, tmp_path / 'run', target_epsilon=1.01 * one_round, rounds=6, resume=True)
  assert again['final'] == summary['final']
  assert len(privacy.Ledger(tmp_path / 'run' / 'ledger.jsonl').rounds) == 2


def _poisson_event(rounds):
  spec = privacy.DpSpec(1.0, 0.5, 2, sampling=privacy.Sampling.POISSON, population_size=6)
  return events.run_event(spec, rounds, amplified=True)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'target_epsilon': 0.01}, '--target-epsilon 0.01 is below what one round costs'),
    ({'delta': 0.2}, '--delta 0.2 is not below 1 / 6'),
    ({'population_size': 1000}, '--population-size 1000: tiny has 6 clients'),
    ({'sampling': 'minsep', 'min_separation': 4}, '--min-separation 4'),
    (
      {'sampling': 'minsep', 'min_separation': 3, 'max_participations': 1, 'rounds': 4},
      '--max-participations 1',
    ),
  ],
)
def test_what_cannot_be_kept_is_refused_and_leaves_no_trace(preset, tmp_path, changes, said):
  with pytest.raises(UserError, match=said):
    _train(preset, tmp_path / 'run', **changes)
  assert not (tmp_path / 'run').exists()


def test_ledger_of_another_run_is_refused(private, preset, tmp_path):
  shutil.copytree(private, tmp_path / 'copy')
  path = tmp_path / 'copy' / 'ledger.jsonl'
  spec = dataclasses.replace(privacy.Ledger(path).spec, noise_multiplier=2.0)
  path.unlink()
  ledger = privacy.Ledger(path)
  ledger.begin(spec, 'another', delta=0.01)
  for number in (1, 2, 3):
    ledger.start_round(number)
    ledger.release(number)
  with pytest.raises(UserError, match=r'ledger\.jsonl'):
    _train(preset, tmp_path / 'copy', rounds=4, resume=True)


def test_ledger_that_is_shorter_than_its_checkpoint_is_refused(private, preset, tmp_path):
  shutil.copytree(private, tmp_path / 'copy')
  ledger = tmp_path / 'copy' / 'ledger.jsonl'
  ledger.write_text(''.join(ledger.read_text().splitlines(keepends=True)[:-1]))
  with pytest.raises(UserError, match=r'ledger\.jsonl'):
    _train(preset, tmp_path / 'copy', rounds=4, resume=True)


def test_draws_that_are_gone_are_not_made_up(private, preset, tmp_path):
  shutil.copytree(private, tmp_path / 'copy')
  ledger = (tmp_path / 'copy' / 'ledger.jsonl').read_bytes()
  (tmp_path / 'copy' / 'secrets' / 'draws.jsonl').unlink()
  with pytest.raises(UserError, match=r'draws\.jsonl is gone'):
    _train(preset, tmp_path / 'copy', rounds=4, resume=True)
  assert (tmp_path / 'copy' / 'ledger.jsonl').read_bytes() == ledger


def test_private_runs_are_compared(private, calibrated, tmp_path):
  compare.compare([private, calibrated], tmp_path / 'compared')
  with open(tmp_path / 'compared' / 'comparison.csv', newline='') as file:
    epsilons = [float(row['epsilon']) for row in csv.DictReader(file)]
  expected = [_report(directory)['headline']['epsilon'] for directory in (private, calibrated)]
  assert epsilons == pytest.approx(expected, rel=1e-3)
  assert expected[0] != expected[1]


_PROJECTION = {'noise_cohort_size': 1000, 'population_size': 100_000, 'delta': 1e-6}


def test_a_projection_may_have_more_clients_than_the_data(preset):
  config = tiny_world.run_config(preset, **_PRIVATE | _PROJECTION)
  assert Experiment(config).config.population_size == 100_000


@pytest.mark.slow
def test_projection_is_no_guarantee(preset, tmp_path):
  _train(preset, tmp_path / 'run', rounds=1, **_PROJECTION)
  headline = _report(tmp_path / 'run')['headline']
  assert headline['guarantee'] == 'projected'
  assert headline['epsilon'] is None
  spec = privacy.DpSpec(1.0, 0.5, 1000, sampling=privacy.Sampling.POISSON, population_size=100_000)
  expected = accounting.epsilon(events.run_event(spec, 1, amplified=True), 1e-6)
  assert headline['projected_epsilon'] == pytest.approx(expected, rel=1e-3)


def test_checkpoints_of_a_tree_are_secret(preset, tmp_path):
  _train(preset, tmp_path / 'run', **_TREE)
  assert not (tmp_path / 'run' / 'checkpoints').exists()
  assert (tmp_path / 'run' / 'secrets' / 'checkpoints').is_dir()
  report = _report(tmp_path / 'run')
  assert report['headline']['relation'] == 'zero_out_one'
  # Three leaves, each client in one of them: at most two nodes above it.
  expected = accounting.epsilon(
    privacy.Ledger(tmp_path / 'run' / 'ledger.jsonl').event(amplified=False), 0.01
  )
  assert report['headline']['epsilon'] == pytest.approx(expected, rel=1e-3)


def test_audit_finds_canaries_that_no_noise_hides(preset, tmp_path):
  # Seeded: how many canaries are drawn in three rounds is a matter of luck otherwise.
  changes = {'audit_canaries': 60, 'clients_per_round': 6, 'insecure_seeded_noise': True}
  _train(preset, tmp_path / 'run', noise_multiplier=0.0, **changes)
  assert json.loads((tmp_path / 'run' / 'audit.json').read_text())['epsilon_lower_bound'] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {'method': 'hetlora', 'weights': 'module', 'weight_reference': 0.1},
    {'method': 'hetlora', 'weights': 'model', 'weight_reference': 0.1, 'denominator': 'noised'},
    {'method': 'homlora'},
    {'method': 'naive', 'padding': 'state'},
    {'method': 'coverage', 'rank_tiers': {1: 0.5, 3: 0.5}, 'min_rank': None},
    {'method': 'ffa'},
    {'method': 'rolora'},
    {'method': 'full'},
    {'method': 'ffa', **_TREE, 'noise_matrix': 'banded'},
    {'method': 'full', **_TREE, 'tree_restart_every': 2},
    {'sampling': 'fixed'},
    {'sampling': 'minsep', 'min_separation': 3},
    {'clip': 'adaptive', 'noise_multiplier': 0.1},
  ],
  ids=lambda changes: '-'.join(map(str, changes.values())),
)
def test_methods_run_privately(preset, tmp_path, changes):
  summary = _train(preset, tmp_path / 'run', **{'rounds': 2, **changes})
  assert np.isfinite(summary['final']['loss'])
  assert _report(tmp_path / 'run')['headline']['guarantee'] == 'differential_privacy'
  assert not _rows(tmp_path / 'run')[-1]['train_loss']
