# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The local steps of a round without TFF, in a process of their own; and what the machine can do.

`python -m benchmarks.bare_loop` is the process, which `started` starts and speaks to: a line names
what to run, a line of JSON comes back when it has run.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import tensorflow as tf
import tensorflow_federated as tff
from absl import logging

import hetlora_tff
from benchmarks import workload
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.clients import training

# Large enough to reach the peak, small enough for four hundredths of a second on a core.
_SIDE = 2048
MATMUL_FLOPS = 2 * _SIDE**3
_READY = 'ready\n'
_PEAKS = {'peak_float32': tf.float32, 'peak_bfloat16': tf.bfloat16}


@contextlib.contextmanager
def started(
  work: workload.Work, backbone: str, dtype: str, concurrency: int, environment: Mapping[str, str]
) -> Iterator[Callable[[str], Any]]:
  """Starts the process.

  Args:
    work: to do.
    backbone: directory of the frozen weights.
    dtype: that the model computes in.
    concurrency: clients, or matrix products, at a time.
    environment: variables that it has beside ours.

  Yields:
    A function that runs what it names and waits for it: 'loop' gives the mean loss of the round;
    'peak_float32' and 'peak_bfloat16' multiply `concurrency` pairs of matrices, each
    `MATMUL_FLOPS`.
  """
  given = {
    'work': dataclasses.asdict(work),
    'backbone': backbone,
    'dtype': dtype,
    'concurrency': concurrency,
  }
  with subprocess.Popen(
    [sys.executable, '-W', 'ignore', '-m', 'benchmarks.bare_loop', json.dumps(given)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**os.environ, **environment},
    text=True,
  ) as process:
    requests, answers = process.stdin, process.stdout
    assert requests is not None
    assert answers is not None

    def run(name: str) -> Any:
      requests.write(f'{name}\n')
      requests.flush()
      answer = answers.readline()
      if not answer:
        raise RuntimeError(f'The process ended with status {process.wait()}.')
      return json.loads(answer)

    try:
      # Keras speaks first.
      while answers.readline() not in (_READY, ''):
        pass
      yield run
    finally:
      process.kill()


def build_loop(
  work: workload.Work, model: hetlora_tff.CausalLanguageModel, concurrency: int
) -> Callable[[], float]:
  """The clients' steps as one `tf.function` a client, called from as many threads as may run.

  They are the very steps of a round, from the adapters of its first.

  Returns:
    A function that takes all steps of all clients and returns their mean loss.
  """
  config = workload.lora_config(work)
  loss_fn = model.build(config)
  layout = AdapterLayout(model.module_shapes(config), config)
  start = layout.adapters(layout.initial_weights())
  optimizer = tff.learning.optimizers.build_sgdm(workload.LEARNING_RATE)

  @tf.function
  def train(adapters, dataset):
    return training.run_local_steps(loss_fn, adapters, dataset, optimizer)

  examples = workload.examples_of(work)
  # As in a round, no rank is known beforehand.
  any_rank = collections.OrderedDict(
    (path, hetlora_tff.LoraFactors(tf.TensorSpec([None, s.d_in]), tf.TensorSpec([s.d_out, None])))
    for path, s in layout.shapes.items()
  )
  traced = train.get_concrete_function(any_rank, tf.data.DatasetSpec.from_value(examples[0]))
  pool = concurrent.futures.ThreadPoolExecutor(concurrency)

  def run() -> float:
    results = list(pool.map(lambda dataset: traced(start, dataset), examples))
    return sum(float(r.loss) for r in results) / sum(float(r.count) for r in results)

  return run


def _build_peak(dtype: tf.DType, concurrency: int) -> Callable[[], None]:
  """So many products at a time as clients train: a core's worth each."""
  shape = [2, _SIDE, _SIDE]
  pairs = [tf.unstack(tf.cast(tf.random.normal(shape), dtype)) for _ in range(concurrency)]
  pool = concurrent.futures.ThreadPoolExecutor(concurrency)

  def run() -> None:
    list(pool.map(lambda pair: tf.matmul(*pair), pairs))

  return run


def main() -> None:
  """The process."""
  logging.set_verbosity(logging.ERROR)
  given = json.loads(sys.argv[1])
  work, concurrency = workload.Work(**given['work']), given['concurrency']
  backbone = hetlora_tff.FrozenBackbone.load(given['backbone'])
  model = hetlora_tff.CausalLanguageModel(backbone, work.length, given['dtype'])
  kinds: dict[str, Callable[[], Any]] = {'loop': build_loop(work, model, concurrency)}
  kinds |= {name: _build_peak(dtype, concurrency) for name, dtype in _PEAKS.items()}
  print(_READY, end='', flush=True)
  for line in sys.stdin:
    print(json.dumps(kinds[line.strip()]()), flush=True)


if __name__ == '__main__':
  main()
