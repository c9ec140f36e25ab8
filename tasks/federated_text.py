# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What every task hands to the program: examples of text, by client and by split."""

from __future__ import annotations

import bisect
import dataclasses
import enum
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_SPLITS = ('train', 'validation', 'test')
_HELD_OUT_SHARE = 0.1


class Example(NamedTuple):
  """One thing to learn: `target` is to be written after `source` was read.

  Attributes:
    source: the text that conditions the model; may be empty.
    target: the text the loss is taken over, or a label.
    head: text before the source that stays where the source is too long and cut.
  """

  source: str
  target: str
  head: str = ''


class Kind(enum.Enum):
  """What is to be learned of an example."""

  PAIR = 'pair'  # To write the target after the source.
  TEXT = 'text'  # To go on with the target, word by word; there is no source.
  LABEL = 'label'  # To name the source's label, the target.


@dataclasses.dataclass(frozen=True)
class FederatedText:
  """A data set of text whose unit is the client.

  Attributes:
    name: the task's name, as on the command line.
    train: examples of the clients that train, keyed by client id; may be read when asked for.
    validation: examples of the clients that tuning may look at.
    test: examples of the clients that neither training nor tuning uses.
    kind: what is learned of an example.
    labels: of `Kind.LABEL`, all there are; a label's place is its number.
    shares_clients: whether held-out text may be of clients that train: what they wrote later.
    left_out: sentences about records and clients that were left out, and what else to know of the
      data.

  Raises:
    ValueError: if a client is in two splits, a client has no example, nobody trains, or a label is
      unknown.
  """

  name: str
  train: Mapping[str, Sequence[Example]]
  validation: Mapping[str, Sequence[Example]]
  test: Mapping[str, Sequence[Example]]
  kind: Kind = Kind.PAIR
  labels: tuple[str, ...] = ()
  shares_clients: bool = False
  left_out: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.train:
      raise ValueError(f'train of task {self.name!r} has no clients; at least one must train.')
    if (self.kind is Kind.LABEL) != (len(self.labels) > 1):
      raise ValueError(
        f'task {self.name!r} has labels {self.labels}; labels take two, others none.'
      )
    for number, split in enumerate(_SPLITS):
      others = () if self.shares_clients else _SPLITS[:number]
      for client, size in sizes(self.split(split)).items():
        for other in others:
          if client in self.split(other):
            raise ValueError(
              f'client {client!r} of task {self.name!r} is in both {other} and {split}; '
              'give it to one split.'
            )
        if not size:
          raise ValueError(f'client {client!r} of task {self.name!r} has no example; leave it out.')

  def split(self, name: str) -> Mapping[str, Sequence[Example]]:
    """The clients of `train`, `validation` or `test`."""
    return getattr(self, name)

  @property
  def sha256(self) -> str:
    """One digest of all clients, splits and texts; the order of the clients does not matter."""
    digest = hashlib.sha256()
    for split in _SPLITS:
      clients = self.split(split)
      stored = getattr(clients, 'sha256', None)
      for part in _described(clients) if stored is None else [stored]:
        digest.update(json.dumps([split, part]).encode())
    return digest.hexdigest()


def sizes(clients: Mapping[str, Sequence[Example]]) -> Mapping[str, int]:
  """Number of examples by client; a mapping that reads texts when asked knows without reading."""
  known = getattr(clients, 'sizes', None)
  if known is not None:
    return known
  return {client: len(examples) for client, examples in clients.items()}


def split_clients(names: Sequence[str], seed: int) -> tuple[list[str], list[str], list[str]]:
  """Divides clients into about 80 % that train and 10 % each for validation and test.

  Each client's place follows from its own name and the seed: one more or less moves no other, as
  differential privacy by add-or-remove-one supposes.

  Args:
    names: of the clients; their order does not matter.
    seed: of the draw.

  Returns:
    Train, validation and test, each with somebody in it where there are three clients or more; for
    that, among a few, the next ones have to move. Fewer than three all train.
  """
  if len(names) < len(_SPLITS):
    return sorted(names), [], []
  place = functools.partial(_place, seed=seed)
  order = sorted(sorted(names), key=place)
  first, second = (bisect.bisect_left(order, n * _HELD_OUT_SHARE, key=place) for n in (1, 2))
  first = min(max(first, 1), len(order) - 2)
  second = min(max(second, first + 1), len(order) - 1)
  return order[second:], order[:first], order[first:second]


def _place(name: str, seed: int) -> float:
  """A number in [0, 1) that looks drawn."""
  return int.from_bytes(hashlib.sha256(f'{seed} {name}'.encode()).digest()[:8]) / 2**64


def _described(clients: Mapping[str, Sequence[Example]]) -> Iterator[list]:
  for client, examples in sorted(clients.items()):
    yield [client, *([example.head, example.source, example.target] for example in examples)]
