# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.adapters.finite import all_finite, zero_unless


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_one_bad_entry_anywhere_is_found(broken):
  assert all_finite({'a': tf.ones([2]), 'b': [tf.constant(1.0)]})
  assert not all_finite({'a': tf.ones([2]), 'b': [tf.constant(broken)]})
  assert not all_finite({'a': tf.constant([1.0, broken]), 'b': [tf.constant(1.0)]})


def test_zeros_replace_even_what_is_not_finite():
  structure = {'a': tf.constant([np.nan, 2.0]), 'b': (tf.constant(np.inf),)}
  kept = zero_unless(tf.constant(True), {'a': tf.constant([3.0, 2.0])})
  np.testing.assert_array_equal(kept['a'], [3.0, 2.0])
  zeros = zero_unless(tf.constant(False), structure)
  np.testing.assert_array_equal(zeros['a'], [0.0, 0.0])
  np.testing.assert_array_equal(zeros['b'][0], 0.0)
