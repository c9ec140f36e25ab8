# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""From a generator of records to the data of a task, for any number of clients.

The records are read once, into a store in the cache; a later run with the same files, fields and
code opens that. Caps, splits and the seed are no part of it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tasks import dp_settings, federated_text, records, text_store
from tasks.errors import UserError
from tasks.federated_text import FederatedText, Kind
from tasks.task import Request

Entry = records.Record | records.BadRecord | records.LeftOut

_SPLITS = ('train', 'validation', 'test')
# What generators read of a configuration, and what decides which of their records are kept.
_KEYS = (
  'client_field', 'text_field', 'source_field', 'target_field', 'label_field', 'id_field',
  'labels', 'skip_bad_records',
)  # fmt: skip
_MAX_LABELS = 1000
_SECONDS_BETWEEN_WORDS = 5.0
_RECORDS_BETWEEN_CLOCKS = 1000
# Characters that a message says of a problem or a label: both may quote the data.
_MOST_OF_PROBLEM, _MOST_OF_LABEL = 300, 40


def load(
  request: Request,
  name: str,
  entries: Callable[[], Iterator[Entry]],
  sources: Sequence[pathlib.Path],
  *,
  kind: Kind = Kind.PAIR,
  shares_clients: bool = False,
) -> FederatedText:
  """Loads a task whose records are in files.

  Args:
    request: what the task was loaded with. Clients with fewer than `min_examples` examples, in all
      splits together, are left out; `max_examples` caps each client in each split.
    name: of the task.
    entries: makes a generator of the records. They all name their split, or none does: clients are
      then split 80 : 10 : 10 by the seed. It is not called where the cache has its records.
    sources: the files that it reads.
    kind: what is learned of an example. Labels are those that the configuration lists, else all
      distinct targets, sorted.
    shares_clients: whether a client may be in several splits.

  Raises:
    UserError: for a bad record, unless they are skipped and counted; if no client is left; and in
      a private run, if an id is of two clients.
  """
  store = _open(request, name, entries, sources, kind)
  shared = store.facts['shared_id']
  if shared and dp_settings.is_private(request.config):
    # A record skipped for another client's would make the data of one depend on the other.
    raise UserError(f'{shared}, of another client, which no private run may skip; mend it.')
  left_out = list(store.facts['left_out'])
  clients = _clients(request, store, left_out)
  if not clients['train']:
    raise UserError(
      f'--data-dir {request.config.data_dir}: --task {name} finds no client to train with '
      f'--min-examples {request.config.min_examples} there. {" ".join(left_out)}'.rstrip()
    )
  return FederatedText(
    name,
    **clients,
    kind=kind,
    labels=_labels(request, store, name) if kind is Kind.LABEL else (),
    shares_clients=shares_clients,
    left_out=tuple(left_out),
  )


def _open(request: Request, name: str, entries, sources, kind: Kind) -> text_store.TextStore:
  """The store of these sources, written now if need be."""
  settings = {key: getattr(request.config, key) for key in _KEYS}
  place = _digest(name, kind.value, settings, [str(path.absolute()) for path in sources])
  path = request.cache / 'text' / f'{name}-{place[:16]}.sqlite'
  made_of = _made_of(entries, sources)
  try:
    store = _opened(path, made_of)
    if store is None:
      say_wait = functools.partial(request.say, f'Another run is reading the data of {name} ...')
      with text_store.locked(path, say_wait):
        store = _opened(path, made_of)
        if store is None:
          _write(request, path, made_of, entries, sources, kind)
          store = text_store.TextStore(path)
  except (OSError, sqlite3.Error) as error:
    raise UserError(
      f'The cache {path.parent} cannot be used: {error}; set HETLORA_CACHE to another directory, '
      'and SQLITE_TMPDIR if the temporary one is full.'
    ) from error
  return store


def _opened(path: pathlib.Path, made_of: str) -> text_store.TextStore | None:
  if not path.exists():
    return None
  # A damaged one is written anew.
  with contextlib.suppress(OSError, sqlite3.Error, ValueError, KeyError):
    store = text_store.TextStore(path)
    if store.facts['made_of'] == made_of:
      return store
  return None


def _write(request: Request, path, made_of: str, entries, sources, kind: Kind) -> None:
  reader = _Reader(request, kind)

  def facts() -> dict[str, Any]:
    if _made_of(entries, sources) != made_of:
      raise UserError(
        f'--data-dir {request.config.data_dir} changed while it was read; start again when nobody '
        'writes to it.'
      )
    return {'made_of': made_of, **reader.facts()}

  text_store.write_store(path, reader.rows(entries()), facts)


class _Reader:
  """Goes over the records once: refuses or counts the bad ones."""

  def __init__(self, request: Request, kind: Kind):
    self._request = request
    self._is_labelled = kind is Kind.LABEL
    self._bad: collections.Counter[str] = collections.Counter()
    self._left_out: collections.Counter[str] = collections.Counter()
    self._targets: set[str] = set()
    self._shared_id = ''
    # On disk beyond SQLite's cache of a few megabytes, and gone with the connection.
    self._keys = sqlite3.connect('')
    self._keys.execute(
      'CREATE TABLE keys (key TEXT PRIMARY KEY, place TEXT, client TEXT) WITHOUT ROWID'
    )

  def facts(self) -> dict[str, Any]:
    """What there is to say once all is read."""
    counted = ', '.join(f'{problem} ({n:,})' for problem, n in self._bad.most_common())
    bad = [f'Bad records skipped: {counted}.'] if counted else []
    others = [f'{reason}: {n:,}.' for reason, n in self._left_out.most_common()]
    return {
      'left_out': bad + others,
      'labels': sorted(self._targets),
      'shared_id': self._shared_id,
    }

  def rows(self, entries: Iterable[Entry]) -> Iterator[text_store.Row]:
    """The rows of the good records."""
    for entry in self._with_progress(entries):
      if isinstance(entry, records.Record):
        client, example, split, key, _ = entry
        if key is not None and self._repeats(entry):
          continue
        if self._is_labelled and len(self._targets) <= _MAX_LABELS:
          self._targets.add(example.target)
        yield text_store.Row(client, split or '', example.source, example.target, example.head)
      elif isinstance(entry, records.BadRecord):
        self._refuse(entry)
      else:
        self._left_out[entry.reason] += 1

  def _refuse(self, bad: records.BadRecord) -> None:
    if not self._request.config.skip_bad_records:
      raise UserError(
        f'{_sentence(bad)}; {bad.mend or "mend it"}, or --skip-bad-records counts and skips such '
        'records.'
      )
    self._bad[bad.problem.partition(':')[0]] += 1

  def _repeats(self, record: records.Record) -> bool:
    """Whether the key was there before, which is bad; if not, it is kept."""
    row = (record.key, record.where, record.client)
    if self._keys.execute('INSERT OR IGNORE INTO keys VALUES (?, ?, ?)', row).rowcount:
      return False
    query = 'SELECT place, client FROM keys WHERE key = ?'
    place, client = self._keys.execute(query, row[:1]).fetchone()
    bad = records.BadRecord(record.where, f'repeats an id: {record.key!r} is of {place}')
    self._refuse(bad)
    if client != record.client:
      self._shared_id = self._shared_id or _sentence(bad)
    return True

  def _with_progress(self, entries: Iterable[Entry]) -> Iterator[Entry]:
    said = time.monotonic()
    for number, entry in enumerate(entries):
      if number % _RECORDS_BETWEEN_CLOCKS == 0 and time.monotonic() > said + _SECONDS_BETWEEN_WORDS:
        said = time.monotonic()
        self._request.say(f'Reading {self._request.config.task}: {number:,} records so far ...')
      yield entry


def _sentence(bad: records.BadRecord) -> str:
  """What is wrong and where, without what would move a terminal's cursor."""
  problem = records.shortened(bad.problem, _MOST_OF_PROBLEM)
  return ''.join(c if c.isprintable() else '?' for c in f'{bad.where}: {problem}')


def _clients(
  request: Request, store: text_store.TextStore, left_out: list[str]
) -> dict[str, text_store.StoredClients]:
  """The clients of each split; what was left out of them is added to `left_out`."""
  least, most = request.config.min_examples, request.config.max_examples
  sizes: dict[str, dict[str, int]] = collections.defaultdict(dict)
  small, beyond = [], 0
  for client, group in itertools.groupby(store.sizes(), lambda row: row[0]):
    counts = [(split, count) for _, split, count in group]
    total = sum(count for _, count in counts)
    if total < least:
      small.append(total)
      continue
    for split, count in counts:
      sizes[split][client] = min(count, most)
      beyond += max(0, count - most)
  if small:
    left_out.append(
      f'Clients with fewer than {least} examples (--min-examples): {len(small):,}, with '
      f'{sum(small):,} examples.'
    )
  if beyond:
    left_out.append(f'Examples beyond the first {most} of a client (--max-examples): {beyond:,}.')
  everybody = sizes.pop('', None)
  if everybody is None:
    return {split: text_store.StoredClients(store, split, sizes[split]) for split in _SPLITS}
  parts = federated_text.split_clients(list(everybody), request.config.seed)
  return {
    split: text_store.StoredClients(store, '', {client: everybody[client] for client in sorted(p)})
    for split, p in zip(_SPLITS, parts, strict=True)
  }


def _labels(request: Request, store: text_store.TextStore, name: str) -> tuple[str, ...]:
  if request.config.labels:
    return request.config.labels
  found = tuple(store.facts['labels'])
  if len(found) in range(2, _MAX_LABELS + 1):
    return found
  shown = records.shortened(repr(found[0]), _MOST_OF_LABEL)
  what = f'more than {_MAX_LABELS} labels' if found[1:] else f'one label, {shown}'
  raise UserError(f'--task {name} finds {what} there; is --label-field the right one?')


def _made_of(entries: Callable, sources: Sequence[pathlib.Path]) -> str:
  """A digest of what the store follows from: files as they are now, and code."""
  while isinstance(entries, functools.partial):
    entries = entries.func
  try:
    status = [path.stat() for path in sources]
  except OSError as error:
    raise UserError(f'Cannot read {error.filename}: {error.strerror}.') from error
  modules = (*map(inspect.getmodule, (entries, load)), records, text_store, federated_text)
  code = [inspect.getsource(module) for module in modules if module is not None]
  # A copy may keep the time of the last change, but not that of the inode's.
  return _digest([(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in status], code)


def _digest(*parts: Any) -> str:
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
