# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora worker` and the driver's end of it."""

import concurrent.futures
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types

import grpc
import numpy as np
import pytest
import tensorflow_federated as tff

from tasks import remote_worker, worker, worker_server
from tasks.errors import UserError
from tasks.remote_worker import RemoteWorker
from tests.tasks.processes import is_gone_within

ROOT = pathlib.Path(__file__).parents[2]
TOKEN = 'a-token-of-some-length'
pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='needs prctl')


@tff.federated_computation(
  tff.FederatedType(tff.TensorType(np.float32, [None]), tff.SERVER),
  tff.FederatedType(np.float32, tff.CLIENTS),
)
def _sum_and_echo(values, at_clients):
  return values, tff.federated_sum(at_clients)


def _never_lost():
  raise AssertionError('The connection was lost.')


def _served(local, token=None, host='127.0.0.1'):
  server, port = worker_server.build_server(local, 3, token, host, 0)
  server.start()
  return server, f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


@pytest.fixture(scope='module')
def address():
  """A server with a token on a TFF worker, in this process."""
  with worker.LocalWorker(1) as local:
    server, address = _served(local, TOKEN)
    yield address
    server.stop(None).wait()


class _Upstream(grpc.GenericRpcHandler):
  """Stands for the TFF worker: echoes, fails, or waits until the caller has gone."""

  def __init__(self):
    self.waits, self.cancelled = threading.Event(), threading.Event()

  def service(self, details):
    return grpc.unary_unary_rpc_method_handler(getattr(self, f'_{details.method[-4:].lower()}'))

  def _echo(self, request, context):
    return request[::-1]

  def _fail(self, request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, 'no executor \u2713')

  def _wait(self, request, context):
    context.add_callback(self.cancelled.set)
    self.waits.set()
    self.cancelled.wait(20)
    return b''


@pytest.fixture(scope='module')
def upstream():
  return _Upstream()


@pytest.fixture(scope='module')
def forwarded(upstream):
  """A channel to a server in front of `upstream`."""
  behind = grpc.server(concurrent.futures.ThreadPoolExecutor(4), handlers=[upstream])
  port = behind.add_insecure_port('127.0.0.1:0')
  behind.start()
  local = types.SimpleNamespace(channel=grpc.insecure_channel(f'127.0.0.1:{port}'), pid=1)
  server, address = _served(local)
  yield grpc.insecure_channel(address)
  server.stop(None).wait()
  behind.stop(None).wait()


def _method(channel, name):
  return channel.unary_unary(f'/tensorflow_federated.v0.ExecutorGroup/{name}')


def test_runs_computations_with_messages_larger_than_grpcs_default(address):
  context = RemoteWorker(address, TOKEN).connect(_never_lost)
  values = np.arange(2_000_000, dtype=np.float32)
  with tff.framework.get_context_stack().install(context):
    echo, total = _sum_and_echo(values, [1.0, 2.0, 4.0])
  np.testing.assert_array_equal(echo, values)
  assert total == 7.0


def test_describes_itself(address):
  described = RemoteWorker(address, TOKEN).describe()
  assert described.versions == remote_worker.own_versions()
  assert described.versions.tensorflow_federated == tff.__version__
  assert described.max_concurrent_clients == 3
  assert described.cores == len(os.sched_getaffinity(0))
  assert pathlib.Path(f'/proc/{described.pid}').exists()


def test_bytes_are_handed_on(forwarded):
  assert _method(forwarded, 'Echo')(b'abc') == b'cba'


def test_code_and_details_of_an_error_are_kept(forwarded):
  with pytest.raises(grpc.RpcError) as caught:
    _method(forwarded, 'Fail')(b'')
  assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
  assert caught.value.details() == 'no executor \u2713'


def test_a_driver_that_leaves_cancels_its_request(forwarded, upstream):
  call = _method(forwarded, 'Wait').future(b'')
  assert upstream.waits.wait(20)
  call.cancel()
  assert upstream.cancelled.wait(20)


@pytest.mark.parametrize('token', [None, 'another-token-of-16', TOKEN[:-1]])
def test_wrong_token_is_refused_for_every_method(address, token):
  remote = RemoteWorker(address, token)
  with pytest.raises(UserError, match=f'--workers {address}: .*another token; give its token in'):
    remote.describe()
  with pytest.raises(UserError, match='--token-file'):
    remote.check_backbone('/', '0')
  context = remote.connect(lambda: None)
  with tff.framework.get_context_stack().install(context):
    with pytest.raises(grpc.RpcError) as caught:
      _sum_and_echo(np.zeros([1], np.float32), [])
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_health_needs_no_token(address):
  channel = grpc.insecure_channel(address)
  # `HealthCheckResponse` with `status: SERVING`, as Kubernetes reads it.
  assert channel.unary_unary('/grpc.health.v1.Health/Check')(b'') == b'\x08\x01'


def test_tokens_are_compared_in_constant_time(address, monkeypatch):
  compared = []
  compare = worker_server.hmac.compare_digest
  monkeypatch.setattr(
    worker_server.hmac, 'compare_digest', lambda *a: compared.append(a) or compare(*a)
  )
  RemoteWorker(address, TOKEN).describe()
  assert compared == [(TOKEN.encode(), TOKEN.encode())]


@pytest.mark.parametrize(
  ('ours', 'message'),
  [
    ({'tensorflow_federated': '0.88.0'}, r'tensorflow_federated 0\.87.* 0\.88\.0, .*install the'),
    ({'hetlora_tff': '9.9'}, r'this is hetlora_tff 9\.9,'),
  ],
)
def test_worker_of_another_version_is_named(address, monkeypatch, ours, message):
  versions = remote_worker.own_versions()
  # Only the driver's end asks for its own after the answer.
  described = worker_server._Service._describe
  monkeypatch.setattr(
    worker_server._Service,
    '_describe',
    lambda self, request: {**described(self, request), 'versions': versions._asdict()},
  )
  monkeypatch.setattr(remote_worker, 'own_versions', lambda: versions._replace(**ours))
  with pytest.raises(UserError, match=f'--workers {address} runs .*{message}'):
    RemoteWorker(address, TOKEN).describe()


@pytest.mark.parametrize('answer', [{}, {'versions': {'hetlora_tff': '9'}}, {'versions': 3}, []])
def test_worker_of_a_version_with_other_fields_is_named(address, monkeypatch, answer):
  monkeypatch.setattr(worker_server._Service, '_describe', lambda self, request: answer)
  with pytest.raises(UserError, match=f'--workers {address} runs another version, and this is'):
    RemoteWorker(address, TOKEN).describe()


def test_something_else_at_the_address_is_named():
  server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
  address = f'127.0.0.1:{server.add_insecure_port("127.0.0.1:0")}'
  server.start()
  with pytest.raises(UserError, match=f'--workers {address}: what answers is no `hetlora worker`'):
    RemoteWorker(address).describe()
  server.stop(None)


def test_nobody_at_the_address_is_named_in_time():
  started = time.monotonic()
  with pytest.raises(UserError, match=r'--workers 127\.0\.0\.1:1: nobody answered within 0\.5 s'):
    RemoteWorker('127.0.0.1:1').describe(seconds=0.5)
  assert time.monotonic() - started < 5


@pytest.mark.parametrize(
  'address', ['', 'host', ':80', 'host:', 'host:0', 'host:65536', 'http://a:1', 'a b:1', '::1:80']
)
def test_refuses_what_is_no_address(address):
  with pytest.raises(UserError, match=f'--workers: {address!r} is no host:port'):
    RemoteWorker(address)


def test_listens_on_ipv6():
  local = types.SimpleNamespace(channel=None, pid=1)
  try:
    server, address = _served(local, host='::1')
  except UserError:
    pytest.skip('this machine has no IPv6')
  assert RemoteWorker(address).describe().pid == 1
  server.stop(None)


class _Backbone:
  """Counts how often it is read."""

  sha256 = 'ab' * 32
  loads = 0

  @classmethod
  def load(cls, directory):
    cls.loads += 1
    return cls()


def test_backbone_is_read_once_and_again_after_a_change(address, tmp_path, monkeypatch):
  monkeypatch.setattr(worker_server, 'FrozenBackbone', _Backbone)
  remote, tensor = RemoteWorker(address, TOKEN), tmp_path / '0000.bin'
  tensor.write_bytes(b'a')
  for _ in range(3):
    remote.check_backbone(str(tmp_path), _Backbone.sha256)
  assert _Backbone.loads == 1
  tensor.write_bytes(b'bc')
  remote.check_backbone(str(tmp_path), _Backbone.sha256)
  assert _Backbone.loads == 2
  with pytest.raises(UserError, match=r'holds another one \(sha256 abababab, not 12121212\)'):
    remote.check_backbone(str(tmp_path), '12' * 32)


def test_missing_backbone_names_worker_and_directory(address, tmp_path):
  missing = tmp_path / 'missing'
  with pytest.raises(UserError, match=f'--workers {address} lacks the base model: Cannot read'):
    RemoteWorker(address, TOKEN).check_backbone(str(missing), '0')


@pytest.mark.parametrize('request_', [b'', b'{', b'{}', b'[]', b'3', b'{"directory": 3}', b'\xff'])
def test_request_of_another_version_is_no_crash(address, request_):
  channel = grpc.insecure_channel(address)
  with pytest.raises(grpc.RpcError) as caught:
    channel.unary_unary(remote_worker.CHECK_BACKBONE)(
      request_, metadata=[(remote_worker.TOKEN_KEY, TOKEN)]
    )
  assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_port_in_use_is_one_line(address):
  local = types.SimpleNamespace(channel=None, pid=1)
  host, _, port = address.rpartition(':')
  with pytest.raises(
    UserError, match=rf'^Cannot listen on {address}: Address already in use; [^\n]*$'
  ):
    worker_server.build_server(local, 1, None, host, int(port))


@pytest.mark.parametrize(('host', 'port'), [('127.0.0.1', 70_000), ('no.such.host.invalid', 0)])
def test_address_that_cannot_be_had_is_one_line(host, port):
  with pytest.raises(UserError, match=rf'^Cannot listen on {host}:{port}: [^\n]+$'):
    worker_server.build_server(types.SimpleNamespace(channel=None), 1, None, host, port)


@pytest.mark.parametrize('content', [b'', b'short', b'two words of a token', b'\xff' * 20])
def test_file_without_a_token_is_refused(tmp_path, content):
  path = tmp_path / 'token'
  path.write_bytes(content)
  with pytest.raises(UserError, match=f'--token-file {path}'):
    remote_worker.read_token(path)
  with pytest.raises(UserError, match='No such file'):
    remote_worker.read_token(tmp_path / 'missing')


def test_token_may_end_in_a_newline(tmp_path):
  path = tmp_path / 'token'
  path.write_text(f'{TOKEN}\n')
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
  """Serves in this thread until `then`, which gets the TFF worker's pid, has ended it."""
  lines, pids = [], []

  def say(line):
    lines.append(line)
    pids.append(RemoteWorker(line.split()[2].rstrip(',')).describe().pid)
    then(pids[0])

  try:
    worker_server.serve(port=0, max_concurrent_clients=1, say=say)
  finally:
    assert re.fullmatch(r'Worker on 127\.0\.0\.1:\d+, 1 client at a time; Ctrl-C .*', lines[0])
    assert is_gone_within(pids[0], 1)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_ends_in_order(number):
  before = signal.getsignal(number)
  _serve(lambda _: os.kill(os.getpid(), number))
  assert signal.getsignal(number) is before


def test_ends_when_the_tff_worker_does():
  with pytest.raises(UserError, match=r'ended with status -9 .* fewer --max-concurrent-clients'):
    _serve(lambda pid: os.kill(pid, signal.SIGKILL))


def test_refuses_no_clients_at_all():
  with pytest.raises(UserError, match='--max-concurrent-clients must be 1 or more, got 0'):
    worker_server.serve(max_concurrent_clients=0)


@pytest.mark.slow
def test_kill_takes_the_tff_worker_along():
  script = 'from tasks import worker_server; worker_server.serve(port=0)'
  served = subprocess.Popen([sys.executable, '-c', script], cwd=ROOT, stdout=subprocess.PIPE)
  line = next(line for line in served.stdout if line.startswith(b'Worker on'))
  pid = RemoteWorker(line.split()[2].rstrip(b',').decode()).describe().pid
  served.kill()
  served.wait(20)
  assert is_gone_within(pid, 5)
