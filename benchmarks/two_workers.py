# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time of a round on two `hetlora worker`s over the same round in one process.

Both train 16 clients x 4 steps of `workload` two at a time: two workers with one client each, over
loopback, against one with two clients. Rounds of both kinds alternate, so that the ratio holds when
the machine's speed drifts.

    python -m benchmarks.two_workers [--repeats 5] [--output FILE]
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import psutil
import rich.console
import rich.table
from absl import logging

from benchmarks import workload
from tasks.remote_rounds import RemoteRounds
from tasks.worker import LocalWorker

_KINDS = ('two_workers', 'one_process')
_SERVE = 'from tasks import worker_server as w; w.serve(port=0, max_concurrent_clients=1)'


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--repeats', type=int, default=5, help='measured rounds of each kind')
  parser.add_argument('--output', type=pathlib.Path, help='also write the JSON to this file')
  arguments = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  result = _measure(workload.SIZES['small'], arguments.repeats)
  table = rich.table.Table('', 'median s', 'min s', 'max s', box=None)
  for name in _KINDS:
    seconds = result[f'{name}_seconds']
    table.add_row(name, *(f'{f(seconds):.2f}' for f in (statistics.median, min, max)))
  rich.console.Console().print(table)
  text = json.dumps(result)
  print(text)
  if arguments.output:
    arguments.output.write_text(text + '\n', encoding='utf-8')


def _measure(work: workload.Work, repeats: int) -> dict[str, Any]:
  """Alternates both kinds of rounds after one warm-up of each."""
  with workload.model_of(work) as model, LocalWorker(2), _worker() as one, _worker() as other:
    process = workload.build_process(work, model)
    data = workload.client_data_of(work, workload.examples_of(work))
    state = process.initialize()
    seconds: dict[str, list[float]] = {name: [] for name in _KINDS}
    busy: dict[str, list[float]] = {name: [] for name in _KINDS}
    remote = RemoteRounds(process, [one, other], backbone=model.backbone, say=print)
    with contextlib.closing(remote) as rounds:
      kinds = dict(zip(_KINDS, (rounds.next, process.next), strict=True))
      for run in kinds.values():
        run(state, data)
      for _ in range(repeats):
        for name, run in kinds.items():
          started, before = time.perf_counter(), _busy_seconds()
          run(state, data)
          seconds[name].append(time.perf_counter() - started)
          busy[name].append(_busy_seconds() - before)
  ratios = [a / b for a, b in zip(seconds['two_workers'], seconds['one_process'], strict=True)]
  return {
    **{f'{name}_seconds': [round(s, 3) for s in values] for name, values in seconds.items()},
    # Of processors, which other programs on the machine do not stretch.
    **{f'{name}_busy_seconds': [round(s, 2) for s in values] for name, values in busy.items()},
    'ratio_median': round(statistics.median(ratios), 3),
    'ratios': [round(r, 3) for r in ratios],
  }


def _busy_seconds() -> float:
  """CPU seconds of this process and of all that it has started."""
  own = psutil.Process()
  times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
  return sum(t.user + t.system for t in times)


@contextlib.contextmanager
def _worker() -> Iterator[str]:
  """A worker of one client at a time; its address."""
  command = [sys.executable, '-c', _SERVE]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    try:
      # Keras speaks first.
      lines = (re.search(r'Worker on ([\d.:]+),', line) for line in process.stdout or ())
      yield next(line[1] for line in lines if line)
    finally:
      process.terminate()


if __name__ == '__main__':
  main()
