# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time of a round on two `hetlora worker`s over the same round in one process.

Both train 16 clients x 4 steps of `workload` two at a time: two workers with one client each, over
loopback, against one with two clients. Rounds of both kinds alternate, so that the ratio holds when
the machine's speed drifts.

    python -m benchmarks.two_workers [--repeats 5]
"""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import psutil
import tensorflow_federated as tff

import hetlora_tff
from benchmarks import side_by_side, workload
from tasks.remote_rounds import RemoteRounds
from tasks.worker import LocalWorker

_SERVE = 'from tasks import worker_server as w; w.serve(port=0, max_concurrent_clients=1)'


def measure(work: workload.Work, repeats: int) -> dict[str, Any]:
  """Alternates both kinds of rounds after one warm-up of each."""
  with workload.model_of(work) as model, LocalWorker(2), _worker() as one, _worker() as other:
    process = hetlora_tff.build_hetlora_process(
      model,
      workload.lora_config(work),
      client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
    )
    rounds = RemoteRounds(process, [one, other], backbone=model.backbone, say=print)
    data = workload.client_data_of(work, workload.examples_of(work))
    state = process.initialize()
    kinds = {'two_workers': rounds.next, 'one_process': process.next}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    busy: dict[str, list[float]] = {name: [] for name in kinds}
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
  side_by_side.main(__doc__, ('two_workers', 'one_process'), measure)
