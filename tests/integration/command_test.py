# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command as a user meets it: processes, signals, pipes and full disks."""

import csv
import json
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
  tiny_world.await_text(directory / 'ranks.csv', f'\n{number},', process)


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
  """Trains for 12 rounds; returns the starts that the ledger, if any, had at each kill."""
  moments, started = random.Random(7), []
  process = tiny_world.start(*_train(preset, directory, rounds=12, **changes))
  for _ in range(times):
    done = max(_rounds(directory)) if (directory / 'metrics.csv').exists() else 0
    _await_rounds(process, directory, done + 1)
    time.sleep(moments.uniform(0, 1))
    worker = tiny_world.worker_of(process)
    process.kill()
    process.communicate(timeout=30)
    assert tiny_world.is_gone(worker)
    started.append(privacy.Ledger(directory / 'ledger.jsonl').rounds)
    process = tiny_world.start('train', '--output-dir', directory, '--resume')
  code, out, error = _finish(process)
  assert code == 0, error
  assert 'Report: ' in out
  assert _rounds(directory) == list(range(13))
  return started


def _assert_same_adapters(*directories):
  ours, theirs = (safetensors.numpy.load_file(d / _ADAPTER) for d in directories)
  assert ours.keys() == theirs.keys()
  assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_private_run_counts_every_start_through_kills(preset, tmp_path):
  changes = {'privacy': 'central', 'noise_multiplier': 2.0, 'delta': 0.01}
  started = _train_and_kill(preset, tmp_path / 'run', 2, **changes)
  ledger = privacy.Ledger(tmp_path / 'run' / 'ledger.jsonl')
  for before in started:
    assert ledger.rounds[: len(before)] == before
  # Those that a kill left without a checkpoint are there twice.
  assert {entry['round'] for entry in ledger.rounds} == set(range(1, 13))
  draws = (tmp_path / 'run' / 'secrets' / 'draws.jsonl').read_text().splitlines()
  assert len(ledger.rounds) >= 12
  assert len(draws) == len(ledger.rounds)
  headline = json.loads((tmp_path / 'run' / 'privacy_report.json').read_text())['headline']
  assert headline['guarantee'] == 'differential_privacy'
  epsilon = privacy.epsilon(ledger.event(amplified=True), 0.01)
  assert headline['epsilon'] == pytest.approx(epsilon, rel=1e-3)


@pytest.mark.slow
def test_tree_goes_on_with_its_own_noise_after_a_kill(preset, tmp_path):
  changes = {
    'privacy': 'tree', 'noise_multiplier': 0.1, 'min_separation': 2, 'delta': 0.01,
    'insecure_seeded_noise': True,
  }  # fmt: skip
  undisturbed = tmp_path / 'undisturbed'
  assert _finish(tiny_world.start(*_train(preset, undisturbed, rounds=12, **changes)))[0] == 0
  _train_and_kill(preset, tmp_path / 'run', 1, **changes)
  _assert_same_adapters(tmp_path / 'run', undisturbed)
  starts = privacy.Ledger(tmp_path / 'run' / 'ledger.jsonl').starts
  assert {start.tree for start in starts} == {0}
  assert {start.leaf for start in starts} == set(range(12))


@pytest.mark.slow
def test_killed_at_any_moment_resumes_to_the_same_end(preset, tmp_path):
  undisturbed, disturbed = tmp_path / 'undisturbed', tmp_path / 'disturbed'
  assert _finish(tiny_world.start(*_train(preset, undisturbed, rounds=12)))[0] == 0
  _train_and_kill(preset, disturbed, 1)
  assert _rounds(undisturbed) == list(range(13))
  _assert_same_adapters(disturbed, undisturbed)
  kept = {path.name for path in (disturbed / 'checkpoints').iterdir()}
  assert kept == {'round_11', 'round_12'}


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
def test_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(preset, small_disk):
  directory = small_disk / 'run'
  process = tiny_world.start(*_train(preset, directory, rounds=4))
  _await_rounds(process, directory, 1)
  _fill(small_disk)
  code, _, error = _finish(process, 120)
  assert code == 2
  _assert_one_line(error, 'space')
  (small_disk / 'filling').unlink()
  # The report alone may need more than the small disk had.
  subprocess.run(['mount', '-o', 'remount,size=16m', str(small_disk)], check=True)
  code, out, error = _finish(tiny_world.start('train', '--output-dir', directory, '--resume'))
  assert code == 0, error
  assert 'Report: ' in out
  assert _rounds(directory) == list(range(5))


def _fill(disk: pathlib.Path) -> None:
  with open(disk / 'filling', 'wb', buffering=0) as file:
    for size in (65536, 4096):
      try:
        while True:
          file.write(b'x' * size)
      except OSError:
        continue
