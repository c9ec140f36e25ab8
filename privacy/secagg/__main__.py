# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Secure sums on the command line: `python -m privacy.secagg server|client|keygen|degree --help`.

All must be started for the same protocol: the flags that describe it are the same for both.
"""

import argparse
import asyncio
import os
import pathlib
import re
import secrets
import sys
import tempfile
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from privacy.secagg import graph, primitives, tcp
from privacy.secagg.errors import SecAggError
from privacy.secagg.parameters import MOST_CLIENTS, Mode, ProtocolSpec

_USER_ERROR, _INTERRUPTED = 2, 130
_MOST_PORT, _DIGITS = (1 << 16) - 1, 20
_COMMANDS = 'server|client|keygen|degree'
# What the library calls otherwise than the flags, which are its names with dashes.
_FLAGS = {'num_clients': 'clients', 'client_id': 'id', 'vector_length': 'length'}
_MODES = {mode.name: f'--mode {mode.value}' for mode in Mode}


class _UsageError(Exception):
  """A mistake that the user can mend."""


class _Parser(argparse.ArgumentParser):
  """Says in one line what is wrong with the flags."""

  def error(self, message: str) -> NoReturn:
    raise _UsageError(f'{message}; see {self.prog} --help')


def main(arguments: list[str] | None = None) -> int:
  """Runs the command line; errors are one line and exit code 2."""
  try:
    flags = _parser().parse_args(arguments)
    flags.run(flags)
  except KeyboardInterrupt:
    return _fail('interrupted', _INTERRUPTED)
  except (_UsageError, EOFError, MemoryError, OSError, SecAggError, ValueError) as error:
    return _fail(_in_words(error))
  return 0


def _fail(message: str, code: int = _USER_ERROR) -> int:
  _warn(message)
  return code


def _warn(message: str) -> None:
  print(' '.join(f'secagg: {_in_flags(message)}'.split()), file=sys.stderr, flush=True)


def _in_flags(message: str) -> str:
  """A message of the library in which arguments are flags."""
  modes = re.compile(rf'\b({"|".join(_MODES)}) mode\b')
  message = modes.sub(lambda found: _MODES[found[1]], message)
  return re.sub(
    '`([a-z_]+)`', lambda found: '--' + _FLAGS.get(found[1], found[1]).replace('_', '-'), message
  )


def _in_words(error: Exception) -> str:
  match error:
    case TimeoutError():
      return 'the server did not answer in time; --deadline is how long it may take'
    case ConnectionRefusedError():
      return 'no server listens at --host and --port, or its session has begun'
    case EOFError() | ConnectionError():
      return 'the server is gone'
    case MemoryError():
      return 'not enough memory for vectors of this --length'
    case OSError(filename=None):
      return error.strerror or str(error)
    case OSError():
      return f'{error.filename}: {error.strerror}'
    case _:
      return str(error)


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog='python -m privacy.secagg', description=(__doc__ or '').partition('\n')[0])
  commands = parser.add_subparsers(required=True, metavar=_COMMANDS)
  shared = _shared_flags()
  server = commands.add_parser('server', parents=[shared], help='collect the sum of a session')
  server.add_argument(
    '--output',
    type=pathlib.Path,
    required=True,
    help='.npy file for the sum: uint64 residues modulo M = 2^k, where k is --modulus-bits; those '
    'from M/2 on stand for negative numbers, less by M',
  )
  _add_deadline(server, 60.0, 'seconds that clients have for each phase')
  server.set_defaults(run=_serve)
  client = commands.add_parser('client', parents=[shared], help='give a vector to the sum')
  client.add_argument('--id', type=int, required=True, help='which client, from 0 on')
  client.add_argument('--vector', type=pathlib.Path, required=True, help='.npy file of integers')
  client.add_argument('--signing-key', type=pathlib.Path, help='its own, for --mode malicious')
  _add_deadline(client, 300.0, 'seconds to wait for each message of the server')
  client.set_defaults(run=_take_part)
  keygen = commands.add_parser('keygen', help='make the signing key of one client')
  keygen.add_argument(
    '--id', type=_whole(MOST_CLIENTS - 1), required=True, help='which client, from 0 on'
  )
  keygen.add_argument('--signing-key', type=pathlib.Path, required=True, help='file to make')
  keygen.add_argument(
    '--verify-keys', type=pathlib.Path, required=True, help='file to add the public key to'
  )
  keygen.set_defaults(run=_make_key)
  degree = commands.add_parser('degree', help='find --neighbours, and the --threshold for them')
  number = _whole(MOST_CLIENTS)
  degree.add_argument('--clients', type=number, required=True, help='how many may join')
  degree.add_argument('--dropped', type=number, required=True, help='most that drop out')
  degree.add_argument(
    '--corrupted', type=number, required=True, help='most that tell the server what they see'
  )
  degree.set_defaults(run=_find_degree)
  return parser


def _add_deadline(parser: argparse.ArgumentParser, seconds: float, what: str) -> None:
  parser.add_argument(
    '--deadline', type=_seconds, default=seconds, help=f'{what}; default: %(default)s'
  )


def _seconds(text: str) -> float:
  try:
    seconds = float(text)
  except ValueError:
    seconds = 0.0
  if not seconds > 0:
    raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
  return seconds


def _whole(most: int) -> Callable[[str], int]:
  def read(text: str) -> int:
    if not text.isdecimal() or len(text) > _DIGITS or int(text) > most:
      raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 0 to {most}')
    return int(text)

  return read


def _shared_flags() -> _Parser:
  """The flags that the server and its clients must agree on, and where they meet."""
  shared = _Parser(add_help=False)
  shared.add_argument('--clients', type=int, required=True, help='how many may join')
  shared.add_argument(
    '--threshold',
    type=int,
    required=True,
    help='how many shares recover a secret: more than half of its holders (--clients, or '
    '--neighbours + 1), with --mode malicious more than two thirds; at most all',
  )
  shared.add_argument('--length', type=int, required=True, help='integers in a vector')
  shared.add_argument('--modulus-bits', type=int, required=True, help='the sum is modulo 2 to this')
  modes = [mode.value for mode in Mode]
  shared.add_argument('--mode', choices=modes, default=Mode.SEMI_HONEST.value)
  shared.add_argument(
    '--neighbours',
    type=int,
    help='others that a client shares keys with, an even number, which `degree` finds together '
    'with --threshold; default: all; not with --mode malicious',
  )
  shared.add_argument(
    '--smallest-cohort', type=int, help='fewest clients in a sum; default: --threshold'
  )
  shared.add_argument('--verify-keys', type=pathlib.Path, help='of all, for --mode malicious')
  shared.add_argument('--host', default='127.0.0.1', help='the server; default: %(default)s')
  shared.add_argument(
    '--port', type=_whole(_MOST_PORT), required=True, help='0: any that is free (server)'
  )
  return shared


def _spec(flags: argparse.Namespace) -> ProtocolSpec:
  return ProtocolSpec(
    num_clients=flags.clients,
    threshold=flags.threshold,
    vector_length=flags.length,
    modulus_bits=flags.modulus_bits,
    mode=Mode(flags.mode),
    neighbours=flags.neighbours,
    smallest_cohort=flags.smallest_cohort,
  )


def _serve(flags: argparse.Namespace) -> None:
  _check_output(flags.output)
  result = asyncio.run(
    tcp.serve(
      _spec(flags),
      host=flags.host,
      port=flags.port,
      deadline=flags.deadline,
      verify_keys=_read_verify_keys(flags.verify_keys),
      on_listening=lambda host, port: print(f'listening on {host}:{port}', flush=True),
      on_loss=_warn,
    )
  )
  _write_output(flags.output, result.total)
  print(f'sum of {len(result.clients)} clients: {" ".join(map(str, result.clients))}')
  bits = flags.modulus_bits
  print(
    f'written to {flags.output}: {flags.length} residues modulo 2^{bits}; those from '
    f'{1 << bits - 1} on stand for negative numbers, less by {1 << bits}'
  )


def _check_output(path: pathlib.Path) -> None:
  """Raises unless a file can be written there: after the session it would be too late."""
  if path.is_dir():
    raise _UsageError(f'--output {path}: is a directory')
  if path.exists() and not path.is_file():
    raise _UsageError(f'--output {path}: is not a regular file')
  parent = path.resolve().parent
  if not parent.is_dir():
    raise _UsageError(f'--output {path}: the directory does not exist')
  try:
    tempfile.TemporaryFile(dir=parent).close()
  except OSError as error:
    raise _UsageError(f'--output {path}: not writable ({error.strerror})') from error


def _write_output(path: pathlib.Path, total: np.ndarray) -> None:
  """Writes all of the sum, or leaves what was there; follows a link."""
  path = path.resolve()
  # A name that nobody can guess, and `x` follows no link that somebody put there.
  draft = path.with_name(f'.secagg-{secrets.token_hex(16)}.tmp')
  try:
    with draft.open('xb') as file:
      np.save(file, total)
      file.flush()
      os.fsync(file.fileno())
    draft.replace(path)
  finally:
    draft.unlink(missing_ok=True)


def _take_part(flags: argparse.Namespace) -> None:
  spec = _spec(flags)
  clients = asyncio.run(
    tcp.take_part(
      spec,
      flags.id,
      _read_vector(flags.vector, spec),
      host=flags.host,
      port=flags.port,
      deadline=flags.deadline,
      signing_key=_read_signing_key(flags.signing_key),
      verify_keys=_read_verify_keys(flags.verify_keys),
    )
  )
  # With neighbours, a client does not see how many there are in all.
  print(f'client {flags.id}: in the sum' + ('' if clients is None else f' of {clients}'))


def _make_key(flags: argparse.Namespace) -> None:
  """Writes a new key, for its owner alone to read, and adds its public part to the list."""
  if flags.signing_key.resolve() == flags.verify_keys.resolve():
    raise _UsageError('--signing-key and --verify-keys are the same file; the one is secret')
  known = _read_verify_keys(flags.verify_keys) if flags.verify_keys.exists() else {}
  if flags.id in (known or {}):
    raise _UsageError(f'--verify-keys {flags.verify_keys}: client {flags.id} has a key already')
  key = primitives.new_signing_key()
  handle = os.open(flags.signing_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  try:
    with open(handle, 'w', encoding='ascii') as file:
      file.write(key.hex() + '\n')
    _append(flags.verify_keys, f'{flags.id} {primitives.verify_key(key).hex()}\n')
  except BaseException:
    # A key that nobody could verify is of no use, and would be in the way of the next one.
    flags.signing_key.unlink()
    raise


def _append(path: pathlib.Path, line: str) -> None:
  """Adds a line, also where the last one was left without an end."""
  with path.open('ab+') as file:
    if file.tell():
      file.seek(-1, os.SEEK_END)
      line = line if file.read() == b'\n' else '\n' + line
    file.write(line.encode('ascii'))


def _find_degree(flags: argparse.Namespace) -> None:
  if flags.dropped + flags.corrupted >= flags.clients:
    raise _UsageError('--dropped and --corrupted together are not fewer than --clients')
  found = graph.degree(flags.clients, flags.dropped, flags.corrupted)
  print(f'--neighbours {found.neighbours} --threshold {found.threshold}')


def _read_signing_key(path: pathlib.Path | None) -> bytes | None:
  if path is None:
    return None
  if os.name == 'posix' and path.stat().st_mode & 0o077:
    raise _UsageError(f'--signing-key {path}: open to others; run chmod 600 on it')
  try:
    return _key(path.read_text('ascii'))
  except ValueError as error:
    raise _UsageError(f'--signing-key {path}: not a key that keygen made') from error


def _read_verify_keys(path: pathlib.Path | None) -> dict[int, bytes] | None:
  """Public keys by client, from lines of id and key."""
  if path is None:
    return None
  keys = {}
  for number, line in enumerate(path.read_text('ascii', 'replace').splitlines(), 1):
    try:
      name, key = line.split()
      client_id, key = int(name), _key(key)
    except ValueError as error:
      raise _UsageError(f'--verify-keys {path}:{number}: not an id and a key') from error
    if client_id in keys:
      raise _UsageError(f'--verify-keys {path}:{number}: client {client_id} has two keys')
    keys[client_id] = key
  return keys


def _key(text: str) -> bytes:
  key = bytes.fromhex(text)
  if len(key) != primitives.KEY_BYTES:
    raise ValueError(f'{len(key)} bytes')
  return key


def _read_vector(path: pathlib.Path, spec: ProtocolSpec) -> np.ndarray:
  """A vector that goes with the spec; negative numbers count from the modulus down."""
  try:
    with path.open('rb') as file:
      vector = np.lib.format.read_array(file, allow_pickle=False)
  except ValueError as error:
    raise _UsageError(f'--vector {path}: not an array that np.save wrote') from error
  if vector.dtype.kind not in 'iu' or vector.shape != (spec.vector_length,):
    raise _UsageError(
      f'--vector {path}: {vector.dtype} of shape {vector.shape}; needs integers of shape '
      f'({spec.vector_length},)'
    )
  least, most = -(1 << spec.modulus_bits - 1), (1 << spec.modulus_bits) - 1
  if int(vector.min()) < least or int(vector.max()) > most:
    raise _UsageError(f'--vector {path}: needs integers from {least} to {most}')
  return vector


if __name__ == '__main__':
  sys.exit(main())
