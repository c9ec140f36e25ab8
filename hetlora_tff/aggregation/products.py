# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the aggregators of products `b a` share."""

import abc
import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import product_norm
from hetlora_tff.adapters.finite import all_finite, zero_unless
from hetlora_tff.aggregation.factor_types import (
  FactorShapes,
  check_scalar_weight,
  factor_shapes,
  factors_of,
)
from hetlora_tff.aggregation.stacks import Stacker


class ProductAggregationFactory(tff.aggregators.WeightedAggregationFactory, abc.ABC):
  """Aggregates products of factors, exactly: the mean of `b_k a_k` is no product of means.

  Clients send their trained factors themselves, zero-padded, not differences to what they
  received. The server sees every client's factors: there is no sum that secure aggregation could
  hide them in.

  `next` has the type `(<S@SERVER, {{path: <a [R_l, d_in], b [d_out, R_l]>}}@CLIENTS,
  {float}@CLIENTS> -> <state=S@SERVER, result=..., measurements=<non_finite_clients=int32>>)`.

  Edge cases, of every factory of this kind:
    factors, a weight or a weighted product with a NaN, an infinity or a norm that overflows
      float32: left out (weight 0) and counted in `non_finite_clients`;
    weights that sum to zero, or no client at all: the result is exactly 0.
  """

  @abc.abstractmethod
  def combine(self, packed: Any, weight: Any, shapes: FactorShapes, stacker: Stacker) -> Any:
    """Aggregates the screened clients; called inside a federated computation.

    Args:
      packed: `{packed}@CLIENTS`, of `a_k` and `w_k b_k`.
      weight: `{w_k}@CLIENTS`, a float32 scalar.
      shapes: of the factors.
      stacker: what packed them.

    Returns:
      The result at the server.
    """

  def create(self, value_type: tff.Type, weight_type: tff.Type) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: `{path: <a [R_l, d_in], b [d_out, R_l]>}`, float32.
      weight_type: a float scalar.

    Raises:
      TypeError: if the types are not of those kinds.
    """
    shapes = factor_shapes(value_type)
    specs = tf.nest.flatten(tff.types.type_to_tf_tensor_specs(value_type))
    if any(spec.dtype != tf.float32 for spec in specs):
      raise TypeError(f'Products take float32 factors, got {value_type}.')
    check_scalar_weight(weight_type)

    stacker = Stacker(shapes)

    @tff.tensorflow.computation(value_type, weight_type)
    def screen(value, weight):
      weight = tf.cast(weight, tf.float32)
      factors = collections.OrderedDict((path, factors_of(value[path])) for path in shapes)
      weighted = collections.OrderedDict(
        (path, f._replace(b=weight * f.b)) for path, f in factors.items()
      )
      norms = [product_norm(f) for f in weighted.values()]
      packed = stacker.pack(weighted)
      finite = all_finite((packed, weight, norms))
      return zero_unless(finite, packed), zero_unless(finite, weight), tf.cast(~finite, tf.int32)

    @tff.federated_computation
    def init_fn():
      return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
      init_fn.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      packed, weight, skipped = tff.federated_map(screen, (value, weight))
      measurements = collections.OrderedDict(non_finite_clients=tff.federated_sum(skipped))
      return tff.templates.MeasuredProcessOutput(
        state,
        self.combine(packed, weight, shapes, stacker),
        tff.federated_zip(measurements),
      )

    return tff.templates.AggregationProcess(init_fn, next_fn)
