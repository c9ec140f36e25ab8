# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: who may write it, and writes that a kill cannot tear."""

import contextlib
import csv
import fcntl
import io
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.errors import UserError
from tasks.files import read_json, replace_file

METRIC_COLUMNS = (
  'round',
  'train_loss',
  'eval_loss',
  'eval_perplexity',
  'eval_rouge_1',
  'eval_rouge_2',
  'eval_rouge_l',
  'eval_accuracy',
  'eval_client_perplexity_mean',
  'eval_client_perplexity_worst_decile',
  'upload_bytes',
  'download_bytes',
  'round_seconds',
  'cohort_clients',
  'pruned_clients',
  'non_finite_clients',
  'mean_rank',
  'trained_parameters',
  'client_flops',
  'deviation_from_exact',
  'input_seconds',
  'eval_seconds',
)
RANK_COLUMNS = ('round', 'rank', 'clients')
_CONFIG, _LOCK = 'config.json', '.lock'
# What a run that failed before its first record may leave behind.
_PRELIMINARY = (
  _LOCK, 'worker.log', 'log.jsonl', '.config.json.tmp', '.environment.json.tmp', 'checkpoints',
)  # fmt: skip
# Keys, draws and logs of a private run.
SECRETS = 'secrets'
# In environment.json: whether clients of any round trained on other machines.
REMOTE_WORKERS = 'remote_workers'


def _is_leftover(path: pathlib.Path) -> bool:
  """Whether a run that never began may have left this behind."""
  if path.name == SECRETS and path.is_dir():
    return all(inner.name in _PRELIMINARY for inner in path.iterdir())
  return path.name in _PRELIMINARY


class RunDirectory:
  """A run's directory, locked while it is open; a context manager.

  It holds a run once `config.json` is written. A run that fails before leaves no trace, so that the
  next try finds the directory as this one did.
  """

  def __init__(self, path: str | os.PathLike, *, resume: bool):
    """Opens a new directory, or one that a run left unfinished.

    Args:
      path: the directory; made if missing.
      resume: whether it must hold a run (True) or must be empty (False).

    Raises:
      UserError: if it is not what `resume` asks for, is in use, or cannot be written.
    """
    self.root = pathlib.Path(path)
    try:
      self._created = not self.root.exists()
      self._open(resume)
    except OSError as error:
      raise UserError(
        f'{self.root} cannot be opened as a run directory: {error.strerror}.'
      ) from error

  def _open(self, resume: bool) -> None:
    has_run = (self.root / _CONFIG).is_file()
    if resume and not has_run:
      raise UserError(f'{self.root} holds no run (no {_CONFIG}).')
    if not resume and self.root.exists():
      if not self.root.is_dir():
        raise UserError(f'{self.root} is not a directory.')
      if not all(map(_is_leftover, self.root.iterdir())):
        mend = 'add --resume or choose another' if has_run else 'choose an empty or new one'
        raise UserError(f'{self.root} is in use; {mend}.')
    self._had_secrets = (self.root / SECRETS).exists()
    self.root.mkdir(parents=True, exist_ok=True)
    self._lock = open(self.root / _LOCK, 'w')  # noqa: SIM115 (held until `close`)
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._lock.close()
      raise UserError(f'{self.root} is in use by another run.') from error

  def __enter__(self) -> 'RunDirectory':
    return self

  def __exit__(self, *unused_error: object) -> None:
    self.close()

  def close(self) -> None:
    """Lets others open the directory."""
    if not (self.root / _CONFIG).exists():
      self._remove_traces()
    self._lock.close()

  def _remove_traces(self) -> None:
    for name in _PRELIMINARY:
      path = self.root / name
      with contextlib.suppress(OSError):  # Checkpoints, say: then it stays.
        path.rmdir() if path.is_dir() else path.unlink()
    if not self._had_secrets:
      shutil.rmtree(self.root / SECRETS, ignore_errors=True)
    if self._created:
      with contextlib.suppress(OSError):
        self.root.rmdir()

  def write_json(self, name: str, content: Any) -> None:
    """Replaces a JSON file, all of it or nothing; one among the secrets is for its owner alone."""
    is_secret = name.startswith(f'{SECRETS}/')
    text = json.dumps(content, indent=2) + '\n'
    replace_file(self.root / name, text.encode(), mode=0o600 if is_secret else 0o666)

  def read_json(self, name: str) -> Any:
    """Reads a JSON file of this run.

    Raises:
      UserError: naming the file, if it is missing or not JSON.
    """
    return read_json(self.root / name)

  def append_rows(self, name: str, columns: Sequence[str], rows: Sequence[Mapping]) -> None:
    """Adds rows to a CSV file, which gets its header with the first; a missing value is empty."""
    path = self.root / name
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    if not path.exists():
      writer.writeheader()
    writer.writerows(rows)
    with open(path, 'a', encoding='utf-8') as file:
      file.write(text.getvalue())
      file.flush()
      os.fsync(file.fileno())

  def drop_rounds_after(self, name: str, last_round: int) -> None:
    """Removes the rows of rounds that a resumed run will do again, and a row that a kill tore."""
    header, rows = self._complete_rows(name)
    if header:
      kept = [row for number, row in rows if number <= last_round]
      self._replace(name, '\n'.join([header, *kept]) + '\n')

  def last_round(self, name: str) -> int | None:
    """The last round in a CSV file, if it has any."""
    return max((number for number, _ in self._complete_rows(name)[1]), default=None)

  def _complete_rows(self, name: str) -> tuple[str, list[tuple[int, str]]]:
    """The header and the rows, each with its round, without what a kill tore."""
    path = self.root / name
    if not path.exists():
      return '', []
    header, *lines = path.read_text('utf-8').splitlines() or ['']
    rows = []
    for line in lines:
      number = line.partition(',')[0]
      if line.count(',') == header.count(',') and number.isdigit():
        rows.append((int(number), line))
    return header, rows

  def _replace(self, name: str, text: str) -> None:
    replace_file(self.root / name, text.encode())
