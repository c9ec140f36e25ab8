# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What nobody but the run may read: keys, and who was drawn.

Files are born with the modes that they keep, so that there is no moment at which others can open
them.
"""

import json
import os
import pathlib
from typing import Any

from tasks.errors import UserError

_KEY_BYTES = 32
_DIRECTORY_MODE, _FILE_MODE = 0o700, 0o600
_OTHERS = 0o077


class Secrets:
  """A directory of mode 0700 with files of mode 0600.

  Attributes:
    directory: where it is.
  """

  def __init__(self, directory: pathlib.Path):
    """Makes the directory, or takes one that others cannot read.

    Raises:
      UserError: naming the path that is no directory, or that others may read, with the mend.
    """
    self.directory = directory
    try:
      os.mkdir(directory, _DIRECTORY_MODE)
    except FileExistsError:
      if directory.is_symlink() or not directory.is_dir():
        raise UserError(f'{directory} must be a directory of its own.') from None
      _check_mode(directory, _DIRECTORY_MODE)
    else:
      _sync_directory(directory.parent)

  def key(self, name: str) -> bytes:
    """Returns 32 bytes that the first call draws and all later ones, of any process, read back.

    Args:
      name: of its file.

    Raises:
      UserError: naming the file that others may read, or that holds no key.
    """
    path = self.directory / name
    if not path.exists():
      _write_new(path, os.urandom(_KEY_BYTES))
    _check_mode(path, _FILE_MODE)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
      raise UserError(
        f'{path} holds {len(key)} bytes, not the {_KEY_BYTES} of a key; restore it or start a new'
        ' run.'
      )
    return key

  def file(self, name: str) -> pathlib.Path:
    """A file that exists, for others to append to."""
    path = self.directory / name
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, _FILE_MODE))
    return path

  def append_line(self, name: str, content: Any) -> None:
    """Adds a line of JSON, on disk when this returns."""
    append_line(self.directory / name, content)


def append_line(path: pathlib.Path, content: Any) -> None:
  """Adds a line of JSON to a secret file, on disk when this returns.

  What a kill left of a line before is removed: whoever wrote it had not gone on.

  Raises:
    UserError: if others may read the file.
  """
  is_new = not path.exists()
  if not is_new:
    _check_mode(path, _FILE_MODE)
  with open(os.open(path, os.O_RDWR | os.O_CREAT, _FILE_MODE), 'r+b') as file:
    file.seek(len(_complete(file.read())))
    file.truncate()
    file.write(json.dumps(content).encode() + b'\n')
    file.flush()
    os.fsync(file.fileno())
  if is_new:
    _sync_directory(path.parent)


def read_lines(path: pathlib.Path) -> list[Any]:
  """The lines of a secret file, without one that a kill tore; none where there is no file.

  Raises:
    UserError: naming the file and the line that is no JSON.
  """
  if not path.exists():
    return []
  lines = []
  for number, line in enumerate(_complete(path.read_bytes()).splitlines(), start=1):
    try:
      lines.append(json.loads(line))
    except ValueError as error:
      raise UserError(f'{path}, line {number}: not JSON; restore it or start a new run.') from error
  return lines


def _complete(data: bytes) -> bytes:
  """All lines that were ended."""
  return data[: data.rfind(b'\n') + 1]


def _write_new(path: pathlib.Path, data: bytes) -> None:
  """Makes a file, all of it or nothing."""
  draft = path.with_name(f'.{path.name}.draft')
  draft.unlink(missing_ok=True)
  with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE), 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(draft, path)
  _sync_directory(path.parent)


def _check_mode(path: pathlib.Path, mode: int) -> None:
  found = path.stat().st_mode & 0o777
  if found & _OTHERS:
    raise UserError(
      f'{path} can be read by others (mode {found:04o}): it holds secrets of the run; do'
      f' chmod {mode:o} {path}.'
    )


def _sync_directory(directory: pathlib.Path) -> None:
  """A new name is on disk when its directory is."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
