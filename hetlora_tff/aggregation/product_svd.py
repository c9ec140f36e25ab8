# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean of the products, cut back to the server's rank (FlexLoRA, arXiv:2402.11505)."""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.aggregation.low_rank import best_low_rank
from hetlora_tff.aggregation.products import ProductAggregationFactory


class ProductSvdFactory(ProductAggregationFactory):
  """The best rank-`R_l` approximation of `sum_k w_k b_k a_k / sum_k w_k`, in Frobenius norm.

  `result` is `{path: LoraFactors(a [R_l, d_in], b [d_out, R_l])}` with `b = U s`, `a = V^T`: the
  singular values descend, so a client that keeps the first `r` rows has the best approximation of
  rank `r`, and the rows of `a` have length 1, about that of the Gaussian that training starts from.
  Where the product has a smaller rank, the rows of `a` and columns of `b` above it are zero. See
  `best_low_rank` for how no `[d_out, d_in]` is formed.
  """

  def combine(self, packed, weight, shapes, stacker):
    """See `ProductAggregationFactory`."""

    @tff.tensorflow.computation(stacker.result_type, np.float32)
    def decompose(stacks, total):
      result = collections.OrderedDict()
      for path, shape in shapes.items():
        best = best_low_rank(stacks[path].a, stacks[path].b, shape.rank)
        result[path] = LoraFactors(best.a, tf.math.divide_no_nan(best.b, total))
      return result

    return tff.federated_map(decompose, (stacker.gather(packed), tff.federated_sum(weight)))
