# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights that do not raise what one client can change: clip first, weigh after.

A mean over the true sum of weights has no bounded sensitivity: one client changes everybody's
share. With `u_k` clipped to a joint norm `S` and weights cut to [0, 1], `||w_k u_k|| <= S` as for
equal weights, so that noise for `S` hides the client and its weight. (Weighing before the clip
would cancel the weights wherever the clip bites.)
"""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.finite import all_finite, zero_unless
from hetlora_tff.aggregation.padded_mean import by_entry, check_weight_per_entry

Clip = Callable[[Any], Any]


class WeightInsideFactory(tff.aggregators.WeightedAggregationFactory):
  """Aggregates `g_k = w_k u_k` with `u_k` clipped and `w_k = min(weight / normaliser, 1)`.

  `result = inner(g) / mean_weight`, with everything public in the denominator: with an inner mean
  over the expected number of clients, `mean_weight` is what `w_k` is expected to be on average.

  `next` has the type
  `(<S@SERVER, {V}@CLIENTS, {W}@CLIENTS> -> <state=S@SERVER, result=V@SERVER, measurements=...>)`
  where `W` is a float scalar, or a structure of float scalars with the names of `V`.

  Guarantee: the joint norm of `g_k` is at most the bound of `clip`, whatever a client sends.

  Edge cases:
    a value or a weight with a NaN or an infinity: the client contributes zeros;
    a negative weight counts as 0.

  Measurements: those of `inner`.
  """

  def __init__(
    self,
    inner: tff.aggregators.UnweightedAggregationFactory,
    normaliser: float,
    clip: Clip,
    mean_weight: float = 1.0,
  ):
    """Initializes the factory.

    Args:
      inner: sums or means `g`, and adds the noise.
      normaliser: the weight that counts as 1; public, positive.
      clip: bounds the joint norm of a structure.
      mean_weight: public divisor of the result, in (0, 1].

    Raises:
      ValueError: naming the argument.
    """
    self._inner = inner
    self._normaliser = _positive('normaliser', normaliser)
    self._clip = clip
    self._mean_weight = _positive('mean_weight', mean_weight)
    if mean_weight > 1:
      raise ValueError(f'`mean_weight` is of weights up to 1, got {mean_weight}.')

  def create(self, value_type: tff.Type, weight_type: tff.Type) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: a structure of float tensors (or a float tensor, for a scalar weight).
      weight_type: see the class.

    Raises:
      TypeError: if the types are not of those kinds.
    """
    per_entry = check_weight_per_entry(value_type, weight_type)
    inner = self._inner.create(value_type)

    @tff.tensorflow.computation(value_type, weight_type)
    def weigh(value, weight):
      return weighted_inside(value, weight, self._normaliser, self._clip, per_entry)[0]

    @tff.tensorflow.computation(value_type)
    def rescale(result):
      return tf.nest.map_structure(lambda t: t / tf.cast(self._mean_weight, t.dtype), result)

    @tff.federated_computation(
      inner.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      output = inner.next(state, tff.federated_map(weigh, (value, weight)))
      return tff.templates.MeasuredProcessOutput(
        output.state, tff.federated_map(rescale, output.result), output.measurements
      )

    return tff.templates.AggregationProcess(inner.initialize, next_fn)


class SummedDenominatorFactory(tff.aggregators.WeightedAggregationFactory):
  """Weighted mean whose denominator is summed together with the numerator.

  A client sends the record `(g_k / S, lambda w_k)`, as `WeightInsideFactory` has them and with all
  weights as one vector, every number in it within [-1, 1] for `lambda` up to 1. `inner` sums the
  records: securely, or with a clip of the joint norm to 1 and noise, in one release. Then, per
  module where there is a weight for each,

    result = S numerator / max(denominator / lambda, floor),

  which nothing but the release enters.

  `next` has the type of `WeightInsideFactory.next`.

  Edge cases:
    a value or a weight with a NaN or an infinity: the client contributes zeros;
    a negative weight counts as 0;
    no client, or a denominator below the floor, which noise and rounding bring about: the floor
      divides.

  Measurements: those of `inner`.
  """

  def __init__(
    self,
    inner: tff.aggregators.UnweightedAggregationFactory,
    normaliser: float,
    clip: Clip,
    l2_clip_norm: float,
    denominator_scale: float,
    floor: float,
  ):
    """Initializes the factory.

    Args:
      inner: sums (or means) records; for differential privacy with a clip of the joint norm to 1.
      normaliser: the weight that counts as 1; public, positive.
      clip: bounds the joint norm of a structure to `l2_clip_norm`.
      l2_clip_norm: `S`.
      denominator_scale: `lambda`; higher is a better denominator and a clip that bites more.
      floor: the least denominator, in the unit of `inner`: a sum of weights up to 1, or their mean.

    Raises:
      ValueError: naming the argument.
    """
    self._inner = inner
    self._normaliser = _positive('normaliser', normaliser)
    self._clip = clip
    self._l2_clip_norm = _positive('l2_clip_norm', l2_clip_norm)
    self._denominator_scale = _positive('denominator_scale', denominator_scale)
    self._floor = _positive('floor', floor)

  def create(self, value_type: tff.Type, weight_type: tff.Type) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: see `WeightInsideFactory.create`.
      weight_type: likewise.

    Raises:
      TypeError: if the types are not of those kinds.
    """
    per_entry = check_weight_per_entry(value_type, weight_type)

    @tff.tensorflow.computation(value_type, weight_type)
    def pack(value, weight):
      g, w = weighted_inside(value, weight, self._normaliser, self._clip, per_entry)
      return collections.OrderedDict(
        numerator=tf.nest.map_structure(lambda t: t / tf.cast(self._l2_clip_norm, t.dtype), g),
        denominator=tf.nest.map_structure(
          lambda t: t * tf.cast(self._denominator_scale, t.dtype), w
        ),
      )

    record_type = pack.type_signature.result
    inner = self._inner.create(record_type)

    @tff.tensorflow.computation(record_type)
    def divide(record):
      denominator = tf.nest.map_structure(
        lambda t: tf.maximum(t / self._denominator_scale, self._floor), record['denominator']
      )
      ratio = by_entry(tf.divide, record['numerator'], denominator, per_entry)
      return tf.nest.map_structure(lambda t: t * tf.cast(self._l2_clip_norm, t.dtype), ratio)

    @tff.federated_computation(
      inner.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      output = inner.next(state, tff.federated_map(pack, (value, weight)))
      return tff.templates.MeasuredProcessOutput(
        output.state, tff.federated_map(divide, output.result), output.measurements
      )

    return tff.templates.AggregationProcess(inner.initialize, next_fn)


def weighted_inside(
  value: Any, weight: Any, normaliser: float, clip: Clip, per_entry: bool
) -> tuple[Any, Any]:
  """`(g, w)` of one client, zeros where its value or weight is not finite.

  Args:
    value: structure of float tensors.
    weight: float scalar, or one for each entry of `value`.
    normaliser: see `WeightInsideFactory`.
    clip: likewise.
    per_entry: whether there is a weight for each entry.
  """
  finite = all_finite((value, weight))
  share = tf.nest.map_structure(
    lambda w: tf.clip_by_value(w / normaliser, 0.0, 1.0), zero_unless(finite, weight)
  )
  return by_entry(tf.multiply, clip(zero_unless(finite, value)), share, per_entry), share


def _positive(name: str, number: float) -> float:
  if not 0 < number < np.inf:
    raise ValueError(f'`{name}` must be finite and > 0, got {number}.')
  return number
