# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The worker ends with us, however we end, and holds none of our pipes."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import tensorflow_federated as tff

from tasks import worker as worker_lib
from tasks.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc and prctl')


def _runs(pid):
  """Whether the process is there and not a zombie."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return stat.rsplit(')', 1)[1].split()[0] != 'Z'


def _is_gone_within(pid, seconds):
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    if not _runs(pid):
      return True
    time.sleep(0.05)
  return False


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def _sum(values):
  return tff.federated_sum(values)


def test_runs_computations_and_is_gone_afterwards():
  before = tff.framework.get_context_stack().current
  with worker_lib.LocalWorker(2) as worker:
    pid = worker.pid
    assert _runs(pid)
    assert _sum([1, 2, 3]) == 6
  assert not _runs(pid)
  assert worker.pid is None
  assert tff.framework.get_context_stack().current is before


def test_is_gone_after_an_exception():
  before = tff.framework.get_context_stack().current
  worker, pids = worker_lib.LocalWorker(1), []

  def fail():
    with worker:
      pids.append(worker.pid)
      raise KeyError('ours')

  with pytest.raises(KeyError):
    fail()
  assert not _runs(pids[0])
  assert tff.framework.get_context_stack().current is before


def test_is_gone_after_an_interrupted_start(monkeypatch):
  worker = worker_lib.LocalWorker(1)
  started = []

  def interrupt(stub):
    started.append(worker.pid)
    raise KeyboardInterrupt

  monkeypatch.setattr(worker, '_await_ready', interrupt)
  with pytest.raises(KeyboardInterrupt):
    worker.__enter__()
  still_running = _runs(started[0])
  if still_running:
    os.kill(started[0], signal.SIGKILL)
  assert not still_running


def test_a_worker_that_dies_at_the_start_is_a_user_error(monkeypatch):
  monkeypatch.setattr(worker_lib, '_worker_binary', lambda: pathlib.Path('/bin/false'))
  with pytest.raises(UserError, match='did not start'), worker_lib.LocalWorker(1):
    pass


def test_refuses_no_clients_at_all():
  with pytest.raises(ValueError, match='`max_concurrent_clients` must be >= 1, got 0'):
    worker_lib.LocalWorker(0)


def test_log_file_takes_the_workers_output(tmp_path):
  log = tmp_path / 'worker.log'
  with worker_lib.LocalWorker(1, log) as worker:
    links = [os.readlink(f'/proc/{worker.pid}/fd/{fd}') for fd in (1, 2)]
  assert links == [str(log)] * 2


def _child(body):
  """A Python process of its own that starts a worker, prints its pid and goes on with `body`."""
  script = f"""
    import os, sys, time
    from tasks import worker
    with worker.LocalWorker(1) as running:
      print(running.pid, flush=True)
      {body}
  """
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(script)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )


@pytest.mark.parametrize(
  ('end', 'body'),
  [
    ('exit', 'os._exit(3)'),
    ('kill', 'time.sleep(100)'),
  ],
)
def test_worker_dies_with_its_parent_and_closes_the_pipe(end, body):
  child = _child(body)
  pid = int(child.stdout.readline())
  try:
    if end != 'exit':
      child.kill()
    child.wait(timeout=20)
    started = time.monotonic()
    # Ends only when nobody holds the other end any more.
    assert child.stdout.read() == b''
    assert time.monotonic() - started < 5
    assert _is_gone_within(pid, 5)
  finally:
    child.kill()
    if _runs(pid):
      os.kill(pid, signal.SIGKILL)


def test_worker_holds_none_of_our_outputs():
  with worker_lib.LocalWorker(1) as worker:
    ours = {os.readlink(f'/proc/self/fd/{fd}') for fd in (1, 2)} - {os.devnull}
    theirs = {os.readlink(fd) for fd in pathlib.Path(f'/proc/{worker.pid}/fd').iterdir()}
  assert not ours & theirs
