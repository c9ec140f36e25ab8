# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Two sets of what people wrote as tasks: a chat of Ubuntu users, and Shakespeare's characters.

    hetlora train --task benchmarks.real_text:IRC --data-dir messages.jsonl.gz \
      --truncate-source start --min-examples 20 --output-dir runs/irc
    hetlora train --task benchmarks.real_text:SHAKESPEARE --data-dir speeches.jsonl.gz ...

IRC is the irc-disentanglement corpus (Kummerfeld et al., ACL 2019) as JSON lines of day, nick and
text, in the order of the channel; Shakespeare has a speech a line, with play, act, scene, speaker
and text. Without the turns before, both are read by `--task text_jsonl`, too.

Clients talk to each other, so what a held-out one says is in the sources of some that train: no
loss is taken on it there, but it was read. What one says in answer is what is measured.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator

from tasks import records, stored_text
from tasks.federated_text import Example, FederatedText
from tasks.records import BadRecord, Record
from tasks.task import Request


@dataclasses.dataclass(frozen=True)
class Conversation:
  """A task: the turns before -> the next turn. Clients are those who speak.

  Attributes:
    name: of the task.
    description: one line for `hetlora tasks`.
    scene: the fields in which turns agree that answer each other.
    client: the fields that say whose turn it is; a turn before is told with the last of them.
    turns_before: most turns in a source.
  """

  name: str
  description: str
  scene: tuple[str, ...]
  client: tuple[str, ...]
  turns_before: int

  def load(self, request: Request) -> FederatedText:
    """Makes the data of a run."""
    files = records.data_files(request.config, ['*.jsonl', '*.jsonl.gz'])
    return stored_text.load(request, self.name, functools.partial(self.turns, files), files)

  def turns(self, files: list[pathlib.Path]) -> Iterator[Record | BadRecord]:
    """The turns of all files; the first of a scene answers nobody, and is only a source."""
    before: collections.deque[str] = collections.deque(maxlen=self.turns_before)
    last_scene = None
    for file in files:
      for line in records.json_lines(file):
        if isinstance(line, BadRecord):
          yield line
          continue
        where, value = line
        client = records.identity(value, self.client, where)
        text = records.field(value, 'text', where)
        if isinstance(client, BadRecord):
          yield client
        elif isinstance(text, BadRecord):
          yield text
        else:
          scene = [file, *(value.get(name) for name in self.scene)]
          if scene != last_scene:
            before.clear()
            last_scene = scene
          if before:
            yield Record(client, Example('\n'.join(before), text))
          before.append(f'{value[self.client[-1]]}: {text}')


IRC = Conversation(
  'irc',
  'Messages before, of that day -> the next one, on an IRC channel of Ubuntu users.',
  scene=('day',),
  client=('nick',),
  turns_before=3,
)
SHAKESPEARE = Conversation(
  'shakespeare',
  "The speech before -> a character's answer, in the plays of Shakespeare.",
  scene=('play', 'act', 'scene'),
  client=('play', 'speaker'),
  turns_before=1,
)
