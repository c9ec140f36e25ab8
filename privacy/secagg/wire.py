# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Messages as bytes: a header, and a body of `privacy.secagg.bodies`."""

import struct
from typing import NamedTuple

from privacy.secagg import bodies, errors
from privacy.secagg.bodies import Direction
from privacy.secagg.parameters import SESSION_BYTES, Phase, ProtocolSpec

_MAGIC = b'HSA'
_VERSION = 1
# Magic, version, direction, phase, session, and the client it is from or for.
_HEADER = struct.Struct(f'>3sBBB{SESSION_BYTES}sI')
HEADER_BYTES = _HEADER.size


class Message(NamedTuple):
  """A message that is one of this protocol and of this session, and as long as it should be."""

  direction: Direction
  phase: Phase
  client: int
  body: bytes


def write(direction: Direction, phase: Phase, session: bytes, client: int, body: bytes) -> bytes:
  """A message.

  Args:
    direction: where it goes.
    phase: to which it belongs.
    session: 16 bytes.
    client: whom it is from, or for.
    body: as one of the functions below makes it.
  """
  return _HEADER.pack(_MAGIC, _VERSION, direction.value, phase.value, session, client) + body


def read(message: bytes, spec: ProtocolSpec, session: bytes) -> Message:
  """Inverse of `write`.

  Raises:
    MalformedMessageError: if it is no message of this protocol.
    ForeignSessionError: if it is of another session.
  """
  if len(message) < HEADER_BYTES:
    raise errors.MalformedMessageError(f'A message of {len(message)} bytes is cut short.')
  magic, version, direction, phase, of_session, client = _HEADER.unpack_from(message)
  if magic != _MAGIC or version != _VERSION:
    raise errors.MalformedMessageError(f'Not a message of version {_VERSION} of this protocol.')
  try:
    direction, phase = Direction(direction), Phase(phase)
  except ValueError as error:
    raise errors.MalformedMessageError(f'A message has an unknown field: {error}.') from error
  if of_session != session:
    raise errors.ForeignSessionError('A message is of another session.')
  expected = message_bytes(spec, phase, direction)
  if len(message) != expected:
    raise errors.MalformedMessageError(
      f'A message of {phase} {direction} has {len(message)} bytes, not {expected or "any"}.'
    )
  return Message(direction, phase, client, bytes(message[HEADER_BYTES:]))


def message_bytes(spec: ProtocolSpec, phase: Phase, direction: Direction) -> int:
  """How long a message is, header included; 0 where the phase has none in this direction."""
  body = bodies.body_bytes(spec, phase, direction)
  return HEADER_BYTES + body if body else 0
