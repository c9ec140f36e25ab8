# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The account of every round that was started: append-only, written to the disk before it runs.

One JSON object a line, each with the SHA-256 of itself and that of the line before. A line that a
kill cut short is kept, counts as a started round, and is followed by a line that says so. The chain
shows edits, removals and insertions, but not a cut at the end or a file that was written anew from
some line on: those show against an `Anchor` kept elsewhere, in checkpoints and reports, and only up
to it.
"""

import datetime
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import dp_accounting

from privacy import events
from privacy.spec import DpSpec

_BEFORE_ALL = '0' * 64
_CHAIN = frozenset(('index', 'kind', 'date', 'previous', 'hash'))


class LedgerError(ValueError):
  """A ledger that is not what was written, or not of this run; names the file and the line."""


class Anchor(NamedTuple):
  """What to keep of a ledger elsewhere.

  Attributes:
    entries: how many there are.
    head: the hash of the last one.
  """

  entries: int
  head: str


class Ledger:
  """The ledger of one run, open for reading and appending.

  Opening writes nothing, so whoever reads the ledger of a run does not disturb it. One process
  appends; it notices if another one does.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Reads and verifies what is there.

    Args:
      path: of the file; made with the first entry.

    Raises:
      LedgerError: if the chain is broken, or the file cannot be read.
    """
    self._path = pathlib.Path(path)
    self._entries: list[dict[str, Any]] = []
    try:
      data = self._path.read_bytes()
    except FileNotFoundError:
      data = b''
    except OSError as error:
      raise LedgerError(f'{self._path} cannot be read: {error.strerror}.') from error
    self._size = len(data)
    self._torn = self._verify(data)
    self._ends_line = not data or data.endswith(b'\n')

  @property
  def entries(self) -> tuple[Mapping[str, Any], ...]:
    """All entries that are on the disk."""
    return tuple(self._entries)

  @property
  def run(self) -> Mapping[str, Any] | None:
    """The entry that `begin` wrote, or None."""
    return next((entry for entry in self._entries if entry['kind'] == 'run'), None)

  @property
  def spec(self) -> DpSpec:
    """The spec that the run began with.

    Raises:
      LedgerError: if it did not begin, or what it began with is no spec.
    """
    run = self._begun()
    try:
      return DpSpec.from_json(run['spec'])
    except ValueError as error:
      raise LedgerError(f'{self._path}: {error}') from error

  @property
  def rounds(self) -> tuple[Mapping[str, Any], ...]:
    """All rounds that were started: entries with `round`, `tree` and `leaf`, and torn ones."""
    started = [entry for entry in self._entries if entry['kind'] in ('round', 'torn')]
    return tuple(started + ([{'kind': 'torn'}] if self._torn else []))

  @property
  def starts(self) -> tuple[events.Start, ...]:
    """The same, as `privacy.events` reads them."""
    places = events.Start._fields
    return tuple(events.Start(*(entry.get(place) for place in places)) for entry in self.rounds)

  @property
  def anchor(self) -> Anchor:
    """What to keep elsewhere of the ledger as it is now."""
    return Anchor(len(self._entries), _head(self._entries))

  def check_anchor(self, anchor: Anchor):
    """Verifies that the ledger goes on from where an anchor was taken.

    Raises:
      LedgerError: if it is shorter, or another one.
    """
    if len(self._entries) < anchor.entries:
      raise LedgerError(
        f'{self._path} has {len(self._entries)} entries, but had {anchor.entries}: some are gone.'
      )
    if _head(self._entries[: anchor.entries]) != anchor.head:
      raise LedgerError(
        f'{self._path}, line {anchor.entries}: it is not the entry that was here before.'
      )

  def begin(self, spec: DpSpec, config_sha256: str, **facts: Any):
    """Writes what the run promises, or verifies that it is what the ledger began with.

    Args:
      spec: of the run.
      config_sha256: digest of the settings that must not change.
      **facts: more that must not change, as JSON has it, such as `delta` and `target_epsilon`.

    Raises:
      LedgerError: if the ledger began with another promise.
      OSError: if it cannot be written.
    """
    promise = {'spec': spec.to_json(), 'config_sha256': config_sha256, **facts}
    if self.run is None:
      self._append('run', promise)
      return
    # As it was read, where a tuple is a list.
    promise = json.loads(_canonical(promise))
    before = {key: value for key, value in self.run.items() if key not in _CHAIN}
    missing = object()
    other = [
      key for key in promise | before if promise.get(key, missing) != before.get(key, missing)
    ]
    if other:
      raise LedgerError(f'{self._path} is of another run, with another {" and ".join(other)}.')

  def start_round(self, round_number: int, tree: int | None = None, leaf: int | None = None):
    """Counts a round. It is on the disk when this returns; before that, the round must not run.

    Args:
      round_number: at least 0.
      tree: of correlated noise: which draw of it, from 0; None for independent noise.
      leaf: of correlated noise: the round's place in it, from 0.

    Raises:
      LedgerError: if the run did not begin, or the round does not go with those before.
      OSError: if it cannot be written.
    """
    start = events.Start(round_number, tree, leaf)
    correlated = self.spec.is_correlated
    if any((place is not None) != correlated for place in (tree, leaf)) or round_number < 0:
      raise LedgerError(f'{self._path}: not a round under {self.spec.mechanism}: {start}.')
    if correlated:
      try:
        events.forest([*self.starts, start])
      except ValueError as error:
        raise LedgerError(f'{self._path}: {error}') from error
    self._append('round', start._asdict())

  def release(self, round_number: int):
    """Notes that what a round made is about to be seen: it is not to be made again in another way.

    Args:
      round_number: that was started.

    Raises:
      LedgerError: if it was not.
      OSError: if it cannot be written.
    """
    if round_number not in (start.round for start in self.starts):
      raise LedgerError(f'{self._path}: round {round_number} was not started.')
    self._append('release', {'round': round_number})

  @property
  def last_release(self) -> int:
    """The largest number of a round that was released; 0 if none was."""
    return max((e['round'] for e in self._entries if e['kind'] == 'release'), default=0)

  def event(self, *, amplified: bool) -> dp_accounting.DpEvent:
    """The event of all rounds that were started.

    Args:
      amplified: whether to count on the sampling.

    Raises:
      LedgerError: if the run did not begin, claims no amplification, or its rounds do not fit.
    """
    return self._event(self.starts, amplified)

  def _event(self, starts: Sequence[events.Start], amplified: bool) -> dp_accounting.DpEvent:
    try:
      return events.started_event(self.spec, starts, amplified=amplified)
    except ValueError as error:
      raise LedgerError(f'{self._path}: {error}') from error

  def _begun(self) -> Mapping[str, Any]:
    if self.run is None:
      raise LedgerError(f'{self._path}: the run did not begin.')
    return self.run

  def _append(self, kind: str, fields: Mapping[str, Any]):
    """Writes an entry, after one about a torn line if there is one."""
    end_of_line = b'' if self._ends_line else b'\n'
    entries = list(self._entries)
    if self._torn:
      cut = self._torn + end_of_line
      entries.append(_entry(entries, 'torn', {'bytes': len(cut), 'sha256': _sha256(cut)}))
    entries.append(_entry(entries, kind, fields))
    lines = [_canonical(entry) + b'\n' for entry in entries[len(self._entries) :]]
    data = end_of_line + b''.join(lines)
    # After a failure the size is another one, and the next attempt is refused.
    self._write(data)
    self._entries, self._size = entries, self._size + len(data)
    self._torn, self._ends_line = b'', True

  def _write(self, data: bytes):
    file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
      if os.fstat(file).st_size != self._size:
        raise LedgerError(f'{self._path} changed since it was read.')
      while data:
        data = data[os.write(file, data) :]
      os.fsync(file)
    finally:
      os.close(file)
    if self._size == 0:
      # A new file is lost with the power if its directory is not on the disk too.
      directory = os.open(self._path.parent, os.O_RDONLY)
      try:
        os.fsync(directory)
      finally:
        os.close(directory)

  def _verify(self, data: bytes) -> bytes:
    """Takes in the entries; returns what was cut short at the end."""
    torn = b''
    for number, line in enumerate(io.BytesIO(data), 1):
      try:
        # Every byte is a letter here, so that none can hide where an object ends.
        entry = json.loads(line.decode('latin-1'))
      except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == 'Extra data':
          raise self._broken(number, 'more than one entry') from error
        torn += line
        continue
      if not _follows(self._entries, entry, line.removesuffix(b'\n')):
        raise self._broken(number, 'not the entry that was written after the one before')
      if torn and (entry['kind'], entry.get('sha256')) != ('torn', _sha256(torn)):
        raise self._broken(number - 1, 'not an entry')
      self._entries.append(entry)
      torn = b''
    return torn

  def _broken(self, number: int, reason: str) -> LedgerError:
    return LedgerError(f'{self._path}, line {number}: {reason}. The ledger was changed.')


def _entry(before: Sequence[Mapping[str, Any]], kind: str, fields: Mapping[str, Any]):
  """The next entry."""
  # No time of day: how long a round took tells how many clients came.
  today = datetime.datetime.now(datetime.UTC).date().isoformat()
  place = {'index': len(before), 'kind': kind, 'date': today, 'previous': _head(before)}
  body = dict(**place, **fields)
  return {**body, 'hash': _sha256(_canonical(body))}


def _follows(before: Sequence[Mapping[str, Any]], entry: Any, line: bytes) -> bool:
  """Whether a line, which says `entry`, is the next entry as it was written."""
  if not isinstance(entry, dict) or not entry.keys() >= _CHAIN:
    return False
  body = {key: entry[key] for key in entry if key != 'hash'}
  try:
    as_written = line == _canonical(entry) and entry['hash'] == _sha256(_canonical(body))
  except ValueError:
    return False
  return as_written and (entry['index'], entry['previous']) == (len(before), _head(before))


def _head(entries: Sequence[Mapping[str, Any]]) -> str:
  return entries[-1]['hash'] if entries else _BEFORE_ALL


def _canonical(value: Any) -> bytes:
  """The one form in which JSON is hashed and written."""
  return json.dumps(value, sort_keys=True, separators=(',', ':'), allow_nan=False).encode('ascii')


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
