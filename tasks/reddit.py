# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reddit summarization: from a post to the TL;DR of its author, who is the client.

Two data sets, as their authors publish them, told apart line by line by their fields:

- Webis-TLDR-17 (Völske, Potthast, Syed, Stein 2017): `content` -> `summary`; without a `content`,
  `normalizedBody` or `body`, from which the summary is cut.
- Reddit TIFU (Kim, Kim, Kim 2019): `selftext_without_tldr`, or `documents`, -> `tldr`, which is
  null in many. It is published without authors: a post that names none is a client of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks import records, stored_text
from tasks.federated_text import Example, FederatedText
from tasks.task import Request

NAME = 'reddit_summarization'

_PATTERNS = ('*.json', '*.jsonl', '*.json.gz', '*.jsonl.gz')
_WEBIS_SOURCES = ('content', 'normalizedBody', 'body')
_TIFU_SOURCES = ('selftext_without_tldr', 'documents')
# Reddit's name for all whose account is gone.
_NOBODY = '[deleted]'
# No author is called so: their names have no spaces.
_UNNAMED = 'post '
_MARK = r'\btl\W{0,3}dr\b\W*'


def load_reddit_summarization(request: Request) -> FederatedText:
  """Loads the task from `--data-dir`, a file or a directory of files of JSON lines.

  Args:
    request: its `data_dir`, caps, seed and `skip_bad_records` are read.

  Raises:
    tasks.errors.UserError: if a file or record cannot be used, or no author has enough posts.
  """
  files = records.data_files(request.config, _PATTERNS)
  data = stored_text.load(request, NAME, functools.partial(_entries, files), files)
  unnamed = sum(
    client.startswith(_UNNAMED)
    for split in ('train', 'validation', 'test')
    for client in data.split(split)
  )
  if not unnamed:
    return data
  note = f'Posts that name no author, each a client of its own: {unnamed:,}.'
  return dataclasses.replace(data, left_out=(*data.left_out, note))


def _entries(files: Sequence[pathlib.Path]) -> Iterator[stored_text.Entry]:
  for path in files:
    for found in records.json_lines(path):
      yield found if isinstance(found, records.BadRecord) else _entry(*found)


def _entry(where: str, value: Mapping[str, Any]) -> stored_text.Entry:
  if 'tldr' in value:
    target_field, sources = 'tldr', _TIFU_SOURCES
  elif 'summary' in value:
    target_field, sources = 'summary', _WEBIS_SOURCES
  else:
    return records.BadRecord(
      where,
      f"has neither 'summary' (Webis TL;DR) nor 'tldr' (Reddit TIFU): it has {', '.join(value)}",
    )
  if target_field == 'tldr' and value['tldr'] is None:
    return records.LeftOut("Posts without a TL;DR ('tldr' is null)")
  if value.get('author') == _NOBODY:
    return records.LeftOut('Posts of deleted accounts, whose authors nobody can tell apart')
  return _record(where, value, target_field, sources)


def _record(
  where: str, value: Mapping[str, Any], target_field: str, sources: Sequence[str]
) -> records.Record | records.BadRecord:
  if target_field == 'tldr' and value.get('author') is None:
    author = f'{_UNNAMED}{value.get("id") or where.rpartition("/")[2]}'
  else:
    author = records.field(value, 'author', where)
  target = records.field(value, target_field, where)
  source_field = next((name for name in sources if value.get(name)), sources[0])
  parts = value.get(source_field)
  if isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts):
    value = {**value, source_field: ' '.join(parts)}
  source = records.field(value, source_field, where)
  for part in (author, target, source):
    if isinstance(part, records.BadRecord):
      return part
  author, target, source = author.strip(), _one_line(target), _one_line(source)  # pyright: ignore
  if source_field in ('normalizedBody', 'body'):
    source = _without(target, source)
    if not source:
      return records.BadRecord(where, f'has nothing but the summary in {source_field!r}')
  key = value.get('id')
  return records.Record(
    author, Example(source, target), key=None if key is None else str(key), where=where
  )


def _without(summary: str, body: str) -> str:
  """A body without its summary: where one is marked, or from the mark on where the two differ."""
  cut, times = re.subn(_MARK + re.escape(summary), ' ', body, count=1, flags=re.IGNORECASE)
  kept = cut if times else re.split(_MARK, body, maxsplit=1, flags=re.IGNORECASE)[0]
  return _one_line(kept)


def _one_line(text: str) -> str:
  return ' '.join(text.split())
