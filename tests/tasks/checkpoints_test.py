# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tasks import checkpoints
from tasks.checkpoints import Checkpoints, RunState
from tasks.errors import UserError

_MANAGER = tff.program.FileProgramStateManager


def _state(number):
  learning = collections.OrderedDict(a=np.full([2, 3], number, np.float32), b=np.int64(7))
  return RunState(number, learning, np.array([4, 9], np.int32), 3, np.arange(32, dtype=np.uint8))


def _open(folder, say=lambda line: None):
  return Checkpoints(folder, say)


def test_last_of_two_kept_states_comes_back(tmp_path):
  with _open(tmp_path / 'kept') as saving:
    for number in range(4):
      saving.save(_state(number))
  assert {path.name for path in (tmp_path / 'kept').iterdir()} == {'round_2', 'round_3'}
  restored = _open(tmp_path / 'kept').restore(_state(0))
  assert (restored.round_number, restored.ledger_entries) == (3, 3)
  np.testing.assert_array_equal(restored.learning['a'], np.full([2, 3], 3, np.float32))
  np.testing.assert_array_equal(restored.ranks, [4, 9])
  assert restored.ranks.dtype == np.int32
  np.testing.assert_array_equal(restored.ledger_head, np.arange(32))


def test_nothing_saved_is_nothing_restored(tmp_path):
  assert _open(tmp_path).restore(_state(0)) is None


@pytest.fixture(name='slow_disk')
def slow_disk_fixture(monkeypatch):
  """A disk that takes no byte before this is set."""
  open_for_writing, save = threading.Event(), _MANAGER.save

  async def wait(self, state, version):
    assert open_for_writing.wait(30)
    await save(self, state, version)

  monkeypatch.setattr(_MANAGER, 'save', wait)
  yield open_for_writing
  open_for_writing.set()


def test_saving_keeps_nobody_waiting_but_who_settles(tmp_path, slow_disk):
  saved = []
  with Checkpoints(tmp_path, print, lambda number, seconds: saved.append((number, seconds))) as c:
    c.save(_state(1))
    assert not (tmp_path / 'round_1').exists()
    assert not saved
    slow_disk.set()
    c.settle()
    assert (tmp_path / 'round_1').is_dir()
    assert [number for number, seconds in saved if seconds > 0] == [1]


def test_an_end_in_between_waits_for_what_was_begun(tmp_path, slow_disk):
  saving = _open(tmp_path)
  saving.save(_state(1))
  threading.Timer(0.2, slow_disk.set).start()
  with pytest.raises(KeyboardInterrupt), saving:
    raise KeyboardInterrupt
  assert _open(tmp_path).restore(_state(0)).round_number == 1


@pytest.fixture(name='full_disk')
def full_disk_fixture(monkeypatch, tmp_path):
  """Lets nothing be written after round 1, and leaves a draft behind."""
  save = _MANAGER.save

  async def full(self, state, version):
    if version > 1:
      (tmp_path / f'round_{version}_temp1234').mkdir()
      raise tf.errors.ResourceExhaustedError(None, None, 'x.tmp; No space left on device\nmore')
    await save(self, state, version)

  monkeypatch.setattr(_MANAGER, 'save', full)


def test_failed_save_is_one_line_that_names_the_round_that_is_kept(tmp_path, full_disk):
  saving = _open(tmp_path)
  for number in (1, 2):
    saving.save(_state(number))
  with pytest.raises(UserError) as caught:
    saving.settle()
  said = str(caught.value)
  assert said.startswith(f'Cannot save round 2 to {tmp_path}: x.tmp; No space left on device;')
  assert 'round 1 is kept' in said
  assert '--resume' in said
  assert '\n' not in said
  assert {path.name for path in tmp_path.iterdir()} == {'round_1'}  # A draft takes space.


def test_failed_save_comes_up_before_the_next_and_in_the_end(tmp_path, full_disk):
  saving = _open(tmp_path)
  saving.save(_state(2))
  with pytest.raises(UserError, match=r'Cannot save round 2 .* no round is kept'):
    saving.save(_state(3))
  with pytest.raises(UserError, match='round 4'), saving:
    saving.save(_state(4))


def test_failed_save_is_told_beside_another_end(tmp_path, full_disk):
  told = []
  saving = _open(tmp_path, told.append)
  saving.save(_state(2))
  with pytest.raises(UserError, match='another'), saving:
    raise UserError('another')
  assert len(told) == 1
  assert 'Cannot save round 2' in told[0]


def test_restored_round_is_the_one_that_is_kept(tmp_path, full_disk):
  with _open(tmp_path) as saving:
    saving.save(_state(1))
  resumed = _open(tmp_path)
  resumed.restore(_state(0))
  with pytest.raises(UserError, match='round 1 is kept'), resumed:
    resumed.save(_state(2))


def test_failing_to_sync_fails_the_save(tmp_path, monkeypatch):
  def broken(unused_descriptor):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(checkpoints.os, 'fsync', broken)
  with pytest.raises(UserError, match='Input/output error'), _open(tmp_path) as saving:
    saving.save(_state(1))


def test_torn_checkpoint_is_named_and_an_older_one_used(tmp_path):
  told = []
  with _open(tmp_path) as saving:
    for number in (1, 2):
      saving.save(_state(number))
  for part in (tmp_path / 'round_2' / 'variables').iterdir():
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
  (tmp_path / 'round_3_temp17').mkdir()
  saving = _open(tmp_path, told.append)
  assert saving.restore(_state(0)).round_number == 1
  assert [line for line in told if f'{tmp_path}/round_2 cannot be read' in line]
  assert not (tmp_path / 'round_3_temp17').exists()
  with saving:
    saving.save(_state(2))  # The torn one is out of its way.
  (tmp_path / 'round_1' / 'saved_model.pb').write_bytes(b'torn')
  (tmp_path / 'round_2' / 'saved_model.pb').write_bytes(b'torn')
  with pytest.raises(UserError, match=r'--resume: no checkpoint in .* can be read'):
    saving.restore(_state(0))
