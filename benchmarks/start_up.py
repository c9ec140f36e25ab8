# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time from the command `hetlora train` to the first local step of its first round.

The first run finds an empty cache: it harvests its data, converts the base model, copies TFF's
worker and compiles. The others find what it has kept. A run is ended once a client trains, which
oneDNN's own log of the worker tells.

    python -m benchmarks.start_up [--repeats 3] [--output FILE] [-- FLAGS OF hetlora train]
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import rich.console
import rich.table

# By the line of `log.jsonl` that ends them; the last one ends with a client's first product.
_PARTS = ('imports, data and model', 'process', 'initial state', 'compiling and sending')
_MATRIX_PRODUCT = b'matmul'
_LONGEST_SECONDS = 1200.0


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--repeats', type=int, default=3, help='runs that find a filled cache')
  parser.add_argument('--output', help='also write the JSON to this file')
  parser.add_argument('flags', nargs='*', help='of `hetlora train`, after --')
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    cold, *warm = (
      start_up(root / str(number), root / 'cache', arguments.flags)
      for number in range(1 + arguments.repeats)
    )
  table = rich.table.Table('s', 'first run', 'later runs, median', box=None)
  for name in cold:
    table.add_row(name, f'{cold[name]:.1f}', f'{statistics.median(w[name] for w in warm):.1f}')
  rich.console.Console().print(table)
  text = json.dumps({'first': cold, 'later': warm})
  print(text)
  if arguments.output:
    pathlib.Path(arguments.output).write_text(text + '\n', 'utf-8')


def start_up(
  directory: pathlib.Path, cache: pathlib.Path, flags: Sequence[str]
) -> dict[str, float]:
  """Seconds of the parts of one start, and of all.

  Args:
    directory: of the run; new.
    cache: of the user.
    flags: of `hetlora train`.

  Raises:
    RuntimeError: if the run ends before a client trains.
  """
  command = [sys.executable, '-c', 'from tasks import cli; cli.main()', 'train', *flags]
  environment = {
    **os.environ,
    'HETLORA_CACHE': str(cache),
    'XDG_CACHE_HOME': str(cache),
    'HETLORA_KEPT': '',
    'ONEDNN_VERBOSE': '1',
  }
  started = time.time()
  with subprocess.Popen(
    [*command, '--output-dir', str(directory)],
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  ) as process:
    try:
      ended = _first_step(directory / 'worker.log', process)
    finally:
      with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
  times = [started, *_event_times(directory / 'log.jsonl'), ended]
  parts = [after - before for before, after in itertools.pairwise(times)]
  return {**dict(zip(_PARTS, parts, strict=True)), 'all': ended - started}


def _first_step(log: pathlib.Path, process: subprocess.Popen) -> float:
  """When the worker has multiplied its first matrices."""
  deadline = time.monotonic() + _LONGEST_SECONDS
  while not (log.is_file() and _MATRIX_PRODUCT in log.read_bytes()):
    if process.poll() is not None or time.monotonic() > deadline:
      raise RuntimeError(f'The run has ended, or hangs, before a client trained; see {log.parent}.')
    time.sleep(0.02)
  return time.time()


def _event_times(log: pathlib.Path) -> list[float]:
  """When the process began to be built, the state was made and the first round began."""
  lines = [json.loads(line) for line in log.read_text('utf-8').splitlines()]
  wanted = ('note', 'started', 'round_started')
  return [
    next(_seconds(line['time']) for line in lines if line['event'] == name) for name in wanted
  ]


def _seconds(text: str) -> float:
  return datetime.datetime.fromisoformat(text).timestamp()


if __name__ == '__main__':
  main()
