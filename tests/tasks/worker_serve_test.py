# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The process that `hetlora worker` is: how it starts, what it outlives and how it ends."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from tasks import remote_worker, worker_server
from tasks.errors import UserError
from tasks.remote_worker import RemoteWorker
from tests.tasks.processes import is_gone_within

ROOT = pathlib.Path(__file__).parents[2]
TOKEN = 'a-token-of-some-length'
pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='needs prctl')


def _never_lost():
  raise AssertionError('The connection was lost.')


@pytest.mark.parametrize(('mode', 'is_refused'), [(0o644, True), (0o602, True), (0o440, False)])
def test_token_that_everybody_can_read_is_refused(tmp_path, mode, is_refused):
  path = tmp_path / 'token'
  path.write_text(TOKEN)
  path.chmod(mode)
  if not is_refused:
    assert remote_worker.read_token(path) == TOKEN
    return
  with pytest.raises(UserError, match=f'--token-file {path}: every user may .* chmod o= {path}'):
    remote_worker.read_token(path)


@pytest.mark.parametrize('content', [b'', b'short', b'two words of a token', b'\xff' * 20])
def test_file_without_a_token_is_refused(tmp_path, content):
  path = tmp_path / 'token'
  path.write_bytes(content)
  path.chmod(0o600)
  with pytest.raises(UserError, match=f'--token-file {path}'):
    remote_worker.read_token(path)
  with pytest.raises(UserError, match='No such file'):
    remote_worker.read_token(tmp_path / 'missing')


def test_token_may_end_in_a_newline(tmp_path):
  path = tmp_path / 'token'
  path.write_text(f'{TOKEN}\n')
  path.chmod(0o600)
  assert remote_worker.read_token(path) == TOKEN


@pytest.mark.parametrize(
  ('host', 'token', 'warning'),
  [
    ('127.0.0.1', None, ''),
    ('localhost', None, ''),
    ('::1', None, ''),
    ('0.0.0.0', None, 'whoever reaches the port runs code here'),
    ('some.host', TOKEN, 'nothing is encrypted, the token included'),
  ],
)
def test_warns_of_more_than_loopback(capsys, host, token, warning):
  worker_server._warn(host, token)
  err = capsys.readouterr().err
  assert warning in err
  assert err.count('\n') == bool(warning)


def _serve(then):
  """Serves in this thread until `then`, which gets the worker and its pid, has ended it."""
  lines, pids = [], []

  def say(line):
    lines.append(line)
    remote = RemoteWorker(line.split()[2].rstrip(','))
    pids.append(remote.describe().pid)
    then(remote, pids[0])

  base = types.SimpleNamespace(backbone=types.SimpleNamespace(directory='none'))
  try:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(worker_server.backbones, 'load_base_model', lambda *_, **__: base)
      worker_server.serve(port=0, max_concurrent_clients=1, say=say)
  finally:
    assert re.fullmatch(r'Worker on 127\.0\.0\.1:\d+, 1 client at a time; Ctrl-C .*', lines[0])
    assert is_gone_within(pids[0], 1)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_ends_in_order(number):
  before = signal.getsignal(number)
  _serve(lambda *_: os.kill(os.getpid(), number))
  assert signal.getsignal(number) is before


def test_ends_when_the_tff_worker_does():
  with pytest.raises(UserError, match=r'ended with status -9 .* fewer --max-concurrent-clients'):
    _serve(lambda _, pid: os.kill(pid, signal.SIGKILL))


def test_ends_when_the_tff_worker_hangs(monkeypatch):
  monkeypatch.setattr(worker_server, '_SILENT_SECONDS', 0.5)
  monkeypatch.setattr(worker_server, '_ASK_SECONDS', 0.2)
  with pytest.raises(UserError, match=r'not answered for 0\.5 s; start the worker anew'):
    _serve(lambda _, pid: os.kill(pid, signal.SIGSTOP))


def test_what_a_driver_leaves_is_gone_before_the_next():
  seen = []

  def drive(remote, pid):
    try:
      remote.connect(_never_lost)
      seen.append(remote.describe().pid == pid)
      remote._session.cancel()
      RemoteWorker(remote.address).connect(_never_lost)
      seen.extend([is_gone_within(pid, 0.1), remote.describe().pid != pid])
    finally:
      os.kill(os.getpid(), signal.SIGTERM)

  threads = []

  def then(remote, pid):
    threads.append(threading.Thread(target=drive, args=(remote, pid)))
    threads[0].start()

  _serve(then)
  threads[0].join()
  assert seen == [True, True, True]


def test_refuses_no_clients_at_all():
  with pytest.raises(UserError, match='--max-concurrent-clients must be 1 or more, got 0'):
    worker_server.serve(max_concurrent_clients=0)


_ENDLESS = """
import sys

import tensorflow as tf
import tensorflow_federated as tff

from tasks.remote_worker import RemoteWorker


@tff.tensorflow.computation
def endless():
  return tf.while_loop(lambda i: i >= 0, lambda i: [(i + 1) % 1000], [0])[0]


remote = RemoteWorker(sys.argv[1])
with tff.framework.get_context_stack().install(remote.connect(lambda: None)):
  print('computes', flush=True)
  endless()
"""


@pytest.mark.slow
def test_what_a_killed_driver_computes_ends():
  seen = []

  def drive(remote, pid):
    arguments = [sys.executable, '-c', _ENDLESS, remote.address]
    try:
      with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE) as driver:
        driver.stdout.readline()
        # It connects, compiles, and then does not stop.
        idle, deadline = _cpu_seconds(pid), time.monotonic() + 60
        while _cpu_seconds(pid) < idle + 0.5 and time.monotonic() < deadline:
          time.sleep(0.1)
        seen.append(_cpu_seconds(pid) > idle)
        driver.kill()
        seen.append(is_gone_within(pid, 10))
      remote.connect(_never_lost)
    finally:
      os.kill(os.getpid(), signal.SIGTERM)

  thread = []

  def then(remote, pid):
    thread.append(threading.Thread(target=drive, args=(remote, pid)))
    thread[0].start()

  _serve(then)
  thread[0].join()
  assert seen == [True, True]


def _cpu_seconds(pid):
  """Of processor time that a process has used."""
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


@pytest.mark.slow
def test_kill_takes_the_tff_worker_along():
  script = 'from tasks import worker_server; worker_server.serve(port=0)'
  served = subprocess.Popen([sys.executable, '-c', script], cwd=ROOT, stdout=subprocess.PIPE)
  line = next(line for line in served.stdout if line.startswith(b'Worker on'))
  pid = RemoteWorker(line.split()[2].rstrip(b',').decode()).describe().pid
  served.kill()
  served.wait(20)
  assert is_gone_within(pid, 5)
