# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sparsity-weighted mean of zero-padded updates (HetLoRA, arXiv:2401.06432, Fig. 2)."""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.finite import all_finite, zero_unless


class SparsityWeightedMeanFactory(tff.aggregators.WeightedAggregationFactory):
  """Means the entries of a structure with one weight for all, or one for each.

  `result[l] = sum_k w_k[l] value_k[l] / sum_k w_k[l]`: `a` and `b` of a module separately, with the
  same weight. With weights `w_k[l] = ||b_k a_k||_F` this is the paper's aggregation; the weights
  come from the client work (`ClientWeighting`), since in `update` padding the value no longer
  tells them.

  `next` has the type
  `(<S@SERVER, {V}@CLIENTS, {W}@CLIENTS> -> <state=S@SERVER, result=V@SERVER, measurements=...>)`
  where `W` is a float scalar, or a structure of float scalars with the names of `V`.

  Edge cases:
    a value, weight or product of the two with a NaN or an infinity: left out (weight 0) and
      counted in `non_finite_clients`;
    weights that sum to zero, or no client at all: the result is 0, so the server keeps its value.

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
    self._value_sum_factory = value_sum_factory or tff.aggregators.SumFactory()
    self._weight_sum_factory = weight_sum_factory or tff.aggregators.SumFactory()
    self._count_sum_factory = count_sum_factory or tff.aggregators.SumFactory()

  def create(self, value_type: tff.Type, weight_type: tff.Type) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: a structure of float tensors (or a float tensor, for a scalar weight).
      weight_type: see the class.

    Raises:
      TypeError: if the types are not of those kinds.
    """
    per_entry = check_weight_per_entry(value_type, weight_type)
    value_sum = self._value_sum_factory.create(value_type)
    weight_sum = self._weight_sum_factory.create(weight_type)
    count_sum = self._count_sum_factory.create(tff.TensorType(np.int32))

    @tff.federated_computation
    def init_fn():
      return tff.federated_zip(
        (value_sum.initialize(), weight_sum.initialize(), count_sum.initialize())
      )

    @tff.tensorflow.computation(value_type, weight_type)
    def weigh(value, weight):
      weighted = by_entry(tf.multiply, value, weight, per_entry)
      # A NaN or an infinity in the value shows in the product, and so does an overflow.
      finite = all_finite((weighted, weight))
      return zero_unless(finite, weighted), zero_unless(finite, weight), tf.cast(~finite, tf.int32)

    @tff.tensorflow.computation(value_type, weight_type)
    def divide(total, weight):
      # Not by the inverse, which overflows for the smallest weights.
      return by_entry(tf.math.divide_no_nan, total, weight, per_entry)

    @tff.federated_computation(
      init_fn.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      weighted, weight, skipped = tff.federated_map(weigh, (value, weight))
      values = value_sum.next(state[0], weighted)
      weights = weight_sum.next(state[1], weight)
      counts = count_sum.next(state[2], skipped)
      measurements = collections.OrderedDict(
        mean_value=values.measurements,
        mean_weight=weights.measurements,
        non_finite_clients=counts.result,
      )
      return tff.templates.MeasuredProcessOutput(
        tff.federated_zip((values.state, weights.state, counts.state)),
        tff.federated_map(divide, (values.result, weights.result)),
        tff.federated_zip(measurements),
      )

    return tff.templates.AggregationProcess(init_fn, next_fn)


def by_entry(operation: Callable, value: Any, weight: Any, per_entry: bool) -> Any:
  """`operation(tensor, weight)` for every tensor, with the weight of its entry or that of all."""
  if not per_entry:
    return tf.nest.map_structure(lambda v: operation(v, tf.cast(weight, v.dtype)), value)
  return collections.OrderedDict(
    (name, by_entry(operation, value[name], weight[name], False)) for name in value
  )


def check_weight_per_entry(value_type: tff.Type, weight_type: tff.Type) -> bool:
  """Checks the types of a value and its weights; returns whether there is one weight per entry.

  Raises:
    TypeError: if they are no structure of floats, with a float or one for every named entry.
  """
  if not tff.types.is_structure_of_floats(value_type):
    raise TypeError(f'Values must be a structure of floats, got {value_type}.')
  if not tff.types.is_structure_of_floats(weight_type):
    raise TypeError(f'Weights must be floats, got {weight_type}.')
  if isinstance(weight_type, tff.TensorType):
    return False
  names = [name for name, _ in tff.structure.iter_elements(weight_type)]
  if not isinstance(value_type, tff.StructType) or None in names:
    raise TypeError(f'One weight per entry needs named entries, got {weight_type}.')
  if names != [name for name, _ in tff.structure.iter_elements(value_type)]:
    raise TypeError(f'Weights {names} do not have the names of the values {value_type}.')
  return True
