# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time of a federated round over a bare `tf.function` loop on the same steps and weights.

Both do the local work of 16 clients x 4 steps on a GPT-2 of 4 layers x 256, vocabulary 8192,
batch 8 x 64. The bare loop calls one `tf.function` per client from Python, with all cores at the
disposal of each operation; the round trains one client per core in TFF's runtime and does
everything else that a round does. Rounds and loops alternate, so that the ratio holds when the
machine's speed drifts.

    python -m benchmarks.round_time [--repeats 5]
"""

import collections
import os
import statistics
import time
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import psutil
import tensorflow as tf
import tensorflow_federated as tff

import hetlora_tff
from benchmarks import side_by_side, workload
from tasks.worker import LocalWorker

_LEARNING_RATE = 0.1


def measure(work: workload.Work, repeats: int) -> dict[str, Any]:
  """Alternates rounds and bare loops after one warm-up of each."""
  rounds, loops, loads = [], [], []
  cores = len(os.sched_getaffinity(0))
  with workload.model_of(work) as model, LocalWorker(cores) as worker:
    pid = worker.pid
    assert pid is not None  # The worker runs inside the block.
    examples = workload.examples_of(work)
    run_round = _round(work, model, examples)
    run_loop = _bare_loop(work, model, examples)
    run_round()
    run_loop()
    for _ in range(repeats):
      before = _busy_seconds(pid)
      rounds.append(_seconds(run_round))
      loops.append(_seconds(run_loop))
      machine, own = (b - a for a, b in zip(before, _busy_seconds(pid), strict=True))
      loads.append(round(max(0.0, machine - own) / (rounds[-1] + loops[-1]), 3))
  ratios = [a / b for a, b in zip(rounds, loops, strict=True)]
  return {
    'round_seconds': [round(s, 3) for s in rounds],
    'bare_loop_seconds': [round(s, 3) for s in loops],
    'ratio_median': round(statistics.median(ratios), 3),
    'ratios': [round(r, 3) for r in ratios],
    'foreign_load_cores': loads,
    'cores': cores,
  }


def _round(work: workload.Work, model, examples):
  process = hetlora_tff.build_hetlora_process(
    model,
    workload.lora_config(work),
    # No penalty: it is no part of the bare steps.
    training=hetlora_tff.LocalTraining(prune_decay=1.0),
    client_optimizer=tff.learning.optimizers.build_sgdm(_LEARNING_RATE),
  )
  data = workload.client_data_of(work, examples)
  state = process.initialize()
  return lambda: process.next(state, data)


def _bare_loop(work: workload.Work, model, examples):
  """The same steps from the same adapters, at each client's own rank."""
  config = workload.lora_config(work)
  loss_fn = model.build(config)
  shapes = model.module_shapes(config)

  @tf.function
  def train(adapters, dataset):
    for batch in iter(dataset):
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(adapters)
        loss = loss_fn(adapters, batch)
        objective = loss.total / loss.count
      gradients = tape.gradient(objective, adapters)
      adapters = tf.nest.map_structure(lambda w, g: w - _LEARNING_RATE * g, adapters, gradients)
    return adapters

  def adapters_of(rank):
    return collections.OrderedDict(
      (
        path,
        hetlora_tff.LoraFactors(
          tf.random.stateless_normal([rank, s.d_in], [0, 0]), tf.zeros([s.d_out, rank])
        ),
      )
      for path, s in shapes.items()
    )

  any_rank = collections.OrderedDict(
    (path, hetlora_tff.LoraFactors(tf.TensorSpec([None, s.d_in]), tf.TensorSpec([s.d_out, None])))
    for path, s in shapes.items()
  )
  traced = train.get_concrete_function(any_rank, tf.data.DatasetSpec.from_value(examples[0]))
  clients = [(adapters_of(workload.rank_of(work, k)), e) for k, e in enumerate(examples)]
  return lambda: [traced(adapters, dataset) for adapters, dataset in clients]


def _seconds(function) -> float:
  started = time.perf_counter()
  function()
  return time.perf_counter() - started


def _busy_seconds(worker_pid: int) -> tuple[float, float]:
  """CPU seconds of the machine, and of this process and its worker."""
  times = psutil.cpu_times()
  own = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), worker_pid)]
  # Only Linux counts what waits for a device.
  waiting = times.idle + getattr(times, 'iowait', 0.0)
  return sum(times) - waiting, sum(t.user + t.system for t in own)


if __name__ == '__main__':
  side_by_side.main(__doc__, ('round', 'bare_loop'), measure)
