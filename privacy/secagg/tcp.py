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
import dataclasses
import enum
import os
import struct
from collections.abc import Callable, Mapping

import numpy as np

from privacy.secagg import wire
from privacy.secagg.client import Client
from privacy.secagg.errors import MalformedMessageError, SecAggError
from privacy.secagg.parameters import SESSION_BYTES, Phase, ProtocolSpec
from privacy.secagg.server import SecureSum, Server
from privacy.secagg.wire import Direction

_HEADER = struct.Struct('>IB')
_ID = struct.Struct('>I')
_REASON_BYTES = 1000
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
      raise SessionEndedError(''.join(c if c.isprintable() else ' ' for c in text))
    if number != kind:
      raise MalformedMessageError(f'a frame of kind {number}, where {kind.value} was due')
    return body

  def end(self, reason: str = '') -> None:
    """Says that the session is over, as far as that can be said at once, and closes."""
    body = reason.encode()[:_REASON_BYTES]
    self.writer.write(_HEADER.pack(len(body), _Kind.END) + body)
    self.writer.close()


class _Attendance:
  """The server's side of a session: who is there, and the next message of each."""

  def __init__(self, spec: ProtocolSpec, server: Server, session: bytes, deadline: float):
    self._spec, self._server = spec, server
    self._session, self._deadline = session, deadline
    self._connections: dict[int, _Connection] = {}
    self._joining = True
    self._all_here = asyncio.Event()

  async def admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes a client in once the server has taken its first message; any other is sent away."""
    stranger = _Connection(reader, writer)
    try:
      async with asyncio.timeout(self._deadline):
        client_id = await self._identify(stranger)
        await stranger.send(_Kind.WELCOME, self._session)
        message = await stranger.receive(_Kind.MESSAGE, self._due_bytes(Phase.ADVERTISE_KEYS))
      if not self._joining:
        raise _RefusedError('the session has begun without this client')
      self._server.receive(client_id, message)
    except _FAILURES as error:
      stranger.end(_reason(error))
      return
    self._connections[client_id] = stranger
    if len(self._connections) == self._spec.num_clients:
      self._all_here.set()

  async def _identify(self, stranger: _Connection) -> int:
    """The id that a client gives; raises unless it was started for the same protocol."""
    ours = _describe(self._spec)
    hello = await stranger.receive(_Kind.HELLO, _ID.size + _REASON_BYTES)
    if hello[_ID.size :] != ours:
      theirs = hello[_ID.size :].decode('utf-8', 'replace')
      raise _RefusedError(f'the server was started for {ours.decode()}; the client for {theirs}')
    return _ID.unpack_from(hello)[0]

  async def join(self) -> None:
    """Waits until all clients are here, or the deadline; then no one else may join."""
    try:
      async with asyncio.timeout(self._deadline):
        await self._all_here.wait()
    except TimeoutError:
      pass  # Whether those who are here are enough is the protocol's question.
    self._joining = False

  async def exchange(self, outgoing: Mapping[int, bytes]) -> None:
    """Sends each client its message and passes on what it answers; loses those who do not."""
    await asyncio.gather(*(self._ask(i, message) for i, message in outgoing.items()))

  async def _ask(self, client_id: int, message: bytes) -> None:
    connection = self._connections.get(client_id)
    if connection is None:
      return
    most = self._due_bytes(self._server.phase)
    try:
      async with asyncio.timeout(self._deadline):
        await connection.send(_Kind.MESSAGE, message)
        reply = await connection.receive(_Kind.MESSAGE, most)
      self._server.receive(client_id, reply)
    except _FAILURES as error:
      connection.end(_reason(error))
      del self._connections[client_id]

  def _due_bytes(self, phase: Phase) -> int:
    return wire.message_bytes(self._spec, phase, Direction.TO_SERVER)

  def dismiss(self, reason: str = '') -> None:
    """Ends the session for all who are still here."""
    for connection in self._connections.values():
      connection.end(reason)
    self._connections.clear()


def _describe(spec: ProtocolSpec) -> bytes:
  """The protocol in one line: what both sides compare and, where they differ, read."""
  fields = ((f.name, getattr(spec, f.name)) for f in dataclasses.fields(spec))
  values = ((name, v.value if isinstance(v, enum.Enum) else v) for name, v in fields)
  return ', '.join(f'{name} {value}' for name, value in values).encode()


def _reason(error: BaseException) -> str:
  """Why a connection ended, for whoever is on its other side."""
  if isinstance(error, TimeoutError):
    return 'the answer came too late'
  return str(error) or type(error).__name__


async def serve(
  spec: ProtocolSpec,
  *,
  host: str,
  port: int,
  deadline: float,
  verify_keys: Mapping[int, bytes] | None = None,
  on_listening: Callable[[str, int], None] = lambda host, port: None,
) -> SecureSum:
  """Runs one session as its server.

  Args:
    spec: what is summed, and among how many.
    host: address to listen on.
    port: port to listen on; 0 takes any free one.
    deadline: seconds that the clients have for each phase, the first of which is to join.
    verify_keys: public signing keys of all clients (MALICIOUS).
    on_listening: called with address and port once clients can connect.

  Returns:
    The sum of those whose vectors came, and who they are.

  Raises:
    BelowThresholdError: too few were left; the clients have been told.
    OSError: the address cannot be had.
  """
  session = os.urandom(SESSION_BYTES)
  server = Server(spec, session, verify_keys=verify_keys)
  attendance = _Attendance(spec, server, session, deadline)
  listener = await asyncio.start_server(attendance.admit, host, port)
  try:
    on_listening(*listener.sockets[0].getsockname()[:2])
    await attendance.join()
    outgoing = server.close_phase()
    while server.phase is not Phase.DONE:
      await attendance.exchange(outgoing)
      outgoing = server.close_phase()
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
) -> None:
  """Gives one vector to the sum of a session.

  Args:
    spec: what this client agreed to; a server that was started for anything else sends it away.
    client_id: which of the clients this is.
    vector: integers [vector_length], taken modulo the modulus.
    host: the server's address.
    port: the server's port.
    deadline: seconds to wait for each message of the server.
    signing_key: this client's own (MALICIOUS).
    verify_keys: public signing keys of all clients (MALICIOUS).

  Raises:
    ValueError: an argument does not go with the spec; nothing was sent.
    SessionEndedError: the server ended the session before the sum.
    SecAggError: the server broke the protocol; the client said no more.
    OSError: the server is not there, or too late.
    EOFError: the server is gone.
  """
  keys = {'signing_key': signing_key, 'verify_keys': verify_keys}
  # Arguments that do not go together are found before the server is asked.
  Client(spec, client_id, bytes(SESSION_BYTES), **keys)
  async with asyncio.timeout(deadline):
    connection = _Connection(*await asyncio.open_connection(host, port))

  async def hear(kind: _Kind, most: int = 0) -> bytes:
    async with asyncio.timeout(deadline):
      return await connection.receive(kind, most)

  try:
    await connection.send(_Kind.HELLO, _ID.pack(client_id) + _describe(spec))
    session = await hear(_Kind.WELCOME, SESSION_BYTES)
    if len(session) != SESSION_BYTES:
      raise MalformedMessageError(f'a session of {len(session)} bytes, not {SESSION_BYTES}')
    client = Client(spec, client_id, session, **keys)
    await connection.send(_Kind.MESSAGE, client.advertise())
    while client.next_phase is not Phase.DONE:
      due = wire.message_bytes(spec, client.next_phase, Direction.TO_CLIENT)
      message = await hear(_Kind.MESSAGE, due)
      await connection.send(_Kind.MESSAGE, answer(client, message, vector))
    await hear(_Kind.END)
  finally:
    connection.writer.close()


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
