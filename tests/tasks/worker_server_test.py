# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora worker` and the driver's end of it."""

import concurrent.futures
import functools
import os
import pathlib
import signal
import socket
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
from tasks.worker_session import Sessions

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


def _built(local, token=None, host='127.0.0.1', port=0, sessions=None):
  service = worker_server.Service(local, sessions or Sessions(), 3, token, 'no backbone')
  return worker_server.build_server(service, host, port)


def _served(local, token=None, host='127.0.0.1', sessions=None):
  server, port = _built(local, token, host, sessions=sessions)
  server.start()
  return server, f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


@pytest.fixture(scope='module')
def local():
  with worker.LocalWorker(1) as local:
    yield local


@pytest.fixture(scope='module')
def address(local):
  """A server with a token on a TFF worker, in this process, which every session finds clean."""
  sessions, stop = Sessions(), threading.Event()
  server, address = _served(local, TOKEN, sessions=sessions)

  def clean():
    while not stop.wait(0.02):
      if sessions.is_left:
        sessions.cleaned()

  cleaner = threading.Thread(target=clean)
  cleaner.start()
  yield address
  stop.set()
  cleaner.join()
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
  sessions = Sessions()
  sessions.begin('ours', 'us', 0)
  server, address = _served(local, sessions=sessions)
  yield grpc.insecure_channel(address)
  server.stop(None).wait()
  behind.stop(None).wait()


def _method(channel, name, session='ours'):
  method = channel.unary_unary(f'/tensorflow_federated.v0.ExecutorGroup/{name}')
  return functools.partial(method, metadata=[(remote_worker.SESSION_KEY, session)])


def test_runs_computations_with_messages_larger_than_grpcs_default(address):
  remote = RemoteWorker(address, TOKEN)
  context = remote.connect(_never_lost)
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
  method = forwarded.unary_unary('/tensorflow_federated.v0.ExecutorGroup/Wait')
  call = method.future(b'', metadata=[(remote_worker.SESSION_KEY, 'ours')])
  assert upstream.waits.wait(20)
  call.cancel()
  assert upstream.cancelled.wait(20)


@pytest.mark.parametrize('token', [None, 'another-token-of-16', TOKEN[:-1]])
def test_wrong_token_is_refused_for_every_method(address, token):
  remote = RemoteWorker(address, token)
  with pytest.raises(UserError, match=f'--workers {address}: .*another token; give its token in'):
    remote.describe()
  with pytest.raises(UserError, match='--token-file'):
    remote.find_backbone(_Backbone())
  with pytest.raises(UserError, match='--token-file'):
    remote.connect(lambda: None)
  channel = grpc.insecure_channel(address)
  for method in ('GetExecutor', 'Compute', 'Unknown'):
    with pytest.raises(grpc.RpcError) as caught:
      channel.unary_unary(f'/tensorflow_federated.v0.ExecutorGroup/{method}')(
        b'', metadata=[(remote_worker.TOKEN_KEY, token or '')]
      )
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def _is_stopped(pid):
  return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'T'


def test_health_needs_no_token_and_is_that_of_the_tff_process(address, local, monkeypatch):
  monkeypatch.setattr(worker_server, '_ANSWER_SECONDS', 0.5)
  check = grpc.insecure_channel(address).unary_unary('/grpc.health.v1.Health/Check')
  # `HealthCheckResponse` with `status: SERVING` or `NOT_SERVING`, as Kubernetes reads it.
  assert check(b'') == b'\x08\x01'
  os.kill(local.pid, signal.SIGSTOP)
  try:
    while not _is_stopped(local.pid):
      time.sleep(0.01)
    assert check(b'') == b'\x08\x02'
  finally:
    os.kill(local.pid, signal.SIGCONT)
  assert check(b'') == b'\x08\x01'


def test_one_driver_at_a_time(address, monkeypatch):
  monkeypatch.setattr(worker_server, '_FREE_SECONDS', 0.2)
  first, second = RemoteWorker(address, TOKEN), RemoteWorker(address, TOKEN)
  old = first.connect(_never_lost)
  ours = rf'{socket.gethostname()}, process {os.getpid()}'
  with pytest.raises(UserError, match=f'--workers {address}: it is busy with the driver on {ours}'):
    second.connect(_never_lost)
  # The driver itself may begin anew, and what it had is over then.
  monkeypatch.setattr(worker_server, '_FREE_SECONDS', 5)
  new = first.connect(_never_lost)
  with tff.framework.get_context_stack().install(new):
    assert _sum_and_echo(np.zeros([1], np.float32), [2.0])[1] == 2.0
  with (
    tff.framework.get_context_stack().install(old),
    pytest.raises(AssertionError, match='connection was lost'),
  ):
    _sum_and_echo(np.zeros([1], np.float32), [2.0])
  # One that is gone, though nobody has closed anything.
  del first
  second.connect(_never_lost)


@pytest.mark.parametrize('session', ['', 'another'])
def test_without_a_session_nothing_is_handed_on(forwarded, session):
  with pytest.raises(grpc.RpcError) as caught:
    _method(forwarded, 'Echo', session)(b'abc')
  assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


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
  described = worker_server.Service._describe
  monkeypatch.setattr(
    worker_server.Service,
    '_describe',
    lambda self, request: {**described(self, request), 'versions': versions._asdict()},
  )
  monkeypatch.setattr(remote_worker, 'own_versions', lambda: versions._replace(**ours))
  with pytest.raises(UserError, match=f'--workers {address} runs .*{message}'):
    RemoteWorker(address, TOKEN).describe()


@pytest.mark.parametrize('answer', [{}, {'versions': {'hetlora_tff': '9'}}, {'versions': 3}, []])
def test_worker_of_a_version_with_other_fields_is_named(address, monkeypatch, answer):
  monkeypatch.setattr(worker_server.Service, '_describe', lambda self, request: answer)
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
  with pytest.raises(UserError, match=r'--workers 127\.0\.0\.1:1: nobody answers in time'):
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

  class_name, sha256 = 'GPT2Backbone', 'ab' * 32
  loads = 0

  def __init__(self, directory='/'):
    self.directory = str(directory)

  @classmethod
  def load(cls, directory):
    cls.loads += 1
    return cls(directory)


def test_backbone_is_read_once_and_again_after_a_change(address, tmp_path, monkeypatch):
  monkeypatch.setattr(worker_server, 'FrozenBackbone', _Backbone)
  remote, tensor = RemoteWorker(address, TOKEN), tmp_path / 'tensors' / '0000.bin'
  tensor.parent.mkdir()
  tensor.write_bytes(b'a')
  for _ in range(3):
    assert remote.find_backbone(_Backbone(tmp_path)) == str(tmp_path)
  assert _Backbone.loads == 1
  tensor.write_bytes(b'bc')
  remote.find_backbone(_Backbone(tmp_path))
  assert _Backbone.loads == 2
  other = _Backbone(tmp_path)
  other.sha256 = '12' * 32
  with pytest.raises(UserError, match=r'sha256 12121212: .* holds another one \(sha256 abababab\)'):
    remote.find_backbone(other)


def test_backbone_is_found_in_the_workers_own_places(local, tmp_path, monkeypatch):
  monkeypatch.setenv('HETLORA_CACHE', str(tmp_path / 'cache'))
  cached, named = str(tmp_path / 'cache' / 'backbones' / 'converted'), str(tmp_path / 'named')
  held = {cached: '1', named: '2', '/there/converted': '3'}
  monkeypatch.setattr(worker_server, '_sha256', lambda directory, _: held.get(directory, '4'))
  service = worker_server.Service(local, Sessions(), 1, None, named)

  def find(sha256):
    return service._find_backbone({'directory': '/there/converted', 'sha256': sha256})

  assert find('1') == {'directory': cached}
  assert find('2') == {'directory': named}
  assert find('3') == {'directory': '/there/converted'}
  assert find('5')['problem'] == '/there/converted holds another one (sha256 3).'


def test_missing_backbone_names_worker_and_model(address, tmp_path):
  worker_server._sha256.cache_clear()
  missing = tmp_path / 'missing'
  with pytest.raises(
    UserError,
    match=f'--workers {address} lacks the base model, GPT2Backbone with sha256 abababab: Cannot '
    f'read {missing}.* --backbone of this run, or copy {missing} to the same path there',
  ):
    RemoteWorker(address, TOKEN).find_backbone(_Backbone(missing))


@pytest.mark.parametrize('request_', [b'', b'{', b'{}', b'[]', b'3', b'{"directory": 3}', b'\xff'])
def test_request_of_another_version_is_no_crash(address, request_):
  channel = grpc.insecure_channel(address)
  with pytest.raises(grpc.RpcError) as caught:
    channel.unary_unary(remote_worker.FIND_BACKBONE)(
      request_, metadata=[(remote_worker.TOKEN_KEY, TOKEN)]
    )
  assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_port_in_use_is_one_line(address):
  local = types.SimpleNamespace(channel=None, pid=1)
  host, _, port = address.rpartition(':')
  with pytest.raises(
    UserError, match=rf'^Cannot listen on {address}: Address already in use; [^\n]*$'
  ):
    _built(local, host=host, port=int(port))


@pytest.mark.parametrize(('host', 'port'), [('127.0.0.1', 70_000), ('no.such.host.invalid', 0)])
def test_address_that_cannot_be_had_is_one_line(host, port):
  with pytest.raises(UserError, match=rf'^Cannot listen on {host}:{port}: [^\n]+$'):
    _built(types.SimpleNamespace(channel=None), host=host, port=port)
