# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whose a worker is: one driver's at a time, and then clean before it is another's."""

import threading


class Sessions:
  """Lends a worker to one driver at a time; safe in threads.

  What a driver has sent stays in the TFF process, and what it has asked for is computed to the end,
  even if the driver was killed. So between two sessions somebody has to put a new process there.
  """

  def __init__(self):
    """The worker is free and clean."""
    self._changed = threading.Condition()
    self._session: str | None = None
    self._driver = ''
    self._is_clean = True

  def begin(self, session: str, driver: str, seconds: float) -> str | None:
    """Takes the worker, once it is free and clean.

    Args:
      session: that nobody else can guess.
      driver: its name, for others.
      seconds: how long to wait.

    Returns:
      None, or the driver that has the worker still.
    """
    with self._changed:
      if not self._changed.wait_for(lambda: self._session is None and self._is_clean, seconds):
        return self._driver
      self._session, self._driver = session, driver
    return None

  def end(self, session: str) -> None:
    """Gives the worker back, if the session has it."""
    with self._changed:
      if self.holds(session):
        self._session, self._is_clean = None, False

  def holds(self, session: str) -> bool:
    """Whether it is this session that has the worker."""
    return session == self._session

  @property
  def is_left(self) -> bool:
    """Whether a driver has left the worker as it was."""
    return not self._is_clean

  def cleaned(self) -> None:
    """Lets the next driver in."""
    with self._changed:
      self._is_clean = True
      self._changed.notify_all()
