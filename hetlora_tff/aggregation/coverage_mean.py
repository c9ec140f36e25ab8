# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean of every row over the clients that hold it (as RBLA, arXiv:2408.08699, has it)."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.finite import all_finite, zero_unless
from hetlora_tff.aggregation.factor_types import factor_shapes, factors_of


class RankCoverageMeanFactory(tff.aggregators.WeightedAggregationFactory):
  """Means row `j` of `a` and column `j` of `b` over the clients whose rank reaches `j`.

  `result.a[j] = sum_k w_k[j] a_k[j] / sum_k w_k[j]`, and so for `b[:, j]`. `w_k [R]` is the
  client's weight in the rows it holds and 0 in the others, so absent rows do not dilute a row.
  With all clients at the full rank and one weight this is the plain mean.

  The denominator is summed, or public: with `expected_clients`, the expected number of clients of
  a round that hold each row, weights count as 1 where positive, and nothing about who was there is
  summed.

  `next` has the type
  `(<S@SERVER, {{path: <a, b>}}@CLIENTS, {float[R]}@CLIENTS> -> <state=S@SERVER, result=V@SERVER,
  measurements>)`; a module of rank `R_l < R` uses the first `R_l` weights.

  Edge cases:
    a value, weight or product of the two with a NaN or an infinity: left out and counted in
      `non_finite_clients`;
    a row that nobody holds, or is not expected to: its result is 0, an update that keeps the
      server's row.

  Measurements: `mean_value`, `mean_weight` (of the inner sums; the latter only where weights are
  summed) and `non_finite_clients`.
  """

  def __init__(
    self,
    expected_clients: Sequence[float] | None = None,
    value_sum_factory: tff.aggregators.UnweightedAggregationFactory | None = None,
    weight_sum_factory: tff.aggregators.UnweightedAggregationFactory | None = None,
    count_sum_factory: tff.aggregators.UnweightedAggregationFactory | None = None,
  ):
    """Initializes the factory.

    Args:
      expected_clients: `[R]`, finite and `>= 0`; by default the weights are summed.
      value_sum_factory: sums the weighted values; a plain sum by default.
      weight_sum_factory: sums the weights; a plain sum by default; not with `expected_clients`.
      count_sum_factory: sums the int32 indicator of a left-out client; a plain sum by default.

    Raises:
      ValueError: naming the argument.
    """
    expected = None
    self._expected_clients = None
    if expected_clients is not None:
      if weight_sum_factory is not None:
        raise ValueError('With `expected_clients` no weights are summed: no `weight_sum_factory`.')
      expected = np.asarray(expected_clients, np.float32)
      if expected.ndim != 1 or not np.all(np.isfinite(expected) & (expected >= 0)):
        raise ValueError(f'`expected_clients` must be numbers >= 0, got {expected_clients}.')
      self._expected_clients = expected
    self._value_sum_factory = value_sum_factory or tff.aggregators.SumFactory()
    self._weight_sum_factory = weight_sum_factory or tff.aggregators.SumFactory()
    self._count_sum_factory = count_sum_factory or tff.aggregators.SumFactory()

  def create(self, value_type: tff.Type, weight_type: tff.Type) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: `{path: <a [R_l, d_in], b [d_out, R_l]>}`, floats.
      weight_type: float `[R]`, `R` at least the largest `R_l`.

    Raises:
      TypeError: if the types are not of those kinds.
      ValueError: if `expected_clients` has another length than the weights.
    """
    max_rank = _check_types(value_type, weight_type)
    expected = self._expected_clients
    if expected is not None and len(expected) != max_rank:
      raise ValueError(
        f'`expected_clients` has {len(expected)} entries; it needs one per row: {max_rank}.'
      )
    value_sum = self._value_sum_factory.create(value_type)
    count_sum = self._count_sum_factory.create(tff.TensorType(np.int32))
    total_weight = _SummedWeight(self._weight_sum_factory, weight_type)
    if expected is not None:
      total_weight = _ExpectedWeight(expected)

    @tff.federated_computation
    def init_fn():
      return tff.federated_zip(
        (value_sum.initialize(), total_weight.initialize(), count_sum.initialize())
      )

    @tff.tensorflow.computation(value_type, weight_type)
    def weigh(value, weight):
      rows = total_weight.of_rows(weight)
      weighted = _by_row(tf.multiply, value, rows)
      finite = all_finite((weighted, weight))
      return zero_unless(finite, weighted), zero_unless(finite, rows), tf.cast(~finite, tf.int32)

    @tff.tensorflow.computation(value_type, weight_type)
    def divide(total, rows):
      return _by_row(tf.math.divide_no_nan, total, rows)

    @tff.federated_computation(
      init_fn.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      weighted, rows, skipped = tff.federated_map(weigh, (value, weight))
      values = value_sum.next(state[0], weighted)
      totals = total_weight.next(state[1], rows)
      counts = count_sum.next(state[2], skipped)
      measurements = collections.OrderedDict(mean_value=values.measurements)
      if expected is None:
        measurements['mean_weight'] = totals.measurements
      measurements['non_finite_clients'] = counts.result
      return tff.templates.MeasuredProcessOutput(
        tff.federated_zip((values.state, totals.state, counts.state)),
        tff.federated_map(divide, (values.result, totals.result)),
        tff.federated_zip(measurements),
      )

    return tff.templates.AggregationProcess(init_fn, next_fn)


class _SummedWeight:
  """The denominator as the sum of the clients' weights."""

  def __init__(self, sum_factory, weight_type: tff.Type):
    process = sum_factory.create(weight_type)
    self.initialize, self.next = process.initialize, process.next

  def of_rows(self, weight: tf.Tensor) -> tf.Tensor:
    return weight


class _ExpectedWeight:
  """The denominator as public constants; the clients' weights only say which rows they hold."""

  def __init__(self, expected: np.ndarray):
    self._expected = expected

  def initialize(self):
    return tff.federated_value((), tff.SERVER)

  def of_rows(self, weight: tf.Tensor) -> tf.Tensor:
    return tf.cast(weight > 0, weight.dtype)

  def next(self, state, rows):
    dtype = rows.type_signature.member.dtype
    constant = tff.tensorflow.computation(lambda: tf.constant(self._expected, dtype))
    return tff.templates.MeasuredProcessOutput(
      state,
      tff.federated_eval(constant, tff.SERVER),
      tff.federated_value((), tff.SERVER),
    )


def _by_row(operation: Callable, value: Any, rows: tf.Tensor) -> collections.OrderedDict:
  """Applies `operation(entries, weight)` to the rows of every `a` and the columns of every `b`."""
  result = collections.OrderedDict()
  for path, entry in value.items():
    a, b = factors_of(entry)
    held = rows[: a.shape[0]]
    result[path] = type(entry)(
      a=operation(a, tf.cast(held, a.dtype)[:, tf.newaxis]),
      b=operation(b, tf.cast(held, b.dtype)[tf.newaxis, :]),
    )
  return result


def _check_types(value_type: tff.Type, weight_type: tff.Type) -> int:
  """Checks both types; returns the number of weights."""
  shapes = factor_shapes(value_type)
  is_float = tff.types.is_structure_of_floats(weight_type)
  if not (is_float and isinstance(weight_type, tff.TensorType) and len(weight_type.shape) == 1):
    raise TypeError(f'The weights must be one float per row, got {weight_type}.')
  max_rank = weight_type.shape[0]
  for path, shape in shapes.items():
    if max_rank is None or shape.rank > max_rank:
      raise TypeError(f'Module {path!r} has rank {shape.rank}, above the weights {weight_type}.')
  return max_rank
