# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The copied worker program: one string differs, and it is whole or not there."""

import concurrent.futures
import errno
import os
import shutil

import pytest

from tasks import worker_binary
from tasks.errors import UserError

_BEFORE, _AFTER = b'\x7fELF\0port\0', b'\0more' * 50_000


@pytest.fixture
def source(tmp_path, monkeypatch):
  """A program that stands for TFF's."""
  path = tmp_path / 'worker_binary'
  path.write_bytes(_BEFORE + b'\0[::]:\0' + _AFTER)
  monkeypatch.setattr(worker_binary, '_worker_of_tff', lambda: path)
  return path


def test_only_the_address_differs_and_it_can_be_run(source, tmp_path):
  copy = worker_binary.prepare(tmp_path / 'cache')
  assert copy.read_bytes() == _BEFORE + b'\0unix:\0' + _AFTER
  assert os.access(copy, os.X_OK)
  assert copy.stat().st_mode & 0o022 == 0
  assert list(copy.parent.iterdir()) == [copy]


def test_copies_once_and_again_what_was_cut(source, tmp_path):
  copy = worker_binary.prepare(tmp_path)
  inode = copy.stat().st_ino
  assert worker_binary.prepare(tmp_path).stat().st_ino == inode
  os.truncate(copy, 10)
  assert worker_binary.prepare(tmp_path).stat().st_size == source.stat().st_size


@pytest.mark.parametrize('addresses', [b'', b'\0[::]:\0' * 2, b'\0[::]:9\0'])
def test_refuses_a_worker_that_listens_in_another_way(source, tmp_path, addresses):
  source.write_bytes(_BEFORE + addresses + _AFTER)
  with pytest.raises(UserError, match=r'cannot be kept off the network; install the locked'):
    worker_binary.prepare(tmp_path / 'cache')
  assert list((tmp_path / 'cache').rglob('*tensorflow_federated-*')) == []


def test_full_disk_names_the_directory_and_leaves_nothing(source, tmp_path, monkeypatch):
  def fill(unused_source, target):
    target.write_bytes(b'half')
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(shutil, 'copyfile', fill)
  with pytest.raises(UserError, match=f'to {tmp_path}/workers: No space left .* XDG_CACHE_HOME'):
    worker_binary.prepare(tmp_path)
  assert list((tmp_path / 'workers').iterdir()) == []


def test_cache_that_cannot_be_written_is_a_user_error(source, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='Not a directory'):
    worker_binary.prepare(tmp_path / 'file')


def test_many_at_once_get_a_whole_copy(source, tmp_path):
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    copies = list(pool.map(lambda _: worker_binary.prepare(tmp_path).read_bytes(), range(32)))
  assert set(copies) == {_BEFORE + b'\0unix:\0' + _AFTER}


def test_missing_worker_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setattr(worker_binary.tff, '__file__', str(tmp_path / '__init__.py'))
  with pytest.raises(UserError, match=r'has no worker at .*; reinstall it'):
    worker_binary.prepare(tmp_path)


@pytest.mark.parametrize('others_may', ['write the copy', 'write beside it', 'own it'])
def test_what_others_can_change_is_not_executed(source, tmp_path, monkeypatch, others_may):
  copy = worker_binary.prepare(tmp_path / 'cache')
  if others_may == 'own it':
    monkeypatch.setattr(os, 'geteuid', lambda: 65534)
  else:
    (copy if others_may == 'write the copy' else copy.parent).chmod(0o777)
  with pytest.raises(UserError, match=r'it is executed; remove it'):
    worker_binary.prepare(tmp_path / 'cache')
