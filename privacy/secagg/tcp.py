# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Secure sums over TCP: a server, and a process for every client.

A frame is a length (4 bytes, big-endian), a kind (1 byte) and so many bytes. A client says who it
is and what it was started for, hears the session, and from then on answers each message of the
protocol with one of its own, until the server ends the session: with nothing, or with the reason.

A client that is gone, is late or breaks the protocol is out, and what that means for the sum is the
state machine's to say. Without TLS, frames are neither encrypted nor authenticated: that vectors
stay hidden is the protocol's work, and so, in MALICIOUS mode, is who the clients are.
"""

import asyncio
import dataclasses
import enum
import os
import ssl
import struct
from collections.abc import Callable, Mapping

import numpy as np

from privacy.secagg import bodies, greeting, wire
from privacy.secagg.client import Client
from privacy.secagg.errors import MalformedMessageError, SecAggError
from privacy.secagg.parameters import SESSION_BYTES, Phase, ProtocolSpec
from privacy.secagg.server import SecureSum, Server
from privacy.secagg.wire import Direction

_HEADER = struct.Struct('>IB')
_REASON_BYTES = 1000
_FRAME_BYTES = (1 << 32) - 1
# Seconds that the other side of a connection has to read its end.
_PARTING = 1.0
_MOST_REFUSALS_TOLD = 10
_BROKEN = 'the server broke off the session'
# What a connection can fail with; a timeout is an OSError.
_FAILURES = (OSError, EOFError, SecAggError)


class SessionEndedError(SecAggError):
  """The server ended the session before its sum, for the reason in the message."""


class _Kind(enum.IntEnum):
  HELLO = 1
  WELCOME = 2
  MESSAGE = 3
  END = 4


@dataclasses.dataclass(frozen=True)
class _Connection:
  """One end of a connection; what takes longer than the deadline, in seconds, is a TimeoutError."""

  reader: asyncio.StreamReader
  writer: asyncio.StreamWriter
  deadline: float

  async def send(self, kind: _Kind, body: bytes) -> None:
    """Writes a frame, and waits where the other side does not read."""
    self.writer.write(_HEADER.pack(len(body), kind) + body)
    async with asyncio.timeout(self.deadline):
      await self.writer.drain()

  async def receive(self, kind: _Kind, most: int = 0) -> bytes:
    """Reads a frame of this kind of at most `most` bytes; an end with a reason is an error.

    Raises:
      MalformedMessageError: another kind, or more bytes; none of them is read.
      SessionEndedError: the session ended too early, or with a reason.
      EOFError: the other side is gone.
    """
    async with asyncio.timeout(self.deadline):
      length, number = _HEADER.unpack(await self.reader.readexactly(_HEADER.size))
      limit = _REASON_BYTES if number == _Kind.END else most
      if length > limit:
        raise MalformedMessageError(f'a frame of {length} bytes, where {limit} are the most')
      body = await self.reader.readexactly(length)
    if number == _Kind.END and (body or kind is not _Kind.END):
      text = body.decode('utf-8', 'replace') or 'the session was ended early, without a reason'
      raise SessionEndedError(greeting.printable(text))
    if number != kind:
      raise MalformedMessageError(f'a frame of kind {number}, where {kind.value} was due')
    return body

  def end(self, reason: str = '') -> None:
    """Says that the session is over and closes, soon also if the other side does not read."""
    body = reason.encode()[:_REASON_BYTES]
    self.writer.write(_HEADER.pack(len(body), _Kind.END) + body)
    self.writer.close()
    asyncio.get_running_loop().call_later(_PARTING, self.writer.transport.abort)


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
    # Who is about to join, oldest first.
    self._strangers: dict[_Connection, asyncio.Task[None]] = {}
    self._refusals, self._joining = 0, True
    self._all_here = asyncio.Event()

  def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Lets a stranger say who it is, where it is not too late.

    Of too many, the one that has been silent longest has to go: a client is quick to join.
    """
    stranger = _Connection(reader, writer, self._deadline)
    if not self._joining:
      stranger.end('the session has begun without this client')
      return
    if len(self._strangers) >= 2 * self._spec.num_clients + 16:
      oldest, task = next(iter(self._strangers.items()))
      task.cancel()
      self._refuse(oldest, 'a client', 'too many are about to join')
    self._strangers[stranger] = asyncio.get_running_loop().create_task(self._admit(stranger))

  async def _admit(self, stranger: _Connection) -> None:
    """Takes a client in once the server has taken its first message; any other is sent away."""
    who = 'a client'
    try:
      async with asyncio.timeout(self._deadline):
        client_id, protocol = greeting.read(await stranger.receive(_Kind.HELLO, greeting.BYTES))
        who = f'client {client_id}'
        greeting.check_same(self._spec, protocol)
        await stranger.send(_Kind.WELCOME, self._session)
        message = await stranger.receive(_Kind.MESSAGE, self._due_bytes(Phase.ADVERTISE_KEYS))
      self._server.receive(client_id, message)
    except _FAILURES as error:
      self._refuse(stranger, who, _reason(error))
      return
    except Exception:
      del self._strangers[stranger]
      stranger.end(_BROKEN)
      raise
    del self._strangers[stranger]
    self._connections[client_id] = stranger
    if len(self._connections) == self._spec.num_clients:
      self._all_here.set()

  def _refuse(self, stranger: _Connection, who: str, reason: str) -> None:
    del self._strangers[stranger]
    stranger.end(reason)
    self._refusals += 1
    if self._refusals <= _MOST_REFUSALS_TOLD:
      self._on_loss(f'refused {who}: {reason}')
    elif self._refusals == _MOST_REFUSALS_TOLD + 1:
      self._on_loss('refused others too, which are not listed')

  async def join(self) -> None:
    """Waits until all clients are here, or the deadline; then no one else may join."""
    try:
      async with asyncio.timeout(self._deadline):
        await self._all_here.wait()
    except TimeoutError:
      pass  # Whether those who are here are enough is the protocol's question.
    self._joining = False
    self._dismiss_strangers('the session has begun without this client')
    for client_id in sorted(self._server.missing):
      self._on_loss(f'client {client_id} did not join')

  async def run(self) -> None:
    """Takes the session from its second phase to its last."""
    outgoing = self._server.close_phase()
    while self._server.phase is not Phase.DONE:
      await self.exchange(outgoing)
      outgoing = self._server.close_phase()

  async def exchange(self, outgoing: Mapping[int, bytes]) -> None:
    """Sends each client its message and passes on what it answers; loses those who do not."""
    try:
      async with asyncio.TaskGroup() as group:
        for client_id, message in outgoing.items():
          group.create_task(self._ask(client_id, message))
    except BaseExceptionGroup as errors:
      # The others only tell of what came of the first.
      raise errors.exceptions[0] from errors

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
    """Ends the session for all who are still here, or about to join."""
    self._joining = False
    self._dismiss_strangers(reason)
    for connection in self._connections.values():
      connection.end(reason)
    self._connections.clear()

  def _dismiss_strangers(self, reason: str) -> None:
    for stranger, task in self._strangers.items():
      # One that is cancelled before it starts could not say so itself.
      task.cancel()
      stranger.end(reason)
    self._strangers.clear()


def _check_frames(spec: ProtocolSpec):
  """Raises ValueError if a message would be longer than a frame can be."""
  most = max(wire.message_bytes(spec, p, direction) for p in spec.phases for direction in Direction)
  if most > _FRAME_BYTES:
    raise ValueError(
      f'`vector_length` {spec.vector_length} makes a message of {most} bytes; '
      f'{_FRAME_BYTES} are the most over TCP.'
    )


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
  ssl: ssl.SSLContext | None = None,
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
    ssl: for TLS; its `verify_mode` says whether clients need certificates.
    on_listening: called with address and port once clients can connect.
    on_loss: called with a line about who does not come, drops out or is among the first refused.

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
  listener = await asyncio.start_server(attendance.accept, host, port, ssl=ssl)
  reason = _BROKEN
  try:
    on_listening(*listener.sockets[0].getsockname()[:2])
    await attendance.join()
    listener.close()
    await attendance.run()
    reason = ''
  except SecAggError as error:
    reason = _reason(error)
    raise
  finally:
    listener.close()
    attendance.dismiss(reason)
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
  ssl: ssl.SSLContext | None = None,
) -> int | None:
  """Gives one vector to the sum of a session.

  Args:
    spec: what this client agreed to; a server that was started for anything else sends it away.
    client_id: which of the clients this is.
    vector: integers [vector_length], taken modulo the modulus.
    host: the server's address.
    port: the server's port.
    deadline: seconds to wait for each message of the server, and for it to take one.
    signing_key: this client's own (MALICIOUS).
    verify_keys: of all clients (MALICIOUS).
    ssl: for TLS; holds this client's certificate where the server asks for one.

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
    streams = await asyncio.open_connection(host, port, ssl=ssl)
  connection = _Connection(*streams, deadline)
  try:
    session = await _introduce(connection, spec, client_id)
    client = Client(spec, client_id, session, **keys)
    return _size_of_sum(spec, session, await _play(connection, spec, client, vector))
  finally:
    # Nothing is left to say, and a server that does not read must not hold this up.
    connection.writer.transport.abort()


async def _introduce(connection: _Connection, spec: ProtocolSpec, client_id: int) -> bytes:
  """Says who a client is; the session that it is then in."""
  await connection.send(_Kind.HELLO, greeting.write(spec, client_id))
  session = await connection.receive(_Kind.WELCOME, SESSION_BYTES)
  if len(session) != SESSION_BYTES:
    raise MalformedMessageError(f'a session of {len(session)} bytes, not {SESSION_BYTES}')
  return session


async def _play(
  connection: _Connection, spec: ProtocolSpec, client: Client, vector: np.ndarray
) -> bytes:
  """Takes a client from its first step to the end; the last message of the server."""
  message = b''
  await connection.send(_Kind.MESSAGE, client.advertise())
  while client.next_phase is not Phase.DONE:
    due = wire.message_bytes(spec, client.next_phase, Direction.TO_CLIENT)
    message = await connection.receive(_Kind.MESSAGE, due)
    await connection.send(_Kind.MESSAGE, answer(client, message, vector))
  await connection.receive(_Kind.END)
  return message


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
