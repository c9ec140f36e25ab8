# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-Session Chat (Xu, Szlam, Weston 2022) as ParlAI ships it: the next response of a speaker.

A client is a speaker of a conversation, which goes on over up to five sessions. The speakers of
`train.txt` train on all sessions of theirs but the last, which is held out: their later text is
`test`. The speakers of `valid.txt` never train; `validation` is their last session. Those of
`test.txt` would mix strangers into `test` and are not read.

The head of an example is the speaker's own persona, its source the turns of this session before the
response. No later text is in it: `personas` of a session sum up the sessions before it.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tasks import records, stored_text
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.federated_text import Example, FederatedText
from tasks.task import Request

NAME = 'multi_session_chat'

# The first session was written for another data set, with other names.
_SPEAKERS = {'speaker 1': 0, 'speaker 2': 1, 'bot_0': 0, 'bot_1': 1}
_LAYOUTS = ('', 'msc_dialogue/', 'msc/msc_dialogue/')
_ID = 'initial_data_id'


class _Episode(NamedTuple):
  """One session of a conversation: who said what, and their personas, by speaker."""

  where: str
  conversation: str
  turns: list[tuple[int, str]]
  personas: tuple[str, str]


class _Files(NamedTuple):
  """The sessions' files, in the order of the sessions."""

  train: list[pathlib.Path]
  valid: list[pathlib.Path]
  test: list[pathlib.Path]


def load_multi_session_chat(request: Request) -> FederatedText:
  """Loads the task from `--data-dir`.

  That is the directory of `session_1`, `session_2`, ..., or `msc` above it: ParlAI keeps sessions
  from the second on in `msc_dialogue`, and the first in `msc_personasummary`.

  Args:
    request: its `data_dir`, caps and `skip_bad_records` are read.

  Raises:
    tasks.errors.UserError: if a file or record cannot be used, or there is only one session.
  """
  files = _find(request.config)
  return stored_text.load(
    request,
    NAME,
    functools.partial(_entries, files),
    files.train + files.valid,
    shares_clients=True,
  )


def _find(config: RunConfig) -> _Files:
  patterns = [f'{layout}session_[1-5]/train.txt' for layout in _LAYOUTS]
  path = records.data_files(config, patterns)[0]
  if path == pathlib.Path(config.data_dir):
    raise UserError(f'--data-dir {path} is a file; name the directory of session_1, session_2, ...')
  root = path.parents[1]
  files = _Files(*(_sessions_of(root, split) for split in _Files._fields))
  if len(files.train) < 2:
    raise UserError(
      f'--data-dir {config.data_dir}: {path} is the only session; the last one of a conversation '
      'is held out, so it takes another.'
    )
  return files


def _sessions_of(root: pathlib.Path, split: str) -> list[pathlib.Path]:
  found = sorted(root.glob(f'session_[1-5]/{split}.txt'))
  first = root.with_name('msc_personasummary') / 'session_1' / f'{split}.txt'
  apart = root.name == 'msc_dialogue' and first.is_file()
  return [first, *found] if apart and root / 'session_1' / first.name not in found else found


def _entries(files: _Files) -> Iterator[stored_text.Entry]:
  trained = _sessions(files.train)
  for path in files.train:
    for episode in _episodes(path):
      if isinstance(episode, records.BadRecord):
        yield episode
        continue
      sessions = trained[episode.conversation]
      if len(sessions) > 1:
        yield from _responses(episode, 'test' if path == sessions[-1] else 'train')
        continue
      for _ in {speaker for speaker, _ in episode.turns}:
        yield records.LeftOut('Speakers with one session, and so no later one to hold out')
  yield from _held_out(files.valid, trained)
  for _ in files.test:
    yield records.LeftOut('Files test.txt, not read, as their speakers do not train')


def _held_out(paths: Sequence[pathlib.Path], trained: dict) -> Iterator[stored_text.Entry]:
  held_out = _sessions(paths)
  for path in paths:
    for episode in _episodes(path):
      if isinstance(episode, records.BadRecord):
        yield episode
      elif episode.conversation in trained:
        yield records.BadRecord(
          episode.where,
          f'has the {_ID} of speakers who train: {episode.conversation!r} is also in '
          f'{trained[episode.conversation][0]}',
          'keep one of them',
        )
      elif path == held_out[episode.conversation][-1]:
        yield from _responses(episode, 'validation')
      else:
        yield records.LeftOut('Sessions of valid.txt that are not the last of a conversation')


def _sessions(paths: Sequence[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
  """The files that hold a conversation. It is the unit: a session is later for both speakers."""
  found: dict[str, list[pathlib.Path]] = {}
  for path in paths:
    for episode in _episodes(path):
      if isinstance(episode, _Episode):
        found.setdefault(episode.conversation, []).append(path)
  return found


def _responses(episode: _Episode, split: str) -> Iterator[records.Record]:
  for number, (speaker, text) in enumerate(episode.turns):
    before = (f'{"me" if s == speaker else "you"}: {said}' for s, said in episode.turns[:number])
    yield records.Record(
      f'{episode.conversation}/{speaker + 1}',
      Example('\n'.join(before), text, episode.personas[speaker]),
      split,
      where=episode.where,
    )


def _episodes(path: pathlib.Path) -> Iterator[_Episode | records.BadRecord]:
  seen: dict[str, str] = {}
  for found in records.json_lines(path):
    episode = found if isinstance(found, records.BadRecord) else _episode(*found)
    if isinstance(episode, _Episode):
      first = seen.setdefault(episode.conversation, episode.where)
      if first != episode.where:
        episode = records.BadRecord(
          episode.where,
          f'repeats an {_ID} within a session: {episode.conversation!r} is of {first}',
          'keep one of them',
        )
    yield episode


def _episode(where: str, value: dict[str, Any]) -> _Episode | records.BadRecord:
  metadata = value.get('metadata')
  holder = metadata if isinstance(metadata, dict) and _ID in metadata else value
  conversation = records.identity(holder, [_ID], where)
  turns = _turns(where, value)
  personas = _personas(where, value)
  for part in (conversation, turns, personas):
    if isinstance(part, records.BadRecord):
      return part
  return _Episode(where, conversation, turns, personas)  # pyright: ignore


def _turns(where: str, value: dict[str, Any]) -> list[tuple[int, str]] | records.BadRecord:
  dialog = value.get('dialog')
  if not isinstance(dialog, list) or not dialog:
    return records.BadRecord(where, "has no list of turns in 'dialog': it needs at least one")
  turns: list[tuple[int, str]] = []
  for number, turn in enumerate(dialog, 1):
    text = turn.get('text') if isinstance(turn, dict) else None
    if not isinstance(text, str) or not text.strip():
      return records.BadRecord(where, f"has a turn without 'text': turn {number}")
    speaker = _SPEAKERS.get(str(turn.get('id')).strip().lower())
    if speaker is None:
      return records.BadRecord(
        where,
        f"has a turn of nobody we know: 'id' of turn {number} is {turn.get('id')!r}, none of "
        'Speaker 1, Speaker 2, bot_0 and bot_1',
      )
    turns.append((speaker, ' '.join(text.split())))
  return turns


def _personas(where: str, value: dict[str, Any]) -> tuple[str, str] | records.BadRecord:
  """What is known of each speaker before the session, in one line; empty where nothing is."""
  initial = value.get('init_personachat')
  initial = initial.get('init_personas') if isinstance(initial, dict) else None
  found = value.get('personas') or value.get('init_personas') or initial
  if not found:
    return '', ''
  if not _is_two_lists_of_text(found):
    return records.BadRecord(where, 'has personas that are not two lists of sentences')
  first, second = (' '.join(' '.join(sentences).split()) for sentences in found)
  return first, second


def _is_two_lists_of_text(value: Any) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 2
    and all(isinstance(part, list) for part in value)
    and all(isinstance(sentence, str) for part in value for sentence in part)
  )
