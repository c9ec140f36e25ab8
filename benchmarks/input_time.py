# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time that a round's input takes: text to rows, rows to batches, batches to the clients.

The embedded model on real clients, with the defaults of `hetlora train`; every round has clients
that were not drawn before, whose text is read and encoded for the first time. A computation that
only counts the batches that it is given stands for handing them over to TFF's runtime, and bounds
it.

    python -m benchmarks.input_time [--rounds 5] [--clients 10]
    python -m benchmarks.input_time --task benchmarks.real_text:IRC --data-dir DIRECTORY
"""

import argparse
import os
import statistics
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np
import rich.console
import rich.table
import tensorflow as tf
import tensorflow_federated as tff
from absl import logging

import hetlora_tff
from tasks.config import RunConfig
from tasks.experiment import Experiment
from tasks.worker import LocalWorker

_PARTS = ('tokenising and batching', 'handing over', 'round')


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--rounds', type=int, default=5, help='measured rounds')
  parser.add_argument('--clients', type=int, default=10, help='clients of a round')
  parser.add_argument('--task', default='docstring_summarization', help='as of `hetlora train`')
  parser.add_argument('--data-dir', help='as of `hetlora train`')
  arguments = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  given = {} if arguments.data_dir is None else {'data_dir': arguments.data_dir}
  config = RunConfig(task=arguments.task, clients_per_round=arguments.clients, **given)
  with LocalWorker(len(os.sched_getaffinity(0))):
    seconds = measure(Experiment(config), arguments.rounds)
  table = rich.table.Table('', 'median s', 'min s', 'max s', '% of the round', box=None)
  for name, measured in zip(_PARTS, zip(*seconds, strict=True), strict=True):
    shares = [100 * part / row[-1] for part, row in zip(measured, seconds, strict=True)]
    spread = (f'{f(measured):.4f}' for f in (statistics.median, min, max))
    table.add_row(name, *spread, f'{statistics.median(shares):.2f}')
  rich.console.Console().print(table)


def measure(experiment: Experiment, rounds: int) -> list[tuple[float, float, float]]:
  """Seconds of the parts of each round; the first round compiles and is left out."""
  process = experiment.build_process()
  hand_over = _counting(process)
  state = process.initialize()
  size, ranks = experiment.config.clients_per_round, experiment.initial_ranks
  order = np.random.default_rng(0).permutation(len(experiment.client_ids)).tolist()
  measured = []
  for number in range(rounds + 1):
    cohort = order[number * size : (number + 1) * size]
    times = [time.perf_counter()]
    data = experiment.client_data(cohort, ranks, number + 1)
    times.append(time.perf_counter())
    hand_over(data)
    times.append(time.perf_counter())
    state = process.next(state, data).state
    times.append(time.perf_counter())
    prepared, handed, trained = np.diff(times).tolist()
    # Handing over is part of the process's own time.
    measured.append((prepared, handed, prepared + trained))
  return measured[1:]


def _counting(process: hetlora_tff.HetLoraProcess):
  """A computation that reads the clients' input and does nothing else."""
  client_type = process.next.type_signature.parameter[1].member

  @tff.tensorflow.computation(client_type)
  def count(client):
    return client['examples'].reduce(tf.constant(0), lambda number, batch: number + 1)

  @tff.federated_computation(tff.types.FederatedType(client_type, tff.CLIENTS))
  def total(clients):
    return tff.federated_sum(tff.federated_map(count, clients))

  return total


if __name__ == '__main__':
  main()
