# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command as a user meets it: processes, signals, pipes and full disks."""

import csv
import os
import pathlib
import random
import shlex
import signal
import subprocess
import time

import numpy as np
import pytest
import safetensors.numpy

import privacy
from tests.integration import tiny_world

_ADAPTER = 'adapter/adapter_model.safetensors'


@pytest.fixture(scope='module', autouse=True)
def cache_fixture(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('HETLORA_CACHE', str(tmp_path_factory.mktemp('cache')))
    patch.setenv('COLUMNS', '200')
    yield


@pytest.fixture(scope='module', name='preset')
def preset_fixture(tmp_path_factory):
  return tiny_world.save_preset(tmp_path_factory.mktemp('preset') / 'tiny')


def _train(preset, directory, **changes):
  return ['train', '--output-dir', directory, *tiny_world.flags(preset, **changes)]


def _rounds(directory):
  if not (directory / 'metrics.csv').exists():
    return []
  with open(directory / 'metrics.csv', newline='') as file:
    return [int(row['round']) for row in csv.DictReader(file)]


def _finish(process, seconds=200):
  out, error = process.communicate(timeout=seconds)
  return process.returncode, out, error


def _assert_one_line(error, said):
  assert 'Traceback' not in error
  last = error.strip().splitlines()[-1]
  assert last.startswith('hetlora: ')
  assert said in last
  assert error.count('hetlora: ') == 1


@pytest.mark.slow
def test_wrong_try_does_not_block_the_next_one(preset, tmp_path):
  directory = tmp_path / 'run'
  code, out, error = _finish(tiny_world.start(*_train(preset, directory, targets='nosuch')))
  assert (code, out) == (2, '')
  _assert_one_line(error, '--targets')
  assert not directory.exists()


def _await_rounds(process, directory, number):
  tiny_world.await_text(directory / 'metrics.csv', f'\n{number},', process)


@pytest.mark.slow
def test_goes_on_beside_a_second_run_and_ends_in_order_when_interrupted(preset, tmp_path):
  directory = tmp_path / 'run'
  process = tiny_world.start(*_train(preset, directory, rounds=500))
  _await_rounds(process, directory, 1)
  for arguments in (_train(preset, directory), ['train', '--output-dir', directory, '--resume']):
    code, _, error = _finish(tiny_world.start(*arguments))
    assert code == 2
    _assert_one_line(error, 'in use')
  assert process.poll() is None
  worker = tiny_world.worker_of(process)
  process.send_signal(signal.SIGINT)
  code, out, error = _finish(process, 60)
  assert (code, out) == (130, '')
  _assert_one_line(error, '--resume')
  assert tiny_world.is_gone(worker)


# What nobody can catch is among the kills below and in `tests/tasks/worker_test.py`.
@pytest.mark.slow
@pytest.mark.parametrize('end', [signal.SIGTERM, signal.SIGHUP])
def test_ended_command_takes_its_worker_along(preset, tmp_path, end):
  process = tiny_world.start(*_train(preset, tmp_path / 'run', rounds=500))
  _await_rounds(process, tmp_path / 'run', 0)
  worker = tiny_world.worker_of(process)
  process.send_signal(end)
  assert process.wait(30) != 0
  assert tiny_world.is_gone(worker)
  process.communicate(timeout=10)


@pytest.mark.slow
def test_lost_worker_is_one_line(preset, tmp_path):
  process = tiny_world.start(*_train(preset, tmp_path / 'run', rounds=500))
  _await_rounds(process, tmp_path / 'run', 1)
  os.kill(tiny_world.worker_of(process), signal.SIGKILL)
  code, _, error = _finish(process, 120)
  assert code == 2
  _assert_one_line(error, 'worker')
  assert _rounds(tmp_path / 'run')[:2] == [0, 1]


def _train_and_kill(preset, directory, times, **changes):
  """Trains, kills at any moment and resumes; every other kill comes after another round.

  Returns:
    The starts that the ledger, if any, had at each kill.
  """
  moments, starts = random.Random(7), []
  process = tiny_world.start(*_train(preset, directory, **changes))
  for kill in range(times):
    done = max(_rounds(directory), default=-1)
    if kill % 2:  # Perhaps while it still starts.
      time.sleep(moments.uniform(0, 15))
    else:
      _await_rounds(process, directory, done + 1)
      time.sleep(moments.uniform(0, 0.5))
    workers = tiny_world.workers_of(process)
    process.kill()
    process.communicate(timeout=30)
    assert all(map(tiny_world.is_gone, workers))
    assert process.returncode == -signal.SIGKILL  # It was not done yet.
    starts.append(privacy.Ledger(directory / 'ledger.jsonl').starts)
    process = tiny_world.start('train', '--output-dir', directory, '--resume')
  code, out, error = _finish(process)
  assert code == 0, error
  assert 'Report: ' in out
  return starts


def _assert_same_adapters(*directories):
  ours, theirs = (safetensors.numpy.load_file(d / _ADAPTER) for d in directories)
  assert ours.keys() == theirs.keys()
  assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


# Ends of runs within this process, at everything that is put on disk, are in
# `tests/tasks/program_test.py` and `tests/tasks/private_program_test.py`.
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_ten_times_at_any_moment_the_run_ends_as_if_undisturbed(preset, tmp_path):
  undisturbed, disturbed = tmp_path / 'undisturbed', tmp_path / 'disturbed'
  changes = {'rounds': 60, 'eval_every': 60}
  assert _finish(tiny_world.start(*_train(preset, undisturbed, **changes)))[0] == 0
  _train_and_kill(preset, disturbed, 10, **changes)
  assert _rounds(undisturbed) == _rounds(disturbed) == list(range(61))
  _assert_same_adapters(disturbed, undisturbed)
  kept = {path.name for path in (disturbed / 'checkpoints').iterdir()}
  assert kept == {'round_59', 'round_60'}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tree_goes_on_with_its_own_noise_and_counts_every_start_after_kills(preset, tmp_path):
  changes = {
    'privacy': 'tree', 'noise_multiplier': 0.1, 'min_separation': 2, 'delta': 0.01,
    'insecure_seeded_noise': True, 'rounds': 12, 'eval_every': 12,
  }  # fmt: skip
  undisturbed, disturbed = tmp_path / 'undisturbed', tmp_path / 'disturbed'
  assert _finish(tiny_world.start(*_train(preset, undisturbed, **changes)))[0] == 0
  counted = _train_and_kill(preset, disturbed, 3, **changes)
  assert _rounds(disturbed) == list(range(13))
  _assert_same_adapters(disturbed, undisturbed)
  starts = privacy.Ledger(disturbed / 'ledger.jsonl').starts
  assert {start.tree for start in starts} == {0}
  assert {start.leaf for start in starts} == set(range(12))
  for before in counted:  # Those that a kill left without a checkpoint are there twice.
    assert starts[: len(before)] == before
  draws = (disturbed / 'secrets' / 'draws.jsonl').read_text().splitlines()
  assert len(draws) == 12


@pytest.mark.slow
def test_pipe_into_tee_returns_and_the_run_can_be_evaluated(preset, tmp_path):
  directory, log = tmp_path / 'run', tmp_path / 'log'
  words = shlex.join(tiny_world.command(*_train(preset, directory)))
  piped = f'{words} 2>&1 | tee {shlex.quote(str(log))}'
  result = subprocess.run(
    ['sh', '-c', piped], capture_output=True, text=True, timeout=200, cwd=tiny_world.ROOT
  )
  assert result.stdout == log.read_text()
  assert f'Report: {directory}/report.html' in result.stdout
  assert 'Warning' not in result.stdout
  code, out, error = _finish(tiny_world.start('evaluate', directory))
  assert code == 0, error
  # The same table of results, line by line.
  *_, table = result.stdout.partition(' held out')
  assert 'RougeL' in table
  table = table.splitlines()[:-1]
  assert out.removeprefix(' held out').splitlines()[: len(table)] == table


@pytest.fixture(name='small_disk')
def small_disk_fixture(tmp_path):
  """A file system of 600 kB."""
  if os.geteuid():
    pytest.skip('only root may mount a small file system')
  disk = tmp_path / 'disk'
  disk.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', str(disk)], capture_output=True
  )
  if mounted.returncode:
    pytest.skip('mounting is not allowed here')
  yield disk
  subprocess.run(['umount', '-l', str(disk)], check=True)


@pytest.mark.slow
def test_disk_that_takes_nothing_is_one_line_and_the_run_goes_on_when_it_does(preset, small_disk):
  directory = small_disk / 'run'
  process = tiny_world.start(*_train(preset, directory, rounds=4))
  _await_rounds(process, directory, 1)
  _fill(small_disk)
  code, _, error = _finish(process, 120)
  assert code == 2
  _assert_one_line(error, 'space')
  _mount('-o', 'remount,ro', small_disk)
  code, _, error = _finish(tiny_world.start('train', '--output-dir', directory, '--resume'))
  assert code == 2
  _assert_one_line(error, 'Read-only')
  _mount('-o', 'remount,rw', small_disk)
  (small_disk / 'filling').unlink()
  # The report alone may need more than the small disk had.
  _mount('-o', 'remount,size=16m', small_disk)
  code, out, error = _finish(tiny_world.start('train', '--output-dir', directory, '--resume'))
  assert code == 0, error
  assert 'Report: ' in out
  assert _rounds(directory) == list(range(5))


def _mount(*arguments: object) -> None:
  subprocess.run(['mount', *map(str, arguments)], check=True)


def _fill(disk: pathlib.Path) -> None:
  with open(disk / 'filling', 'wb', buffering=0) as file:
    for size in (65536, 4096):
      try:
        while True:
          file.write(b'x' * size)
      except OSError:
        continue
