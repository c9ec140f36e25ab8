# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The points of `benchmarks.scaling`, each of one size, measured in this process.

They are called by name in other processes; no TensorFlow before that.
"""

import collections
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_COHORT = 8


class Point(NamedTuple):
  """What a size costs.

  Attributes:
    size: that was set.
    seconds: of each measured round.
    first_seconds: of the round before, which compiles.
    driver_mb: most memory of the driver while they ran, not mapped from files.
    worker_mb: likewise of its TFF worker.
  """

  size: int
  seconds: list[float]
  first_seconds: float
  driver_mb: float
  worker_mb: float


def quieten() -> None:
  """Once in a process: what libraries say on import is no part of a table."""
  from absl import logging

  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  warnings.simplefilter('ignore')
  logging.set_verbosity(logging.ERROR)


def clients(size: int, repeats: int) -> Point:
  """So many clients of `tiny` a round."""
  return _rounds(size, repeats, 'tiny', {'clients': size})


def measured(size: int, repeats: int) -> Point:
  """The same with `deviation_from_exact`."""
  return _rounds(size, repeats, 'tiny', {'clients': size}, measures_deviation=True)


def rank(size: int, repeats: int) -> Point:
  """Clients of that rank."""
  return _rounds(size, repeats, 'small', {**_FEW, 'max_rank': size})


def depth(size: int, repeats: int) -> Point:
  """So many layers."""
  return _rounds(size, repeats, 'small', {**_FEW, 'layers': size})


def width(size: int, repeats: int) -> Point:
  """Layers of that width."""
  return _rounds(size, repeats, 'small', {**_FEW, 'width': size})


def sequence(size: int, repeats: int) -> Point:
  """Sequences of that length."""
  return _rounds(size, repeats, 'small', {**_FEW, 'length': size})


_FEW = {'layers': 2, 'clients': 4, 'steps': 2}


def _rounds(
  size: int,
  repeats: int,
  work: str,
  changes: Mapping[str, int],
  *,
  measures_deviation: bool = False,
) -> Point:
  """Of one of `workload.SIZES`, changed."""
  from benchmarks import workload
  from tasks.worker import LocalWorker

  changed = dataclasses.replace(workload.SIZES[work], **changes)
  with workload.model_of(changed) as model, LocalWorker(len(os.sched_getaffinity(0))):
    process = workload.build_process(changed, model, measures_deviation=measures_deviation)
    data = workload.client_data_of(changed, workload.examples_of(changed))
    state = process.initialize()
    return _point(size, repeats, lambda: process.next(state, data))


def updates(size: int, repeats: int) -> Point:
  """So many updates aggregated, of GPT-2 small with adapters of rank 8 on query and value."""
  import numpy as np

  from benchmarks import server_round
  from hetlora_tff import aggregation
  from tasks.worker import LocalWorker

  modules, max_rank = 24, 8
  update = server_round.random_update(modules, 768, max_rank)
  weight = collections.OrderedDict((f'module_{k}', np.float32(1)) for k in range(modules))
  run = server_round.build(update, aggregation.SparsityWeightedMeanFactory(), weight)
  with LocalWorker(len(os.sched_getaffinity(0))):
    return _point(size, repeats, lambda: run([np.int32(max_rank)] * size))


def _point(size: int, repeats: int, run: Callable[[], Any]) -> Point:
  from benchmarks import peak_memory

  seconds = []
  with peak_memory.watched() as peaks:
    for _ in range(1 + repeats):
      started = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - started)
  return Point(size, seconds[1:], seconds[0], peaks.driver, peaks.worker)


def population(size: int, repeats: int) -> Point:
  """Whole rounds of `hetlora train` with so many clients to draw from, always as many at a time."""
  from benchmarks import peak_memory
  from tasks import program, registry
  from tasks.config import RunConfig
  from tasks.console import Verbosity

  registry.TASKS['population'] = registry.NamedTask('made up', lambda _: _people(size))
  # Twice as many rounds as are compared, from which evaluations at both ends are left out.
  config = RunConfig(
    task='population',
    rounds=2 + repeats,
    clients_per_round=_COHORT,
    local_steps=1,
    batch_size=2,
    sequence_length=32,
    max_target_tokens=16,
    decode_examples=0,
    eval_every=10**6,
    personalization_clients=0,
  )
  with tempfile.TemporaryDirectory() as folder, peak_memory.watched() as peaks:
    run = pathlib.Path(folder) / 'run'
    program.train(config, run, resume=False, command=[], verbosity=Verbosity.QUIET)
    starts = list(_round_starts(run / 'log.jsonl'))
  lengths = [after - before for before, after in itertools.pairwise(starts)]
  return Point(size, lengths[1:], lengths[0], peaks.driver, peaks.worker)


def _round_starts(log: pathlib.Path) -> Iterator[float]:
  for line in log.read_text('utf-8').splitlines():
    event = json.loads(line)
    if event.get('event') == 'round_started':
      yield datetime.datetime.fromisoformat(event['time']).timestamp()


def _people(size: int):
  from tasks.federated_text import Example, FederatedText

  class People(Mapping[str, tuple[Example, ...]]):
    """Clients whose text is made when it is asked for, as that of a stored task is read."""

    def __init__(self, names: list[str]):
      self.sizes = dict.fromkeys(names, 2)
      self.sha256 = str(len(names))

    def __getitem__(self, name: str) -> tuple[Example, ...]:
      return tuple(Example(f'{name} {k} says', 'what it says') for k in range(self.sizes[name]))

    def __iter__(self):
      return iter(self.sizes)

    def __len__(self) -> int:
      return len(self.sizes)

  trains, tests = ([f'{kind}{k:07d}' for k in range(n)] for kind, n in (('', size), ('t', 4)))
  return FederatedText('population', People(trains), People([]), People(tests))
