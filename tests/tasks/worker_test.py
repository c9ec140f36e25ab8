# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The worker ends with us, however we end, and holds none of our pipes."""

import gc
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

import numpy as np
import pytest
import tensorflow_federated as tff

from tasks import worker as worker_lib
from tasks.errors import UserError
from tests.tasks.processes import is_gone_within, runs

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc and prctl')


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def _sum(values):
  return tff.federated_sum(values)


def test_runs_computations_and_is_gone_afterwards():
  before = tff.framework.get_context_stack().current
  with worker_lib.LocalWorker(2) as worker:
    pid = worker.pid
    assert runs(pid)
    assert _sum([1, 2, 3]) == 6
  assert not runs(pid)
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
  assert not runs(pids[0])
  assert tff.framework.get_context_stack().current is before


def test_is_gone_after_an_interrupted_start(monkeypatch):
  worker = worker_lib.LocalWorker(1)
  started = []

  def interrupt(unused_step):
    started.append(worker.pid)
    raise KeyboardInterrupt

  monkeypatch.setattr(worker, '_await', interrupt)
  with pytest.raises(KeyboardInterrupt):
    worker.__enter__()
  still_running = runs(started[0])
  if still_running:
    os.kill(started[0], signal.SIGKILL)
  assert not still_running


def test_a_worker_that_dies_at_the_start_is_a_user_error(monkeypatch):
  monkeypatch.setattr(worker_lib.worker_binary, 'prepare', lambda _: pathlib.Path('/bin/false'))
  with pytest.raises(UserError, match='did not start'), worker_lib.LocalWorker(1):
    pass


def test_a_program_that_may_not_run_is_a_user_error(tmp_path, monkeypatch):
  program = tmp_path / 'program'
  program.touch(mode=0o600)
  monkeypatch.setattr(worker_lib.worker_binary, 'prepare', lambda _: program)
  with pytest.raises(UserError, match=f'Cannot start {program}: Permission denied'):
    worker_lib.LocalWorker(1).__enter__()


def _listening_inodes():
  """Of all TCP ports that somebody listens on, as the kernel numbers sockets."""
  rows = [
    line.split()
    for family in ('tcp', 'tcp6')
    for line in pathlib.Path(f'/proc/net/{family}').read_text().splitlines()[1:]
  ]
  return {row[9] for row in rows if row[3] == '0A'}


def test_has_no_port_and_leaves_no_file(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  modes = []
  launch = worker_lib.LocalWorker._launch

  def watched(self, program, directory):
    modes.append(directory.stat().st_mode & 0o777)
    return launch(self, program, directory)

  monkeypatch.setattr(worker_lib.LocalWorker, '_launch', watched)
  with worker_lib.LocalWorker(1) as worker:
    links = [os.readlink(fd) for fd in pathlib.Path(f'/proc/{worker.pid}/fd').iterdir()]
    sockets = {link[8:-1] for link in links if link.startswith('socket:')}
    assert sockets
    assert not sockets & _listening_inodes()
    assert modes == [0o700]
    # Whatever ends us from here on, nothing is left to clean up, and nobody else can connect.
    assert list(tmp_path.iterdir()) == []
    assert _sum([4, 5]) == 9


def test_listening_ports_are_seen():
  with socket.create_server(('127.0.0.1', 0)) as server:
    assert str(os.fstat(server.fileno()).st_ino) in _listening_inodes()


def test_temporary_directory_too_deep_for_a_socket(tmp_path, monkeypatch):
  deep = tmp_path / ('d' * 100) / ('e' * 100)
  deep.mkdir(parents=True)
  monkeypatch.setattr(tempfile, 'tempdir', str(deep))
  with worker_lib.LocalWorker(1):
    assert _sum([1, 1]) == 2
  assert list(deep.iterdir()) == []


def test_path_of_the_socket_may_have_any_character(tmp_path, monkeypatch):
  odd = tmp_path / 'a b%20?#ü'
  odd.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(odd))
  with worker_lib.LocalWorker(1):
    assert _sum([1, 1]) == 2


def test_a_worker_that_dies_is_a_user_error_and_no_more(capfd):
  with worker_lib.LocalWorker(1) as worker:
    assert _sum([1, 2]) == 3
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r'ended with status -9 .* --resume'):
      _sum([1, 2])
    gc.collect()
  assert 'Traceback' not in capfd.readouterr().err


def test_a_lost_connection_is_a_user_error(monkeypatch):
  # gRPC drops a connection without use after half an hour, unless it is told otherwise.
  monkeypatch.setattr(worker_lib, '_NEVER_IDLE', ('grpc.client_idle_timeout_ms', 1_000))
  with worker_lib.LocalWorker(1):
    assert _sum([1, 2]) == 3
    time.sleep(2.5)
    with pytest.raises(UserError, match='connection to the TFF worker process was lost'):
      _sum([1, 2])


def test_channel_only_while_itruns():
  with pytest.raises(RuntimeError, match='enter its context'):
    worker_lib.LocalWorker(1).channel  # noqa: B018


def test_refuses_no_clients_at_all():
  with pytest.raises(ValueError, match='`max_concurrent_clients` must be >= 1, got 0'):
    worker_lib.LocalWorker(0)


@pytest.mark.parametrize(('clients', 'threads'), [(1, 8), (3, 2), (8, 1), (9, 1)])
def test_clients_share_out_the_cores(monkeypatch, clients, threads):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)))
  counts = worker_lib.LocalWorker(clients)._thread_counts()
  assert counts == {'TF_NUM_INTRAOP_THREADS': str(threads)}


def test_log_file_takes_the_workers_output(tmp_path):
  log = tmp_path / 'worker.log'
  with worker_lib.LocalWorker(1, log) as worker:
    links = [os.readlink(f'/proc/{worker.pid}/fd/{fd}') for fd in (1, 2)]
  assert links == [str(log)] * 2
  assert log.stat().st_mode & 0o777 == 0o600


def test_restarted_worker_is_another_process():
  with worker_lib.LocalWorker(1) as worker:
    before = worker.pid
    assert worker.answers_within(5)
    worker.restart()
    assert not runs(before)
    assert worker.answers_within(5)
    assert worker.pid != before
  assert not worker.answers_within(1)


def test_log_file_that_cannot_be_written_is_a_user_error(tmp_path):
  log = tmp_path / 'missing' / 'log'
  with pytest.raises(UserError, match=f'log of the TFF worker, {log}: No such file'):
    worker_lib.LocalWorker(1, log).__enter__()


def test_worker_dies_with_its_parent_and_closes_the_pipe():
  script = """
    import time
    from tasks import worker
    with worker.LocalWorker(1) as running:
      print(running.pid, flush=True)
      time.sleep(100)
  """
  child = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(script)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )
  pid = int(child.stdout.readline())
  try:
    child.kill()
    child.wait(timeout=20)
    started = time.monotonic()
    # Ends only when nobody holds the other end any more.
    assert child.stdout.read() == b''
    assert time.monotonic() - started < 5
    assert is_gone_within(pid, 5)
  finally:
    child.kill()
    if runs(pid):
      os.kill(pid, signal.SIGKILL)


def test_worker_holds_none_of_our_outputs():
  with worker_lib.LocalWorker(1) as worker:
    ours = {os.readlink(f'/proc/self/fd/{fd}') for fd in (1, 2)} - {os.devnull}
    theirs = {os.readlink(fd) for fd in pathlib.Path(f'/proc/{worker.pid}/fd').iterdir()}
  assert not ours & theirs
