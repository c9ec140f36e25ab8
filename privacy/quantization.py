# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Numbers as integers of a secure sum, and the sum as numbers again.

A float becomes `round(x / s)` on the symmetric grid of a `SecureSumSpec`, in float64; 0 stays 0, so
rows that no tier holds add nothing to a sum. An integer stays what it is.

The bound of the norm after rounding is made to hold for whatever a client sends, not assumed: a
vector that breaks it is rounded towards zero, which no norm grows from.
"""

import math
from typing import Any

import tensorflow as tf

from privacy.clipping import clip_by_joint_norm
from privacy.noise import Seeds, split_seed
from privacy.secure_sum import Rounding, SecureSumSpec

# Each draw is refused with a probability of at most exp(-1/2): all of them once in 1e14 times.
_MOST_DRAWS = 64


def encode(value: Any, spec: SecureSumSpec, seeds: Seeds) -> Any:
  """A client's numbers as integers of at most `spec.levels`, before the modulus.

  With an `l2_clip_norm` they are clipped to that joint norm first, and the result times `spec.step`
  has a joint norm of at most `spec.rounded_clip` and an L1 norm of at most
  `sqrt(spec.coordinates) * spec.rounded_clip`.

  Edge cases:
    a NaN or an infinity anywhere: all zeros;
    what is beyond `value_range` is cut to it.

  Args:
    value: structure of float and signed integer tensors of known shapes, at least one; of floats
      only where there is an `l2_clip_norm`.
    spec: the grid.
    seeds: for the rounding; unused by NEAREST.

  Returns:
    The structure, of int64.
  """
  tensors = tf.nest.flatten(value)
  floats = [t for t in tensors if t.dtype.is_floating]
  none = tf.zeros([0], tf.float64)
  flat = tf.concat([none, *(tf.reshape(tf.cast(t, tf.float64), [-1]) for t in floats)], 0)
  finite = tf.reduce_all(tf.math.is_finite(flat))
  rounded = _round(tf.where(finite, flat, tf.zeros_like(flat)), spec, seeds)
  # The 0 is for values without floats: a split into no parts is refused.
  parts = iter(tf.split(rounded, [*(math.prod(t.shape) for t in floats), 0]))
  most = int(spec.value_range or 0)
  encoded = [
    tf.reshape(next(parts), t.shape)
    if t.dtype.is_floating
    else tf.where(finite, tf.clip_by_value(tf.cast(t, tf.int64), -most, most), 0)
    for t in tensors
  ]
  return tf.nest.pack_sequence_as(value, encoded)


def wrap(encoded: Any, spec: SecureSumSpec) -> Any:
  """Integers modulo `spec.modulus`: the structure, of int64 in [0, modulus)."""
  # Two's complement: the lowest bits are the residue, of negative numbers, too.
  return tf.nest.map_structure(lambda e: tf.bitwise.bitwise_and(e, spec.modulus - 1), encoded)


def decode(total: Any, spec: SecureSumSpec, like: Any) -> Any:
  """The sum of encoded numbers from its residues.

  Args:
    total: structure of int64 in [0, modulus).
    spec: the grid.
    like: structure of `tf.TensorSpec`s, with the dtypes of the values.

  Returns:
    The structure, of those dtypes. The upper half of the residues stands for the negative sums.
  """

  def to_number(residue, spec_of_tensor):
    number = tf.where(residue < spec.modulus // 2, residue, residue - spec.modulus)
    if not spec_of_tensor.dtype.is_floating:
      return tf.cast(number, spec_of_tensor.dtype)
    return tf.cast(tf.cast(number, tf.float64) * spec.step, spec_of_tensor.dtype)

  return tf.nest.map_structure(to_number, total, like)


def _round(vector: tf.Tensor, spec: SecureSumSpec, seeds: Seeds) -> tf.Tensor:
  """Finite float64 `[n]` to int64 `[n]`."""
  clip, limits = spec.l2_clip_norm, _norm_limits(spec)
  if clip is not None:
    vector = clip_by_joint_norm([vector], clip)[0][0]
  steps = tf.clip_by_value(vector / spec.step, -float(spec.levels), float(spec.levels))
  if spec.rounding is Rounding.NEAREST:
    rounded = tf.round(steps)
  else:
    rounded = _round_by_chance(steps, spec, seeds.next(seeds.initialize())[0])
  if clip is not None:
    rounded = tf.cond(_fits(rounded, limits), lambda: rounded, lambda: _shorten(steps, limits))
  return tf.cast(rounded, tf.int64)


def _round_by_chance(steps: tf.Tensor, spec: SecureSumSpec, seed: tf.Tensor) -> tf.Tensor:
  below, limits = tf.floor(steps), _norm_limits(spec)
  # Exact: a grid point is never left, as `floor(steps + uniform)` would leave it at times.
  share = steps - below

  def draw(unused_rounded, seed, draws):
    now, later = tf.unstack(split_seed(seed, 2))
    uniform = tf.random.stateless_uniform(steps.shape, now, dtype=tf.float64, alg='philox')
    return below + tf.cast(uniform < share, tf.float64), later, draws + 1

  def refused(rounded, unused_seed, draws):
    return tf.logical_and(~_fits(rounded, limits), draws < _MOST_DRAWS)

  first = draw(steps, seed, tf.constant(0))
  if spec.rounding is Rounding.STOCHASTIC:
    return first[0]
  return tf.while_loop(refused, draw, first)[0]


def _norm_limits(spec: SecureSumSpec) -> tuple[float, float]:
  """Bounds of the L1 and of the L2 norm, in steps."""
  l2 = (spec.rounded_clip or math.inf) / spec.step
  return math.sqrt(spec.coordinates or 1) * l2, l2


def _fits(rounded: tf.Tensor, limits: tuple[float, float]) -> tf.Tensor:
  l1, l2 = limits
  squares, lengths = tf.reduce_sum(tf.square(rounded)), tf.reduce_sum(tf.abs(rounded))
  return tf.logical_and(squares <= l2**2, lengths <= l1)


def _shorten(steps: tf.Tensor, limits: tuple[float, float]) -> tf.Tensor:
  """Rounds towards zero; before that, scales down what has more coordinates than the spec's."""
  scale = tf.minimum(tf.constant(1.0, tf.float64), limits[0] / tf.reduce_sum(tf.abs(steps)))
  return tf.sign(steps) * tf.floor(tf.abs(steps) * scale)
