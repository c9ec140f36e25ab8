# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Best low-rank approximation of a sum of products, from the stacked factors alone."""

import tensorflow as tf

from hetlora_tff.adapters import factors as lora

# Block Krylov (Musco & Musco, arXiv:1504.05477). On the flat spectrum of independent Gaussian
# factors of rank 50, the hardest there is, seven blocks come within 1e-6 of the optimal error at
# 768 x 768 and within 2e-4 at 4096 x 4096; each block less costs about a factor of 5.
_BLOCKS = 7
_OVERSAMPLING = 10
_SEED = (2402, 11505)
# Singular values below this share of the largest are float32 rounding.
_RESOLUTION = 1e-6


def best_low_rank(rows_a: tf.Tensor, rows_b: tf.Tensor, rank: int) -> lora.LoraFactors:
  """Factors of the best approximation of `M = rows_b^T rows_a` of a rank, in Frobenius norm.

  `M [d_out, d_in]` is never formed. An orthonormal basis `Q` of its column space - all of it for
  few rows, else a randomised block Krylov space with a fixed seed - gives `Q Q^T M`, and the
  eigenvectors of the small `(Q^T M)(Q^T M)^T` its singular values `s` and vectors:
  `b = U s`, `a = V^T`. The singular values descend, so that the first `r` rows of
  `a` and columns of `b` are the best approximation of rank `r`, too.

  Args:
    rows_a: `[n, d_in]`, float32; `n` may be known at run time only, and 0.
    rows_b: `[n, d_out]`, float32.
    rank: the rank of the result, at least 1.

  Returns:
    `LoraFactors(a [rank, d_in], b [d_out, rank])`; exact zeros in the rows of `a` and columns of
    `b` above the numerical rank of `M`, so everywhere if `M` is 0.
  """
  basis, projected = _basis(rows_a, rows_b, rank + _OVERSAMPLING)
  # Squares of singular values: in float64 they keep what float32 factors can hold.
  basis, projected = tf.cast(basis, tf.float64), tf.cast(projected, tf.float64)
  squared, vectors = tf.linalg.eigh(tf.matmul(projected, projected, transpose_b=True))
  vectors = tf.reverse(vectors, [1])[:, :rank]
  singular = tf.sqrt(tf.maximum(tf.reverse(squared, [0])[:rank], 0.0))
  singular = tf.where(singular > _RESOLUTION * singular[:1], singular, 0.0)
  b = tf.matmul(basis, vectors) * singular
  a = tf.matmul(vectors, projected, transpose_a=True)
  a = tf.math.divide_no_nan(a, singular[:, tf.newaxis])
  return lora.pad(lora.LoraFactors(tf.cast(a, tf.float32), tf.cast(b, tf.float32)), rank)


def _basis(rows_a: tf.Tensor, rows_b: tf.Tensor, block: int) -> tuple[tf.Tensor, tf.Tensor]:
  """An orthonormal `Q [d_out, p]` that holds what matters of `M`, and `Q^T M [p, d_in]`."""

  def whole():
    basis = _orthonormal(tf.transpose(rows_b))
    return basis, tf.matmul(tf.matmul(rows_b, basis), rows_a, transpose_a=True)

  width = _BLOCKS * block
  if rows_b.shape[1] <= width:
    return whole()
  return tf.cond(tf.shape(rows_b)[0] <= width, whole, lambda: _krylov_basis(rows_a, rows_b, block))


def _krylov_basis(rows_a, rows_b, block: int) -> tuple[tf.Tensor, tf.Tensor]:
  """`Q` spans `[M Ω, (M M^T) M Ω, ..., (M M^T)^6 M Ω]` for a Gaussian `Ω [d_in, block]`."""
  latest = tf.random.stateless_normal([rows_a.shape[1], block], _SEED, alg='philox')
  bases, projections = [], []
  for _ in range(_BLOCKS):
    new = tf.matmul(rows_b, tf.matmul(rows_a, latest), transpose_a=True)
    # Once more, since what is left after the first pass may be mostly rounding.
    for _ in range(2 if bases else 1):
      for basis in bases:
        new -= tf.matmul(basis, tf.matmul(basis, new, transpose_a=True))
      new = _orthonormal(new)
    bases.append(new)
    latest = tf.matmul(rows_a, tf.matmul(rows_b, new), transpose_a=True)
    projections.append(latest)
  return tf.concat(bases, 1), tf.transpose(tf.concat(projections, 1))


def _orthonormal(columns: tf.Tensor) -> tf.Tensor:
  return tf.linalg.qr(columns).q
