# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean of the products, whole (FLoRA, arXiv:2409.05976)."""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.aggregation.products import ProductAggregationFactory


class StackingFactory(ProductAggregationFactory):
  """`sum_k w_k b_k a_k / sum_k w_k`, as one product of the clients' stacked factors.

  `result` is `{path: [d_out, d_in]}`: exact for any mixture of ranks, and dense, since the sum of
  the ranks grows with the clients. It is unscaled: the model's `scaling` is not in it.
  """

  def combine(self, packed, weight, shapes, stacker):
    """See `ProductAggregationFactory`."""

    @tff.tensorflow.computation(stacker.result_type, np.float32)
    def multiply(stacks, total):
      return collections.OrderedDict(
        (path, tf.math.divide_no_nan(tf.matmul(rows.b, rows.a, transpose_a=True), total))
        for path, rows in stacks.items()
      )

    return tff.federated_map(multiply, (stacker.gather(packed), tff.federated_sum(weight)))
