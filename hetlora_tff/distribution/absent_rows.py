# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`STATE` padding for clients that received slices.

A client that never saw the rows above its rank cannot subtract them from the zeros that it sends
for them. With `m_j` the weighted share of clients without row `j`, the mean of the updates lacks
`m_j` times the server's row `j`.
"""

import collections

import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.layout import AdapterLayout


class AbsentRows:
  """Completes the mean of updates.

  Attributes:
    mask: `(int32* -> {path: float32[R_l]})`, 1 for the rows that a client of this rank lacks.
    correct: `(weights, update, mean of the masks) -> update`, all at the server.
  """

  def __init__(self, layout: AdapterLayout):
    """Initializes the two computations for a layout that trains both factors."""
    ranks = {path: layout.config.module_rank(path) for path in layout.shapes}

    @tff.tensorflow.computation(tff.SequenceType(tf.int32.as_numpy_dtype))
    def mask(ranks_of_client):
      rank = ranks_of_client.reduce(tf.constant(0), lambda _, rank: rank)
      return collections.OrderedDict(
        (path, 1.0 - tf.sequence_mask(rank, held, tf.float32)) for path, held in ranks.items()
      )

    update_type = layout.server_type.trainable

    @tff.tensorflow.computation(layout.server_type, update_type, mask.type_signature.result)
    def correct(weights, update, absent):
      return collections.OrderedDict(
        (
          path,
          lora.LoraFactors(
            update[path].a + absent[path][:, tf.newaxis] * weights.trainable[path].a,
            update[path].b + absent[path][tf.newaxis, :] * weights.trainable[path].b,
          ),
        )
        for path in ranks
      )

    self.mask, self.correct = mask, correct
