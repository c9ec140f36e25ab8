# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import contextlib
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from tasks import text_store
from tasks.errors import UserError
from tasks.federated_text import Example
from tasks.text_store import Row, StoredClients, TextStore

_ROOT = pathlib.Path(__file__).parents[2]
_ROWS = (
  Row('zoë', '', 'a\0b', 'c', ''),
  Row('ann', '', 'one', 'two', 'persona'),
  Row('zoë', '', 'later', '\N{GRINNING FACE}', ''),
  Row('ann', 'test', 'three', 'four', ''),
)
# Writes a store without end.
_ENDLESS = """
import itertools, pathlib, sys
from tasks import text_store
path = pathlib.Path(sys.argv[1])
with text_store.locked(path, lambda: None):
  rows = (text_store.Row(f'c{n}', '', 'x' * 1000, 'y', '') for n in itertools.count())
  text_store.write_store(path, rows, dict)
"""


def _write(path, rows=_ROWS, **facts):
  with text_store.locked(path, lambda: None):
    text_store.write_store(path, rows, lambda: facts)
  return TextStore(path)


def _path(tmp_path):
  return tmp_path / 'text' / 'task.sqlite'


def test_what_was_written_is_read_by_client(tmp_path):
  store = _write(_path(tmp_path), left_out=['nothing'])
  assert list(store.sizes()) == [('ann', '', 1), ('ann', 'test', 1), ('zoë', '', 2)]
  assert store.read('zoë', '', 5) == [
    Example('a\0b', 'c'),
    Example('later', '\N{GRINNING FACE}'),
  ]
  assert store.read('zoë', '', 1) == [Example('a\0b', 'c')]
  assert store.read('ann', 'test', 5) == [Example('three', 'four')]
  assert store.read('ann', '', 5) == [Example('one', 'two', 'persona')]
  assert store.read('bob', '', 5) == []
  assert store.facts['left_out'] == ['nothing']


def test_clients_are_a_mapping_that_reads_when_asked(tmp_path):
  store = _write(_path(tmp_path))
  clients = StoredClients(store, '', {'ann': 1, 'zoë': 1})
  assert list(clients) == ['ann', 'zoë']
  assert len(clients) == 2
  assert 'zoë' in clients
  assert 'bob' not in clients
  assert clients.sizes == {'ann': 1, 'zoë': 1}
  assert clients == {'ann': [Example('one', 'two', 'persona')], 'zoë': [Example('a\0b', 'c')]}
  with pytest.raises(KeyError):
    clients['bob']


def test_the_digest_tells_every_difference(tmp_path):
  def digest(rows=_ROWS, split='', sizes=(('ann', 1), ('zoë', 2))):
    return StoredClients(_write(_path(tmp_path), rows), split, dict(sizes)).sha256

  changed = (*_ROWS[:3], _ROWS[3]._replace(head='x'))
  digests = [
    digest(),
    digest(rows=changed),
    digest(rows=_ROWS[::-1]),
    digest(split='test'),
    digest(sizes=[('ann', 1), ('zoë', 1)]),
    digest(sizes=[('ann', 1)]),
  ]
  assert len(set(digests)) == len(digests)
  assert digest() == digests[0]


def test_names_are_in_the_order_of_python(tmp_path):
  names = ['b', 'B', 'é', '\uffff', '\U0001f600', 'a b', '', 'ab']
  store = _write(_path(tmp_path), [Row(name, '', 's', 't', '') for name in names])
  assert [name for name, _, _ in store.sizes()] == sorted(names)


def test_a_store_survives_its_replacement_and_is_read_from_any_thread(tmp_path):
  path = _path(tmp_path)
  store = _write(path)
  _write(path, _ROWS[:1])
  found = []
  thread = threading.Thread(target=lambda: found.extend(store.read('ann', '', 9)))
  thread.start()
  thread.join()
  assert found == [Example('one', 'two', 'persona')]
  assert list(TextStore(path).sizes()) == [('zoë', '', 1)]


def test_people_s_text_is_for_its_owner_alone(tmp_path):
  path = _path(tmp_path)
  path.parent.mkdir(mode=0o755)
  _write(path)
  assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_failure_leaves_what_was_there(tmp_path):
  path = _path(tmp_path)
  _write(path)

  def failing():
    yield _ROWS[0]
    raise UserError('line 2')

  with pytest.raises(UserError, match='line 2'):
    _write(path, failing())
  assert len(list(TextStore(path).sizes())) == 3
  assert {p.suffix for p in path.parent.iterdir()} == {'.sqlite', '.lock'}


def test_a_kill_leaves_nothing_and_the_next_one_waits_for_it(tmp_path):
  path = _path(tmp_path)
  command = [sys.executable, '-c', _ENDLESS, str(path)]
  with subprocess.Popen(command, cwd=_ROOT) as other:
    draft = path.with_suffix('.draft')
    while not (draft.exists() and draft.stat().st_size > 1_000_000):
      assert other.poll() is None
    killed = []

    def kill():
      killed.append(other.pid)
      other.send_signal(signal.SIGKILL)

    with text_store.locked(path, threading.Timer(0.1, kill).start):
      assert killed
      assert draft.exists()
      assert not path.exists()
      text_store.write_store(path, _ROWS, dict)
  assert not draft.exists()
  assert len(list(TextStore(path).sizes())) == 3


@pytest.mark.parametrize('lost', [1, 4096, -4096])
def test_a_store_of_another_length_is_not_opened(tmp_path, lost):
  path = _path(tmp_path)
  _write(path, [Row(f'c{n}', '', 'text ' * 200, 't', '') for n in range(100)])
  os.truncate(path, path.stat().st_size - lost)
  with pytest.raises((sqlite3.Error, ValueError)):
    TextStore(path)


def test_a_store_whose_index_is_damaged_is_named(tmp_path):
  path = _path(tmp_path)
  store = _write(path, [Row(f'c{n}', '', 's', 't', '') for n in range(1000)])
  with contextlib.closing(sqlite3.connect(path)) as other:
    query = "SELECT rootpage FROM sqlite_master WHERE name = 'by_client'"
    ((page,),) = other.execute(query)
  with path.open('r+b') as file:
    file.seek((page - 1) * 4096)
    file.write(bytes(4096))
  with pytest.raises(UserError, match=r'task.sqlite is damaged \(.*\); remove it'):
    list(store.sizes())


def test_a_store_that_is_damaged_inside_is_named(tmp_path):
  path = _path(tmp_path)
  _write(path, [Row(f'c{n}', '', 'text ' * 200, 't', '') for n in range(100)])
  size = path.stat().st_size
  with path.open('r+b') as file:
    file.seek(8192)
    file.write(b'\xff' * (size - 8192))
  with pytest.raises(UserError, match=r'task.sqlite is damaged \(.*\); remove it'):
    TextStore(path).read('c5', '', 9)
