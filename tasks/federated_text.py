# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What every task hands to the program: examples of text, by client and by split."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Example(NamedTuple):
  """One thing to learn: `target` is to be written after `source` was read.

  Attributes:
    source: the text that conditions the model; may be empty.
    target: the text the loss is taken over.
  """

  source: str
  target: str


@dataclasses.dataclass(frozen=True)
class FederatedText:
  """A data set of text whose unit is the client.

  Attributes:
    name: the task's name, as on the command line.
    train: examples of the clients that train, keyed by client id.
    validation: examples of the clients that tuning may look at.
    test: examples of the clients that neither training nor tuning uses.

  Raises:
    ValueError: if a client is in two splits, a client has no example, or nobody trains.
  """

  name: str
  train: Mapping[str, Sequence[Example]]
  validation: Mapping[str, Sequence[Example]]
  test: Mapping[str, Sequence[Example]]

  def __post_init__(self):
    if not self.train:
      raise ValueError(f'train of task {self.name!r} has no clients; at least one must train.')
    seen: dict[str, str] = {}
    for split in ('train', 'validation', 'test'):
      for client, examples in getattr(self, split).items():
        if client in seen:
          raise ValueError(
            f'client {client!r} of task {self.name!r} is in both {seen[client]} and {split}; '
            'give it to one split.'
          )
        if not examples:
          raise ValueError(f'client {client!r} of task {self.name!r} has no example; leave it out.')
        seen[client] = split

  @property
  def sha256(self) -> str:
    """One digest of all clients, splits and texts; the order of the clients does not matter."""
    digest = hashlib.sha256()
    for split in ('train', 'validation', 'test'):
      for client, examples in sorted(getattr(self, split).items()):
        texts = [[example.source, example.target] for example in examples]
        digest.update(json.dumps([split, client, texts]).encode())
    return digest.hexdigest()
