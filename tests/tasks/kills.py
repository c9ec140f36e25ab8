# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ends runs of this process as a kill would, at whatever they are about to put on disk."""

import os
import random
from collections.abc import Callable

import pytest
import tensorflow_federated as tff


class Killed(BaseException):
  """What no part of a run may catch and go on."""


def run_through_kills(times: int, apart: int, run: Callable[[bool], object]) -> None:
  """Runs, kills and resumes so many times, and then to the end.

  Args:
    times: of kills; every other one comes before a checkpoint.
    apart: most files that are put on disk before one of the others.
    run: begins the run, or goes on with it if its argument says so.
  """
  moments, began = random.Random(7), False
  for kill in range(times):
    with pytest.MonkeyPatch.context() as patch:
      if kill % 2:
        patch.setattr(tff.program.FileProgramStateManager, 'save', _kill)
      else:
        _kill_at_sync(patch, moments.randint(1, apart))
      with pytest.raises(Killed):
        run(began)
    began = True
  run(True)


def _kill(*unused):
  raise Killed


def _kill_at_sync(patch: pytest.MonkeyPatch, number: int) -> None:
  """Kills at a file's being put on disk, counted from now; all later ones find nobody alive."""
  fsync, left = os.fsync, [number]

  def count(descriptor):
    left[0] -= 1
    if left[0] < 0:
      raise Killed
    fsync(descriptor)

  patch.setattr(os, 'fsync', count)
