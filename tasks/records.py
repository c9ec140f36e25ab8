# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Records of people's text in files: lines of JSON, one record each, whatever their fields.

A loader is a generator of `Record`s. What it cannot use it yields too, as a `BadRecord` or as
`LeftOut`: whether a bad record ends the run or is counted is not its business
(`tasks.stored_text`).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pathlib
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.federated_text import Example

_GZIP = b'\x1f\x8b'
_OTHER_PACKINGS = {
  b'PK\x03\x04': 'zip',
  b'BZh': 'bzip2',
  b'\xfd7zXZ': 'xz',
  b'\x28\xb5\x2f\xfd': 'zstd',
}
# Of a line. It is held several times over while it is read, and no person's text is as long.
_MOST_BYTES = 1 << 26
_ESCAPED = str.maketrans({'\\': '\\\\', '/': '\\/'})


class Record(NamedTuple):
  """One example of one client.

  Attributes:
    client: whose it is.
    example: the text.
    split: 'train', 'validation' or 'test' where the data decide that; None where the client does.
    key: what tells the record from all others, if the data have such a thing.
    where: file and line, to name a record whose key was there before.
  """

  client: str
  example: Example
  split: str | None = None
  key: str | None = None
  where: str = ''


class BadRecord(NamedTuple):
  """What stands in the place of a record that cannot be read.

  Attributes:
    where: 'FILE, line N'.
    problem: what is wrong with it, as the end of a sentence: "has no field 'author'". Records are
      counted by what comes before the first colon.
    mend: what to do about it, if that is not plain.
  """

  where: str
  problem: str
  mend: str = ''


class LeftOut(NamedTuple):
  """What stands in the place of data that are sound but of no use; they are counted by reason.

  Attributes:
    reason: what they are, in the plural: 'Speakers with one session'.
  """

  reason: str


# 'FILE, line N' and the object that is there.
Line = tuple[str, dict[str, Any]]


def data_files(config: RunConfig, patterns: Sequence[str]) -> list[pathlib.Path]:
  """The files that `--data-dir` names.

  Args:
    config: of the run.
    patterns: of the files wanted in a directory, relative to it, as `pathlib.Path.glob` takes them.

  Returns:
    The one file, whatever its name, or those in the directory, sorted; hidden ones are not read.

  Raises:
    UserError: if there is none, one cannot be looked for, or is there twice, packed and not.
  """
  if config.data_dir is None:
    raise UserError(f'--data-dir is missing: --task {config.task} reads a file or directory there.')
  root = pathlib.Path(config.data_dir)
  try:
    files = _found(root, patterns)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise UserError(f'--data-dir {root}: there is no such file or directory.') from error
  except (OSError, ValueError) as error:
    raise UserError(f'--data-dir {root}: {getattr(error, "strerror", error)}.') from error
  if not files:
    raise UserError(f'--data-dir {root}: there is no {" or ".join(patterns)} in it.')
  present = set(files)
  for path in files:
    packed = path.with_name(f'{path.name}.gz')
    if packed in present:
      raise UserError(f'--data-dir {root}: {path.name} and {packed.name} are the same; keep one.')
  return files


def json_lines(path: pathlib.Path) -> Iterator[Line | BadRecord]:
  """Reads a file of JSON objects, one a line, without holding more than a line of it.

  Gzip is known by content. Blank lines are passed over.

  Args:
    path: the file.

  Yields:
    'FILE, line N' and the object; or the bad record that is there instead.

  Raises:
    UserError: if the file cannot be read to its end.
  """
  number = 0
  # A name need not be UTF-8.
  name = os.fsencode(path).decode(errors='backslashreplace')
  try:
    with path.open('rb') as packed, _unpacked(packed, path) as file:
      for number, line in enumerate(_lines(file), 1):
        value = _parsed(line.removeprefix(b'\xef\xbb\xbf') if number == 1 else line)
        if isinstance(value, dict):
          yield f'{name}, line {number}', value
        elif value:
          yield BadRecord(f'{name}, line {number}', value)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UserError(f'{path} is damaged after line {number}: {error}; fetch it again.') from error
  except OSError as error:
    raise UserError(f'Cannot read {path}: {error.strerror or error}.') from error


def field(value: Mapping[str, Any], name: str, where: str) -> str | BadRecord:
  """The text of a field, or the bad record that lacks it."""
  text = value.get(name)
  if isinstance(text, str):
    return text if text and not text.isspace() else BadRecord(where, f'has an empty {name!r}')
  return _no_text(value, name, where, 'no text')


def identity(value: Mapping[str, Any], names: Sequence[str], where: str) -> str | BadRecord:
  """What fields of text or whole numbers identify, or the bad record that lacks one.

  Several are joined by slashes, and slashes within them escaped, so that no two become one.
  """
  parts = []
  for name in names:
    part = value.get(name)
    if type(part) is int:
      part = str(part)
    elif not isinstance(part, str):
      return _no_text(value, name, where, 'neither text nor a whole number')
    elif not part or part.isspace():
      return BadRecord(where, f'has an empty {name!r}')
    parts.append(part)
  return parts[0] if len(parts) == 1 else '/'.join(part.translate(_ESCAPED) for part in parts)


def shortened(text: str, most: int) -> str:
  """A text in no more than so many characters, for a message of one line."""
  return text if len(text) <= most else f'{text[: most - 3]}...'


def _found(root: pathlib.Path, patterns: Sequence[str]) -> list[pathlib.Path]:
  """The file itself, or the files of a directory."""
  mode = root.stat().st_mode
  if stat.S_ISREG(mode):
    return [root]
  if not stat.S_ISDIR(mode):
    raise UserError(f'--data-dir {root}: it is neither a file nor a directory; write it to a file.')
  os.scandir(root).close()  # `glob` finds nothing where it may not look.
  found = {path for pattern in patterns for path in root.glob(pattern)}
  return sorted(path for path in found if path.is_file() and not path.name.startswith('.'))


def _lines(file: BinaryIO) -> Iterator[bytes]:
  """The lines of a file, of which we read no more than just too much."""
  while line := file.readline(_MOST_BYTES + 1):
    yield line
    while len(line) > _MOST_BYTES and not line.endswith(b'\n'):
      line = file.readline(_MOST_BYTES + 1)


def _no_text(value: Mapping[str, Any], name: str, where: str, wanting: str) -> BadRecord:
  if name in value:
    return BadRecord(where, f'has {wanting} in {name!r}: {shortened(json.dumps(value[name]), 40)}')
  return BadRecord(where, f'has no field {name!r}: it has {", ".join(value) or "none"}')


def _unpacked(file: BinaryIO, path: pathlib.Path) -> BinaryIO:
  """The same file unpacked, as far as we can."""
  start = file.read(8)
  file.seek(0)
  if start.startswith(_GZIP):
    # A buffer of its own: line by line, gzip's is three times slower.
    return io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 16)  # pyright: ignore
  for magic, name in _OTHER_PACKINGS.items():
    if start.startswith(magic):
      raise UserError(f'{path} is packed with {name}; unpack it, or pack it with gzip.')
  return file


def _parsed(line: bytes) -> dict[str, Any] | str:
  """The object in a line, or what is wrong with it; nothing is wrong with a blank one."""
  if len(line) > _MOST_BYTES:
    return f'is longer than {_MOST_BYTES:,} bytes'
  try:
    value = json.loads(line.decode())
    if b'\\ud' in line or b'\\uD' in line:
      json.dumps(value, ensure_ascii=False).encode()
  except UnicodeDecodeError as error:
    return f'is not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}'
  except UnicodeEncodeError:
    return 'has half a character: an escape from \\ud800 to \\udfff without its other half'
  except json.JSONDecodeError as error:
    return f'is not JSON: {error.msg} at column {error.pos + 1}' if line.strip() else ''
  except (ValueError, RecursionError) as error:
    return f'is not JSON: {error}'
  return value if isinstance(value, dict) else 'is not a JSON object: {"field": "text", ...}'
