# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The suite: what is refused before any work, what is done, kept, resumed, and in which process."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import types

import pytest

from tasks import config_files, methods, program_loader, suite
from tasks.errors import UserError
from tests.integration import tiny_world

_SUITE = {
  'base': {'rounds': 4, 'eval_split': 'validation'},
  'runs': [{'name': 'one', 'method': 'hetlora'}, {'name': 'two', 'method': 'svd', 'max_rank': 8}],
  'seeds': [0, 1],
}
_NAMES = ['one-seed0', 'two-seed0', 'one-seed1', 'two-seed1']
_SUITES = pathlib.Path(suite.__file__).parent / 'suites'


@pytest.fixture(name='file')
def file_fixture(tmp_path):
  """Writes a suite's file."""

  def write(content=_SUITE):
    path = tmp_path / 'suite.json'
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path

  return write


@pytest.fixture(name='trained')
def trained_fixture(tmp_path, monkeypatch):
  """Stands for the program in the child; returns what it was called with, in order."""
  calls = tmp_path / 'calls.jsonl'

  def train(resolved, directory, *, resume, command):
    call = {'name': directory.name, 'pid': os.getpid(), 'resume': resume, 'command': command}
    with open(calls, 'a') as file:
      file.write(json.dumps(call) + '\n')
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'config.json').write_text(json.dumps(resolved.to_json()))
    trouble = tmp_path / 'trouble' / directory.name
    if trouble.exists():
      exec(trouble.read_text())
    (directory / 'summary.json').write_text('{}')

  program = types.SimpleNamespace(train=train)
  monkeypatch.setattr(program_loader, 'import_program', lambda: program)

  def trained():
    return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

  return trained


def _trouble(tmp_path, name, code):
  (tmp_path / 'trouble').mkdir(exist_ok=True)
  (tmp_path / 'trouble' / name).write_text(code)


def test_does_all_runs_seed_by_seed_each_in_a_process(file, tmp_path, trained):
  directories = suite.run_suite(file(), tmp_path / 'out')
  assert directories == [tmp_path / 'out/runs' / name for name in _NAMES]
  assert [call['name'] for call in trained()] == _NAMES
  assert len({call['pid'] for call in trained()} | {os.getpid()}) == 5
  two = config_files.from_json(tmp_path / 'out/runs/two-seed1/config.json')
  assert (two.method, two.max_rank, two.seed, two.rounds) == ('svd', 8, 1, 4)


def test_the_command_of_a_run_repeats_it(file, tmp_path, trained):
  suite.run_suite(file(), tmp_path / 'out')
  command = trained()[1]['command']
  assert command[:4] == ['hetlora', 'train', '--output-dir', str(tmp_path / 'out/runs/two-seed0')]
  words = ' '.join(command[4:])
  assert words == ('--rounds 4 --eval-split validation --method svd --max-rank 8 --seed 0')


def test_finished_runs_are_kept_and_others_go_on(file, tmp_path, trained):
  suite.run_suite(file(), tmp_path / 'out')
  (tmp_path / 'out/runs/two-seed0/summary.json').unlink()
  before = len(trained())
  suite.run_suite(file(), tmp_path / 'out')
  assert [(call['name'], call['resume']) for call in trained()[before:]] == [('two-seed0', True)]
  assert not any(call['resume'] for call in trained()[:before])


def test_new_seeds_and_runs_join_what_is_there(file, tmp_path, trained):
  suite.run_suite(file({**_SUITE, 'seeds': [1]}), tmp_path / 'out')
  suite.run_suite(file(), tmp_path / 'out')
  assert [call['name'] for call in trained()] == [*_NAMES[2:], *_NAMES[:2]]


def test_a_failed_run_does_not_keep_others_from_running(file, tmp_path, trained, capfd):
  _trouble(tmp_path, 'two-seed0', 'raise UserError("training has diverged")')
  with pytest.raises(UserError, match=r'1 of 4 runs failed \(two-seed0\)'):
    suite.run_suite(file(), tmp_path / 'out')
  assert [call['name'] for call in trained()] == _NAMES
  error = capfd.readouterr().err
  assert 'two-seed0 failed: training has diverged' in error
  assert 'Traceback' not in error


@pytest.mark.parametrize(
  ('code', 'said'),
  [('os.kill(os.getpid(), 9)', 'status -9'), ('raise KeyError("planted")', 'status 1')],
)
def test_a_run_that_dies_is_named(file, tmp_path, trained, capfd, code, said):
  _trouble(tmp_path, 'one-seed0', code)
  with pytest.raises(UserError, match=r'\(one-seed0\)'):
    suite.run_suite(file(), tmp_path / 'out')
  assert said in capfd.readouterr().err


def test_a_full_disk_ends_the_suite(file, tmp_path, trained):
  _trouble(tmp_path, 'one-seed0', 'raise OSError(28, "full")')
  with pytest.raises(OSError, match='full') as caught:
    suite.run_suite(file(), tmp_path / 'out')
  assert caught.value.errno == 28
  assert len(trained()) == 1


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'runs': []}, "'runs' must be a list of objects"),
    ({'runs': None}, "'runs' must be a list of objects"),
    ({'runs': [{'method': 'svd'}]}, "run 1 needs a 'name'"),
    ({'runs': [{'name': '../up'}]}, "run 1 needs a 'name'"),
    ({'runs': [{'name': 'a'}, {'name': 'a'}]}, "two runs are named 'a'"),
    ({'runs': [{'name': 'a'}, {'name': 'b'}]}, 'runs a-seed0 and b-seed0 have the same settings'),
    ({'runs': [{'name': 'a', 'seed': 3}]}, "run 'a' must not have 'seed'; list seeds in 'seeds'"),
    ({'runs': [{'name': 'a', 'foo': 3}]}, "run 'a': its settings: unknown key 'foo'"),
    ({'runs': [{'name': 'a', 'rounds': 'x'}]}, "'rounds' must be"),
    ({'runs': [{'name': 'a', 'task': 'nosuch'}]}, "run 'a': --task nosuch: unknown"),
    ({'runs': [{'name': 'a'}, {'name': 'b', 'method': 'stacking', 'padding': 'state'}]},
     "run 'b': --padding state: --method stacking sums products and pads nothing"),
    ({'base': {'seed': 3}}, "'base' must not have 'seed'"),
    ({'base': {'name': 'x'}}, "'base' must not have 'name'"),
    ({'base': []}, "'base' must be an object"),
    ({'seeds': []}, "'seeds' must be a list of whole numbers"),
    ({'seeds': [True]}, "'seeds' must be a list of whole numbers"),
    ({'seeds': [1, 1]}, "'seeds' has a number twice"),
    ({'seeds': [-1]}, '--seed must be'),
    ({'seed': [1]}, "unknown key 'seed'"),
  ],
)  # fmt: skip
def test_wrong_file_is_refused_by_name_before_any_work(file, tmp_path, trained, change, said):
  path = file({**_SUITE, **change})
  with pytest.raises(UserError) as caught:
    suite.run_suite(path, tmp_path / 'out')
  assert said in str(caught.value)
  assert str(caught.value).startswith(str(path))
  assert '\n' not in str(caught.value)
  assert not trained()
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('content', 'said'), [('{', 'is not JSON'), ('[]', 'must hold a JSON object')]
)
def test_no_suite_is_refused(file, tmp_path, content, said):
  with pytest.raises(UserError, match=f'suite.json {said}'):
    suite.run_suite(file(content), tmp_path / 'out')
  with pytest.raises(UserError, match='Cannot read'):
    suite.run_suite(tmp_path / 'absent.json', tmp_path / 'out')


def test_a_directory_of_another_run_is_refused_before_any_work(file, tmp_path, trained):
  suite.run_suite(file({**_SUITE, 'seeds': [1]}), tmp_path / 'out')
  done = len(trained())
  path = file({**_SUITE, 'base': {**_SUITE['base'], 'rounds': 6}})
  with pytest.raises(UserError, match=r'one-seed1 holds a run with --rounds 4, not 6; choose'):
    suite.run_suite(path, tmp_path / 'out')
  assert len(trained()) == done


def test_a_directory_of_something_else_is_refused_before_any_work(file, tmp_path, trained):
  strange = tmp_path / 'out/runs/two-seed1'
  strange.mkdir(parents=True)
  (strange / 'photo.jpg').write_text('x')
  with pytest.raises(UserError, match='two-seed1 is in use'):
    suite.run_suite(file(), tmp_path / 'out')
  assert not trained()


def test_an_output_that_is_a_file_is_refused(file, tmp_path, trained):
  with pytest.raises(UserError, match=r'--output-dir \S+suite\.json is not a directory'):
    suite.run_suite(file(), file())
  assert not trained()


def test_the_suite_of_all_methods_has_them_all_and_is_valid(tmp_path):
  runs = suite.plan(_SUITES / 'all_methods.json', tmp_path)
  assert {run.config.method for run in runs} == set(methods.METHODS)
  # Homogeneous LoRA twice: at the largest and at the smallest rank of the others.
  assert len(runs) == 2 * (len(methods.METHODS) + 1)
  assert {run.config.eval_split for run in runs} == {'validation'}


def test_the_suite_of_privacy_has_every_method_at_every_epsilon_and_cohort(tmp_path):
  runs = [run.config for run in suite.plan(_SUITES / 'privacy_tradeoff.json', tmp_path)]
  private = [run for run in runs if run.privacy == 'central']
  assert {run.method for run in runs if run.privacy == 'none'} == {run.method for run in private}
  levels = {(run.method, run.target_epsilon, run.noise_cohort_size) for run in private}
  assert len(levels) == len(private) == 3 * 3 * 2
  assert {run.population_size / run.noise_cohort_size for run in private} == {100}
  assert {run.eval_split for run in runs} == {'validation'}


def test_the_suite_of_bits_has_every_arm_at_every_number_of_bits(tmp_path):
  runs = [run.config for run in suite.plan(_SUITES / 'secure_bits.json', tmp_path)]
  arms = {(run.privacy, run.secure_bits) for run in runs}
  secure = {(arm, bits) for arm in ('none', 'central', 'distributed') for bits in (6, 8, 12, 16)}
  assert arms == secure | {('none', None), ('central', None)}
  assert len(runs) == len(arms)
  assert {run.target_epsilon for run in runs if run.privacy != 'none'} == {8.0}
  # Otherwise an arm would differ from what sums in the clear in more than its sums.
  for key in ('weights', 'padding', 'rank_dynamics', 'l2_clip_norm', 'sampling', 'eval_split'):
    assert len({getattr(run, key) for run in runs}) == 1, key


def test_the_suite_of_uploads_differs_in_their_bits_and_the_padding_alone(tmp_path):
  runs = [run.config.to_json() for run in suite.plan(_SUITES / 'upload_bits.json', tmp_path)]
  arms = {(run.pop('padding'), run.pop('upload_bits')) for run in runs}
  assert arms == {(padding, bits) for padding in ('state', 'update') for bits in (None, 16, 8, 4)}
  assert len(runs) == len(arms)
  assert all(run == runs[0] for run in runs)


def test_what_a_run_filled_in_is_no_difference(file, tmp_path, trained):
  private = {'privacy': 'central', 'target_epsilon': 3.0}
  content = {'base': {'rounds': 4}, 'runs': [{'name': 'one', **private}]}
  (directory,) = suite.run_suite(file(content), tmp_path / 'out')
  kept = json.loads((directory / 'config.json').read_text())
  filled = {'noise_multiplier': 1.25, 'delta': 1e-5, 'population_size': 100}
  (directory / 'config.json').write_text(json.dumps(kept | filled))
  suite.run_suite(file(content), tmp_path / 'out')
  assert len(trained()) == 1
  content['runs'][0]['delta'] = 1e-6
  with pytest.raises(UserError, match='--delta 1e-05, not 1e-06'):
    suite.run_suite(file(content), tmp_path / 'out')


_ENDLESS = """
  import os, pathlib, sys, time, types
  from tasks import program_loader, suite

  def train(resolved, directory, *, resume, command):
    try:
      (pathlib.Path(sys.argv[2]) / 'pid').write_text(str(os.getpid()))
      time.sleep(100)
    finally:
      (pathlib.Path(sys.argv[2]) / 'ended').write_text('in order')

  program_loader.import_program = lambda: types.SimpleNamespace(train=train)
  suite.run_suite(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]) / 'out')
"""


@pytest.mark.parametrize('kill', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_child_is_left_behind(file, tmp_path, kill):
  process = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(_ENDLESS), str(file()), str(tmp_path)],
    cwd=tiny_world.ROOT,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )
  tiny_world.await_text(tmp_path / 'pid', '', process)
  while not (tmp_path / 'pid').read_text():
    time.sleep(0.01)
  child = int((tmp_path / 'pid').read_text())
  assert child != process.pid
  process.send_signal(kill)
  error = process.communicate(timeout=30)[1].decode()
  assert tiny_world.is_gone(child)
  if kill == signal.SIGINT:  # The child ended in order, and was waited for.
    assert (tmp_path / 'ended').read_text() == 'in order'
    assert error.count('Traceback') == 1


@pytest.mark.slow
def test_a_suite_runs_and_is_compared(tmp_path, monkeypatch):
  monkeypatch.setenv('HETLORA_CACHE', str(tmp_path / 'cache'))
  preset = tiny_world.save_preset(tmp_path / 'preset')
  base = tiny_world.run_config(preset).to_json()
  keys = (
    'task', 'backbone', 'sequence_length', 'rounds', 'clients_per_round', 'local_steps',
    'batch_size', 'eval_every', 'decode_examples', 'alpha', 'max_rank', 'min_rank',
  )  # fmt: skip
  content = {
    'base': {key: base[key] for key in keys},
    'runs': [{'name': 'self', 'method': 'hetlora'}, {'name': 'plain', 'method': 'naive'}],
    'seeds': [0],
  }
  path = tmp_path / 'suite.json'
  path.write_text(json.dumps(content))
  for _ in range(2):
    process = tiny_world.start('compare', '--config', path, '--output-dir', tmp_path / 'out')
    out, error = process.communicate(timeout=250)
    assert process.returncode == 0, error
  assert error.count('done before') == 2
  assert 'Comparison: ' in out
  assert (tmp_path / 'out/comparison.html').is_file()
  assert (tmp_path / 'out/comparison.csv').read_text().count('\n') == 3
