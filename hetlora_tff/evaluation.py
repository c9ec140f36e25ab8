# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Federated evaluation of the server's adapters, by rank tier."""

import collections
from collections.abc import Sequence

import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.backbone import keras_classes_restored
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.finite import zero_unless
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.adapters.model import AdapterModel
from hetlora_tff.clients.training import checked_rank, client_data_type

_SUMMED = ('loss', 'predictions', 'clients', 'non_finite_clients')


def build_hetlora_eval_process(
  model: AdapterModel,
  config: LoraConfig,
  *,
  tiers: Sequence[int] | None = None,
  carries_residual: bool = False,
) -> tff.learning.templates.LearningProcess:
  """Builds the evaluation: every client tests the model that a device of its rank runs.

  `next` has the type `(<S@SERVER, {<rank=int32*, examples=batch*>}@CLIENTS> -> <state=S@SERVER,
  metrics=<loss=float32[T], predictions=float32[T], clients=int64[T], non_finite_clients=int64[T]>
  @SERVER>)`: sums over the clients of each tier, so that `loss / predictions` is the tier's mean
  loss (NaN for a tier without predictions). `clients` counts all clients of the tier;
  `non_finite_clients` those among them whose loss is NaN or infinite, which are left out of `loss`
  and `predictions`. The state is left as it is; put weights into it with `set_model_weights`:
  `AdapterLayout(shapes, config, carries_residual=...).weights(process.get_model_weights(state))`,
  whatever the layout of the process that trained.

  Args:
    model: the frozen model.
    config: its adapters.
    tiers: the largest rank of each tier, ascending, the last one `max_rank`; a tier per rank by
      default.
    carries_residual: whether the weights have a residual, as an `AdapterLayout` lays them.

  Raises:
    ValueError: if the tiers do not cover `[1, max_rank]` in ascending order.
  """
  bounds = list(range(1, config.max_rank + 1)) if tiers is None else list(tiers)
  if not bounds or bounds[0] < 1 or bounds[-1] != config.max_rank or sorted(set(bounds)) != bounds:
    raise ValueError(f'`tiers` must ascend to max_rank {config.max_rank}, got {bounds}.')
  layout = AdapterLayout(model.module_shapes(config), config, carries_residual=carries_residual)
  weights_type = layout.server_type
  evaluate = _build_evaluate_on_client(model, layout, bounds)

  @tff.federated_computation
  def initialize():
    zeros = tff.tensorflow.computation(lambda: _zeros(weights_type))
    empty = tff.federated_value((), tff.SERVER)
    return tff.federated_zip(
      tff.learning.templates.LearningAlgorithmState(
        tff.federated_eval(zeros, tff.SERVER), empty, empty, empty, empty
      )
    )

  state_type = initialize.type_signature.result

  @tff.federated_computation(state_type, tff.FederatedType(client_data_type(model), tff.CLIENTS))
  def next_fn(state, client_data):
    weights = tff.federated_broadcast(state.global_model_weights)
    sums = tff.federated_map(evaluate, (weights, client_data))
    metrics = collections.OrderedDict((name, tff.federated_sum(sums[name])) for name in _SUMMED)
    return tff.learning.templates.LearningProcessOutput(state, tff.federated_zip(metrics))

  @tff.tensorflow.computation(state_type.member)
  def get_model_weights(state):
    return state.global_model_weights

  @tff.tensorflow.computation(state_type.member, weights_type)
  def set_model_weights(state, weights):
    del state
    return tff.learning.templates.LearningAlgorithmState(weights, (), (), (), ())

  return tff.learning.templates.LearningProcess(
    initialize, next_fn, get_model_weights, set_model_weights
  )


@keras_classes_restored()
def _build_evaluate_on_client(model, layout: AdapterLayout, bounds: list[int]):
  config = layout.config

  @tff.tensorflow.computation(layout.server_type, client_data_type(model))
  def evaluate(weights, client_data):
    loss_fn = model.build(config)

    @tf.function
    def run(adapters, ranks, examples):
      rank = checked_rank(ranks, config.max_rank)
      adapters = collections.OrderedDict(
        (path, lora.truncate(factors, rank)) for path, factors in adapters.items()
      )
      loss, count = tf.constant(0.0), tf.constant(0.0)
      for batch in iter(examples):
        batch_loss = loss_fn(adapters, batch)
        loss += batch_loss.total
        count += batch_loss.count
      finite = tf.math.is_finite(loss)
      loss, count = zero_unless(finite, (loss, count))
      tier = tf.one_hot(tf.searchsorted(tf.constant(bounds), [rank])[0], len(bounds))
      clients = tf.cast(tier, tf.int64)
      return collections.OrderedDict(
        loss=tier * loss,
        predictions=tier * count,
        clients=clients,
        non_finite_clients=tf.where(finite, tf.zeros_like(clients), clients),
      )

    return run(layout.adapters(weights), client_data['rank'], client_data['examples'])

  return evaluate


def _zeros(weights_type: tff.Type):
  specs = tff.types.type_to_tf_tensor_specs(weights_type)
  return tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs)
