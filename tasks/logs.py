# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What happened in a run, for machines: a line of JSON per event.

Events are records of Python's logger `hetlora`, so that a program that calls `tasks.program.train`
can add handlers of its own to it. Those of a private run tell more than may leave it.
"""

import contextlib
import datetime
import enum
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

LOG = 'log.jsonl'
_LOGGER = logging.getLogger('hetlora')


class Event(enum.Enum):
  """What a line can be about."""

  STARTED = 'started'
  RESUMED = 'resumed'
  NOTE = 'note'
  ROUND_STARTED = 'round_started'
  ROUND_FINISHED = 'round_finished'
  EVALUATED = 'evaluated'
  CHECKPOINT_SAVED = 'checkpoint_saved'
  FINISHED = 'finished'
  INTERRUPTED = 'interrupted'
  FAILED = 'failed'


class JsonFormatter(logging.Formatter):
  """A record as one line of JSON: time, level, event, and the event's own fields."""

  def format(self, record: logging.LogRecord) -> str:
    """See the class."""
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    line: dict[str, Any] = {
      'time': moment.isoformat(timespec='milliseconds'),
      'level': record.levelname.lower(),
      'event': getattr(record, 'event', Event.NOTE).value,
      **getattr(record, 'fields', {'message': record.getMessage()}),
    }
    if record.exc_info:
      line['traceback'] = self.formatException(record.exc_info)
    return json.dumps({name: _finite(value) for name, value in line.items()}, default=str)


class RunLog:
  """Writes the events of a run to a file; a context manager, which tells how the run ended."""

  def __init__(
    self,
    path: pathlib.Path,
    say: Callable[[str], None],
    *,
    show: Callable[[str], bool] | None = None,
  ):
    """Initializes the log; the file is opened on entry.

    Args:
      path: of the file, to which lines are added.
      say: prints a line.
      show: which fields of an event, and whether its time, are printed, too, by their names; None
        prints no events.
    """
    self._path = path
    self._say = say
    self._show = show
    self._resources = contextlib.ExitStack()
    self._started = time.monotonic()

  def __enter__(self) -> 'RunLog':
    self._resources.callback(_LOGGER.setLevel, _LOGGER.level)
    _LOGGER.setLevel(logging.INFO)
    # absl, which TensorFlow brings, prints whatever reaches the root.
    self._resources.callback(setattr, _LOGGER, 'propagate', _LOGGER.propagate)
    _LOGGER.propagate = False
    self._add(_LineFile(self._path))
    if self._show is not None:
      self._add(_Screen(self._say, self._show))
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    with self._resources:
      seconds = round(time.monotonic() - self._started, 3)
      if error is None:
        self.event(Event.FINISHED, seconds=seconds)
        return
      end, level = Event.FAILED, logging.ERROR
      if isinstance(error, KeyboardInterrupt):
        end, level = Event.INTERRUPTED, logging.WARNING
      with contextlib.suppress(OSError):  # As on a full disk, which may be why the run ends.
        fields = {'seconds': seconds, 'error': type(error).__name__, 'message': str(error)}
        self.event(end, level, **fields)

  def event(self, event: Event, level: int = logging.INFO, **fields: Any) -> None:
    """Writes an event.

    Args:
      event: what happened.
      level: how bad it is, of Python's `logging`.
      **fields: what more there is to know.
    """
    extra = {'event': event, 'fields': fields}
    _LOGGER.log(level, '%s', fields.get('message', event.value), extra=extra)

  def say(self, message: str, level: int = logging.INFO) -> None:
    """Prints a sentence and writes it down."""
    self._say(message)
    self.event(Event.NOTE, level, message=message)

  def warn(self, message: str) -> None:
    """Prints what went wrong without ending the run, and writes it down."""
    self.say(message, logging.WARNING)

  def _add(self, handler: logging.Handler) -> None:
    self._resources.callback(handler.close)
    _LOGGER.addHandler(handler)
    self._resources.callback(_LOGGER.removeHandler, handler)


class _LineFile(logging.Handler):
  """Adds whole lines to a file; what a kill left of one is removed first."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self._path = path
    self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    content = path.read_bytes()
    os.ftruncate(self._descriptor, content.rfind(b'\n') + 1)
    self.setFormatter(JsonFormatter())

  def emit(self, record: logging.LogRecord) -> None:
    """Writes a line; what keeps it from being written ends the run, as for any of its files."""
    line = (self.format(record) + '\n').encode()
    try:
      while line:
        line = line[os.write(self._descriptor, line) :]
    except OSError as error:
      raise OSError(error.errno, error.strerror, str(self._path)) from error

  def close(self) -> None:
    """Closes the file."""
    os.close(self._descriptor)
    super().close()


class _Screen(logging.Handler):
  """Prints events that no sentence says."""

  def __init__(self, say: Callable[[str], None], show: Callable[[str], bool]):
    super().__init__()
    self._say = say
    self._show = show

  def emit(self, record: logging.LogRecord) -> None:
    """Prints time, event and fields."""
    fields = getattr(record, 'fields', {})
    if 'message' in fields:  # It is said anyway.
      return
    moment = datetime.datetime.fromtimestamp(record.created).strftime('%H:%M:%S')
    shown = (f'{name}={_finite(value)}' for name, value in fields.items() if self._show(name))
    time_of_day = [moment] if self._show('time') else []
    self._say(' '.join([*time_of_day, record.getMessage(), *shown]))


def _finite(value: Any) -> Any:
  """What JSON can hold: it has no infinity."""
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value
