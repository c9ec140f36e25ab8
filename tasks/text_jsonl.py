# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks over anybody's JSON lines, whose fields the configuration names."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tasks import records, stored_text
from tasks.config import RunConfig
from tasks.federated_text import Example, FederatedText, Kind
from tasks.records import BadRecord, Record
from tasks.task import Request

# Source and target of a line, or what is wrong with them.
_Parts = tuple[str | BadRecord, str | BadRecord]
_Read = Callable[[RunConfig, records.Line], _Parts]
_PATTERNS = ('*.jsonl', '*.jsonl.gz', '*.json', '*.json.gz')


def load_text_jsonl(request: Request) -> FederatedText:
  """Loads pairs of `source_field` and `target_field`, or running text of `text_field`.

  Raises:
    tasks.errors.UserError: naming the option, or file and line.
  """
  files = records.data_files(request.config, _PATTERNS)
  kind = Kind.TEXT if request.config.text_field else Kind.PAIR
  entries = functools.partial(_entries, request.config, files, _text)
  return stored_text.load(request, 'text_jsonl', entries, files, kind=kind)


def load_text_classification(request: Request) -> FederatedText:
  """Loads texts of `text_field`, each with its `label_field`: text, a whole number, true or false.

  Raises:
    tasks.errors.UserError: naming the option, or file and line.
  """
  files = records.data_files(request.config, _PATTERNS)
  entries = functools.partial(_entries, request.config, files, _labelled)
  return stored_text.load(request, 'text_classification', entries, files, kind=Kind.LABEL)


def _entries(
  config: RunConfig, files: Sequence[pathlib.Path], read: _Read
) -> Iterator[Record | BadRecord]:
  for line in itertools.chain.from_iterable(map(records.json_lines, files)):
    yield line if isinstance(line, BadRecord) else _record(config, line, *read(config, line))


def _text(config: RunConfig, line: records.Line) -> _Parts:
  where, value = line
  if config.text_field:
    return '', records.field(value, config.text_field, where)
  source = records.field(value, config.source_field, where)
  return source, records.field(value, config.target_field, where)


def _labelled(config: RunConfig, line: records.Line) -> _Parts:
  where, value = line
  return records.field(value, config.text_field, where), _label(config, value, where)


def _record(
  config: RunConfig, line: records.Line, source: str | BadRecord, target: str | BadRecord
) -> Record | BadRecord:
  """The record of a line, or the first thing that is wrong with it."""
  where, value = line
  client = records.identity(value, config.client_field, where)
  key = records.identity(value, [config.id_field], where) if config.id_field else None
  match client, source, target, key:
    case str(), str(), str(), str() | None:
      return Record(client, Example(source, target), key=key, where=where)
  bad = next(part for part in (client, source, target, key) if isinstance(part, BadRecord))
  # One record may lack a field; where all do, the option is wrong.
  return bad._replace(mend='name another field, mend it') if 'no field' in bad.problem else bad


def _label(config: RunConfig, value: Mapping[str, Any], where: str) -> str | BadRecord:
  label = value.get(config.label_field)
  if isinstance(label, bool):
    label = json.dumps(label)
  else:
    label = records.identity(value, [config.label_field], where)
  if isinstance(label, str) and config.labels and label not in config.labels:
    return BadRecord(where, f'has a label that --labels does not list: {label!r}')
  return label
