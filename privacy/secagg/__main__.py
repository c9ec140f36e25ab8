# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Secure sums on the command line: `python -m privacy.secagg server|client|keygen --help`.

All must be started for the same protocol: the flags that describe it are the same for both.
"""

import argparse
import asyncio
import os
import pathlib
import sys
from typing import NoReturn

import numpy as np

from privacy.secagg import primitives, tcp
from privacy.secagg.errors import SecAggError
from privacy.secagg.parameters import Mode, ProtocolSpec

_USER_ERROR, _INTERRUPTED = 2, 130


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
  except (_UsageError, EOFError, OSError, SecAggError, ValueError) as error:
    return _fail(_in_words(error))
  return 0


def _fail(message: str, code: int = _USER_ERROR) -> int:
  print(' '.join(f'secagg: {message}'.split()), file=sys.stderr)
  return code


def _in_words(error: Exception) -> str:
  match error:
    case TimeoutError():
      return 'the server did not answer in time; --deadline is how long it may take'
    case ConnectionRefusedError():
      return 'no server listens at --host and --port'
    case EOFError() | ConnectionError():
      return 'the server is gone'
    case OSError(filename=None):
      return error.strerror or str(error)
    case OSError():
      return f'{error.filename}: {error.strerror}'
    case _:
      return str(error)


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog='python -m privacy.secagg', description=(__doc__ or '').partition('\n')[0])
  commands = parser.add_subparsers(required=True, metavar='server|client|keygen')
  shared = _shared_flags()
  server = commands.add_parser('server', parents=[shared], help='collect the sum of a session')
  server.add_argument('--output', type=pathlib.Path, required=True, help='.npy file for the sum')
  _add_deadline(server, 60.0, 'seconds that clients have for each phase')
  server.set_defaults(run=_serve)
  client = commands.add_parser('client', parents=[shared], help='give a vector to the sum')
  client.add_argument('--id', type=int, required=True, help='which client, from 0 on')
  client.add_argument('--vector', type=pathlib.Path, required=True, help='.npy file of integers')
  client.add_argument('--signing-key', type=pathlib.Path, help='its own, for --mode malicious')
  _add_deadline(client, 300.0, 'seconds to wait for each message of the server')
  client.set_defaults(run=_take_part)
  keygen = commands.add_parser('keygen', help='make the signing key of one client')
  keygen.add_argument('--id', type=int, required=True, help='which client, from 0 on')
  keygen.add_argument('--signing-key', type=pathlib.Path, required=True, help='file to make')
  keygen.add_argument(
    '--verify-keys', type=pathlib.Path, required=True, help='file to add the public key to'
  )
  keygen.set_defaults(run=_make_key)
  return parser


def _add_deadline(parser: argparse.ArgumentParser, seconds: float, what: str) -> None:
  parser.add_argument(
    '--deadline', type=_seconds, default=seconds, help=f'{what}; default: %(default)s'
  )


def _seconds(text: str) -> float:
  seconds = float(text)
  if not seconds > 0:
    raise ValueError
  return seconds


def _shared_flags() -> _Parser:
  """The flags that the server and its clients must agree on, and where they meet."""
  shared = _Parser(add_help=False)
  shared.add_argument('--clients', type=int, required=True, help='how many may join')
  shared.add_argument('--threshold', type=int, required=True, help='shares that recover a secret')
  shared.add_argument('--length', type=int, required=True, help='integers in a vector')
  shared.add_argument('--modulus-bits', type=int, required=True, help='the sum is modulo 2 to this')
  modes = [mode.value for mode in Mode]
  shared.add_argument('--mode', choices=modes, default=Mode.SEMI_HONEST.value)
  shared.add_argument('--neighbours', type=int, help='others that a client shares keys with')
  shared.add_argument('--smallest-cohort', type=int, help='fewest clients in a sum')
  shared.add_argument('--verify-keys', type=pathlib.Path, help='of all, for --mode malicious')
  shared.add_argument('--host', default='127.0.0.1', help='the server; default: %(default)s')
  shared.add_argument('--port', type=int, required=True, help='0: any that is free (server)')
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
  if not flags.output.parent.is_dir():
    raise _UsageError(f'--output {flags.output}: the directory does not exist')
  result = asyncio.run(
    tcp.serve(
      _spec(flags),
      host=flags.host,
      port=flags.port,
      deadline=flags.deadline,
      verify_keys=_read_verify_keys(flags.verify_keys),
      on_listening=lambda host, port: print(f'listening on {host}:{port}', flush=True),
    )
  )
  with flags.output.open('wb') as file:
    np.save(file, result.total)
  print(f'sum of {len(result.clients)} clients: {" ".join(map(str, result.clients))}')


def _take_part(flags: argparse.Namespace) -> None:
  spec = _spec(flags)
  asyncio.run(
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


def _make_key(flags: argparse.Namespace) -> None:
  """Writes a new key, for its owner alone to read, and adds its public part to the list."""
  key = primitives.new_signing_key()
  handle = os.open(flags.signing_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  with open(handle, 'w', encoding='ascii') as file:
    file.write(key.hex() + '\n')
  with flags.verify_keys.open('a', encoding='ascii') as file:
    file.write(f'{flags.id} {primitives.verify_key(key).hex()}\n')


def _read_signing_key(path: pathlib.Path | None) -> bytes | None:
  if path is None:
    return None
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
    vector = np.load(path, allow_pickle=False)
  except (ValueError, EOFError) as error:
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
