# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a client says first: who it is, and the protocol it was started for."""

import dataclasses
import enum
import struct

from privacy.secagg.errors import MalformedMessageError, SecAggError
from privacy.secagg.parameters import ProtocolSpec

_ID = struct.Struct('>I')
# The most that a greeting has.
BYTES = _ID.size + 1000


class RefusedError(SecAggError):
  """A client that cannot join."""


def write(spec: ProtocolSpec, client_id: int) -> bytes:
  """The greeting of a client."""
  return _ID.pack(client_id) + _describe(spec).encode()


def read(hello: bytes) -> tuple[int, str]:
  """Who a client says it is, and what it was started for.

  Raises:
    MalformedMessageError: if there is no client in it.
  """
  if len(hello) < _ID.size:
    raise MalformedMessageError(f'a greeting of {len(hello)} bytes, which has no client in it')
  return _ID.unpack_from(hello)[0], hello[_ID.size :].decode('utf-8', 'replace')


def check_same(spec: ProtocolSpec, protocol: str):
  """Checks that a client was started for the same protocol.

  Raises:
    RefusedError: if not; it says what differs, and only that.
  """
  if protocol == _describe(spec):
    return
  ours, theirs = (
    {field.partition(' ')[0]: field.partition(' ')[2] for field in text.split(', ')}
    for text in (_describe(spec), protocol)
  )
  names = [name for name in ours if theirs.get(name) != ours[name]]
  if theirs.keys() != ours.keys() or not names:
    raise RefusedError('the server was started for another version of the protocol')
  server, client = (
    ' and '.join(
      # What comes from the other side may be anything.
      f'no `{name}`' if values[name] == 'None' else f'`{name}` {printable(values[name][:20])}'
      for name in names
    )
    for values in (ours, theirs)
  )
  raise RefusedError(f'the server was started with {server}, the client with {client}')


def printable(text: str) -> str:
  """A text with blanks for what a terminal might take for a command."""
  return ''.join(c if c.isprintable() else ' ' for c in text)


def _describe(spec: ProtocolSpec) -> str:
  """The protocol in one line, which both sides compare."""
  fields = ((f.name, getattr(spec, f.name)) for f in dataclasses.fields(spec))
  values = ((name, v.value if isinstance(v, enum.Enum) else v) for name, v in fields)
  return ', '.join(f'{name} {value}' for name, value in values)
