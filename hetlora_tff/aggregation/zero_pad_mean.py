# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Plain weighted mean of zero-padded updates: the naive baseline, and FedIT at equal ranks."""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.finite import all_finite, zero_unless
from hetlora_tff.aggregation.factor_types import check_scalar_weight


class ZeroPadMeanFactory(tff.aggregators.WeightedAggregationFactory):
  """`result = sum_k w_k value_k / sum_k w_k` of any structure of floats, one weight per client.

  TFF's `MeanFactory` behind a screen for non-finite clients. What absent rows mean is decided by
  the padding: zeros among the values pull the mean towards zero. With every client at the full
  rank this is federated averaging of LoRA factors (FedIT, arXiv:2305.05644).

  `next` has the type
  `(<S@SERVER, {V}@CLIENTS, {float}@CLIENTS> -> <state=S@SERVER, result=V@SERVER, measurements>)`.

  Edge cases:
    a value, weight or product of the two with a NaN or an infinity: left out (weight 0) and
      counted in `non_finite_clients`;
    weights that sum to zero, or no client at all: the result is 0.

  Measurements: `mean_value`, `mean_weight` (of the inner sums) and `non_finite_clients`.
  """

  def __init__(
    self,
    value_sum_factory: tff.aggregators.UnweightedAggregationFactory | None = None,
    weight_sum_factory: tff.aggregators.UnweightedAggregationFactory | None = None,
    count_sum_factory: tff.aggregators.UnweightedAggregationFactory | None = None,
  ):
    """Initializes the factory.

    Args:
      value_sum_factory: sums the weighted values; a plain sum by default.
      weight_sum_factory: sums the weights; a plain sum by default.
      count_sum_factory: sums the int32 indicator of a left-out client; a plain sum by default.
    """
    self._mean_factory = tff.aggregators.MeanFactory(
      value_sum_factory, weight_sum_factory, no_nan_division=True
    )
    self._count_sum_factory = count_sum_factory or tff.aggregators.SumFactory()

  def create(self, value_type: tff.Type, weight_type: tff.Type) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: a float tensor or a structure of such.
      weight_type: a float scalar.

    Raises:
      TypeError: if the types are not of those kinds.
    """
    if not tff.types.is_structure_of_floats(value_type):
      raise TypeError(f'Values must be a structure of floats, got {value_type}.')
    check_scalar_weight(weight_type)
    mean = self._mean_factory.create(value_type, weight_type)
    count_sum = self._count_sum_factory.create(tff.TensorType(np.int32))

    @tff.federated_computation
    def init_fn():
      return tff.federated_zip((mean.initialize(), count_sum.initialize()))

    @tff.tensorflow.computation(value_type, weight_type)
    def screen(value, weight):
      # Finite factors of a product may overflow in it.
      weighted = tf.nest.map_structure(lambda v: v * tf.cast(weight, v.dtype), value)
      finite = all_finite((weighted, weight))
      return zero_unless(finite, value), zero_unless(finite, weight), tf.cast(~finite, tf.int32)

    @tff.federated_computation(
      init_fn.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      value, weight, skipped = tff.federated_map(screen, (value, weight))
      means = mean.next(state[0], value, weight)
      counts = count_sum.next(state[1], skipped)
      measurements = collections.OrderedDict(
        mean_value=means.measurements['mean_value'],
        mean_weight=means.measurements['mean_weight'],
        non_finite_clients=counts.result,
      )
      return tff.templates.MeasuredProcessOutput(
        tff.federated_zip((means.state, counts.state)),
        means.result,
        tff.federated_zip(measurements),
      )

    return tff.templates.AggregationProcess(init_fn, next_fn)
