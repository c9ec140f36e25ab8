# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean of the factors, and what it misses of the mean product (FedEx-LoRA, arXiv:2410.09432)."""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import CorrectedFactors
from hetlora_tff.aggregation.products import ProductAggregationFactory


class ResidualCorrectedMeanFactory(ProductAggregationFactory):
  """Means `a`, `b` and `b a`, with `p_k = w_k / sum_k w_k`.

  `result` is `{path: CorrectedFactors}` with `a = sum_k p_k a_k`, `b = sum_k p_k b_k` and
  `residual = sum_k p_k b_k a_k - b a`, so that `residual + b a` is exactly the mean of the
  products. The residual is unscaled: the model's `scaling` is not in it.
  """

  def combine(self, packed, weight, shapes, stacker):
    """See `ProductAggregationFactory`."""
    packed_type = packed.type_signature.member

    @tff.tensorflow.computation(packed_type, np.float32)
    def weigh_both(packed, weight):
      # A product needs the weight once, in `b`; the mean of `a` needs it, too.
      of_a = tf.range(packed.shape[1]) < stacker.columns_of_a
      return packed * tf.where(of_a, weight, 1.0)

    @tff.tensorflow.computation(stacker.result_type, packed_type, np.float32)
    def correct(stacks, sums, total):
      means = stacker.unpack(tf.math.divide_no_nan(sums, total))
      result = collections.OrderedDict()
      for path, shape in shapes.items():
        a, b = means[path].a[: shape.rank], tf.transpose(means[path].b[: shape.rank])
        product = tf.matmul(stacks[path].b, stacks[path].a, transpose_a=True)
        residual = tf.math.divide_no_nan(product, total) - tf.matmul(b, a)
        result[path] = CorrectedFactors(a, b, residual)
      return result

    sums = tff.federated_sum(tff.federated_map(weigh_both, (packed, weight)))
    return tff.federated_map(correct, (stacker.gather(packed), sums, tff.federated_sum(weight)))
