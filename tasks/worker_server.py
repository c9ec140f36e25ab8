# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora worker`: lets drivers on other machines use the TFF worker of this one.

TFF's requests are handed on, byte by byte, to a worker on its UNIX socket. Beside them the server
says what it is and whether it has a base model, and it wants a token if it was started with one.
Nothing is encrypted: whoever can read the network reads adapters and clients' examples.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc

from hetlora_tff.adapters.backbone import BackboneError, FrozenBackbone
from tasks import remote_worker
from tasks.errors import UserError
from tasks.worker import MESSAGE_OPTIONS, LocalWorker

# Of TFF's protocol buffers; the worker knows its methods.
_TFF_SERVICE = '/tensorflow_federated.v0.ExecutorGroup/'
# gRPC's health protocol, which Kubernetes asks, and its answer: status = SERVING.
_HEALTH, _SERVING = '/grpc.health.v1.Health/Check', b'\x08\x01'
# Requests at a time; a computation holds one for as long as it runs.
_REQUESTS = 64
_STOP_SECONDS = 2.0
_SERVER_OPTIONS = (
  *MESSAGE_OPTIONS,
  # Otherwise two workers share a port in silence.
  ('grpc.so_reuseport', 0),
  # Drivers ask whether we are there; by default that counts as an attack.
  ('grpc.http2.min_ping_interval_without_data_ms', 5_000),
  ('grpc.keepalive_permit_without_calls', 1),
)


def _print(line: str) -> None:
  # At once: a log that is a pipe would get it at the end.
  print(line, flush=True)


def serve(
  host: str = '127.0.0.1',
  port: int = 8000,
  max_concurrent_clients: int | None = None,
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
    token_file: holds what drivers have to send; without one everybody is let in.
    log_file: where the TFF worker's own output goes; nowhere by default.
    say: is told in one line where the worker listens.

  Raises:
    UserError: if the port cannot be had, the token file holds none, or the TFF worker has ended.
  """
  token = remote_worker.read_token(token_file) if token_file else None
  clients = _cores() if max_concurrent_clients is None else max_concurrent_clients
  if clients < 1:
    raise UserError(f'--max-concurrent-clients must be 1 or more, got {clients}.')
  with _stop_on_signals() as stop, LocalWorker(clients, log_file) as local:
    server, port = build_server(local, clients, token, host, port)
    _warn(host, token)
    server.start()
    plural = '' if clients == 1 else 's'
    say(f'Worker on {_joined(host, port)}, {clients} client{plural} at a time; Ctrl-C ends it.')
    try:
      while not stop.wait(0.5):
        if local.exit_status is not None:
          raise UserError(
            f'The TFF worker process ended with status {local.exit_status} (-9: out of memory?); '
            'fewer --max-concurrent-clients need less memory.'
          )
    finally:
      server.stop(_STOP_SECONDS).wait()


def build_server(
  local: LocalWorker, max_concurrent_clients: int, token: str | None, host: str, port: int
) -> tuple[grpc.Server, int]:
  """A server on a running worker, bound and not started, and its port; arguments as in `serve`.

  Raises:
    UserError: if the port cannot be had.
  """
  server = grpc.server(
    concurrent.futures.ThreadPoolExecutor(_REQUESTS),
    handlers=[_Service(local, max_concurrent_clients, token)],
    options=_SERVER_OPTIONS,
  )
  return server, _bind(server, host, port)


class _Service(grpc.GenericRpcHandler):
  """Answers every method that there is, for those who have the token."""

  def __init__(self, local: LocalWorker, max_concurrent_clients: int, token: str | None):
    self._local = local
    self._max_concurrent_clients = max_concurrent_clients
    self._token = token

  def service(self, handler_call_details: grpc.HandlerCallDetails):
    method = handler_call_details.method
    if method == _HEALTH:
      return grpc.unary_unary_rpc_method_handler(lambda *_: _SERVING)
    if not self._is_let_in(handler_call_details.invocation_metadata):
      return grpc.unary_unary_rpc_method_handler(_refuse)
    if method.startswith(_TFF_SERVICE):
      return grpc.unary_unary_rpc_method_handler(self._forward(method))
    answers = {
      remote_worker.DESCRIBE: self._describe,
      remote_worker.CHECK_BACKBONE: _check_backbone,
    }
    answer = answers.get(method)
    return answer and grpc.unary_unary_rpc_method_handler(_in_json(answer))

  def _is_let_in(self, metadata) -> bool:
    if self._token is None:
      return True
    sent = dict(metadata or ()).get(remote_worker.TOKEN_KEY, '')
    return hmac.compare_digest(_bytes(sent), self._token.encode())

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


def _refuse(request: bytes, context: grpc.ServicerContext) -> None:
  context.abort(grpc.StatusCode.UNAUTHENTICATED, 'this worker wants another token')


def _in_json(answer: Callable[[dict[str, Any]], dict[str, Any]]):
  def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
    try:
      return json.dumps(answer(json.loads(request))).encode()
    except (KeyError, TypeError, ValueError) as error:
      context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'not a request of this version: {error!r}')

  return handle


def _check_backbone(request: dict[str, Any]) -> dict[str, Any]:
  directory, wanted = request['directory'], request['sha256']
  try:
    found = _sha256(directory, _fingerprint(pathlib.Path(directory)))
  except BackboneError as error:
    return {'problem': str(error)}
  if found != wanted:
    return {'problem': f'{directory} holds another one (sha256 {found[:8]}, not {wanted[:8]}).'}
  return {'problem': None}


@functools.lru_cache(maxsize=16)
def _sha256(directory: str, fingerprint: tuple) -> str:
  """Of a backbone whose every tensor was read; again only after a file has changed."""
  return FrozenBackbone.load(directory).sha256


def _fingerprint(directory: pathlib.Path) -> tuple:
  try:
    files = [(file.name, file.stat()) for file in sorted(directory.iterdir())]
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
