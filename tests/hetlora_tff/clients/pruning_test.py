# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import math

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from hetlora_tff.adapters import factors as lora
from hetlora_tff.clients import pruning


@hypothesis.settings(max_examples=200)
@hypothesis.given(
  st.integers(1, 500), st.floats(0.01, 1.0).map(lambda x: round(x, 2)), st.integers(1, 60)
)
def test_candidate_rank(rank, prune_decay, min_rank):
  candidate = int(pruning.candidate_rank(tf.constant(rank), prune_decay, min_rank))
  # A rank below `min_rank` has nothing to drop; it does not rise.
  assert candidate == min(rank, max(min_rank, math.floor(prune_decay * rank)))
  assert 1 <= candidate <= rank


@pytest.mark.parametrize(
  ('rank', 'prune_decay', 'min_rank', 'candidate'),
  [
    (50, 0.99, 5, 49),
    (5, 0.99, 5, 5),
    (5, 0.99, 1, 4),
    (1, 0.5, 1, 1),
    (3, 0.5, 5, 3),
    (100, 0.53, 1, 53),  # 52 in float32
    (90, 0.7, 1, 62),  # 63 in float32
    (50, 1.0, 1, 50),
  ],
)
def test_candidate_rank_by_hand(rank, prune_decay, min_rank, candidate):
  assert int(pruning.candidate_rank(tf.constant(rank), prune_decay, min_rank)) == candidate


def test_tail_product_sums_over_modules():
  modules = [
    lora.LoraFactors(np.float32([[9], [3]]), np.float32([[9, 2]])),
    lora.LoraFactors(np.float32([[9, 9], [3, 4]]), np.float32([[9, 6], [9, 8]])),
  ]
  assert float(pruning.tail_product(modules, tf.constant(1))) == 2 * 3 + 5 * 10


@pytest.mark.parametrize(
  ('before', 'after', 'kept'),
  [
    (2.0, 1.0, 3),
    (1.0, 2.0, 4),
    (1.0, 1.0, 4),  # strictly smaller only
    (0.0, 0.0, 4),
    (1.0, math.nan, 4),
    (math.nan, 1.0, 4),
    (1.0, math.inf, 4),
  ],
)
def test_pruned_rank(before, after, kept):
  rank, candidate = tf.constant(4), tf.constant(3)
  assert int(pruning.pruned_rank(rank, candidate, tf.constant(before), tf.constant(after))) == kept
