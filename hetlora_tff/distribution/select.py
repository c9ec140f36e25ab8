# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Distribution by rank: a client of rank `r` downloads the first `r` ranks and nothing else.

The server sees the key, so ranks must not be secret; and `federated_select` does not lower to
`DistributeAggregateForm`: a distributor for simulations.
"""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.layout import model_weights_type


class RankSelect:
  """Sends each client its slice of the server's adapters.

  `DistributionProcess.next` has no slot for what clients ask for, so this is a socket of its own,
  understood by `build_hetlora_process`.

  Attributes:
    next: `(<W@SERVER, {int32*}@CLIENTS> -> {W of rank r}@CLIENTS)`; the second argument is the
      one-element sequence that holds the client's rank.
  """

  def __init__(self, adapters_type: tff.StructWithPythonType, config: LoraConfig):
    """Initializes the distributor.

    Args:
      adapters_type: adapters of `max_rank`.
      config: gives `max_rank`.
    """
    weights_type = model_weights_type(adapters_type)
    paths = [name for name, _ in tff.structure.iter_elements(adapters_type)]

    @tff.tensorflow.computation(tff.SequenceType(np.int32))
    def to_keys(ranks):
      rank = ranks.reduce(tf.constant(0), lambda _, rank: rank)
      return tf.reshape(rank, [1])

    @tff.tensorflow.computation
    def num_keys():
      return tf.constant(config.max_rank + 1)

    @tff.tensorflow.computation(weights_type, np.int32)
    def select(weights, rank):
      return tff.learning.models.ModelWeights(
        collections.OrderedDict(
          (path, lora.truncate(weights.trainable[path], rank)) for path in paths
        ),
        (),
      )

    @tff.tensorflow.computation(tff.SequenceType(select.type_signature.result))
    def only(slices):
      return slices.get_single_element()

    @tff.federated_computation(
      tff.FederatedType(weights_type, tff.SERVER),
      tff.FederatedType(tff.SequenceType(np.int32), tff.CLIENTS),
    )
    def next_fn(weights, ranks):
      slices = tff.federated_select(
        tff.federated_map(to_keys, ranks),
        tff.federated_eval(num_keys, tff.SERVER),
        weights,
        select,
      )
      return tff.federated_map(only, slices)

    self.next = next_fn
