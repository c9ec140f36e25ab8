# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Seconds that the server spends per client, by aggregation factory; and of one large SVD.

Every client sends padded factors for 24 modules of 768 x 768 at rank 50, as GPT-2 small with query
and value adapters does. The time of a round that makes those messages and only sums one number
of them is taken off. The SVD is of 100 clients of rank 50 at 4096 x 4096, one module, with its
error over the best approximation's (`--check`: a minute of NumPy). `--round` adds what to compare
with: a round of two clients that train GPT-2 small for 4 steps of 8 x 64 tokens.

    python -m benchmarks.server_cost [--clients 10] [--ranks full|mixed] [--check] [--round]
"""

import argparse
import collections
import os
import statistics
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np
import rich.console
import rich.table
import tensorflow as tf

from benchmarks import peak_memory, server_round, workload
from hetlora_tff import aggregation
from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.aggregation.low_rank import best_low_rank
from tasks.worker import LocalWorker

_RANK, _WIDTH, _MODULES = 50, 768, 24
_LARGE_WIDTH, _LARGE_CLIENTS = 4096, 100
_MIXED_RANKS = (4, 8, 8, 16, 50)


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--clients', type=int, default=10, help='clients of a round')
  parser.add_argument('--ranks', choices=('full', 'mixed'), default='full')
  parser.add_argument('--repeats', type=int, default=3, help='measured rounds of each factory')
  parser.add_argument('--check', action='store_true', help='compare the large SVD with NumPy')
  parser.add_argument('--round', action='store_true', help='measure a round of training, too')
  arguments = parser.parse_args()
  console = rich.console.Console()
  console.print(_factories_table(arguments))
  console.print(_svd_table(arguments.repeats, arguments.check))
  if arguments.round:
    console.print(f'A round of 2 clients of rank {_RANK}: {_training_seconds():.1f} s')


def _factories_table(arguments) -> rich.table.Table:
  paths = [f'module_{index}' for index in range(_MODULES)]
  per_module = collections.OrderedDict((path, np.float32(1)) for path in paths)
  cases = [
    ('SparsityWeightedMean', aggregation.SparsityWeightedMeanFactory(), per_module),
    ('ZeroPadMean', aggregation.ZeroPadMeanFactory(), np.float32(1)),
    ('RankCoverageMean', aggregation.RankCoverageMeanFactory(), np.ones(_RANK, np.float32)),
    ('ProductSvd', aggregation.ProductSvdFactory(), np.float32(1)),
    ('Stacking', aggregation.StackingFactory(), np.float32(1)),
    ('ResidualCorrectedMean', aggregation.ResidualCorrectedMeanFactory(), np.float32(1)),
  ]
  ranks = (_RANK,) if arguments.ranks == 'full' else _MIXED_RANKS
  clients = [np.int32(ranks[k % len(ranks)]) for k in range(arguments.clients)]
  message = server_round.random_update(_MODULES, _WIDTH, _RANK)
  title = f'{len(clients)} clients, {arguments.ranks} ranks'
  columns = ('aggregator', 'server s/client', 'min', 'max', 'peak worker MB')
  table = rich.table.Table(*columns, box=None, title=title)
  messages_alone = 0.0
  for name, factory, weight in [('messages alone', None, None), *cases]:
    with LocalWorker(2):
      run = server_round.build(message, factory, weight)
      seconds, megabytes = _measure(lambda run=run: run(clients), arguments.repeats)
    shares = [(s - messages_alone) / len(clients) for s in seconds]
    if factory is None:
      messages_alone = statistics.median(seconds)
    numbers = (f'{f(shares):.4f}' for f in (statistics.median, min, max))
    table.add_row(name, *numbers, f'{megabytes:.0f}')
  return table


def _training_seconds() -> float:
  """Seconds of a whole round after a warm-up, two clients at a time."""
  work = workload.Work(layers=_MODULES // 3, width=_WIDTH, clients=2, max_rank=_RANK)
  with workload.model_of(work) as model, LocalWorker(2):
    process = workload.build_process(work, model)
    data = workload.client_data_of(work, workload.examples_of(work))
    state = process.initialize()
    process.next(state, data)
    started = time.perf_counter()
    process.next(state, data)
    return time.perf_counter() - started


def _measure(run, repeats: int) -> tuple[list[float], float]:
  """Seconds of every repeat after a warm-up, and the worker's peak memory in MB."""
  with peak_memory.watched() as peaks:
    run()
    seconds = []
    for _ in range(repeats):
      started = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - started)
  return seconds, peaks.worker


def _svd_table(repeats: int, check: bool) -> rich.table.Table:
  generator = np.random.default_rng(0)
  shape = [_LARGE_CLIENTS * _RANK, _LARGE_WIDTH]
  a, b = (generator.standard_normal(shape, np.float32) for _ in range(2))
  rows = tf.TensorSpec([None, _LARGE_WIDTH])
  decompose = tf.function(lambda a, b: best_low_rank(a, b, _RANK)).get_concrete_function(rows, rows)
  tensors = tf.constant(a), tf.constant(b)
  seconds, cpu = [], []
  factors = decompose(*tensors)
  for _ in range(repeats):
    started, used = time.perf_counter(), time.process_time()
    factors = decompose(*tensors)
    seconds.append(time.perf_counter() - started)
    cpu.append(time.process_time() - used)
  table = rich.table.Table('SVD of', 's (median)', 'min', 'CPU s', 'error over best', box=None)
  table.add_row(
    f'{_LARGE_CLIENTS} x rank {_RANK} at {_LARGE_WIDTH}',
    f'{statistics.median(seconds):.2f}',
    f'{min(seconds):.2f}',
    f'{statistics.median(cpu):.2f}',
    f'{_excess(a, b, factors):.1e}' if check else '(--check)',
  )
  return table


def _excess(a: np.ndarray, b: np.ndarray, factors: LoraFactors) -> float:
  """Relative excess of the error over that of the exact truncated SVD, in float64."""
  product = b.T.astype(np.float64) @ a.astype(np.float64)
  singular_squared = np.linalg.eigvalsh(product @ product.T)[::-1]
  best = np.sqrt(np.sum(singular_squared[_RANK:]))
  approximation = factors.b.numpy().astype(np.float64) @ factors.a.numpy().astype(np.float64)
  return float(np.linalg.norm(product - approximation) / best - 1)


if __name__ == '__main__':
  main()
