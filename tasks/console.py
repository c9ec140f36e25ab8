# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it works: a progress bar on a terminal, lines elsewhere."""

import enum
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.console
import rich.progress

from tasks import plots


class Verbosity(enum.Enum):
  """How much a run says."""

  QUIET = 'errors and the result'
  NORMAL = 'what it does and what comes of it'
  VERBOSE = 'every event'


class Progress:
  """Progress of a run on stderr; a context manager."""

  def __init__(self, *, quiet: bool = False):
    """Shows nothing before entry, and nothing at all with `quiet`."""
    self._console = rich.console.Console(stderr=True, quiet=quiet)
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn('{task.description}'),
      rich.progress.BarColumn(bar_width=24),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeRemainingColumn(),
      rich.progress.TextColumn('{task.fields[status]}'),
      console=self._console,
      disable=quiet or not self._console.is_terminal,
    )
    self._task: rich.progress.TaskID | None = None

  def __enter__(self) -> 'Progress':
    self._bar.start()
    return self

  def __exit__(self, *unused_error: object) -> None:
    self._bar.stop()

  def say(self, line: str) -> None:
    """Prints a line above the bar."""
    self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

  def say_busy(self, status: str) -> None:
    """Shows on the bar what a pause is for."""
    if self._task is not None:
      self._bar.update(self._task, status=status)

  def start_rounds(self, done: int, total: int) -> None:
    """Shows the bar."""
    if done:
      self.say(f'Resuming after round {done}.')
    self._task = self._bar.add_task('Round', total=total, completed=done, status='')

  def show_round(
    self, number: int, row: Mapping[str, Any], ranks: np.ndarray | None = None
  ) -> None:
    """Loss, cohort and ranks of a finished round; of a private one only that it is done."""
    measured = 'train_loss' in row  # Nobody asks the clients of a private run.
    status = self._round_status(row, ranks) if measured else 'noised'
    if self._console.is_terminal and self._task is not None:
      self._bar.update(self._task, completed=number, status=status)
    else:
      seconds = f' | {row["round_seconds"]:.1f} s' if measured else ''
      self.say(f'round {number}: {status}{seconds}')

  def _round_status(self, row: Mapping[str, Any], ranks: np.ndarray | None) -> str:
    loss = row['train_loss']
    status = (
      f'loss {loss:.3f}' if loss != '' else 'no client trained'
    ) + f' | {row["cohort_clients"]} clients'
    if ranks is not None and row['mean_rank'] != '':  # It has a meaning in this method.
      status += f' of rank {ranks.min()} to {ranks.max()}'
    for name in ('pruned', 'non-finite'):
      count = row[f'{name.replace("-", "_")}_clients']
      status += f' | {count} {name}' if count else ''
    return status

  def show_evaluation(self, number: int, row: Mapping[str, Any]) -> None:
    """The held-out result of a round."""
    name = f'round {number}' if number else 'untuned base'
    line = f'{name}: held-out perplexity {plots.format_perplexity(row["eval_perplexity"])}'
    for name, title in (('eval_rouge_l', 'RougeL'), ('eval_accuracy', 'accuracy')):
      if name in row:
        line += f', {title} {row[name]:.3f}'
    self.say(line)
