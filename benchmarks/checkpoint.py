# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint costs a round of the embedded task, with the defaults of `hetlora train`.

Rounds alternate between none, one that is written while the round trains, and one that is waited
for, as a private run does; so the ratios hold when the machine's speed drifts.

    python -m benchmarks.checkpoint [--repeats 5] [--clients 10]
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import rich.console
import rich.table
from absl import logging

from tasks import privacy_guard
from tasks.checkpoints import Checkpoints, RunState
from tasks.config import RunConfig
from tasks.experiment import Experiment
from tasks.worker import LocalWorker

_NONE, _MEANWHILE, _AWAITED = 'none', 'while the round trains', 'waited for'


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--repeats', type=int, default=5, help='measured rounds of each kind')
  parser.add_argument('--clients', type=int, default=10, help='clients of a round')
  arguments = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  experiment = Experiment(RunConfig(clients_per_round=arguments.clients))
  saves: list[float] = []
  with (
    tempfile.TemporaryDirectory() as folder,
    LocalWorker(experiment.concurrent_clients()),
    Checkpoints(pathlib.Path(folder), print, lambda _, seconds: saves.append(seconds)) as kept,
  ):
    seconds = measure(experiment, kept, arguments.repeats)
    size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob('*') if path.is_file())
  table = rich.table.Table('checkpoint', 's a round', 'over none', box=None)
  plain = statistics.median(seconds[_NONE])
  for name, measured in seconds.items():
    table.add_row(
      name, f'{statistics.median(measured):.3f}', f'{statistics.median(measured) / plain:.4f}'
    )
  console = rich.console.Console()
  console.print(table)
  console.print(
    f'Writing one: {statistics.median(saves):.3f} s, {statistics.median(saves) / plain:.2%} of a'
    f' round; two of them {size / 1e6:.2f} MB.'
  )


def measure(experiment: Experiment, kept: Checkpoints, repeats: int) -> dict[str, list[float]]:
  """Seconds of rounds on the same clients, by kind; the first of each is left out."""
  process = experiment.build_process()
  learning, ranks = process.initialize(), experiment.initial_ranks
  seconds: dict[str, list[float]] = {name: [] for name in (_NONE, _MEANWHILE, _AWAITED)}
  number = 0
  for _ in range(repeats + 1):
    for name, measured in seconds.items():
      data = experiment.client_data(range(experiment.config.clients_per_round), ranks, 1)
      state = RunState(number, learning, ranks, **privacy_guard.NO_ANCHOR)
      number += 1
      started = time.perf_counter()
      if name != _NONE:
        kept.save(state)
      if name == _AWAITED:
        kept.settle()
      learning = process.next(learning, data).state
      kept.settle()
      measured.append(time.perf_counter() - started)
  return {name: measured[1:] for name, measured in seconds.items()}


if __name__ == '__main__':
  main()
