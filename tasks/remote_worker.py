# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The driver's end of a `hetlora worker`: what it is, whether it fits, and TFF's context on it."""

import json
import os
import pathlib
import re
import socket
import stat
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import tensorflow_federated as tff

from hetlora_tff.adapters.backbone import FrozenBackbone
from tasks import harvest, worker
from tasks.errors import UserError

# What `hetlora worker` answers beside TFF's own requests; JSON both ways.
DESCRIBE = '/hetlora_tff.Worker/Describe'
FIND_BACKBONE = '/hetlora_tff.Worker/FindBackbone'
# Answers once, and lasts until one of both ends goes.
SESSION = '/hetlora_tff.Worker/Session'
# The keys of gRPC metadata that carry the token, and the session that a TFF request is of.
TOKEN_KEY, SESSION_KEY = 'hetlora-token', 'hetlora-session'
# How long a worker may take to start or to answer; to read a backbone's files; in seconds.
_ANSWER_SECONDS = 20.0
_BACKBONE_SECONDS = 600.0
_CHANNEL_OPTIONS = (
  *worker.MESSAGE_OPTIONS,
  # A machine that is switched off says nothing: it is asked every 20 s, and lost after 40.
  ('grpc.keepalive_time_ms', 20_000),
  ('grpc.keepalive_timeout_ms', 20_000),
  ('grpc.keepalive_permit_without_calls', 1),
  ('grpc.http2.max_pings_without_data', 0),
  # One that is started again is seen soon.
  ('grpc.max_reconnect_backoff_ms', 5_000),
  # A proxy for web pages is none for workers.
  ('grpc.enable_http_proxy', 0),
)
_NOBODY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Versions(NamedTuple):
  """What has to be the same at both ends."""

  hetlora_tff: str
  tensorflow_federated: str
  tensorflow: str


class Description(NamedTuple):
  """What a worker says of itself.

  Attributes:
    versions: of its software.
    python: version of its Python.
    cores: that it may use.
    max_concurrent_clients: clients that it trains at the same time.
    pid: of its TFF process.
  """

  versions: Versions
  python: str
  cores: int
  max_concurrent_clients: int
  pid: int


def own_versions() -> Versions:
  """The versions at this end."""
  found = (harvest.version(name.replace('_', '-')) for name in Versions._fields)
  # The tests run from a checkout that nobody installed.
  return Versions(*(version or 'of a checkout' for version in found))


def read_token(path: pathlib.Path) -> str:
  """The token in a file, without the space around it.

  Raises:
    UserError: naming the file, if it cannot be read, others may read it, or it holds no token.
  """
  try:
    token, mode = path.read_text('utf-8').strip(), path.stat().st_mode
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or 'it is not text'
    raise UserError(f'--token-file {path}: {reason}.') from error
  if mode & (stat.S_IROTH | stat.S_IWOTH):
    raise UserError(f'--token-file {path}: every user may read or write it; run chmod o= {path}.')
  if not re.fullmatch(r'[!-~]{16,}', token):
    raise UserError(
      f'--token-file {path} must hold one line of 16 or more characters, ASCII and without spaces; '
      'make one with `openssl rand -hex 32`.'
    )
  return token


class RemoteWorker:
  """One `hetlora worker`, reached over TCP; to be used from one thread or many.

  Attributes:
    address: `host:port`, as the user wrote it.
  """

  def __init__(self, address: str, token: str | None = None):
    """Initializes the end of the connection; nothing is sent yet.

    Args:
      address: `host:port`; an IPv6 address in brackets.
      token: what the worker's `--token-file` holds, if it wants one.

    Raises:
      UserError: if the address is none.
    """
    _check_address(address)
    self.address = address
    self._channel = grpc.insecure_channel(f'dns:{address}', _CHANNEL_OPTIONS)
    self._metadata = ((TOKEN_KEY, token),) if token else ()
    self._session: Any = None

  def describe(self, seconds: float = _ANSWER_SECONDS) -> Description:
    """Asks the worker what it is, and waits for one that is just starting.

    Args:
      seconds: how long to wait.

    Raises:
      UserError: naming the address, if nobody answers, somebody else does, the token is refused, or
        the worker has other versions than we.
    """
    answer = self._ask(DESCRIBE, {}, seconds)
    try:
      versions = Versions(**answer.pop('versions'))
      described = Description(versions, **answer)
    except (AttributeError, KeyError, TypeError):
      # Another version may have other fields.
      versions, described = None, None
    ours = own_versions()
    if described is None or versions != ours:
      raise UserError(
        f'--workers {self.address} runs {_named(versions)}, and this is {_named(ours)}; install '
        'the same at both ends.'
      )
    return described

  def find_backbone(self, backbone: FrozenBackbone) -> str:
    """The directory in which the worker has a base model.

    Raises:
      UserError: naming the address and the model, if the worker has it nowhere.
    """
    wanted = {'directory': backbone.directory, 'sha256': backbone.sha256}
    answer = self._ask(FIND_BACKBONE, wanted, _BACKBONE_SECONDS)
    if not answer['directory']:
      raise UserError(
        f'--workers {self.address} lacks the base model, {backbone.class_name} with sha256 '
        f'{backbone.sha256[:8]}: {answer["problem"]} Start it with the --backbone of this run, or '
        f'copy {backbone.directory} to the same path there.'
      )
    return answer['directory']

  def connect(self, check_running: Callable[[], None]) -> tff.framework.SyncExecutionContext:
    """As `worker.connect`, in a session: of which a worker has one at a time.

    It ends with this object, or with its process: what the worker holds and computes is gone then.

    Raises:
      UserError: naming the address, if another driver has the worker.
    """
    if self._session:
      self._session.cancel()
    session = (SESSION_KEY, str(uuid.uuid4()))
    driver = json.dumps({'driver': f'{socket.gethostname()}, process {os.getpid()}'}).encode()
    opened = self._channel.unary_stream(SESSION)(driver, metadata=(*self._metadata, session))
    try:
      # The answer; what keeps the session is that we hold the call.
      next(opened)
    except (grpc.RpcError, StopIteration) as error:
      raise UserError(f'--workers {self.address}: {_reason(error)}') from error
    self._session = opened
    channel = grpc.intercept_channel(self._channel, _Metadata((*self._metadata, session)))
    return worker.connect(channel, check_running)

  def close(self) -> None:
    """Ends the session and the connection."""
    if self._session:
      self._session.cancel()
    self._channel.close()

  def _ask(self, method: str, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    send = self._channel.unary_unary(method)
    try:
      # Wakes a connection that was refused a moment ago.
      response = send(
        json.dumps(request).encode(),
        timeout=seconds,
        metadata=self._metadata,
        wait_for_ready=True,
      )
      return json.loads(response)
    except grpc.RpcError as error:
      raise UserError(f'--workers {self.address}: {_reason(error)}') from error
    except ValueError as error:
      raise UserError(f'--workers {self.address} is no `hetlora worker`.') from error


class _Metadata(grpc.UnaryUnaryClientInterceptor):
  """Adds entries to every request."""

  def __init__(self, entries: tuple[tuple[str, str], ...]):
    self._entries = entries

  def intercept_unary_unary(self, continuation, client_call_details: Any, request):
    metadata = [*(client_call_details.metadata or ()), *self._entries]
    # gRPC's details are a named tuple, which its types do not tell.
    return continuation(client_call_details._replace(metadata=metadata), request)


def _check_address(address: str) -> None:
  host, _, port = address.rpartition(':')
  is_host = re.fullmatch(r'[\w.-]+|\[[\da-fA-F:.%\w]+\]', host)
  if not is_host or not (port.isdecimal() and port.isascii() and 0 < int(port) < 2**16):
    raise UserError(f'--workers: {address!r} is no host:port, such as worker-0.local:8000.')


def _reason(error: Any) -> str:
  """Why nothing came back, in a sentence."""
  if not isinstance(error, grpc.Call) or error.code() in _NOBODY:
    return (
      'nobody answers in time; start `hetlora worker` there, or mend the address or the network.'
    )
  code = error.code()
  if code == grpc.StatusCode.UNIMPLEMENTED:
    return 'what answers is no `hetlora worker`.'
  if code == grpc.StatusCode.UNAUTHENTICATED:
    return f'{error.details()}; give its token in --token-file.'
  if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
    return f'{error.details()}; name other workers, or wait for its end.'
  return f'{code.name}: {error.details()}.'


def _named(versions: Versions | None) -> str:
  if versions is None:
    return 'another version'
  return ', '.join(f'{name} {version}' for name, version in versions._asdict().items())
