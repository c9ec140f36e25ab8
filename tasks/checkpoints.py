# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run can go on from: its state after each of the last rounds."""

import asyncio
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

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
  """The checkpoints of a run, of which the last two are kept."""

  def __init__(self, folder: pathlib.Path, say: Callable[[str], None]):
    """Initializes the checkpoints.

    Args:
      folder: where they are; made with the first.
      say: tells the user of one that cannot be read.
    """
    self._folder = folder
    self._say = say
    self._manager = tff.program.FileProgramStateManager(
      folder, 'round_', keep_total=2, keep_first=False
    )

  def save(self, state: RunState) -> None:
    """Saves a state under its round.

    Raises:
      UserError: if it cannot be written.
    """
    try:
      asyncio.run(self._manager.save(state, state.round_number))
    except tf.errors.OpError as error:
      reason = (error.message or type(error).__name__).splitlines()[0]
      raise UserError(
        f'Cannot save round {state.round_number} to {self._folder}: {reason}; earlier rounds are '
        'kept.'
      ) from error

  def restore(self, like: RunState) -> RunState | None:
    """The last state that can be read, or None if none was ever saved.

    Args:
      like: a state of the same structure.

    Raises:
      UserError: if there are checkpoints and none can be read.
    """
    for draft in self._folder.glob('round_*_temp*'):  # A kill came while TFF was writing it.
      shutil.rmtree(draft, ignore_errors=True)
    versions = asyncio.run(self._manager.get_versions()) or []
    unreadable = []
    for version in sorted(versions, reverse=True):
      path = self._folder / f'round_{version}'
      try:
        state = asyncio.run(self._manager.load(version, like))
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
      return state
    if versions:
      raise UserError(f'--resume: no checkpoint in {self._folder} can be read.')
    return None
