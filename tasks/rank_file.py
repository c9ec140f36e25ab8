# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ranks by client from a file; no TensorFlow, so that a bad line is said at once."""

import csv
import io
import json
import pathlib
from typing import Any

from tasks.errors import UserError

_HEADER = ['client', 'rank']


def read_rank_file(path: pathlib.Path, max_rank: int) -> dict[str, int]:
  """Reads ranks by client.

  Args:
    path: a JSON object of ranks if it ends in `.json`; else CSV with the columns client and rank,
      with or without these names as its first line.
    max_rank: the largest rank that a client may have.

  Returns:
    Rank by client id, at least one.

  Raises:
    UserError: naming the file, and the line or client that is wrong.
  """
  try:
    text = path.read_text('utf-8-sig')
    read = _json_entries if path.suffix == '.json' else _csv_entries
    entries = read(path, text)
  except OSError as error:
    raise UserError(f'--rank-file: cannot read {path}: {error.strerror}.') from error
  except (ValueError, csv.Error) as error:
    raise UserError(f'--rank-file: {path} cannot be read: {error}.') from error
  by_client: dict[str, int] = {}
  for where, client, rank in entries:
    if client in by_client:
      raise UserError(f'--rank-file: {where}: client {client!r} is listed twice.')
    if type(rank) is not int or not 1 <= rank <= max_rank:
      raise UserError(
        f'--rank-file: {where}: client {client!r} must have a rank in [1, {max_rank}] '
        f'(--max-rank), got {rank!r}.'
      )
    by_client[client] = rank
  if not by_client:
    raise UserError(f'--rank-file: {path} lists no client.')
  return by_client


def _json_entries(path: pathlib.Path, text: str) -> list[tuple[str, str, Any]]:
  # Pairs, not a dict: a client that is listed twice has to show.
  content = json.loads(text, object_pairs_hook=tuple)
  if not isinstance(content, tuple):
    raise UserError(f'--rank-file: {path} must hold a JSON object of ranks by client.')
  return [(str(path), client, rank) for client, rank in content]


def _csv_entries(path: pathlib.Path, text: str) -> list[tuple[str, str, Any]]:
  entries = []
  reader = csv.reader(io.StringIO(text), strict=True, skipinitialspace=True)
  for row in reader:
    where = f'{path}, line {reader.line_num}'
    if not row or (reader.line_num == 1 and row == _HEADER):
      continue
    if len(row) != len(_HEADER):
      raise UserError(f'--rank-file: {where} must be client,rank, got {",".join(row)!r}.')
    client, rank = row
    entries.append((where, client, int(rank) if rank.strip().isdecimal() else rank))
  return entries
