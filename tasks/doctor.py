# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `hetlora doctor` looks at: whether a run would work on this machine, and how to mend it.

It changes nothing and ends no process. A check that breaks is itself a finding: what is wrong with
an environment often shows in an import.
"""

import enum
import json
import os
import pathlib
import platform
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

from tasks.cache import cache_directory
from tasks.errors import UserError

_LOCK = pathlib.Path(__file__).parent.parent / 'requirements.txt'
_CONTROL_GROUP = pathlib.Path('/sys/fs/cgroup')
_PYTHON = '3.11'
_GIB = 2**30
# A run of the embedded model with two clients at a time, and its checkpoints.
_MIN_MEMORY_BYTES, _MIN_DISK_BYTES = 3 * _GIB, 2 * _GIB
_MIN_OPEN_FILES = 1024
# What TensorFlow is compiled for, and what it uses where it is there.
_NEEDED_CPU_FLAGS = ('avx',)
_FAST_CPU_FLAGS = {'avx2': 'AVX2', 'fma': 'FMA', 'avx512f': 'AVX-512', 'amx_bf16': 'AMX (bf16)'}
# Every TFF worker has it, whatever the program's file is called.
_WORKER_FLAG = '--max_concurrent_computation_calls='


class Level(enum.Enum):
  """What a finding means for a run."""

  OK = 'ok'
  WARNING = 'warning'
  ERROR = 'error'


class Finding(NamedTuple):
  """One line of the doctor's answer."""

  check: str
  level: Level
  found: str
  mend: str = ''


def run(*, as_json: bool = False) -> int:
  """Looks at everything and prints what it finds.

  Args:
    as_json: prints one JSON list of objects with `check`, `level`, `found` and `mend` instead of
      lines.

  Returns:
    1 if a run would not work here, else 0.
  """
  findings = []
  for finding in examine():
    findings.append(finding)
    if not as_json:
      print(_line(finding), flush=True)
  if as_json:
    print(json.dumps([_as_json(finding) for finding in findings], indent=2))
  return int(any(finding.level is Level.ERROR for finding in findings))


def examine() -> Iterator[Finding]:
  """All findings, each as soon as it is made; the worker, which takes seconds, comes last."""
  checks: dict[str, Callable[[], Iterable[Finding]]] = {
    'python': lambda: [python(platform.python_version())],
    'packages': lambda: packages(_LOCK),
    'cpu': lambda: [cpu(pathlib.Path('/proc/cpuinfo').read_text()), cores()],
    'memory': lambda: [memory()],
    'limits': lambda: [open_files(), address_space()],
    'workers': left_workers,
    'working directory': lambda: [disk('working directory', pathlib.Path.cwd())],
    'cache': lambda: [disk('cache', cache_directory())],
    'worker': lambda: [worker()],
  }
  for name, check in checks.items():
    try:
      yield from check()
    except Exception as error:  # Whatever it is, the other checks can still be made.
      known = isinstance(error, UserError)
      found = str(error) if known else f'{type(error).__name__}: {error}'
      mend = 'make setup' if isinstance(error, ImportError) else ''
      yield Finding(name, Level.ERROR, found, mend)


def _line(finding: Finding) -> str:
  mend = f'; {finding.mend}' if finding.mend else ''
  text = f'{finding.level.value:<8}{finding.check:<19}{finding.found}{mend}'
  return ' '.join(text.splitlines())


def _as_json(finding: Finding) -> dict[str, Any]:
  return {**finding._asdict(), 'level': finding.level.value}


def python(version: str) -> Finding:
  """Whether this is the Python that the lock is compiled for, on a machine TFF is built for."""
  found = f'{version}, {platform.system()} {platform.machine()}'
  if version.split('.')[:2] != _PYTHON.split('.'):
    return Finding('python', Level.ERROR, found, f'TFF 0.87 needs Python {_PYTHON}: make setup')
  if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
    return Finding('python', Level.WARNING, found, 'tested on Linux x86_64 alone')
  return Finding('python', Level.OK, found)


def packages(lock: pathlib.Path) -> Iterator[Finding]:
  """What is installed against what is locked.

  Args:
    lock: a `requirements.txt` of exact versions.
  """
  if not lock.is_file():
    mend = 'run `hetlora` of a checkout to compare the versions'
    yield Finding('packages', Level.WARNING, f'there is no lock {lock}', mend)
    return
  locked = dict(re.findall(r'^([\w.-]+)==([^\s;\\]+)', lock.read_text('utf-8'), re.MULTILINE))
  installed = {_normal(d.metadata['Name'] or ''): d.version for d in metadata.distributions()}
  wrong = 0
  for name, version in locked.items():
    have = installed.get(_normal(name))
    if have == version:
      continue
    wrong += 1
    level = Level.WARNING if have else Level.ERROR
    found = f'{name} {have or "is missing"}, locked is {version}'
    yield Finding('packages', level, found, 'make setup')
  if not wrong:
    yield Finding('packages', Level.OK, f'{len(locked)} as locked')


def _normal(name: str) -> str:
  """A package's name as they are compared (PEP 503)."""
  return re.sub(r'[-_.]+', '-', name).lower()


def cpu(cpuinfo: str) -> Finding:
  """Which vector instructions there are.

  Args:
    cpuinfo: the text of `/proc/cpuinfo`.
  """
  listed = re.search(r'^flags\s*:(.*)$', cpuinfo, re.MULTILINE)
  flags = listed.group(1).split() if listed else []
  if any(flag not in flags for flag in _NEEDED_CPU_FLAGS):
    mend = 'TensorFlow is compiled for AVX and ends with "illegal instruction": another machine'
    return Finding('cpu', Level.ERROR, 'no AVX', mend)
  have = [title for flag, title in _FAST_CPU_FLAGS.items() if flag in flags]
  found = f'AVX, {", ".join(have)}' if have else 'AVX alone'
  if not {'AVX2', 'FMA'} <= set(have):
    mend = 'training takes several times as long without AVX2 and FMA'
    return Finding('cpu', Level.WARNING, found, mend)
  return Finding('cpu', Level.OK, found)


def cores() -> Finding:
  """How many cores this process may use, and whether a container gives it less time than that."""
  usable = len(os.sched_getaffinity(0))
  quota = _cpu_quota()
  if quota is not None and quota < usable:
    found = f'{usable} visible, time for {quota:.1f}'
    mend = f'TensorFlow starts threads for {usable}: give the container a cpuset instead'
    return Finding('cores', Level.WARNING, found, mend)
  return Finding('cores', Level.OK, str(usable))


def _cpu_quota() -> float | None:
  """Cores' worth of time that the control group allows, or None for all."""
  for names in (('cpu.max',), ('cpu/cpu.cfs_quota_us', 'cpu/cpu.cfs_period_us')):
    files = [_CONTROL_GROUP / name for name in names]
    if all(file.is_file() for file in files):
      limit, period = ' '.join(file.read_text() for file in files).split()
      return float(limit) / float(period) if limit.isdigit() else None
  return None


def _memory_limit() -> int | None:
  """Bytes that the control group allows, or None for all."""
  for name in ('memory.max', 'memory/memory.limit_in_bytes'):
    file = _CONTROL_GROUP / name
    if file.is_file():
      limit = file.read_text().strip()
      return int(limit) if limit.isdigit() else None
  return None


def memory() -> Finding:
  """How much memory a run could have; the smaller of what is free and what a container allows."""
  import psutil

  available = min(psutil.virtual_memory().available, _memory_limit() or 2**63)
  found = f'{available / _GIB:.1f} GiB available'
  if available < _MIN_MEMORY_BYTES:
    mend = 'the built-in task takes 2 to 3 GiB: fewer --concurrent-clients, a smaller --batch-size'
    return Finding('memory', Level.WARNING, found, mend)
  return Finding('memory', Level.OK, found)


def open_files() -> Finding:
  """The limit on open files: connections, memory-mapped tensors and event files are some."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  found = f'{_limit(soft)} of at most {_limit(hard)}'
  if soft != resource.RLIM_INFINITY and soft < _MIN_OPEN_FILES:
    return Finding('open files', Level.WARNING, found, f'ulimit -n {_MIN_OPEN_FILES}')
  return Finding('open files', Level.OK, found)


def address_space() -> Finding:
  """The limit on address space: a backbone is mapped into it, and TensorFlow reserves more."""
  soft, _ = resource.getrlimit(resource.RLIMIT_AS)
  if soft != resource.RLIM_INFINITY:
    found = f'{soft / _GIB:.1f} GiB'
    mend = 'TensorFlow maps many times what it uses: ulimit -v unlimited'
    return Finding('address space', Level.WARNING, found, mend)
  return Finding('address space', Level.OK, 'unlimited')


def _limit(value: int) -> str:
  return 'unlimited' if value == resource.RLIM_INFINITY else str(value)


def disk(what: str, directory: pathlib.Path) -> Finding:
  """Whether a directory, or the one in which it would be made, has room and can be written.

  Args:
    what: the directory's purpose.
    directory: it need not exist.
  """
  there = next(d for d in (directory, *directory.absolute().parents) if d.exists())
  other = 'name another in HETLORA_CACHE' if what == 'cache' else 'change to another'
  try:
    # A file, not the mode bits: those say nothing of a read-only file system, nor of a full one.
    with tempfile.TemporaryFile(dir=there) as file:
      file.write(b'hetlora')
  except OSError as error:
    return Finding(what, Level.ERROR, f'{directory}: {error.strerror}', other)
  system = os.statvfs(there)
  free = system.f_bavail * system.f_frsize
  found = f'{directory}: {free / _GIB:.1f} GiB free'
  if free < _MIN_DISK_BYTES:
    return Finding(what, Level.WARNING, found, f'make room for {_MIN_DISK_BYTES // _GIB} GiB')
  return Finding(what, Level.OK, found)


def left_workers() -> Iterator[Finding]:
  """TFF workers whose program is gone; they hold memory and a pipe of the shell they came from."""
  import psutil

  left = [
    process
    for process in psutil.process_iter(['pid', 'cmdline', 'create_time', 'username'])
    if any(_WORKER_FLAG in word for word in process.info['cmdline'] or ()) and _is_left(process)
  ]
  for process in left:
    pid = process.info['pid']
    age = _age(time.time() - process.info['create_time'])
    found = f'TFF worker {pid} of {process.info["username"]}, {age} old, has lost its program'
    yield Finding('left-over workers', Level.WARNING, found, f'if you know it as yours: kill {pid}')
  if not left:
    yield Finding('left-over workers', Level.OK, 'none')


def _is_left(process) -> bool:
  """Whether its parent is no Python program: of an orphan the kernel makes init the parent."""
  import psutil

  parent = process.parent()
  if parent is None:
    return True
  try:
    program = pathlib.Path(parent.exe()).name
  except psutil.AccessDenied:  # Another user's.
    program = parent.name()
  return not program.startswith('python')


def _age(seconds: float) -> str:
  for unit, size in {'days': 86400, 'hours': 3600, 'minutes': 60}.items():
    if seconds >= 2 * size:
      return f'{seconds // size:.0f} {unit}'
  return f'{seconds:.0f} seconds'


def worker() -> Finding:
  """Whether a TFF worker starts and computes, and how long that takes."""
  from tasks import program_loader

  program_loader.import_program()
  import numpy as np
  import tensorflow_federated as tff

  from tasks import worker as workers

  total = tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))(tff.federated_sum)
  start = time.monotonic()
  with workers.LocalWorker(1):
    result = total([1, 2, 3])
  seconds = time.monotonic() - start
  if result != 6:
    return Finding('worker', Level.ERROR, f'1 + 2 + 3 is {result} there', 'make setup')
  return Finding('worker', Level.OK, f'started, computed and ended in {seconds:.1f} s')
