# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time of a private round over one without privacy: the embedded task, the same clients and steps.

Rounds of all mechanisms alternate, so that the ratios hold when the machine's speed drifts. The
time of a private round has its place in the sampler, the ledger and the budget in it.

    python -m benchmarks.private_round [--clients 8] [--repeats 3]
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import rich.console
import rich.table
from absl import logging

from tasks import privacy_guard
from tasks.config import RunConfig
from tasks.experiment import Experiment
from tasks.worker import LocalWorker

_PLAIN = {
  'weights': 'uniform', 'padding': 'update', 'rank_dynamics': 'fixed', 'deviation_from_exact': False
}  # fmt: skip
_PRIVATE = {'privacy': 'central', 'noise_multiplier': 0.5, 'delta': 1e-3, 'target_epsilon': 1e6}
_TREE = {**_PRIVATE, 'privacy': 'tree', 'min_separation': 8}
_RUNS = {
  'no privacy': _PLAIN,
  'central': _PRIVATE,
  'central, adaptive clip': {**_PRIVATE, 'clip': 'adaptive'},
  'central, weights inside': {**_PRIVATE, 'weights': 'module', 'weight_reference': 1.0},
  'tree': _TREE,
  'tree, banded': {**_TREE, 'noise_matrix': 'banded'},
}


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--clients', type=int, default=8, help='clients of a round')
  parser.add_argument('--repeats', type=int, default=3, help='measured rounds of each mechanism')
  arguments = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  with tempfile.TemporaryDirectory() as folder, LocalWorker(len(os.sched_getaffinity(0))):
    runs = {
      name: _Run(settings, arguments.clients, pathlib.Path(folder) / str(place))
      for place, (name, settings) in enumerate(_RUNS.items())
    }
    seconds = {name: [] for name in runs}
    for number in range(1, arguments.repeats + 2):
      for name, run in runs.items():
        seconds[name].append(run.seconds(number))
  table = rich.table.Table('mechanism', 's a round', 'over no privacy', box=None)
  # The first round of each compiles.
  plain = seconds['no privacy'][1:]
  for name, measured in seconds.items():
    ratios = [each / base for each, base in zip(measured[1:], plain, strict=True)]
    spread = f'{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})'
    table.add_row(name, f'{statistics.median(measured[1:]):.2f}', spread)
  rich.console.Console().print(table)


class _Run:
  """One mechanism, with a directory of its own."""

  def __init__(self, settings: dict[str, Any], clients: int, directory: pathlib.Path):
    config = RunConfig(clients_per_round=clients, **settings)
    self._experiment = Experiment(config)
    self._process = self._experiment.build_process()
    self._state = self._process.initialize()
    directory.mkdir()
    self._guard = privacy_guard.build_guard(
      self._experiment.config, len(self._experiment.client_ids), directory
    )
    self._guard.open(None)
    self._cohort = list(range(clients))

  def seconds(self, number: int) -> float:
    """Time of a round, which trains the same clients whoever was drawn."""
    started = time.perf_counter()
    assert not self._guard.reason_to_stop(number)
    self._guard.start_round(number)
    ranks = self._experiment.initial_ranks
    data = self._experiment.client_data(self._cohort, ranks, number)
    self._state = self._process.next(self._state, data).state
    self._guard.release(number)
    return time.perf_counter() - started


if __name__ == '__main__':
  main()
