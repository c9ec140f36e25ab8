# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import types
from importlib import metadata

import psutil
import pytest

from tasks import doctor
from tasks.doctor import Finding, Level
from tasks.errors import UserError

_CPU = 'processor\t: 0\nflags\t\t: fpu sse {}\nmodel name\t: x\nflags\t\t: none\n'


def _levels(findings):
  return [finding.level for finding in findings]


@pytest.mark.parametrize(
  ('version', 'level'),
  [('3.11.9', Level.OK), ('3.12.0', Level.ERROR), ('3.1.1', Level.ERROR)],
)
def test_another_python_is_an_error(version, level, monkeypatch):
  monkeypatch.setattr(doctor.platform, 'machine', lambda: 'x86_64')
  assert doctor.python(version).level is level


def test_another_machine_is_a_warning(monkeypatch):
  monkeypatch.setattr(doctor.platform, 'machine', lambda: 'arm64')
  assert doctor.python('3.11.9').level is Level.WARNING


def test_packages_are_compared_by_normal_name(tmp_path):
  numpy, typing = metadata.version('numpy'), metadata.version('typing_extensions')
  lock = tmp_path / 'requirements.txt'
  lock.write_text(
    f'# made by make\nNumPy=={numpy} \\\n    --hash=sha256:0\n    # via x==1\n'
    f'typing_Extensions=={typing} ; python_version < "4"\n'
  )
  assert list(doctor.packages(lock)) == [Finding('packages', Level.OK, '2 as locked')]


def test_other_version_and_missing_package_are_named(tmp_path):
  lock = tmp_path / 'requirements.txt'
  lock.write_text('numpy==0.0.1\nno-such-package==2\n')
  other, missing = doctor.packages(lock)
  assert other.level is Level.WARNING
  assert other.found == f'numpy {metadata.version("numpy")}, locked is 0.0.1'
  assert missing.level is Level.ERROR
  assert missing.found == 'no-such-package is missing, locked is 2'
  assert missing.mend == 'make setup'


def test_without_a_lock_versions_are_not_vouched_for(tmp_path):
  [finding] = doctor.packages(tmp_path / 'requirements.txt')
  assert finding.level is Level.WARNING
  assert str(tmp_path) in finding.found


@pytest.mark.parametrize(
  ('flags', 'level', 'found'),
  [
    ('avx avx2 fma avx512f amx_bf16', Level.OK, 'AVX, AVX2, FMA, AVX-512, AMX (bf16)'),
    ('avx avx2 fma', Level.OK, 'AVX, AVX2, FMA'),
    ('avx fma', Level.WARNING, 'AVX, FMA'),
    ('avx', Level.WARNING, 'AVX alone'),
    ('sse4', Level.ERROR, 'no AVX'),
  ],
)
def test_vector_instructions(flags, level, found):
  assert doctor.cpu(_CPU.format(flags))[1:3] == (level, found)


@pytest.mark.parametrize(
  ('files', 'quota'),
  [
    ({'cpu.max': '150000 100000\n'}, 1.5),
    ({'cpu.max': 'max 100000\n'}, None),
    ({'cpu/cpu.cfs_quota_us': '50000\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 0.5),
    ({'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'}, None),
    ({}, None),
  ],
)
def test_time_that_a_container_allows(files, quota, tmp_path, monkeypatch):
  (tmp_path / 'cpu').mkdir()
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  monkeypatch.setattr(doctor, '_CONTROL_GROUP', tmp_path)
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1, 2})
  assert doctor.cores().level is (Level.OK if quota is None else Level.WARNING)
  assert doctor.cores().found == ('3' if quota is None else f'3 visible, time for {quota}')


@pytest.mark.parametrize(
  ('name', 'text', 'found'),
  [
    ('memory.max', f'{2**31}\n', '2.0 GiB available'),
    ('memory.max', 'max\n', '8.0 GiB available'),
    ('memory/memory.limit_in_bytes', f'{2**30}\n', '1.0 GiB available'),
    ('memory/other', '', '8.0 GiB available'),
  ],
)
def test_memory_is_what_a_container_leaves(name, text, found, tmp_path, monkeypatch):
  (tmp_path / 'memory').mkdir()
  (tmp_path / name).write_text(text)
  monkeypatch.setattr(doctor, '_CONTROL_GROUP', tmp_path)
  monkeypatch.setattr(psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=2**33))
  finding = doctor.memory()
  assert finding.found == found
  assert finding.level is (Level.OK if found.startswith('8') else Level.WARNING)


@pytest.mark.parametrize(
  ('limits', 'levels'),
  [
    ((1024, 4096), [Level.OK, Level.WARNING]),
    ((1023, 4096), [Level.WARNING, Level.WARNING]),
    ((resource.RLIM_INFINITY,) * 2, [Level.OK, Level.OK]),
  ],
)
def test_limits(limits, levels, monkeypatch):
  monkeypatch.setattr(resource, 'getrlimit', lambda which: limits)
  assert _levels([doctor.open_files(), doctor.address_space()]) == levels


def test_directory_that_is_not_there_yet_is_where_it_would_be(tmp_path):
  finding = doctor.disk('cache', tmp_path / 'a' / 'b')
  assert finding.found.startswith(f'{tmp_path / "a" / "b"}: ')
  assert list(tmp_path.iterdir()) == []


def test_little_room_is_a_warning(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'statvfs', lambda d: types.SimpleNamespace(f_bavail=2**20, f_frsize=1024))
  finding = doctor.disk('cache', tmp_path)
  assert finding == Finding(
    'cache', Level.WARNING, f'{tmp_path}: 1.0 GiB free', 'make room for 2 GiB'
  )


def test_directory_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
  def refuse(dir):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  monkeypatch.setattr(tempfile, 'TemporaryFile', refuse)
  finding = doctor.disk('cache', tmp_path)
  assert finding[1:3] == (Level.ERROR, f'{tmp_path}: Read-only file system')
  assert 'HETLORA_CACHE' in finding.mend


@pytest.fixture(name='lone_worker')
def lone_worker_fixture():
  """Pid of something that looks like a worker, whose program has ended."""
  sleep = 'import time; time.sleep(60)'
  command = [sys.executable, '-c', sleep, '--max_concurrent_computation_calls=2']
  start = f'import subprocess; print(subprocess.Popen({command}, stdout=-3, stderr=-3).pid)'
  done = subprocess.run([sys.executable, '-c', start], capture_output=True, text=True, check=True)
  pid = int(done.stdout)
  yield pid
  psutil.Process(pid).kill()


def test_worker_that_lost_its_program_is_named_and_left_alone(lone_worker, monkeypatch):
  # Init, who adopts it, may itself be a Python program where tests run in a container.
  monkeypatch.setattr(psutil.Process, 'parent', lambda self: None)
  found = [finding for finding in doctor.left_workers() if str(lone_worker) in finding.found]
  assert _levels(found) == [Level.WARNING]
  assert found[0].mend.endswith(f'kill {lone_worker}')
  assert psutil.pid_exists(lone_worker)


def test_worker_of_a_running_program_is_no_finding():
  sleep = 'import time; time.sleep(60)'
  command = [sys.executable, '-c', sleep, '--max_concurrent_computation_calls=2']
  with subprocess.Popen(command) as process:
    found = [finding.found for finding in doctor.left_workers()]
    process.kill()
  assert not [text for text in found if str(process.pid) in text]


@pytest.fixture(name='checks')
def checks_fixture(monkeypatch):
  """All checks that need TensorFlow or look at the machine, as healthy ones."""
  monkeypatch.setattr(doctor, 'cache_directory', pathlib.Path.cwd)
  monkeypatch.setattr(doctor, 'worker', lambda: Finding('worker', Level.OK, 'computed'))
  monkeypatch.setattr(doctor, 'packages', lambda lock: [Finding('packages', Level.OK, 'all')])
  return monkeypatch


def test_healthy_machine_has_a_line_for_each_check_and_no_mend(checks, capsys):
  checks.setattr(doctor, 'cores', lambda: Finding('cores', Level.WARNING, 'few', 'buy some'))
  assert doctor.run() == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 11
  assert 'warning cores              few; buy some' in lines
  assert lines[-1] == 'ok      worker             computed'


def test_json_has_the_same_findings(checks, capsys):
  checks.setattr(doctor, 'python', lambda version: Finding('python', Level.ERROR, version, 'other'))
  assert doctor.run(as_json=True) == 1
  findings = json.loads(capsys.readouterr().out)
  assert findings[0] == {
    'check': 'python',
    'level': 'error',
    'found': doctor.platform.python_version(),
    'mend': 'other',
  }
  assert len(findings) == 11


@pytest.mark.parametrize(
  ('error', 'found', 'mend'),
  [
    (UserError('No room; make some.'), 'No room; make some.', ''),
    (ImportError('no tff'), 'ImportError: no tff', 'make setup'),
    (RuntimeError('one\ntwo'), 'RuntimeError: one two', ''),
  ],
)
def test_check_that_breaks_is_a_finding(checks, capsys, error, found, mend):
  def fail():
    raise error

  checks.setattr(doctor, 'cache_directory', fail)
  assert doctor.run() == 1
  lines = capsys.readouterr().out.splitlines()
  assert lines[-2:] == [
    f'error   cache              {found}{f"; {mend}" if mend else ""}',
    'ok      worker             computed',
  ]


def test_a_worker_starts_and_computes_here():
  assert doctor.worker().level is Level.OK
