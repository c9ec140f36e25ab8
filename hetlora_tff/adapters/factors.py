# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA factors of one module and the operations on their rank.

A module with frozen weight `W [d_out, d_in]` carries two factors in PEFT's orientation,
`a [rank, d_in]` and `b [d_out, rank]`; its effective weight is `W + scaling * b @ a`.

Everything here is a pure function of tensors and works in graphs with a rank that is known only
when the graph runs.
"""

from typing import NamedTuple

import tensorflow as tf


class LoraFactors(NamedTuple):
  """The two factors of one module.

  Attributes:
    a: `[rank, d_in]`, float32.
    b: `[d_out, rank]`, float32.
  """

  a: tf.Tensor
  b: tf.Tensor


class CorrectedFactors(NamedTuple):
  """Factors beside a dense correction of the frozen weight: `W + residual + scaling * b @ a`.

  Attributes:
    a: `[rank, d_in]`, float32.
    b: `[d_out, rank]`, float32.
    residual: `[d_out, d_in]`, float32; what earlier rounds merged, scaling included.
  """

  a: tf.Tensor
  b: tf.Tensor
  residual: tf.Tensor


Factors = LoraFactors | CorrectedFactors


def truncate(factors: Factors, rank) -> Factors:
  """Keeps the first `rank` rows of `a` and columns of `b` (HetLoRA, Sec. 3.2, distribution).

  Args:
    factors: factors of rank `R`; a residual stays as it is.
    rank: int or int32 scalar tensor; above `R` nothing is cut.

  Returns:
    `a[:rank, :]` and `b[:, :rank]`.
  """
  return factors._replace(a=factors.a[:rank, :], b=factors.b[:, :rank])


def pad(factors: LoraFactors, max_rank: int) -> LoraFactors:
  """Appends zero rows to `a` and zero columns to `b`, so that every message has one shape.

  Args:
    factors: factors of a rank `<= max_rank`, possibly known only at run time.
    max_rank: the rank of the result.

  Returns:
    Factors with the static shapes `a [max_rank, d_in]` and `b [d_out, max_rank]`.

  Raises:
    ValueError: if the rank is known and larger than `max_rank`.
  """
  static_rank = factors.a.shape[0]
  if static_rank is not None and static_rank > max_rank:
    raise ValueError(f'Cannot pad factors of rank {static_rank} to max_rank {max_rank}.')
  missing = max_rank - tf.shape(factors.a)[0]
  a = tf.pad(factors.a, [[0, missing], [0, 0]])
  b = tf.pad(factors.b, [[0, 0], [0, missing]])
  # Federated sums need fully defined shapes.
  return LoraFactors(
    tf.ensure_shape(a, [max_rank, factors.a.shape[1]]),
    tf.ensure_shape(b, [factors.b.shape[0], max_rank]),
  )


def product_norm(factors: Factors) -> tf.Tensor:
  """Frobenius norm of `b @ a`, without forming it.

  `||b a||_F^2 = tr((b a)^T b a) = tr((b^T b)(a a^T))`: two `rank x rank` Gram matrices instead of
  one `d_out x d_in` product.

  Args:
    factors: factors of any rank.

  Returns:
    A float32 scalar, `>= 0`.
  """
  gram_a = tf.matmul(factors.a, factors.a, transpose_b=True)
  gram_b = tf.matmul(factors.b, factors.b, transpose_a=True)
  # The trace is >= 0 in exact arithmetic; rounding may leave it a little below.
  return tf.sqrt(tf.maximum(tf.reduce_sum(gram_a * gram_b), 0.0))


def tail_norm(factors: Factors, start) -> tf.Tensor:
  """`||b[:, start:]||_F * ||a[start:, :]||_F`, the quantity that self-pruning shrinks.

  Its gradient is defined (zero) where a tail is all zeros, as `b` is at the start of training.

  Args:
    factors: factors of any rank.
    start: int or int32 scalar tensor, the first index of the tail.

  Returns:
    A float32 scalar; 0 for an empty tail.
  """
  return _frobenius(factors.b[:, start:]) * _frobenius(factors.a[start:, :])


def _frobenius(matrix: tf.Tensor) -> tf.Tensor:
  squared = tf.reduce_sum(tf.square(matrix))
  positive = squared > 0.0
  # d sqrt(x) / dx is infinite at 0, and 0 * inf is NaN: feed sqrt a safe value there.
  return tf.where(positive, tf.sqrt(tf.where(positive, squared, 1.0)), 0.0)
