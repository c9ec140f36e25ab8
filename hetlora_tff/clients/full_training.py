# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one client does in a round of full fine-tuning: train every weight, and weigh."""

import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.backbone import keras_classes_restored
from hetlora_tff.adapters.finite import all_finite, zero_unless
from hetlora_tff.adapters.layout import model_weights_type
from hetlora_tff.adapters.model import FullModel
from hetlora_tff.clients.training import (
  ClientOutput,
  checked_rank,
  client_data_type,
  client_stats,
  run_local_steps,
)
from hetlora_tff.clients.weights import ClientWeighting

# A rank means nothing here; there is no histogram of it.
_ANY_RANK, _NO_RANKS = tf.int32.max, 0


def full_weights_type(model: FullModel) -> tff.StructWithPythonType:
  """TFF's `ModelWeights` with all weights of the model by name as the trainable part."""
  return model_weights_type(tff.types.tensorflow_to_type(model.weight_specs()))


def num_weights(model: FullModel) -> int:
  """Numbers that every client trains."""
  return sum(spec.shape.num_elements() for spec in model.weight_specs().values())


@keras_classes_restored()
def build_train_full_on_client(
  model: FullModel, weights: ClientWeighting, optimizer: tff.learning.optimizers.Optimizer
) -> tff.Computation:
  """Builds the local computation of federated averaging (McMahan et al. 2017, arXiv:1602.05629).

  Type signature: `(<received=ModelWeights, data=<int32*, batch*>> -> ClientOutput)`; `update` has
  the type of the trainable part.

  A client without examples, or whose trained weights or loss are not finite, sends zeros with
  weight 0. The rank in its data must be one positive number and is handed back; `rank_histogram`
  has no entries.

  Args:
    model: the model.
    weights: the weight to send, `UNIFORM` or `EXAMPLES`.
    optimizer: any TFF optimizer.

  Raises:
    ValueError: for other weights, which are taken from factors.
  """
  if weights not in (ClientWeighting.UNIFORM, ClientWeighting.EXAMPLES):
    raise ValueError(
      f'Full fine-tuning has no factors to take `{weights.value}` weights from; use '
      'ClientWeighting.UNIFORM or ClientWeighting.EXAMPLES.'
    )

  @tff.tensorflow.computation(full_weights_type(model), client_data_type(model))
  def train_on_client(received, client_data):
    loss_fn = model.build_full()

    @tf.function
    def run(received, ranks, examples):
      rank = checked_rank(ranks, _ANY_RANK)
      trained = run_local_steps(loss_fn, received, examples, optimizer)
      finite = all_finite((trained.parameters, trained.loss))
      healthy = tf.logical_and(trained.examples > 0, finite)
      update = tf.nest.map_structure(tf.subtract, received, trained.parameters)
      counts = weights is ClientWeighting.EXAMPLES
      weight = tf.cast(trained.examples, tf.float32) if counts else tf.constant(1.0)
      num_trained = tf.constant(num_weights(model), tf.int64)
      return ClientOutput(
        update=zero_unless(healthy, update),
        update_weight=zero_unless(healthy, weight),
        rank=rank,
        stats=client_stats(trained, healthy, rank, rank, _NO_RANKS, num_trained),
      )

    return run(received.trainable, client_data['rank'], client_data['examples'])

  return train_on_client
