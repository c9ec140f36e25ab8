# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The clip that bounds what one client can change: one L2 norm over all tensors of its message."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def clip_to_norm(l2_clip_norm: float) -> Callable[[Any], Any]:
  """A function that scales a structure of float tensors so that its joint L2 norm is bounded.

  Args:
    l2_clip_norm: the bound, finite and positive.

  Raises:
    ValueError: if it is not.
  """
  if not 0 < l2_clip_norm < float('inf'):
    raise ValueError(f'`l2_clip_norm` must be finite and > 0, got {l2_clip_norm}.')
  return lambda structure: clip_by_joint_norm(structure, l2_clip_norm)[0]


def clip_by_joint_norm(structure: Any, l2_clip_norm: float | tf.Tensor) -> tuple[Any, tf.Tensor]:
  """Scales a structure by `min(1, l2_clip_norm / ||structure||_2)`, or to zeros.

  The work is done in float64, in which the squares of finite float32 numbers cannot overflow:
  `tf.clip_by_global_norm` turns finite entries of 1e25 into NaN in every tensor. What is left above
  the bound is the last rounding, a relative 2^-24 in float32.

  Args:
    structure: of float tensors of any shape, at least one.
    l2_clip_norm: the bound, positive.

  Returns:
    The structure, of the same dtypes, and its norm before the clip, a float32 scalar. Both are zero
    where the norm is no finite number: such a client contributes nothing.
  """
  wide = [tf.cast(tensor, tf.float64) for tensor in tf.nest.flatten(structure)]
  norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(tensor)) for tensor in wide]))
  finite = tf.math.is_finite(norm)
  bound = tf.cast(l2_clip_norm, tf.float64)
  scale = bound / tf.maximum(norm, bound)
  # By `where`, since 0 * NaN is NaN.
  clipped = [tf.where(finite, tensor * scale, tf.zeros_like(tensor)) for tensor in wide]
  clipped = tf.nest.pack_sequence_as(structure, clipped)
  clipped = tf.nest.map_structure(lambda c, t: tf.cast(c, t.dtype), clipped, structure)
  return clipped, tf.cast(tf.where(finite, norm, tf.zeros_like(norm)), tf.float32)
