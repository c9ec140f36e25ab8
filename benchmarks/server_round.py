# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A round without training: clients make random updates, and the server aggregates them."""

import collections
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import LoraFactors


def random_update(modules: int, width: int, max_rank: int) -> tff.Computation:
  """`(rank -> factors)`: random factors of a client's rank, padded.

  Args:
    modules: how many.
    width: of each, in and out.
    max_rank: of the server.
  """

  @tff.tensorflow.computation(np.int32)
  def update(rank):
    held = tf.sequence_mask(rank, max_rank, tf.float32)
    return collections.OrderedDict(
      (
        f'module_{k}',
        LoraFactors(
          tf.random.stateless_uniform([max_rank, width], [rank, k]) * held[:, tf.newaxis],
          tf.random.stateless_uniform([width, max_rank], [rank, -1 - k]) * held,
        ),
      )
      for k in range(modules)
    )

  return update


def build(update: tff.Computation, factory: Any = None, weight: Any = None) -> tff.Computation:
  """`({rank}@CLIENTS -> number@SERVER)`: the aggregate, reduced to one number at the server.

  Args:
    update: `(rank -> value)`.
    factory: a weighted aggregation factory; without one, clients send one number of their update.
    weight: that all clients have, NumPy.
  """

  @tff.tensorflow.computation(update.type_signature.result)
  def touch(value):
    return tf.add_n([tf.reduce_sum(tensor) for tensor in tf.nest.flatten(value)])

  if factory is None:

    @tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
    def run(ranks):
      values = tff.federated_map(update, ranks)
      return tff.federated_sum(tff.federated_map(touch, values))

    return run

  weights = tff.tensorflow.computation(lambda: tf.nest.map_structure(tf.constant, weight))
  process = factory.create(update.type_signature.result, weights.type_signature.result)
  result_type = process.next.type_signature.result.result.member

  @tff.tensorflow.computation(result_type)
  def reduce(value):
    return tf.add_n([tf.reduce_sum(tensor) for tensor in tf.nest.flatten(value)])

  @tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
  def run(ranks):
    values = tff.federated_map(update, ranks)
    output = process.next(process.initialize(), values, tff.federated_eval(weights, tff.CLIENTS))
    return tff.federated_map(reduce, output.result)

  return run
