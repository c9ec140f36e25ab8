# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The most memory that this process and its workers hold while something runs; Linux."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator

import psutil

_SECONDS = 0.05


@dataclasses.dataclass
class Peaks:
  """Most memory that is not mapped from files (`RssAnon`), in MB.

  Attributes:
    driver: of this process.
    worker: of its child processes together.
  """

  driver: float = 0.0
  worker: float = 0.0

  def take(self) -> None:
    """Looks at what is held now."""
    children = psutil.Process().children(recursive=True)
    self.driver = max(self.driver, _anonymous_mb(os.getpid()))
    self.worker = max(self.worker, sum(_anonymous_mb(child.pid) for child in children))


@contextlib.contextmanager
def watched() -> Iterator[Peaks]:
  """Looks often while the context lasts; the peaks are complete once it is left."""
  peaks = Peaks()
  with looking(peaks.take):
    yield peaks


@contextlib.contextmanager
def looking(take: Callable[[], None]) -> Iterator[None]:
  """Calls `take` often in a thread while the context lasts, and at its end."""
  done = threading.Event()

  def look():
    while not done.wait(_SECONDS):
      take()

  thread = threading.Thread(target=look)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
  take()


def _anonymous_mb(pid: int) -> float:
  try:
    with open(f'/proc/{pid}/status', encoding='ascii') as status:
      sizes = [line.split()[1] for line in status if line.startswith('RssAnon')]
  except OSError:  # It has ended.
    return 0.0
  return 1024 * sum(map(int, sizes)) / 1e6
