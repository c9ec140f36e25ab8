# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Examples of many clients in one SQLite file: written once, read by client when asked for.

What is held in memory of a client is its name and how many examples it has.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.errors import UserError
from tasks.federated_text import Example

_TABLES = """
  PRAGMA journal_mode = OFF;
  PRAGMA synchronous = OFF;
  CREATE TABLE facts (json TEXT NOT NULL);
  CREATE TABLE examples (
    client TEXT NOT NULL, split TEXT NOT NULL,
    source TEXT NOT NULL, target TEXT NOT NULL, head TEXT NOT NULL
  );
"""
# Within equal keys, an index is in the order of insertion.
_INDEX = 'CREATE INDEX by_client ON examples (client, split)'
_SIZES = """
  SELECT client, split, count(*) FROM examples GROUP BY client, split ORDER BY client, split
"""
_READ = """
  SELECT source, target, head FROM examples WHERE client = ? AND split = ? ORDER BY rowid LIMIT ?
"""


class Row(NamedTuple):
  """What is stored of an example; `split` may be empty."""

  client: str
  split: str
  source: str
  target: str
  head: str


class TextStore:
  """A finished store, open for reading; the file may be replaced or removed meanwhile.

  Attributes:
    facts: what `write_store` was given, and `sha256`, a digest of all rows.
  """

  def __init__(self, path: pathlib.Path):
    """Opens it.

    Raises:
      sqlite3.Error, ValueError: if it is missing or damaged.
    """
    self._path = path
    # Nobody ever writes to it: no locks, so that others may read it at the same time.
    uri = f'{path.absolute().as_uri()}?mode=ro&immutable=1'
    self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    pages, bytes_per_page = (
      self._connection.execute(f'PRAGMA {name}').fetchone()[0]
      for name in ('page_count', 'page_size')
    )
    if path.stat().st_size != pages * bytes_per_page:
      raise ValueError(f'{path} is not as long as it was.')
    ((facts,),) = self._connection.execute('SELECT json FROM facts')
    self.facts: Mapping[str, Any] = json.loads(facts)

  def sizes(self) -> Iterator[tuple[str, str, int]]:
    """Client, split and number of examples, sorted by both names.

    Raises:
      UserError: naming the file, if it is damaged.
    """
    return self._query(_SIZES)

  def read(self, client: str, split: str, limit: int) -> list[Example]:
    """The first examples of a client in a split, in the order in which they were written.

    Raises:
      UserError: naming the file, if it is damaged.
    """
    return [Example(*row) for row in self._query(_READ, client, split, limit)]

  def _query(self, query: str, *values: Any) -> Iterator[tuple]:
    try:
      yield from self._connection.execute(query, values)
    except sqlite3.Error as error:
      raise UserError(f'{self._path} is damaged ({error}); remove it to read the data anew.') from (
        error
      )


class StoredClients(Mapping[str, Sequence[Example]]):
  """Clients of a store whose examples are read each time they are asked for.

  Attributes:
    sizes: the number of examples by client, in the order of the names.
  """

  def __init__(self, store: TextStore, split: str, sizes: Mapping[str, int]):
    """Takes the first `sizes[client]` examples of each client in that split of the store."""
    self._store = store
    self._split = split
    self.sizes = sizes

  def __getitem__(self, client: str) -> Sequence[Example]:
    return self._store.read(client, self._split, self.sizes[client])

  def __contains__(self, client: object) -> bool:
    return client in self.sizes

  def __iter__(self) -> Iterator[str]:
    return iter(self.sizes)

  def __len__(self) -> int:
    return len(self.sizes)

  @property
  def sha256(self) -> str:
    """A digest of the whole store and of what is taken of it; no text is read."""
    digest = hashlib.sha256(f'{self._store.facts["sha256"]} {self._split}'.encode())
    digest.update(json.dumps(list(self.sizes.items())).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: pathlib.Path, wait: Callable[[], None]) -> Iterator[None]:
  """Holds the right to write a store; the directory is made, for its owner alone.

  Args:
    path: of the store.
    wait: called before waiting for another process that writes it.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  path.parent.chmod(0o700)
  with open(path.with_suffix('.lock'), 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      wait()
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def write_store(
  path: pathlib.Path, rows: Iterable[Row], facts: Callable[[], Mapping[str, Any]]
) -> None:
  """Writes a store, all of it or nothing; whoever writes has it `locked`.

  Args:
    path: the file; what was there before is replaced.
    rows: read once; no more than one of them is held.
    facts: asked for once the rows are read; JSON.

  Raises:
    OSError, sqlite3.Error: if it cannot be written.
  """
  draft = path.with_suffix('.draft')
  draft.unlink(missing_ok=True)  # Of one that was killed.
  try:
    with contextlib.closing(sqlite3.connect(draft)) as connection:
      connection.executescript(_TABLES)
      digest = hashlib.sha256()
      connection.executemany('INSERT INTO examples VALUES (?, ?, ?, ?, ?)', _digested(rows, digest))
      connection.execute(_INDEX)
      content = json.dumps({**facts(), 'sha256': digest.hexdigest()})
      connection.execute('INSERT INTO facts VALUES (?)', (content,))
      connection.commit()
    with draft.open('rb') as file:
      os.fsync(file.fileno())
    os.replace(draft, path)
  finally:
    draft.unlink(missing_ok=True)


def _digested(rows: Iterable[Row], digest: Any) -> Iterator[Row]:
  """The same rows, each taken into the digest as it passes."""
  for row in rows:
    digest.update(ascii(tuple(row)).encode())
    yield row
