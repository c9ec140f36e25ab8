# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Secure sums over TCP: a server, and a process for every client.

A frame is a length (4 bytes, big-endian), a kind (1 byte) and so many bytes. A client says who it
is and what it was started for, hears the session, and from then on answers each message of the
protocol with one of its own, until the server ends the session: with nothing, or with the reason.

A client that is gone, is late or breaks the protocol is out, and what that means for the sum is the
state machine's to say. The frames themselves are neither encrypted nor authenticated: that vectors
stay hidden is the protocol's work, and so, in MALICIOUS mode, is who the clients are.
"""

import asyncio
import contextlib
import dataclasses
import enum
import os
import struct
from collections.abc import Callable, Mapping

import numpy as np

from privacy.secagg import bodies, wire
from privacy.secagg.client import Client
from privacy.secagg.errors import MalformedMessageError, SecAggError
from privacy.secagg.parameters import SESSION_BYTES, Phase, ProtocolSpec
from privacy.secagg.server import SecureSum, Server
from privacy.secagg.wire import Direction

_HEADER = struct.Struct('>IB')
_ID = struct.Struct('>I')
_REASON_BYTES = 1000
_FRAME_BYTES = (1 << 32) - 1
# What a connection can fail with; a timeout is an OSError.
_FAILURES = (OSError, EOFError, SecAggError)


class SessionEndedError(SecAggError):
  """The server ended the session before its sum, for the reason in the message."""


class _RefusedError(SecAggError):
  """A client that cannot join."""


class _Kind(enum.IntEnum):
  HELLO = 1
  WELCOME = 2
  MESSAGE = 3
  END = 4


@dataclasses.dataclass(frozen=True)
class _Connection:
  """One end of a connection."""

  reader: asyncio.StreamReader
  writer: asyncio.StreamWriter

  async def send(self, kind: _Kind, body: bytes) -> None:
    """Writes a frame, and waits where the other side does not read."""
    self.writer.write(_HEADER.pack(len(body), kind) + body)
    await self.writer.drain()

  async def receive(self, kind: _Kind, most: int) -> bytes:
    """Reads a frame of this kind of at most `most` bytes; an end with a reason is an error.

    Raises:
      MalformedMessageError: another kind, or more bytes; none of them is read.
      SessionEndedError: the session ended too early, or with a reason.
      EOFError: the other side is gone.
    """
    length, number = _HEADER.unpack(await self.reader.readexactly(_HEADER.size))
    limit = _REASON_BYTES if number == _Kind.END else most
    if length > limit:
      raise MalformedMessageError(f'a frame of {length} bytes, where {limit} are the most')
    body = await self.reader.readexactly(length)
    if number == _Kind.END and (body or kind is not _Kind.END):
      text = body.decode('utf-8', 'replace') or 'the server ended the session'
      raise SessionEndedError(_printable(text))
    if number != kind:
      raise MalformedMessageError(f'a frame of kind {number}, where {kind.value} was due')
    return body

  async def hear(self, deadline: float, kind: _Kind, most: int = 0) -> bytes:
    """Reads a frame within so many seconds."""
    async with asyncio.timeout(deadline):
      return await self.receive(kind, most)

  def end(self, reason: str = '') -> None:
    """Says that the session is over, as far as that can be said at once, and closes."""
    body = reason.encode()[:_REASON_BYTES]
    self.writer.write(_HEADER.pack(len(body), _Kind.END) + body)
    self.writer.close()


class _Attendance:
  """The server's side of a session: who is there, and the next message of each."""

  def __init__(
    self,
    spec: ProtocolSpec,
    server: Server,
    session: bytes,
    deadline: float,
    on_loss: Callable[[str], None],
  ):
    self._spec, self._server = spec, server
    self._session, self._deadline, self._on_loss = session, deadline, on_loss
    self._connections: dict[int, _Connection] = {}
    self._joining = True
    self._all_here = asyncio.Event()

  async def admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes a client in once the server has taken its first message; any other is sent away."""
    stranger, who = _Connection(reader, writer), 'a client'
    try:
      async with asyncio.timeout(self._deadline):
        hello = await stranger.receive(_Kind.HELLO, _ID.size + _REASON_BYTES)
        client_id, protocol = _read_hello(hello)
        who = f'client {client_id}'
        _check_same(self._spec, protocol)
        await stranger.send(_Kind.WELCOME, self._session)
        message = await stranger.receive(_Kind.MESSAGE, self._due_bytes(Phase.ADVERTISE_KEYS))
      if not self._joining:
        raise _RefusedError('the session has begun without this client')
      self._server.receive(client_id, message)
    except _FAILURES as error:
      reason = _reason(error)
      stranger.end(reason)
      self._on_loss(f'refused {who}: {reason}')
      return
    self._connections[client_id] = stranger
    if len(self._connections) == self._spec.num_clients:
      self._all_here.set()

  async def join(self) -> None:
    """Waits until all clients are here, or the deadline; then no one else may join."""
    try:
      async with asyncio.timeout(self._deadline):
        await self._all_here.wait()
    except TimeoutError:
      pass  # Whether those who are here are enough is the protocol's question.
    self._joining = False
    for client_id in sorted(self._server.missing):
      self._on_loss(f'client {client_id} did not join')

  async def run(self):
    """Takes the session from its first phase to its last."""
    await self.join()
    outgoing = self._server.close_phase()
    while self._server.phase is not Phase.DONE:
      await self.exchange(outgoing)
      outgoing = self._server.close_phase()

  async def exchange(self, outgoing: Mapping[int, bytes]) -> None:
    """Sends each client its message and passes on what it answers; loses those who do not."""
    await asyncio.gather(*(self._ask(i, message) for i, message in outgoing.items()))

  async def _ask(self, client_id: int, message: bytes) -> None:
    connection = self._connections.get(client_id)
    if connection is None:
      return
    phase = self._server.phase
    most = self._due_bytes(phase)
    try:
      async with asyncio.timeout(self._deadline):
        await connection.send(_Kind.MESSAGE, message)
        reply = await connection.receive(_Kind.MESSAGE, most)
      self._server.receive(client_id, reply)
    except _FAILURES as error:
      reason = _reason(error)
      connection.end(reason)
      del self._connections[client_id]
      self._on_loss(f'dropped client {client_id} while {phase}: {reason}')

  def _due_bytes(self, phase: Phase) -> int:
    return wire.message_bytes(self._spec, phase, Direction.TO_SERVER)

  def dismiss(self, reason: str = '') -> None:
    """Ends the session for all who are still here."""
    for connection in self._connections.values():
      connection.end(reason)
    self._connections.clear()


def _describe(spec: ProtocolSpec) -> bytes:
  """The protocol in one line, which both sides compare."""
  fields = ((f.name, getattr(spec, f.name)) for f in dataclasses.fields(spec))
  values = ((name, v.value if isinstance(v, enum.Enum) else v) for name, v in fields)
  return ', '.join(f'{name} {value}' for name, value in values).encode()


def _read_hello(hello: bytes) -> tuple[int, str]:
  """Who a client says it is, and what it was started for."""
  if len(hello) < _ID.size:
    raise MalformedMessageError(f'a greeting of {len(hello)} bytes, which has no client in it')
  return _ID.unpack_from(hello)[0], hello[_ID.size :].decode('utf-8', 'replace')


def _check_same(spec: ProtocolSpec, protocol: str):
  """Raises unless a client was started for the same protocol; says what differs, and only that."""
  if protocol == _describe(spec).decode():
    return
  ours, theirs = (
    {field.partition(' ')[0]: field.partition(' ')[2] for field in text.split(', ')}
    for text in (_describe(spec).decode(), protocol)
  )
  names = [name for name in ours if theirs.get(name) != ours[name]]
  if theirs.keys() != ours.keys() or not names:
    raise _RefusedError('the server was started for another version of the protocol')
  server, client = (
    ' and '.join(
      # What comes from the other side may be anything.
      f'no `{name}`' if values[name] == 'None' else f'`{name}` {_printable(values[name][:20])}'
      for name in names
    )
    for values in (ours, theirs)
  )
  raise _RefusedError(f'the server was started with {server}, the client with {client}')


def _check_frames(spec: ProtocolSpec):
  """Raises ValueError if a message would be longer than a frame can be."""
  most = max(wire.message_bytes(spec, p, direction) for p in spec.phases for direction in Direction)
  if most > _FRAME_BYTES:
    raise ValueError(
      f'`vector_length` {spec.vector_length} makes a message of {most} bytes; '
      f'{_FRAME_BYTES} are the most over TCP.'
    )


def _printable(text: str) -> str:
  return ''.join(c if c.isprintable() else ' ' for c in text)


def _reason(error: BaseException) -> str:
  """Why a connection ended, for whoever is on its other side."""
  if isinstance(error, TimeoutError):
    return 'the answer came too late'
  if isinstance(error, EOFError | ConnectionError):
    return 'the connection is lost'
  return str(error) or type(error).__name__


async def serve(
  spec: ProtocolSpec,
  *,
  host: str,
  port: int,
  deadline: float,
  verify_keys: Mapping[int, bytes] | None = None,
  on_listening: Callable[[str, int], None] = lambda host, port: None,
  on_loss: Callable[[str], None] = lambda line: None,
) -> SecureSum:
  """Runs one session as its server.

  Args:
    spec: what is summed, and among how many.
    host: address to listen on.
    port: port to listen on; 0 takes any free one.
    deadline: seconds that the clients have for each phase, the first of which is to join.
    verify_keys: public signing keys of all clients (MALICIOUS).
    on_listening: called with address and port once clients can connect.
    on_loss: called with a line about each client that is refused, does not come or drops out.

  Returns:
    The sum of those whose vectors came, and who they are.

  Raises:
    ValueError: an argument does not go with the spec, or a vector does not fit into a frame.
    BelowThresholdError: too few were left; the clients have been told.
    OSError: the address cannot be had.
  """
  _check_frames(spec)
  session = os.urandom(SESSION_BYTES)
  server = Server(spec, session, verify_keys=verify_keys)
  attendance = _Attendance(spec, server, session, deadline, on_loss)
  listener = await asyncio.start_server(attendance.admit, host, port)
  try:
    on_listening(*listener.sockets[0].getsockname()[:2])
    await attendance.run()
  except SecAggError as error:
    attendance.dismiss(_reason(error))
    raise
  finally:
    listener.close()
  attendance.dismiss()
  return server.result


async def take_part(
  spec: ProtocolSpec,
  client_id: int,
  vector: np.ndarray,
  *,
  host: str,
  port: int,
  deadline: float,
  signing_key: bytes | None = None,
  verify_keys: Mapping[int, bytes] | None = None,
) -> int | None:
  """Gives one vector to the sum of a session.

  Args:
    spec: what this client agreed to; a server that was started for anything else sends it away.
    client_id: which of the clients this is.
    vector: integers [vector_length], taken modulo the modulus.
    host: the server's address.
    port: the server's port.
    deadline: seconds to wait for each message of the server.
    signing_key: this client's own (MALICIOUS).
    verify_keys: of all clients (MALICIOUS).

  Returns:
    How many vectors are in the sum, its own among them; None with `neighbours`: it sees no others.

  Raises:
    ValueError: an argument does not go with the spec; nothing was sent.
    SessionEndedError: the server ended the session before the sum.
    SecAggError: the server broke the protocol; the client said no more.
    OSError: the server is not there, or too late.
    EOFError: the server is gone.
  """
  keys = {'signing_key': signing_key, 'verify_keys': verify_keys}
  _check_frames(spec)
  Client(spec, client_id, bytes(SESSION_BYTES), **keys)
  async with asyncio.timeout(deadline):
    connection = _Connection(*await asyncio.open_connection(host, port))

  with contextlib.closing(connection.writer):
    session = await _introduce(connection, spec, client_id, deadline)
    client = Client(spec, client_id, session, **keys)
    await connection.send(_Kind.MESSAGE, client.advertise())
    while client.next_phase is not Phase.DONE:
      due = wire.message_bytes(spec, client.next_phase, Direction.TO_CLIENT)
      message = await connection.hear(deadline, _Kind.MESSAGE, due)
      await connection.send(_Kind.MESSAGE, answer(client, message, vector))
    await connection.hear(deadline, _Kind.END)
    return _size_of_sum(spec, session, message)


async def _introduce(
  connection: _Connection, spec: ProtocolSpec, client_id: int, deadline: float
) -> bytes:
  """Says who a client is; the session that it is then in."""
  await connection.send(_Kind.HELLO, _ID.pack(client_id) + _describe(spec))
  session = await connection.hear(deadline, _Kind.WELCOME, SESSION_BYTES)
  if len(session) != SESSION_BYTES:
    raise MalformedMessageError(f'a session of {len(session)} bytes, not {SESSION_BYTES}')
  return session


def _size_of_sum(spec: ProtocolSpec, session: bytes, message: bytes) -> int | None:
  """How many are in the sum, by the last message to a client, which the client has checked."""
  if spec.neighbours is not None:
    return None
  body = wire.read(message, spec, session).body
  return len(bodies.read_unmask_request(body, spec, range(spec.num_clients)).survivors)


def answer(client: Client, message: bytes, vector: np.ndarray) -> bytes:
  """What a client says to a message of the server: its next step.

  Args:
    client: after its first step.
    message: from the server.
    vector: what the client gives to the sum.

  Raises:
    SecAggError: if the message is not what an honest server sends now.
  """
  match client.next_phase:
    case Phase.SHARE_KEYS:
      return client.share_keys(message)
    case Phase.MASKED_INPUT:
      return client.mask(message, vector)
    case Phase.CONSISTENCY:
      return client.confirm(message)
    case _:
      return client.unmask(message)
