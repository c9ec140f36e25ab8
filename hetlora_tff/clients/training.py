# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one client does in a round: truncate, train, prune, pad, weigh."""

import collections
import dataclasses
import enum
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.adapter_types import adapters_type
from hetlora_tff.adapters.backbone import keras_classes_restored
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.finite import all_finite, zero_unless
from hetlora_tff.adapters.model import AdapterModel, Adapters, LossFn
from hetlora_tff.clients import pruning
from hetlora_tff.clients.weights import ClientWeighting, client_weight


class Padding(enum.Enum):
  """What stands in the rows that a client does not have.

  STATE (the paper): the padded factors are averaged, so an absent row pulls towards zero.
  UPDATE: an absent row contributes a zero update.
  """

  STATE = 'state'
  UPDATE = 'update'


@dataclasses.dataclass(frozen=True)
class LocalTraining:
  """How clients train; the model-independent part of HetLoRA's local step.

  Attributes:
    prune_decay: the paper's gamma, in (0, 1]; 1 switches self-pruning off.
    prune_weight: the paper's lambda, `>= 0`, the weight of the tail norm in the local loss.
    min_rank: the rank below which no client prunes itself, at least 1.
    padding: what absent rows contribute.
    weights: the weight sent with the update; None for what the aggregator needs (`MODULE` for one
      that takes a weight per module, `MODEL` for another weighted one, `UNIFORM` for an unweighted
      one).
  """

  prune_decay: float = 0.99
  prune_weight: float = 0.01
  min_rank: int = 1
  padding: Padding = Padding.STATE
  weights: ClientWeighting | None = None

  def __post_init__(self):
    if not 0.0 < self.prune_decay <= 1.0:
      raise ValueError(f'`prune_decay` must be in (0, 1], got {self.prune_decay}.')
    if not 0.0 <= self.prune_weight < float('inf'):
      raise ValueError(f'`prune_weight` must be at least 0, got {self.prune_weight}.')
    if self.min_rank < 1:
      raise ValueError(f'`min_rank` must be at least 1, got {self.min_rank}.')


class ClientOutput(NamedTuple):
  """Everything that leaves the local computation of one client.

  Attributes:
    update: per module, `LoraFactors` of `max_rank`, by TFF's convention the received minus the
      trained factors: what a server optimizer takes for a gradient.
    update_weight: see `client_weight`.
    rank: int32, its rank from now on: device state, it goes back to the device only.
    stats: sums for the round's measurements.
  """

  update: Adapters
  update_weight: Any
  rank: tf.Tensor
  stats: collections.OrderedDict[str, tf.Tensor]


class _Trained(NamedTuple):
  adapters: Adapters
  loss: tf.Tensor
  count: tf.Tensor
  examples: tf.Tensor
  steps: tf.Tensor


@dataclasses.dataclass(frozen=True)
class _Shape:
  """Stands in for a `tf.TensorSpec` whose first dimension only the running graph knows."""

  shape: tf.Tensor
  dtype: tf.DType


def client_data_type(model: AdapterModel) -> tff.StructWithPythonType:
  """`<rank=int32*, examples=batch*>`: the rank is a sequence of exactly one element.

  TFF's `ClientWorkProcess` takes sequences only as client data.
  """
  return tff.to_type(
    collections.OrderedDict(
      rank=tff.SequenceType(np.int32),
      examples=tff.SequenceType(tff.types.tensorflow_to_type(model.batch_spec)),
    )
  )


@keras_classes_restored()
def build_train_on_client(
  model: AdapterModel,
  config: LoraConfig,
  training: LocalTraining,
  weights: ClientWeighting,
  optimizer: tff.learning.optimizers.Optimizer,
) -> tff.Computation:
  """Builds the local computation.

  Type signature: `(<received=adapters of any rank >= r, data=<int32*, batch*>> -> ClientOutput)`.

  The client cuts what it receives to its own rank `r` (a no-op if the distributor did), so the
  tensors that it trains have `r (d_in + d_out)` numbers per module. A client without examples, or
  whose trained factors, weight or loss are not finite, sends zeros with weight 0 and keeps its
  rank.

  Args:
    model: the frozen model.
    config: the adapters; `max_rank` is the rank of the padded update.
    training: pruning and padding.
    weights: the weight to send.
    optimizer: any TFF optimizer; its slots have the client's rank, too.
  """
  shapes = model.module_shapes(config)

  @tff.tensorflow.computation(adapters_type(shapes, None), client_data_type(model))
  def train_on_client(received, client_data):
    loss_fn = model.build(config)

    @tf.function
    def run(received, ranks, examples):
      rank = checked_rank(ranks, config.max_rank)
      start = _map_modules(lambda f: lora.truncate(f, rank), received)
      candidate = pruning.candidate_rank(rank, training.prune_decay, training.min_rank)

      def penalty(adapters):
        return training.prune_weight * pruning.tail_product(adapters.values(), candidate)

      prunes = training.prune_decay < 1.0
      trained = _train(loss_fn, start, examples, optimizer, penalty if prunes else None)
      return _finish(trained, received, start, rank, candidate)

    def _finish(trained, received, start, rank, candidate):
      decided = pruning.pruned_rank(
        rank,
        candidate,
        pruning.tail_product(start.values(), candidate),
        pruning.tail_product(trained.adapters.values(), candidate),
      )
      kept = _map_modules(lambda f: lora.truncate(f, decided), trained.adapters)
      weight = client_weight(weights, kept, trained.examples)
      # Finite factors may still have an infinite norm, and the loss goes into a sum, too.
      finite = all_finite((trained.adapters, weight, trained.loss))
      healthy = tf.logical_and(trained.examples > 0, finite)
      kept_rank = tf.where(healthy, decided, rank)
      base = received
      if training.padding is Padding.UPDATE:
        base = _map_modules(lambda f: lora.truncate(f, decided), start)
      return ClientOutput(
        update=collections.OrderedDict(
          (path, zero_unless(healthy, _padded_difference(base[path], kept[path], config.max_rank)))
          for path in shapes
        ),
        update_weight=zero_unless(healthy, weight),
        rank=kept_rank,
        stats=_stats(trained, rank, kept_rank, healthy, shapes, config.max_rank),
      )

    return run(received, client_data['rank'], client_data['examples'])

  return train_on_client


def _train(loss_fn: LossFn, start: Adapters, examples, optimizer, penalty) -> _Trained:
  """Runs the optimizer over the batches, on tensors of the client's own rank."""
  adapters = start
  state = optimizer.initialize(tf.nest.map_structure(lambda t: _Shape(tf.shape(t), t.dtype), start))
  loss, count = tf.constant(0.0), tf.constant(0.0)
  num_examples, steps = tf.constant(0, tf.int64), tf.constant(0, tf.int64)
  # A loop over the iterator: `Dataset.reduce` and a loop over the dataset are slower inside TFF.
  for batch in iter(examples):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(adapters)
      batch_loss = loss_fn(adapters, batch)
      objective = tf.math.divide_no_nan(batch_loss.total, batch_loss.count)
      if penalty is not None:
        objective += penalty(adapters)
    gradients = tape.gradient(objective, adapters)
    state, adapters = optimizer.next(state, adapters, gradients)
    loss += batch_loss.total
    count += batch_loss.count
    num_examples += tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]
    steps += 1
  return _Trained(adapters, loss, count, num_examples, steps)


def checked_rank(ranks: tf.data.Dataset, max_rank: int) -> tf.Tensor:
  """The one rank that the sequence must hold; the running graph fails if it is not valid."""
  number, rank = ranks.reduce((0, 0), lambda state, rank: (state[0] + 1, rank))
  message = f'Client data must hold exactly one rank, and it must be in [1, {max_rank}].'
  with tf.control_dependencies(
    [
      tf.debugging.assert_equal(number, 1, message),
      tf.debugging.assert_positive(rank, message),
      tf.debugging.assert_less_equal(rank, max_rank, message),
    ]
  ):
    return tf.identity(rank)


def _map_modules(fn, adapters: Adapters) -> Adapters:
  return collections.OrderedDict((path, fn(factors)) for path, factors in adapters.items())


def _padded_difference(base: lora.LoraFactors, kept: lora.LoraFactors, max_rank: int):
  kept, base = lora.pad(kept, max_rank), lora.pad(base, max_rank)
  return lora.LoraFactors(base.a - kept.a, base.b - kept.b)


def _stats(trained: _Trained, rank, kept_rank, healthy, shapes, max_rank: int):
  """Sums over clients: every entry is zero or one client's share."""
  present = trained.examples > 0
  numbers_per_rank = sum(shape.num_trained(1) for shape in shapes.values())
  return collections.OrderedDict(
    loss=tf.where(healthy, trained.loss, 0.0),
    predictions=tf.where(healthy, trained.count, 0.0),
    examples=trained.examples,
    steps=trained.steps,
    clients=tf.constant(1, tf.int64),
    trained_clients=tf.cast(present, tf.int64),
    pruned_clients=tf.cast(kept_rank < rank, tf.int64),
    non_finite_clients=tf.cast(tf.logical_and(present, tf.logical_not(healthy)), tf.int64),
    trained_parameters=tf.cast(present, tf.int64)
    * tf.cast(rank, tf.int64)
    * tf.constant(numbers_per_rank, tf.int64),
    rank_histogram=tf.one_hot(kept_rank - 1, max_rank, dtype=tf.int64),
  )
