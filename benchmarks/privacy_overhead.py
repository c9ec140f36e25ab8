# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Seconds that clip and noise add to a round, by mechanism, over the plain mean.

Every client sends padded factors for 24 modules of 768 x 768, as GPT-2 small with query and value
adapters does; nothing is trained. "a client" is the slope between a round with no client and one
with all, "a round" the round without clients: noise and bookkeeping at the server, with the state
sent to the worker and back.

    python -m benchmarks.privacy_overhead [--clients 10] [--rank 16] [--repeats 3]
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
import tensorflow_federated as tff

from hetlora_tff import aggregation
from hetlora_tff.adapters.factors import LoraFactors
from privacy.aggregators import build_dp_aggregator
from privacy.clipping import clip_to_norm
from privacy.spec import Clipping, DpSpec, Mechanism, Sampling
from tasks.worker import LocalWorker

_WIDTH, _MODULES = 768, 24
_NOISE_MULTIPLIER, _CLIP, _CLIENTS_PER_ROUND = 1.0, 1.0, 100.0


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--clients', type=int, default=10, help='clients of a round')
  parser.add_argument('--rank', type=int, default=16, help='rank of the messages')
  parser.add_argument('--repeats', type=int, default=3, help='measured rounds of each mechanism')
  arguments = parser.parse_args()
  message = _message(arguments.rank)
  title = f'{arguments.clients} clients, rank {arguments.rank}, {_MODULES} x {_WIDTH} x {_WIDTH}'
  table = rich.table.Table('mechanism', 's a client', 's a round', box=None, title=title)
  for name, factory in _factories().items():
    with LocalWorker(2):
      empty, full = (
        _seconds(factory, message, clients, arguments.repeats) for clients in (0, arguments.clients)
      )
    table.add_row(name, f'{(full - empty) / arguments.clients:.4f}', f'{empty:.3f}')
  rich.console.Console().print(table)


def _factories() -> dict[str, tff.aggregators.AggregationFactory]:
  spec = DpSpec(_NOISE_MULTIPLIER, _CLIP, _CLIENTS_PER_ROUND)
  apart = {'sampling': Sampling.MIN_SEPARATION, 'min_separation': 4}
  tree = DpSpec(_NOISE_MULTIPLIER, _CLIP, _CLIENTS_PER_ROUND, Mechanism.TREE, **apart)
  banded = DpSpec(_NOISE_MULTIPLIER, _CLIP, _CLIENTS_PER_ROUND, Mechanism.BANDED, **apart)
  adaptive = DpSpec(_NOISE_MULTIPLIER, _CLIP, _CLIENTS_PER_ROUND, clipping=Clipping.ADAPTIVE)
  weigh = aggregation.WeightInsideFactory(build_dp_aggregator(spec), 1.0, clip_to_norm(_CLIP), 0.5)
  return {
    'none (plain mean)': tff.aggregators.UnweightedMeanFactory(),
    'Gaussian': build_dp_aggregator(spec),
    'Gaussian, adaptive clip': build_dp_aggregator(adaptive),
    'Gaussian, weights inside': weigh,
    'tree': build_dp_aggregator(tree),
    'banded': build_dp_aggregator(banded),
  }


def _message(rank: int) -> tff.Computation:
  """`(number -> factors)`: a client's message."""

  @tff.tensorflow.computation(np.int32)
  def message(number):
    return collections.OrderedDict(
      (
        f'module_{k}',
        LoraFactors(
          tf.random.stateless_uniform([rank, _WIDTH], [number, k]),
          tf.random.stateless_uniform([_WIDTH, rank], [number, -1 - k]),
        ),
      )
      for k in range(_MODULES)
    )

  return message


def _seconds(factory, message: tff.Computation, clients: int, repeats: int) -> float:
  """Median seconds of a round, state to state."""
  value_type = message.type_signature.result
  weights = ()
  if isinstance(factory, tff.aggregators.WeightedAggregationFactory):
    process = factory.create(value_type, tff.TensorType(np.float32))
    weights = (tff.tensorflow.computation(lambda: tf.constant(0.5)),)
  else:
    process = factory.create(value_type)
  state_type = process.initialize.type_signature.result

  @tff.federated_computation(state_type, tff.FederatedType(np.int32, tff.CLIENTS))
  def run(state, numbers):
    values = tff.federated_map(message, numbers)
    output = process.next(
      state, values, *(tff.federated_eval(weight, tff.CLIENTS) for weight in weights)
    )
    return output.state, output.result

  numbers = [np.int32(number) for number in range(clients)]
  state = run(process.initialize(), numbers)[0]
  seconds = []
  for _ in range(repeats):
    started = time.perf_counter()
    state = run(state, numbers)[0]
    seconds.append(time.perf_counter() - started)
  return statistics.median(seconds)


if __name__ == '__main__':
  main()
