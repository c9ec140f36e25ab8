# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run tells round by round, to files, TensorBoard and the screen, and what it keeps.

One filter stands before all of them. That of a private run is a list of what may pass, so that a
measurement that somebody adds stays inside until it is put there.
"""

import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tasks import coroutines, plots
from tasks.console import Progress
from tasks.errors import UserError
from tasks.run_directory import METRIC_COLUMNS, RANK_COLUMNS, RunDirectory

_METRICS, _RANKS, _TENSORBOARD = 'metrics.csv', 'ranks.csv', 'tensorboard'
# Parts of what is released.
_ROW, _DEVICES, _COHORT = 'metrics', 'ranks', 'cohort_ranks'
# Means over held-out clients, of a model that was released; the report lists them.
_PUBLIC = frozenset({
  'round', 'eval_loss', 'eval_perplexity', 'eval_rouge_1', 'eval_rouge_2', 'eval_rouge_l',
  'eval_accuracy', 'eval_client_perplexity_mean', 'eval_seconds',
})  # fmt: skip
_SINGLE_HELD_OUT = frozenset({'eval_client_perplexity_worst_decile'})

Filter: TypeAlias = Callable[[tuple[str | int, ...]], bool]


def everything(unused_path: tuple[str | int, ...]) -> bool:
  """The filter of a run without privacy."""
  return True


def privacy_boundary(*, public_held_out: bool) -> Filter:
  """The filter of a private run: what the ledger covers, what is public, and nothing else.

  Ranks are public there. What is measured on held-out clients comes from a model that the ledger
  covers; of these clients the report says what is not covered.

  Args:
    public_held_out: whether held-out clients are no secret, not even one by one.

  Returns:
    Whether the part at a path of what is released may leave.
  """
  columns = _PUBLIC | (_SINGLE_HELD_OUT if public_held_out else frozenset())

  def may_leave(path: tuple[str | int, ...]) -> bool:
    return path == (_DEVICES,) or (len(path) == 2 and path[0] == _ROW and path[1] in columns)

  return may_leave


class CsvReleaseManager(tff.program.ReleaseManager[Mapping[str, Any], int]):
  """Adds the rows of a round, its key, to `ranks.csv` and `metrics.csv`.

  Both are on disk when it returns. That of `metrics.csv` comes last: a round that has one is whole.
  """

  def __init__(self, directory: RunDirectory):
    """Writes into a run's directory."""
    self._directory = directory

  async def release(self, value: Mapping[str, Any], key: int) -> None:
    """Adds what is there of a round; columns of nothing stay empty."""
    ranks, clients = np.unique(value.get(_DEVICES, ()), return_counts=True)
    rows = [
      {'round': key, 'rank': rank, 'clients': number}
      for rank, number in zip(ranks.tolist(), clients.tolist(), strict=True)
    ]
    self._directory.append_rows(_RANKS, RANK_COLUMNS, rows)
    self._directory.append_rows(_METRICS, METRIC_COLUMNS, [value[_ROW]])

  def clear(self) -> None:
    """Removes all rounds."""
    for name in (_METRICS, _RANKS):
      (self._directory.root / name).unlink(missing_ok=True)

  def keep_until(self, round_number: int) -> bool:
    """Removes later rounds and what a kill left of one; returns whether this one is there."""
    last = self._directory.last_round(_METRICS)
    kept = min(round_number, -1 if last is None else last)
    for name in (_METRICS, _RANKS):
      self._directory.drop_rounds_after(name, kept)
    return kept == round_number

  def released(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """What was released of each round, as numbers."""
    metrics = _table(self._directory.root / _METRICS, RANK_COLUMNS[:1])
    ranks = _table(self._directory.root / _RANKS, RANK_COLUMNS)
    for place, number in enumerate(metrics['round']):
      row = {name: cells[place] for name, cells in metrics.items() if np.isfinite(cells[place])}
      of_round = ranks['round'] == number
      held = np.repeat(*(ranks[name][of_round].astype(int) for name in ('rank', 'clients')))
      yield int(number), _value(row, held)


class ScreenReleaseManager(tff.program.ReleaseManager[Mapping[str, Any], int]):
  """Shows a round, its key, on the screen."""

  def __init__(self, progress: Progress):
    """Shows rounds there."""
    self._progress = progress

  async def release(self, value: Mapping[str, Any], key: int) -> None:
    """Shows what is there of a round."""
    row = value[_ROW]
    if key:
      self._progress.show_round(key, row, value.get(_COHORT))
    if 'eval_perplexity' in row:
      self._progress.show_evaluation(key, row)


class Releases:
  """All that a run tells of its rounds."""

  def __init__(
    self, directory: RunDirectory, progress: Progress, *, may_leave: Filter, tensorboard: bool
  ):
    """Initializes the releases.

    Args:
      directory: of the run.
      progress: the screen.
      may_leave: what passes.
      tensorboard: whether to write for TensorBoard, too.
    """
    self._csv = CsvReleaseManager(directory)
    self._screen = ScreenReleaseManager(progress)
    self._may_leave = may_leave
    self._tensorboard = directory.root / _TENSORBOARD if tensorboard else None
    self._manager: tff.program.ReleaseManager | None = None

  def start(self, round_number: int | None) -> bool:
    """Goes on after a round; None begins anew.

    Returns:
      Whether the round was told before.
    """
    told = False
    if round_number is None:
      self._csv.clear()
    else:
      told = self._csv.keep_until(round_number)
    managers = [self._csv, self._screen]
    if self._tensorboard:
      managers.append(self._open_tensorboard(self._tensorboard))
    self._manager = tff.program.FilteringReleaseManager(
      tff.program.GroupingReleaseManager(managers), self._may_leave
    )
    return told

  def release(
    self,
    round_number: int,
    row: Mapping[str, Any],
    ranks: np.ndarray | None = None,
    cohort_ranks: np.ndarray | None = None,
  ) -> None:
    """Tells what came of a round.

    Args:
      round_number: 0 for the untuned base.
      row: what was measured, by the columns of `metrics.csv`.
      ranks: int32 `[clients]`, of all devices after the round; none in a method without ranks.
      cohort_ranks: int32 `[cohort]`, with which the round's clients trained.

    Raises:
      ValueError: before `start`.
    """
    if self._manager is None:
      raise ValueError('`start` comes before `release`.')
    value = _value({'round': round_number, **row}, ranks)
    if cohort_ranks is not None:
      value[_COHORT] = cohort_ranks
    try:
      coroutines.run(self._manager.release(value, round_number))
    except tf.errors.OpError as error:
      raise UserError(f'Cannot write {self._tensorboard}: {error.message}.') from error

  def _open_tensorboard(self, folder: pathlib.Path) -> tff.program.ReleaseManager:
    """TensorBoard's files, made anew: rounds that are done again would be there twice."""
    shutil.rmtree(folder, ignore_errors=True)
    manager = tff.program.TensorBoardReleaseManager(folder)
    for number, value in self._csv.released():
      coroutines.run(manager.release(value, number))
    return manager


def _value(row: Mapping[str, Any], ranks: np.ndarray | None) -> dict[str, Any]:
  """What is released; ranks are sorted, so that they name no device."""
  value: dict[str, Any] = {_ROW: dict(row)}
  if ranks is not None and len(ranks):
    value[_DEVICES] = np.sort(ranks)
  return value


def _table(path: pathlib.Path, columns: Sequence[str]) -> plots.Table:
  if not path.exists():
    return {name: np.zeros(0) for name in columns}
  try:
    return plots.read_table(path, columns)
  except ValueError as error:
    raise UserError(str(error)) from error
