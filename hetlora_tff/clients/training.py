# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one client does in a round: truncate, train, prune, pad, weigh."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.backbone import keras_classes_restored
from hetlora_tff.adapters.finite import all_finite, zero_unless
from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors
from hetlora_tff.adapters.model import AdapterModel, Adapters, FullModel, LossFn
from hetlora_tff.clients import messages, pruning
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.weights import ClientWeighting, client_weight


@dataclasses.dataclass(frozen=True)
class LocalTraining:
  """How clients train; the model-independent part of HetLoRA's local step.

  Attributes:
    prune_decay: the paper's gamma, in (0, 1]; 1 switches self-pruning off.
    prune_weight: the paper's lambda, `>= 0`, the weight of the tail norm in the local loss.
    min_rank: the rank below which no client prunes itself, at least 1.
    padding: what absent rows contribute; None for what the aggregator needs (`NONE` for one of
      products, `UPDATE` for one that averages a row over its holders, `STATE` for another).
    weights: the weight sent with the update; None for what the aggregator needs (`MODULE` for one
      that takes a weight per module, `COVERAGE` for one per row, `UNIFORM` for an unweighted or
      plain mean, `MODEL` for another weighted one).
    trained: which of the factors are trained.
  """

  prune_decay: float = 0.99
  prune_weight: float = 0.01
  min_rank: int = 1
  padding: Padding | None = None
  weights: ClientWeighting | None = None
  trained: TrainedFactors = TrainedFactors.BOTH

  def __post_init__(self):
    if not 0.0 < self.prune_decay <= 1.0:
      raise ValueError(f'`prune_decay` must be in (0, 1], got {self.prune_decay}.')
    if not 0.0 <= self.prune_weight < float('inf'):
      raise ValueError(f'`prune_weight` must be at least 0, got {self.prune_weight}.')
    if self.min_rank < 1:
      raise ValueError(f'`min_rank` must be at least 1, got {self.min_rank}.')
    if self.prune_decay < 1.0 and self.trained is not TrainedFactors.BOTH:
      raise ValueError(
        'Self-pruning compares tails of both factors: with '
        f'TrainedFactors.{self.trained.name}, `prune_decay` must be 1.'
      )


class ClientOutput(NamedTuple):
  """Everything that leaves the local computation of one client.

  Attributes:
    update: see `hetlora_tff.clients.messages.message`.
    update_weight: see `client_weight`.
    rank: int32, its rank from now on: device state, it goes back to the device only.
    stats: sums for the round's measurements.
    asked: see `hetlora_tff.clients.messages.asked`; empty unless it is to be measured.
  """

  update: Any
  update_weight: Any
  rank: tf.Tensor
  stats: collections.OrderedDict[str, tf.Tensor]
  asked: Any = ()


class Trained(NamedTuple):
  """Result of `run_local_steps`: what was trained, and sums over its batches."""

  parameters: Any
  loss: tf.Tensor
  count: tf.Tensor
  examples: tf.Tensor
  steps: tf.Tensor


@dataclasses.dataclass(frozen=True)
class _Shape:
  """Stands in for a `tf.TensorSpec` whose first dimension only the running graph knows."""

  shape: tf.Tensor
  dtype: tf.DType


def client_data_type(model: AdapterModel | FullModel) -> tff.StructWithPythonType:
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
  layout: AdapterLayout,
  training: LocalTraining,
  optimizer: tff.learning.optimizers.Optimizer,
  *,
  shows_asked: bool = False,
) -> tff.Computation:
  """Builds the local computation.

  Type signature: `(<received=ModelWeights of any rank >= r, data=<int32*, batch*>> ->
  ClientOutput)`.

  The client cuts what it receives to its own rank `r` (a no-op if the distributor did), so the
  tensors that it trains have `r (d_in + d_out)` numbers per module. A client without examples, or
  whose trained factors, weight or loss are not finite, sends zeros with weight 0 and keeps its
  rank.

  Args:
    model: the frozen model.
    layout: where the adapters lie in what arrives, and which factors are trained.
    training: pruning, and padding and weights, which must be given.
    optimizer: any TFF optimizer; its slots have the client's rank, too.
    shows_asked: whether the output has `asked`, to measure how exact the aggregate is.

  Raises:
    ValueError: if padding or weights are left open.
  """
  padding, weighting = training.padding, training.weights
  if padding is None or weighting is None:
    raise ValueError('`training` must say its `padding` and `weights`.')

  @tff.tensorflow.computation(layout.weights_type(None), client_data_type(model))
  def train_on_client(received, client_data):
    loss_fn = model.build(layout.config)

    @tf.function
    def run(weights, ranks, examples):
      rank = checked_rank(ranks, layout.config.max_rank)
      whole = layout.adapters(weights)
      start = _map_modules(lambda f: lora.truncate(f, rank), whole)
      candidate = pruning.candidate_rank(rank, training.prune_decay, training.min_rank)
      moved, adapters_of = _select(layout, weights, start)

      def loss(parameters, batch):
        return loss_fn(adapters_of(parameters), batch)

      def penalty(parameters):
        tail = pruning.tail_product(adapters_of(parameters).values(), candidate)
        return training.prune_weight * tail

      prunes = training.prune_decay < 1.0
      trained = run_local_steps(loss, moved, examples, optimizer, penalty if prunes else None)
      trained = trained._replace(parameters=adapters_of(trained.parameters))
      received_here = _Received(weights, whole, start, rank, candidate)
      return _client_output(layout, padding, weighting, received_here, trained, shows_asked)

    return run(received, client_data['rank'], client_data['examples'])

  return train_on_client


class _Received(NamedTuple):
  """What a client starts from: `start` is `whole` cut to `rank`."""

  weights: Any
  whole: Adapters
  start: Adapters
  rank: tf.Tensor
  candidate: tf.Tensor


def _client_output(
  layout: AdapterLayout,
  padding: Padding,
  weighting: ClientWeighting,
  received: _Received,
  trained: Trained,
  shows_asked: bool,
) -> ClientOutput:
  """Prunes, weighs, pads and counts."""
  max_rank, rank = layout.config.max_rank, received.rank
  decided = pruning.pruned_rank(
    rank,
    received.candidate,
    pruning.tail_product(received.start.values(), received.candidate),
    pruning.tail_product(trained.parameters.values(), received.candidate),
  )
  kept = _map_modules(lambda f: lora.truncate(f, decided), trained.parameters)
  start = _map_modules(lambda f: lora.truncate(f, decided), received.start)
  held_rows = tf.sequence_mask(decided, max_rank, tf.float32)
  weight = client_weight(weighting, kept, trained.examples, held_rows)
  # Finite factors may still have an infinite norm, and the loss goes into a sum, too.
  finite = all_finite((trained.parameters, weight, trained.loss))
  healthy = tf.logical_and(trained.examples > 0, finite)
  kept_rank = tf.where(healthy, decided, rank)
  alternates = layout.trained is TrainedFactors.ALTERNATING
  trains_b = layout.trains_b(received.weights) if alternates else None
  whole = received.whole
  update = messages.message(layout, padding, whole, start, kept, trains_b)
  asked = messages.asked(layout, padding, whole, start, kept) if shows_asked else ()
  num_trained = _num_trained(layout, rank, trains_b)
  return ClientOutput(
    update=zero_unless(healthy, update),
    update_weight=zero_unless(healthy, weight),
    rank=kept_rank,
    stats=client_stats(trained, healthy, rank, kept_rank, max_rank, num_trained),
    asked=zero_unless(healthy, asked),
  )


def _select(layout: AdapterLayout, weights, start: Adapters):
  """What the optimizer moves, and the function that makes adapters of it."""
  if layout.trained is TrainedFactors.B:
    return (
      collections.OrderedDict((path, f.b) for path, f in start.items()),
      lambda moved: _map_paths(lambda path: start[path]._replace(b=moved[path]), start),
    )
  both = _map_modules(lambda f: lora.LoraFactors(f.a, f.b), start)
  if layout.trained is TrainedFactors.BOTH:
    return both, lambda moved: _map_paths(
      lambda path: start[path]._replace(a=moved[path].a, b=moved[path].b), start
    )
  trains_b = layout.trains_b(weights)

  def of_round(path, moved):
    # The frozen factor is the one that arrived, whatever an optimizer does to it.
    return lora.LoraFactors(
      tf.where(trains_b, start[path].a, moved[path].a),
      tf.where(trains_b, moved[path].b, start[path].b),
    )

  return both, lambda moved: _map_paths(lambda path: of_round(path, moved), start)


def run_local_steps(
  loss_fn: LossFn,
  start: Any,
  examples: tf.data.Dataset,
  optimizer: tff.learning.optimizers.Optimizer,
  penalty: Callable[[Any], tf.Tensor] | None = None,
) -> Trained:
  """Runs the optimizer over the batches; to be called in a `tf.function` that autograph converts.

  Args:
    loss_fn: of (parameters, batch).
    start: the parameters, a structure of tensors whose shapes only the running graph may know.
    examples: batches.
    optimizer: its state is made anew.
    penalty: of the parameters, added to the mean loss of every batch.
  """
  parameters = start
  state = optimizer.initialize(tf.nest.map_structure(lambda t: _Shape(tf.shape(t), t.dtype), start))
  loss, count = tf.constant(0.0), tf.constant(0.0)
  num_examples, steps = tf.constant(0, tf.int64), tf.constant(0, tf.int64)
  # A loop over the iterator: `Dataset.reduce` and a loop over the dataset are slower inside TFF.
  for batch in iter(examples):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(parameters)
      batch_loss = loss_fn(parameters, batch)
      objective = tf.math.divide_no_nan(batch_loss.total, batch_loss.count)
      if penalty is not None:
        objective += penalty(parameters)
    gradients = tape.gradient(objective, parameters)
    state, parameters = optimizer.next(state, parameters, gradients)
    loss += batch_loss.total
    count += batch_loss.count
    num_examples += tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]
    steps += 1
  return Trained(parameters, loss, count, num_examples, steps)


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


def _map_paths(fn, adapters: Adapters) -> Adapters:
  return collections.OrderedDict((path, fn(path)) for path in adapters)


def _num_trained(layout: AdapterLayout, rank, trains_b) -> tf.Tensor:
  """Numbers that a client of `rank` trains in this round."""
  total = tf.constant(0, tf.int64)
  for path, shape in layout.shapes.items():
    held = tf.cast(tf.minimum(rank, layout.config.module_rank(path)), tf.int64)
    if layout.trained is TrainedFactors.BOTH:
      total += held * (shape.d_in + shape.d_out)
    elif layout.trained is TrainedFactors.B:
      total += held * shape.d_out
    else:
      total += held * tf.cast(tf.where(trains_b, shape.d_out, shape.d_in), tf.int64)
  return total


def client_stats(
  trained: Trained, healthy, rank, kept_rank, max_rank: int, num_trained
) -> collections.OrderedDict[str, tf.Tensor]:
  """Sums over clients: every entry is zero or one client's share.

  Args:
    trained: of the client.
    healthy: whether its update counts.
    rank: int32, before training.
    kept_rank: int32, after.
    max_rank: length of the histogram.
    num_trained: int64, the numbers that it trained.
  """
  present = trained.examples > 0
  return collections.OrderedDict(
    loss=tf.where(healthy, trained.loss, 0.0),
    predictions=tf.where(healthy, trained.count, 0.0),
    examples=trained.examples,
    steps=trained.steps,
    clients=tf.constant(1, tf.int64),
    trained_clients=tf.cast(present, tf.int64),
    pruned_clients=tf.cast(kept_rank < rank, tf.int64),
    non_finite_clients=tf.cast(tf.logical_and(present, tf.logical_not(healthy)), tf.int64),
    trained_parameters=tf.cast(present, tf.int64) * num_trained,
    rank_histogram=tf.one_hot(kept_rank - 1, max_rank, dtype=tf.int64),
  )
