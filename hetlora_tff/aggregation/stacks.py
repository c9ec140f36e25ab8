# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The rows of all clients' factors, gathered at the server."""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.aggregation.factor_types import FactorShapes

# TFF's executor keeps every intermediate accumulator of an aggregation, so a copy of the stack per
# client would take memory by the square of their number. Rows wait in registers of so many places,
# and a full one becomes one place of the next: up to 16^3 clients, a row is copied three times.
_PLACES, _REGISTERS = 16, 3
# And one for what went through all of them.
NUM_TENSORS = _PLACES * _REGISTERS + 1


class Rows(NamedTuple):
  """Factors of one module, all clients' below each other: `sum_k b_k a_k = b^T a`.

  Attributes:
    a: `[n, d_in]`, float32.
    b: `[n, d_out]`, float32.
  """

  a: tf.Tensor
  b: tf.Tensor


class Stacker:
  """Packs a client's factors into one matrix, and gathers those of all clients.

  Row `j` of the matrix has row `j` of every `a` and column `j` of every `b`: a few tensors per
  client instead of hundreds.

  Attributes:
    result_type: TFF type of `{path: Rows}`.
  """

  def __init__(self, shapes: FactorShapes):
    """Initializes the stacker for modules of these shapes."""
    self._shapes = shapes
    self._max_rank = max(shape.rank for shape in shapes.values())
    sizes_a = [shape.d_in for shape in shapes.values()]
    self._sizes = sizes_a + [shape.d_out for shape in shapes.values()]
    self.columns_of_a = sum(sizes_a)
    self.result_type = tff.to_type(
      collections.OrderedDict(
        (path, Rows(_matrix_type(shape.d_in), _matrix_type(shape.d_out)))
        for path, shape in shapes.items()
      )
    )

  def pack(self, value: Mapping[str, LoraFactors]) -> tf.Tensor:
    """`[max R_l, sum_l d_in + sum_l d_out]`: all `a`, then all `b`, zero above a module's rank."""
    columns = [value[path].a for path in self._shapes]
    columns += [tf.transpose(value[path].b) for path in self._shapes]
    missing = [self._max_rank - tensor.shape[0] for tensor in columns]
    return tf.concat(
      [tf.pad(c, [[0, m], [0, 0]]) for c, m in zip(columns, missing, strict=True)], 1
    )

  def unpack(self, rows: tf.Tensor) -> collections.OrderedDict[str, Rows]:
    """Packed rows, of one client or of many, by module."""
    parts = tf.split(rows, self._sizes, 1)
    number = len(self._shapes)
    return collections.OrderedDict(
      (path, Rows(a, b))
      for path, a, b in zip(self._shapes, parts[:number], parts[number:], strict=True)
    )

  def gather(self, packed: Any) -> Any:
    """`{packed}@CLIENTS -> {path: Rows}@SERVER`; called inside a federated computation.

    Every message has the full rank; the server drops a client's rows whose `b` is zero in all
    modules (padding, weight 0), so `n` is the sum of the ranks. The order of the rows is
    arbitrary.
    """
    columns = sum(self._sizes)
    stack_type = tff.to_type([_matrix_type(columns)] * NUM_TENSORS)

    @tff.tensorflow.computation
    def zero():
      return [_no_rows(columns) for _ in stack_type]

    @tff.tensorflow.computation(stack_type, packed.type_signature.member)
    def accumulate(stack, packed):
      present = tf.reduce_any(tf.not_equal(packed[:, self.columns_of_a :], 0.0), 1)
      return pushed(stack, tf.boolean_mask(packed, present))

    @tff.tensorflow.computation(stack_type, stack_type)
    def merge(left, right):
      return [_no_rows(columns) for _ in left[1:]] + [tf.concat([*left, *right], 0)]

    @tff.tensorflow.computation(stack_type)
    def report(stack):
      return self.unpack(tf.concat(stack, 0))

    return tff.federated_aggregate(packed, zero(), accumulate, merge, report)


def pushed(stack: list[tf.Tensor], rows: tf.Tensor) -> list[tf.Tensor]:
  """Adds rows to a stack.

  Args:
    stack: `NUM_TENSORS` matrices: the registers, the first one first, and what went through all.
    rows: float32 `[n, columns]`.

  Returns:
    The stack afterwards; tensors that are not copied stay the same ones.
  """
  if len(stack) == 1:
    return [tf.concat([*stack, rows], 0)]
  register, others = stack[:_PLACES], stack[_PLACES:]
  nothing = [_no_rows(rows.shape[1])] * (_PLACES - 1)
  # What leaves a register at its end without being passed on has no rows.
  return tf.cond(
    tf.shape(register[-1])[0] > 0,
    lambda: [rows, *nothing, *pushed(others, tf.concat(register, 0))],
    lambda: [rows, *register[:-1], *others],
  )


def _matrix_type(columns: int) -> tff.TensorType:
  return tff.TensorType(np.float32, [None, columns])


def _no_rows(columns: int) -> tf.Tensor:
  """`[0, columns]` of a type that does not say how many rows there are."""
  return tf.compat.v1.placeholder_with_default(tf.zeros([0, columns]), [None, columns])
