# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows that no device holds get no update, and so no noise either."""

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.layout import TrainedFactors
from hetlora_tff.aggregation.factor_types import factor_shapes, factors_of


def keep_held_rows(
  inner: tff.aggregators.AggregationFactory, trained: TrainedFactors, held_rank: int
) -> tff.aggregators.AggregationFactory:
  """An aggregator like another one, with zeros for the rows from rank index `held_rank` on.

  For an aggregator that adds noise to every row of the server's rank, where the largest device
  rank is smaller. The ranks of the devices have to be public.

  Args:
    inner: aggregates clients' messages, weighted or not.
    trained: what a message holds, see `clients.messages.message`.
    held_rank: the largest rank of a device.

  Returns:
    A factory, weighted as `inner` is. Its `create` raises `TypeError` for values that are no such
    messages.

  Raises:
    ValueError: if `held_rank` is below 1.
  """
  if held_rank < 1:
    raise ValueError(f'`held_rank` must be at least 1, got {held_rank}.')
  if isinstance(inner, tff.aggregators.WeightedAggregationFactory):
    return _WeightedHeldRows(inner, trained, held_rank)
  return _UnweightedHeldRows(inner, trained, held_rank)


class _HeldRows:
  """Both kinds of factory."""

  def __init__(self, inner: Any, trained: TrainedFactors, held_rank: int):
    self._inner = inner
    self._trained = trained
    self._held_rank = held_rank

  def _create(self, value_type: tff.Type, *weight_type: tff.Type):
    _check_messages(value_type, self._trained)
    inner = self._inner.create(value_type, *weight_type)

    @tff.tensorflow.computation(value_type)
    def cut(result):
      entries = ((path, self._cut_entry(entry)) for path, entry in result.items())
      return collections.OrderedDict(entries)

    @tff.federated_computation(inner.next.type_signature.parameter)
    def next_fn(arguments):
      output = inner.next(*arguments)
      return tff.templates.MeasuredProcessOutput(
        output.state, tff.federated_map(cut, output.result), output.measurements
      )

    return tff.templates.AggregationProcess(inner.initialize, next_fn)

  def _cut_entry(self, entry):
    if self._trained is TrainedFactors.B:
      return self._zero_above(entry, 1)
    if self._trained is TrainedFactors.ALTERNATING:
      return self._zero_above(entry, 0)
    a, b = factors_of(entry)
    return type(entry)(a=self._zero_above(a, 0), b=self._zero_above(b, 1))

  def _zero_above(self, matrix: tf.Tensor, rank_axis: int) -> tf.Tensor:
    held = tf.range(matrix.shape[rank_axis]) < self._held_rank
    return tf.where(tf.expand_dims(held, 1 - rank_axis), matrix, tf.zeros_like(matrix))


class _UnweightedHeldRows(_HeldRows, tff.aggregators.UnweightedAggregationFactory):
  def create(self, value_type: tff.Type) -> tff.templates.AggregationProcess:
    return self._create(value_type)


class _WeightedHeldRows(_HeldRows, tff.aggregators.WeightedAggregationFactory):
  def create(self, value_type: tff.Type, weight_type: tff.Type) -> tff.templates.AggregationProcess:
    return self._create(value_type, weight_type)


def _check_messages(value_type: tff.Type, trained: TrainedFactors) -> None:
  if trained is TrainedFactors.BOTH:
    factor_shapes(value_type)
    return
  is_struct = isinstance(value_type, tff.StructType)
  entries = tff.structure.to_elements(value_type) if is_struct else []
  shapes = {name: tuple(getattr(entry, 'shape', None) or ()) for name, entry in entries}
  if not shapes or None in shapes or any(len(s) != 2 or None in s for s in shapes.values()):
    raise TypeError(f'Values must be a matrix by module, got {value_type}.')
