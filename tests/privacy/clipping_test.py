# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from privacy.clipping import clip_by_joint_norm, clip_to_norm


def _norm(structure):
  tensors = [np.ravel(np.float64(t)) for t in tf.nest.flatten(structure)]
  return np.linalg.norm(np.concatenate(tensors))


def test_one_norm_over_all_tensors_by_hand():
  structure = collections.OrderedDict(a=tf.constant([[3.0]]), b=[tf.constant([0.0, 4.0])])
  clipped, norm = clip_by_joint_norm(structure, 2.5)
  assert norm == 5.0
  np.testing.assert_allclose(clipped['a'], [[1.5]])
  np.testing.assert_allclose(clipped['b'][0], [0.0, 2.0])


def test_what_is_within_the_bound_stays_to_the_bit():
  structure = [tf.constant([0.1, -0.3]), tf.constant(np.float64(0.7))]
  clipped = clip_to_norm(0.8)(structure)
  for one, other in zip(clipped, structure, strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_client_that_is_not_finite_contributes_zeros(bad):
  clipped, norm = clip_by_joint_norm([tf.constant([1.0, bad]), tf.constant([2.0])], 1.0)
  assert norm == 0
  for tensor in clipped:
    np.testing.assert_array_equal(tensor, tf.zeros_like(tensor))


@pytest.mark.parametrize('large', [1e19, 1e25, 3e38])
def test_squares_that_overflow_float32_are_clipped_to_the_bound(large):
  clipped = clip_to_norm(2.0)([tf.fill([3], large), tf.fill([2, 2], -large)])
  np.testing.assert_allclose(clipped[0], np.full(3, 2 / np.sqrt(7)), rtol=1e-6)
  np.testing.assert_allclose(clipped[1], np.full([2, 2], -2 / np.sqrt(7)), rtol=1e-6)


@hypothesis.given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=8), st.floats(1e-3, 1e3))
def test_the_bound_holds_and_is_reached(numbers, bound):
  structure = [tf.constant(numbers[:1], tf.float32), tf.constant(numbers[1:], tf.float32)]
  clipped = clip_to_norm(bound)(structure)
  np.testing.assert_allclose(_norm(clipped), min(_norm(structure), bound), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize('bound', [0.0, -1.0, np.inf, np.nan])
def test_refuses_other_bounds(bound):
  with pytest.raises(ValueError, match='l2_clip_norm'):
    clip_to_norm(bound)
