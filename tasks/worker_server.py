# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora worker`: lets drivers on other machines use the TFF worker of this one.

TFF's requests are handed on, byte by byte, to a worker on its UNIX socket, from one driver at a
time: when its session ends, however it ends, the TFF process is replaced and what it held is gone.
Beside them the server says what it is and where it has a base model, and it wants a token if it was
started with one. Nothing is encrypted: whoever can read the network reads adapters and clients'
examples.
"""

import concurrent.futures
import functools
import hmac
import ipaddress
import json
import os
import pathlib
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc

from hetlora_tff.adapters.backbone import BackboneError, FrozenBackbone
from tasks import backbones, remote_worker
from tasks.cache import cache_directory
from tasks.errors import UserError
from tasks.worker import MESSAGE_OPTIONS, LocalWorker
from tasks.worker_session import Sessions

# Of TFF's protocol buffers; the worker knows its methods.
_TFF_SERVICE = '/tensorflow_federated.v0.ExecutorGroup/'
# gRPC's health protocol, which Kubernetes asks, and its answers: `status` in one field.
_HEALTH, _SERVING, _NOT_SERVING = '/grpc.health.v1.Health/Check', b'\x08\x01', b'\x08\x02'
# Requests at a time; a computation holds one for as long as it runs.
_REQUESTS = 64
_STOP_SECONDS = 2.0
# How long a health check waits for the TFF process; after how much silence the process is given up:
# patient, for where all cores train it answers late.
_ANSWER_SECONDS, _SILENT_SECONDS = 4.0, 60.0
# How often the TFF process is asked.
_ASK_SECONDS = 5.0
# For how long a driver waits for the one before it to be cleaned away.
_FREE_SECONDS = 10.0
_SERVER_OPTIONS = (
  *MESSAGE_OPTIONS,
  # Otherwise two workers share a port in silence.
  ('grpc.so_reuseport', 0),
  # Drivers ask whether we are there; by default that counts as an attack.
  ('grpc.http2.min_ping_interval_without_data_ms', 5_000),
  ('grpc.keepalive_permit_without_calls', 1),
  # The session of a driver whose machine was switched off ends after 40 s.
  ('grpc.keepalive_time_ms', 20_000),
  ('grpc.keepalive_timeout_ms', 20_000),
)


def _print(line: str) -> None:
  # At once: a log that is a pipe would get it at the end.
  print(line, flush=True)


def serve(
  host: str = '127.0.0.1',
  port: int = 8000,
  max_concurrent_clients: int | None = None,
  backbone: str = backbones.EMBEDDED,
  token_file: pathlib.Path | None = None,
  log_file: pathlib.Path | None = None,
  say: Callable[[str], None] = _print,
) -> None:
  """Serves until SIGTERM or Ctrl-C; to be called from the main thread.

  Args:
    host: the address to listen on; loopback unless the network is trusted.
    port: 0 takes a free one.
    max_concurrent_clients: that train at the same time; a client takes a core. All cores by
      default.
    backbone: the base model to have ready, as in `load_base_model`; another is found where the
      driver has it, or in the cache.
    token_file: holds what drivers have to send; without one everybody is let in.
    log_file: where the TFF worker's own output goes; nowhere by default.
    say: is told in one line where the worker listens.

  Raises:
    UserError: if the port cannot be had, the token file holds none, there is no such backbone, or
      the TFF worker has ended or hangs.
  """
  token = remote_worker.read_token(token_file) if token_file else None
  clients = _cores() if max_concurrent_clients is None else max_concurrent_clients
  if clients < 1:
    raise UserError(f'--max-concurrent-clients must be 1 or more, got {clients}.')
  base = backbones.load_base_model(backbone, cache_directory(), encoder_allowed=True).backbone
  with _stop_on_signals() as stop, LocalWorker(clients, log_file) as local:
    sessions = Sessions()
    service = Service(local, sessions, clients, token, base.directory)
    server, port = build_server(service, host, port)
    _warn(host, token)
    server.start()
    plural = '' if clients == 1 else 's'
    say(f'Worker on {_joined(host, port)}, {clients} client{plural} at a time; Ctrl-C ends it.')
    try:
      _watch(local, sessions, stop)
    finally:
      server.stop(_STOP_SECONDS).wait()


def _watch(local: LocalWorker, sessions: Sessions, stop: threading.Event) -> None:
  """Replaces the TFF process after each driver, until `stop`.

  Raises:
    UserError: if the process has ended or hangs; whoever started us starts us again.
  """
  asked = answered = time.monotonic()
  while not stop.wait(0.1):
    if sessions.is_left:
      local.restart()
      sessions.cleaned()
    if local.exit_status is not None:
      raise UserError(
        f'The TFF worker process ended with status {local.exit_status} (-9: out of memory?); '
        'fewer --max-concurrent-clients need less memory.'
      )
    now = time.monotonic()
    if now - asked < _ASK_SECONDS:
      continue
    asked = now
    if local.answers_within(1.0):
      answered = now
    elif now - answered > _SILENT_SECONDS:
      raise UserError(
        f'The TFF worker process has not answered for {_SILENT_SECONDS:g} s; start the worker anew.'
      )


def build_server(service: 'Service', host: str, port: int) -> tuple[grpc.Server, int]:
  """A server, bound and not started, and its port.

  Raises:
    UserError: if the port cannot be had.
  """
  server = grpc.server(
    concurrent.futures.ThreadPoolExecutor(_REQUESTS),
    handlers=[service],
    options=_SERVER_OPTIONS,
  )
  return server, _bind(server, host, port)


class Service(grpc.GenericRpcHandler):
  """Answers every method that there is, for those who have the token."""

  def __init__(
    self,
    local: LocalWorker,
    sessions: Sessions,
    max_concurrent_clients: int,
    token: str | None,
    backbone: str,
  ):
    """Initializes the service; arguments as in `serve`.

    Args:
      local: that runs what the driver sends.
      sessions: which driver that is; somebody restarts `local` between two.
      max_concurrent_clients: to tell drivers.
      token: that they have to send, if any.
      backbone: directory of a base model.
    """
    self._local = local
    self._sessions = sessions
    self._max_concurrent_clients = max_concurrent_clients
    self._token = token
    self._backbone = backbone

  def service(self, handler_call_details: grpc.HandlerCallDetails):
    """See the base class."""
    method = handler_call_details.method
    metadata = dict(handler_call_details.invocation_metadata or ())
    session = str(metadata.get(remote_worker.SESSION_KEY, ''))
    if method == _HEALTH:
      return grpc.unary_unary_rpc_method_handler(self._health)
    if not self._is_let_in(metadata.get(remote_worker.TOKEN_KEY, '')):
      return grpc.unary_unary_rpc_method_handler(_refuse)
    if method == remote_worker.SESSION and session:
      return grpc.unary_stream_rpc_method_handler(self._lend(session))
    if method.startswith(_TFF_SERVICE):
      # A driver whose session has ended must not reach the values of the next.
      answer = self._forward(method) if self._sessions.holds(session) else _is_over
      return grpc.unary_unary_rpc_method_handler(answer)
    answers = {
      remote_worker.DESCRIBE: self._describe,
      remote_worker.FIND_BACKBONE: self._find_backbone,
    }
    answer = answers.get(method)
    return answer and grpc.unary_unary_rpc_method_handler(_in_json(answer))

  def _is_let_in(self, sent: str | bytes) -> bool:
    return self._token is None or hmac.compare_digest(_bytes(sent), self._token.encode())

  def _health(self, request: bytes, context: grpc.ServicerContext) -> bytes:
    return _SERVING if self._local.answers_within(_ANSWER_SECONDS) else _NOT_SERVING

  def _lend(self, session: str):
    def handle(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
      driver = json.loads(request)['driver']
      other = self._sessions.begin(session, driver, _FREE_SECONDS)
      if other is not None:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f'it is busy with the driver on {other}')
      gone = threading.Event()

      def end():
        self._sessions.end(session)
        gone.set()

      if not context.add_callback(end):
        end()
      yield b'{}'
      gone.wait()

    return handle

  def _forward(self, method: str):
    send = self._local.channel.unary_unary(method)

    def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
      call = send.future(request)
      # A driver that has gone waits for nothing; it may have gone before we were asked.
      if not context.add_callback(cast(Callable[[], None], call.cancel)):
        call.cancel()
      try:
        return call.result()
      except grpc.RpcError as error:
        context.abort(error.code(), error.details() or '')
      except grpc.FutureCancelledError:
        context.abort(grpc.StatusCode.CANCELLED, 'The driver has gone.')

    return handle

  def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
    return {
      'versions': remote_worker.own_versions()._asdict(),
      'python': platform.python_version(),
      'cores': _cores(),
      'max_concurrent_clients': self._max_concurrent_clients,
      'pid': self._local.pid,
    }

  def _find_backbone(self, request: dict[str, Any]) -> dict[str, Any]:
    """Where a base model is: where the driver has it, where ours is, or in the cache."""
    asked, wanted = pathlib.Path(request['directory']), request['sha256']
    # A conversion has the same name in every cache.
    cached = cache_directory() / 'backbones' / asked.name
    problems = []
    for directory in (str(asked), self._backbone, str(cached)):
      problem = _misfit(directory, wanted)
      if problem is None:
        return {'directory': directory}
      problems.append(problem)
    return {'directory': None, 'problem': problems[0]}


def _is_over(request: bytes, context: grpc.ServicerContext) -> None:
  context.abort(grpc.StatusCode.FAILED_PRECONDITION, 'the session is over')


def _refuse(request: bytes, context: grpc.ServicerContext) -> None:
  context.abort(grpc.StatusCode.UNAUTHENTICATED, 'this worker wants another token')


def _in_json(answer: Callable[[dict[str, Any]], dict[str, Any]]):
  def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
    try:
      return json.dumps(answer(json.loads(request))).encode()
    except (KeyError, TypeError, ValueError) as error:
      context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'not a request of this version: {error!r}')

  return handle


def _misfit(directory: str, wanted: str) -> str | None:
  """Why a directory does not hold a backbone; None if it does."""
  try:
    found = _sha256(directory, _fingerprint(pathlib.Path(directory)))
  except BackboneError as error:
    return str(error)
  return None if found == wanted else f'{directory} holds another one (sha256 {found[:8]}).'


@functools.lru_cache(maxsize=16)
def _sha256(directory: str, fingerprint: tuple) -> str:
  """Of a backbone whose every tensor was read; again only after a file has changed."""
  return FrozenBackbone.load(directory).sha256


def _fingerprint(directory: pathlib.Path) -> tuple:
  try:
    files = [(str(file), file.stat()) for file in sorted(directory.rglob('*'))]
  except OSError:
    return ()  # The backbone will say what is wrong.
  return tuple((name, status.st_size, status.st_mtime_ns) for name, status in files)


def _cores() -> int:
  return len(os.sched_getaffinity(0))


def _bytes(text: str | bytes) -> bytes:
  return text.encode() if isinstance(text, str) else text


def _bind(server: grpc.Server, host: str, port: int) -> int:
  """The port that the server has got."""
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    # gRPC does not tell why it cannot.
    with socket.create_server((host, port), family=family):
      pass
    return server.add_insecure_port(_joined(host, port))
  except (OSError, OverflowError, RuntimeError) as error:
    # Python adds the address, which is here already.
    reason = (getattr(error, 'strerror', None) or str(error)).partition(' (while')[0]
    raise UserError(
      f'Cannot listen on {_joined(host, port)}: {reason}; name another --port or --host.'
    ) from error


def _joined(host: str, port: int) -> str:
  return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def _warn(host: str, token: str | None) -> None:
  """Says on stderr what it means to listen on more than loopback."""
  try:
    is_loopback = ipaddress.ip_address(host).is_loopback
  except ValueError:
    is_loopback = host == 'localhost'
  if is_loopback:
    return
  risk = (
    'nothing is encrypted, the token included'
    if token
    else 'whoever reaches the port runs code here, for it is unauthenticated (see --token-file)'
  )
  print(f'hetlora: --host {host}: {risk}; use it in a private network only.', file=sys.stderr)


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
  """An event that SIGTERM and Ctrl-C set."""
  stop = threading.Event()
  signals = (signal.SIGTERM, signal.SIGINT)
  previous = [signal.signal(number, lambda *_: stop.set()) for number in signals]
  try:
    yield stop
  finally:
    for number, handler in zip(signals, previous, strict=True):
      signal.signal(number, handler)
