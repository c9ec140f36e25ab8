# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Structures of tensors that may hold a NaN or an infinity."""

import tensorflow as tf


def all_finite(structure) -> tf.Tensor:
  """Whether no tensor of a structure has a NaN or an infinity; bool scalar."""
  return tf.reduce_all([tf.reduce_all(tf.math.is_finite(t)) for t in tf.nest.flatten(structure)])


def zero_unless(keep: tf.Tensor, structure):
  """`structure` where `keep` (a bool scalar), else zeros; by `where`, since 0 * NaN is NaN."""
  return tf.nest.map_structure(lambda t: tf.where(keep, t, tf.zeros_like(t)), structure)
