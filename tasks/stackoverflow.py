# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stack Overflow of TFF: running text, whose clients are the people who asked and answered.

Those of TFF's set `train` train; those of its set `heldout`, other people, are divided between
`validation` and `test`. Its own set `test`, what the first wrote later, is not used.

The text of a person is read when asked for, from the SQLite file itself: TFF's `ClientData` builds
a `tf.data` pipeline for each, which took 44-75 ms where this takes 0.6 (96 sentences, 2 cores).
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.client
import json
import lzma
import pathlib
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf
import tensorflow_federated as tff
from google.protobuf import message

from tasks.errors import UserError
from tasks.federated_text import Example, FederatedText, Kind
from tasks.task import Request

NAME = 'stackoverflow'

# As TFF names it.
_FILE = 'stackoverflow.sqlite'
_BROKEN_DOWNLOAD = (
  OSError, http.client.HTTPException, lzma.LZMAError, sqlite3.Error, tf.errors.OpError,
)  # fmt: skip


def load_stackoverflow(request: Request) -> FederatedText:
  """Loads the task; TFF downloads the data on the first call.

  Args:
    request: its `max_examples` is read; `data_dir` is where the data are or are to be, by default
      in the cache.

  Raises:
    tasks.errors.UserError: if the data cannot be downloaded or read.
  """
  path = _file(request)
  if not path.is_file():
    request.say(f'Downloading Stack Overflow, many gigabytes, to {path} ...')
    _download(path)
  sizes = _sizes(path)
  # Every second one: nobody is in both, and nothing is to be drawn.
  held_out = sorted(sizes['heldout'])
  parts = sorted(sizes['train']), held_out[1::2], held_out[::2]
  most = request.config.max_examples
  train, validation, test = (
    UserTexts(path, {name: min(sizes[split][name], most) for name in part}, split)
    for split, part in zip(('train', 'heldout', 'heldout'), parts, strict=True)
  )
  left_out = ["TFF's set of what the same people wrote later is not used."]
  beyond = sum(max(0, size - most) for users in sizes.values() for size in users.values())
  if beyond:
    left_out.append(f'Examples beyond the first {most} of a client (--max-examples): {beyond:,}.')
  return FederatedText(
    NAME,
    train=train,
    validation=validation,
    test=test,
    kind=Kind.TEXT,
    left_out=tuple(left_out),
  )


class UserTexts(Mapping[str, Sequence[Example]]):
  """Texts by person, read when asked for.

  Args:
    path: of TFF's SQLite file.
    sizes: how many sentences of whom, the first ones.
    split: TFF's set of people.
  """

  def __init__(self, path: pathlib.Path, sizes: Mapping[str, int], split: str):
    self._path = path
    self._sizes = sizes
    self._split = split

  @property
  def sizes(self) -> Mapping[str, int]:
    """Number of sentences by person."""
    return self._sizes

  @property
  def sha256(self) -> str:
    """A digest of whose and how many sentences these are: what they say is TFF's, not ours."""
    described = [self._split, sorted(self._sizes.items())]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()

  def __getitem__(self, name: str) -> tuple[Example, ...]:
    query = (
      'SELECT serialized_example_proto FROM examples WHERE client_id = ? AND split_name = ? '
      'ORDER BY rowid LIMIT ?'
    )
    rows = _query(self._path, query, (name, self._split, self._sizes[name]))
    try:
      return tuple(Example('', _tokens(row)) for (row,) in rows)
    except (message.DecodeError, IndexError, TypeError) as error:
      raise _broken(self._path, f'{name!r} has a record without tokens') from error

  def __iter__(self) -> Iterator[str]:
    return iter(self._sizes)

  def __len__(self) -> int:
    return len(self._sizes)

  def __contains__(self, name: object) -> bool:
    return name in self._sizes


def _tokens(serialized: bytes) -> str:
  features = tf.train.Example.FromString(serialized).features.feature
  return features['tokens'].bytes_list.value[0].decode(errors='replace')


def _file(request: Request) -> pathlib.Path:
  if request.config.data_dir is None:
    return request.cache / NAME / _FILE
  given = pathlib.Path(request.config.data_dir)
  if given.is_file() and given.name != _FILE:
    raise UserError(f'--data-dir {given}: it must be {_FILE}, or the directory to keep it in.')
  return given if given.name == _FILE else given / _FILE


def _download(path: pathlib.Path) -> None:
  """Has TFF download the file, elsewhere at first: it would take half a file for a whole one."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='download-', dir=path.parent) as directory:
      tff.simulation.datasets.stackoverflow.load_data(directory)
      (pathlib.Path(directory) / _FILE).replace(path)
  except _BROKEN_DOWNLOAD as error:
    raise UserError(
      f'--task {NAME}: the data cannot be downloaded to {path.parent} '
      f'({getattr(error, "reason", error)}); --data-dir may name a directory that has {_FILE}.'
    ) from error


def _sizes(path: pathlib.Path) -> dict[str, dict[str, int]]:
  """Number of sentences of each person, by TFF's sets of people who train and who do not."""
  query = 'SELECT split_name, client_id, num_examples FROM client_metadata WHERE num_examples > 0'
  found: dict[str, dict[str, int]] = collections.defaultdict(dict)
  for split, name, size in _query(path, query):
    found[split][name] = size
  for split in ('train', 'heldout'):
    if split not in found:
      raise _broken(path, f'nobody is in the set {split!r}')
  return {split: found[split] for split in ('train', 'heldout')}


def _query(path: pathlib.Path, query: str, values: Sequence = ()) -> list[tuple]:
  """Asks by a connection of its own: whoever reads may do so in any thread."""
  try:
    uri = f'{path.absolute().as_uri()}?mode=ro'
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
      return connection.execute(query, values).fetchall()
  except sqlite3.Error as error:
    raise _broken(path, str(error)) from error


def _broken(path: pathlib.Path, problem: str) -> UserError:
  return UserError(
    f'{path} is not the Stack Overflow of TFF ({problem}); delete it to have it downloaded.'
  )
