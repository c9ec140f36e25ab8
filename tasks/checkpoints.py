# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run can go on from: its state after each of the last rounds."""

import concurrent.futures
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tasks import coroutines
from tasks.errors import UserError


class RunState(NamedTuple):
  """What a checkpoint holds, and all that a round needs from the one before.

  Attributes:
    round_number: rounds done.
    learning: the process's state at the server.
    ranks: int32 `[clients]`: every device's rank.
    ledger_entries: of the privacy ledger when this round ended; 0 without one.
    ledger_head: uint8 `[32]`, the hash of its last entry then.
  """

  round_number: int
  learning: Any
  ranks: np.ndarray
  ledger_entries: int
  ledger_head: np.ndarray


class Checkpoints:
  """The checkpoints of a run, of which the last two are kept; a context manager.

  One is written while the run goes on. Leaving the context waits for it.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    say: Callable[[str], None],
    on_saved: Callable[[int, float], None] = lambda round_number, seconds: None,
  ):
    """Initializes the checkpoints.

    Args:
      folder: where they are; made with the first.
      say: tells the user of one that cannot be read.
      on_saved: is told the round of each that is on disk, and how many seconds that took; in
        another thread.
    """
    self._folder = folder
    self._say = say
    self._on_saved = on_saved
    self._manager = tff.program.FileProgramStateManager(
      folder, 'round_', keep_total=2, keep_first=False
    )
    self._writer = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
    self._pending: concurrent.futures.Future[None] | None = None
    self._last: int | None = None

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    try:
      self.settle()
    except (UserError, OSError) as failure:
      if kind is None:
        raise
      self._say(str(failure))  # Beside what ended the run.
    finally:
      self._writer.shutdown()

  def save(self, state: RunState) -> None:
    """Begins to save a state under its round; `settle` says when, and whether, it is done.

    Raises:
      UserError: if the state before could not be written.
    """
    self.settle()
    self._pending = self._writer.submit(self._write, state)

  def settle(self) -> None:
    """Waits until what was begun is on disk.

    Raises:
      UserError: if it could not be written, naming the last round that was.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def _write(self, state: RunState) -> None:
    started = time.monotonic()
    number = state.round_number
    try:
      coroutines.run(self._manager.save(state, number))
      _sync(self._folder / f'round_{number}')
    except (tf.errors.OpError, OSError) as error:
      self._remove_drafts()
      kept = 'no round is kept' if self._last is None else f'round {self._last} is kept'
      raise UserError(
        f'Cannot save round {number} to {self._folder}: {_reason(error)}; {kept}. Mend it and go on'
        ' with --resume.'
      ) from error
    self._last = number
    self._on_saved(number, time.monotonic() - started)

  def restore(self, like: RunState) -> RunState | None:
    """The last state that can be read, or None if none was ever saved.

    Args:
      like: a state of the same structure.

    Raises:
      UserError: if there are checkpoints and none can be read.
    """
    self._remove_drafts()
    versions = coroutines.run(self._manager.get_versions()) or []
    unreadable = []
    for version in sorted(versions, reverse=True):
      path = self._folder / f'round_{version}'
      try:
        state = coroutines.run(self._manager.load(version, like))
        state = RunState(
          int(state.round_number),
          state.learning,
          np.array(state.ranks, np.int32),
          int(state.ledger_entries),
          np.array(state.ledger_head, np.uint8),
        )
      except Exception as error:  # a torn checkpoint fails in whatever way its bytes do
        self._say(f'{path} cannot be read ({type(error).__name__}); trying an older one.')
        unreadable.append(path)
        continue
      for path in unreadable:  # Its round will be saved again under its name.
        path.rename(path.with_name(f'unreadable_{path.name}_{time.time_ns()}'))
      self._last = state.round_number
      return state
    if versions:
      raise UserError(f'--resume: no checkpoint in {self._folder} can be read.')
    return None

  def _remove_drafts(self) -> None:
    """Removes what TFF was writing when a kill came or the disk was full."""
    for draft in self._folder.glob('round_*_temp*'):
      shutil.rmtree(draft, ignore_errors=True)


def _reason(error: tf.errors.OpError | OSError) -> str:
  text = error.strerror if isinstance(error, OSError) else error.message
  return (text or type(error).__name__).splitlines()[0]


def _sync(directory: pathlib.Path) -> None:
  """Has everything under a directory, and its name, on disk; TFF leaves that to the system."""
  parents = (directory, directory.parent, directory.parent.parent)
  for path in (*directory.rglob('*'), *parents):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
