# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a client gains by an adapter of its own: losses before and after local steps."""

import collections
import dataclasses

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.backbone import keras_classes_restored
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.adapters.model import AdapterModel, Adapters
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining, build_train_on_client, checked_rank
from hetlora_tff.clients.weights import ClientWeighting


def build_hetlora_personalization_eval(
  model: AdapterModel,
  config: LoraConfig,
  training: LocalTraining,
  optimizer: tff.learning.optimizers.Optimizer,
  *,
  carries_residual: bool = False,
) -> tff.Computation:
  """Builds the check: every client trains as in a round, and keeps what it learned.

  Type signature: `(<weights=W@SERVER, {<rank=int32*, train=batch*, test=batch*>}@CLIENTS> ->
  {<rank=int32, own_rank=int32, before=<loss=float32, predictions=float32>, after=<loss=float32,
  predictions=float32>>}@CLIENTS)`, `W` being the `global_model_weights` of the process that trained
  with the same arguments.

  The local computation is that of a round, self-pruning and alternating factors included: what the
  client would send as its factors is its own adapter, of `own_rank`. Both losses are sums over
  `test`, of the server's adapters cut to the client's `rank` and of its own; nothing reaches the
  server. A client that has nothing in `train`, or whose training is not finite, keeps what it
  received: both losses are the same.

  Args:
    model: the frozen model.
    config: its adapters.
    training: how clients train; padding and weights have no meaning here.
    optimizer: of the local steps.
    carries_residual: whether the server's weights have a residual.
  """
  layout = AdapterLayout(
    model.module_shapes(config), config, training.trained, carries_residual=carries_residual
  )
  # Without padding the message is the trained factors, and its weight tells whether they count.
  alone = dataclasses.replace(training, padding=Padding.NONE, weights=ClientWeighting.UNIFORM)
  train = build_train_on_client(model, layout, alone, optimizer)
  personalize = _build_personalize(model, layout, train)
  data_type = personalize.type_signature.parameter[1]

  @tff.federated_computation(
    tff.FederatedType(layout.server_type, tff.SERVER), tff.FederatedType(data_type, tff.CLIENTS)
  )
  def evaluate(weights, client_data):
    return tff.federated_map(personalize, (tff.federated_broadcast(weights), client_data))

  return evaluate


@keras_classes_restored()
def _build_personalize(model: AdapterModel, layout: AdapterLayout, train: tff.Computation):
  batches = tff.SequenceType(tff.types.tensorflow_to_type(model.batch_spec))
  data_type = tff.to_type(
    collections.OrderedDict(rank=tff.SequenceType(np.int32), train=batches, test=batches)
  )

  @tff.tensorflow.computation(layout.server_type, data_type)
  def personalize(weights, client_data):
    loss_fn = model.build(layout.config)

    @tf.function
    def loss(adapters, rank, examples):
      adapters = _cut(adapters, rank)
      total, count = tf.constant(0.0), tf.constant(0.0)
      for batch in iter(examples):
        batch_loss = loss_fn(adapters, batch)
        total += batch_loss.total
        count += batch_loss.count
      return collections.OrderedDict(loss=total, predictions=count)

    ranks = client_data['rank']
    output = train(weights, collections.OrderedDict(rank=ranks, examples=client_data['train']))
    received = layout.adapters(weights)
    own = _own(received, output.update, output.update_weight > 0)
    rank = checked_rank(ranks, layout.config.max_rank)
    return collections.OrderedDict(
      rank=rank,
      own_rank=output.rank,
      before=loss(received, rank, client_data['test']),
      after=loss(own, output.rank, client_data['test']),
    )

  return personalize


def _own(received: Adapters, trained: Adapters, counts: tf.Tensor) -> Adapters:
  """What the client trained, beside the residual that it received; all that, if none counts."""
  return collections.OrderedDict(
    (
      path,
      factors._replace(
        a=tf.where(counts, trained[path].a, factors.a),
        b=tf.where(counts, trained[path].b, factors.b),
      ),
    )
    for path, factors in received.items()
  )


def _cut(adapters: Adapters, rank: tf.Tensor) -> Adapters:
  return collections.OrderedDict(
    (path, lora.truncate(factors, rank)) for path, factors in adapters.items()
  )
