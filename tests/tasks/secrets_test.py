# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Secret files: who may read them, and that what was written is what comes back."""

import json
import os
import stat

import pytest

from tasks import secrets
from tasks.errors import UserError


@pytest.fixture(name='lax_umask', autouse=True)
def lax_umask_fixture():
  """Lets everybody read new files, where nobody says otherwise."""
  before = os.umask(0)
  yield
  os.umask(before)


@pytest.fixture(name='opened')
def opened_fixture(monkeypatch):
  """Modes of files at the moment at which they come to be."""
  modes = []
  original = os.open

  def spy(path, flags, mode=0o777, **others):
    descriptor = original(path, flags, mode, **others)
    modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
    return descriptor

  monkeypatch.setattr(os, 'open', spy)
  return modes


def _mode(path):
  return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_read_at_any_time(tmp_path, opened):
  kept = secrets.Secrets(tmp_path / 'secrets')
  assert _mode(kept.directory) == 0o700
  opened.clear()
  kept.key('noise')
  kept.append_line('draws', [1])
  assert {_mode(path) for path in kept.directory.iterdir()} == {0o600}
  assert opened.count(0o600) == 2
  assert set(opened) <= {0o600, 0o700}  # Directories are opened to be synced.


def test_keys_come_back_and_are_all_different(tmp_path):
  kept = secrets.Secrets(tmp_path / 'secrets')
  keys = [kept.key('noise'), kept.key('sampling'), secrets.Secrets(tmp_path / 'other').key('noise')]
  assert len(set(keys)) == 3
  assert [len(key) for key in keys] == [32] * 3
  again = secrets.Secrets(tmp_path / 'secrets')
  assert [again.key('noise'), again.key('sampling')] == keys[:2]


def test_what_a_kill_left_of_a_key_is_no_key(tmp_path):
  kept = secrets.Secrets(tmp_path / 'secrets')
  (kept.directory / '.noise.draft').write_bytes(b'half')
  assert len(kept.key('noise')) == 32
  assert [path.name for path in kept.directory.iterdir()] == ['noise']


@pytest.mark.parametrize('data', [b'', b'short', bytes(33)])
def test_key_of_another_length_is_refused_by_name(tmp_path, data):
  kept = secrets.Secrets(tmp_path / 'secrets')
  kept.key('noise')
  (kept.directory / 'noise').write_bytes(data)
  with pytest.raises(UserError, match=rf'noise holds {len(data)} bytes'):
    kept.key('noise')


@pytest.mark.parametrize('mode', [0o644, 0o640, 0o602])
def test_what_others_can_reach_is_refused_with_the_mend(tmp_path, mode):
  kept = secrets.Secrets(tmp_path / 'secrets')
  kept.key('noise')
  kept.append_line('draws', {})
  for name, use in (('noise', kept.key), ('draws', lambda name: kept.append_line(name, {}))):
    (kept.directory / name).chmod(mode)
    with pytest.raises(UserError, match=rf'chmod 600 \S+{name}\.') as caught:
      use(name)
    assert '\n' not in str(caught.value)
  kept.directory.chmod(mode | 0o100)
  with pytest.raises(UserError, match=r'chmod 700 \S+secrets\.'):
    secrets.Secrets(kept.directory)


def test_a_file_or_a_link_is_no_directory(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'real').mkdir(0o700)
  (tmp_path / 'link').symlink_to(tmp_path / 'real')
  for name in ('file', 'link'):
    with pytest.raises(UserError, match=f'{name} must be a directory'):
      secrets.Secrets(tmp_path / name)


def test_lines_come_back_and_a_torn_one_is_gone(tmp_path):
  kept = secrets.Secrets(tmp_path / 'secrets')
  path = kept.directory / 'draws'
  assert secrets.read_lines(path) == []
  lines = [{'a': number} for number in range(3)]
  for line in lines:
    kept.append_line('draws', line)
  whole = path.read_bytes()
  for cut in range(len(whole)):
    path.write_bytes(whole[:cut])
    complete = lines[: whole[:cut].count(b'\n')]
    assert secrets.read_lines(path) == complete
    kept.append_line('draws', 'next')
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*complete, 'next']


def test_a_broken_line_is_named(tmp_path):
  kept = secrets.Secrets(tmp_path / 'secrets')
  (kept.directory / 'draws').write_bytes(b'{}\n{\n{}\n')
  with pytest.raises(UserError, match='draws, line 2: not JSON'):
    secrets.read_lines(kept.directory / 'draws')
