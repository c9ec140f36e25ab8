# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How long something takes, and how busy others kept the machine meanwhile."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil

# In cores; a measurement during which others took more is not clean.
MOST_FOREIGN = 0.15
# The clocks of processes tick in hundredths of a second: shorter work is repeated.
_LEAST_SECONDS = 1.0


class Sample(NamedTuple):
  """One measurement.

  Attributes:
    seconds: that it took.
    foreign: cores that processes other than this one and its children kept busy.
  """

  seconds: float
  foreign: float

  @property
  def is_clean(self) -> bool:
    """Whether the machine was ours."""
    return self.foreign <= MOST_FOREIGN


def measure(run: Callable[[], Any], least_seconds: float = _LEAST_SECONDS) -> Sample:
  """Runs something, again and again until `least_seconds` are over; the mean of a run."""
  busy, started = _foreign_seconds(), time.perf_counter()
  runs = 0
  while runs == 0 or time.perf_counter() - started < least_seconds:
    run()
    runs += 1
  seconds = time.perf_counter() - started
  return Sample(seconds / runs, max(0.0, _foreign_seconds() - busy) / seconds)


def _foreign_seconds() -> float:
  """CPU seconds of everything on the machine but this process and those that it has started."""
  times = psutil.cpu_times()
  # Only Linux counts what waits for a device, and counts guests twice.
  idle = times.idle + getattr(times, 'iowait', 0.0)
  guests = getattr(times, 'guest', 0.0) + getattr(times, 'guest_nice', 0.0)
  me = psutil.Process()
  own = [process.cpu_times() for process in (me, *me.children(recursive=True))]
  return sum(times) - idle - guests - sum(t.user + t.system for t in own)
