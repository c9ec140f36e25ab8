# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rank self-pruning (HetLoRA, arXiv:2401.06432, Sec. 3.2): pure functions of tensors.

A client of rank `r` asks whether the last few of its ranks are worth keeping. The candidate rank is
`q = max(min_rank, floor(prune_decay * r))`; the local loss carries
`prune_weight * sum_l ||b_l[:, q:r]||_F ||a_l[q:r, :]||_F`, and the client drops to `q` if that sum
ended strictly below its value on receipt. A rank never rises.
"""

from collections.abc import Iterable

import tensorflow as tf

from hetlora_tff.adapters import factors as lora


def candidate_rank(rank: tf.Tensor, prune_decay: float, min_rank: int) -> tf.Tensor:
  """The rank `q` that a client of `rank` would drop to.

  Args:
    rank: int32 scalar.
    prune_decay: the paper's gamma, in (0, 1]; 1 switches pruning off.
    min_rank: the floor of every client's rank.

  Returns:
    An int32 scalar in `[1, rank]`; equal to `rank` where there is nothing to drop.
  """
  # In float64, as the equation reads in NumPy: in float32, 0.53 * 100 floors to 52.
  decayed = tf.cast(tf.floor(prune_decay * tf.cast(rank, tf.float64)), tf.int32)
  return tf.minimum(tf.maximum(decayed, min_rank), rank)


def tail_product(modules: Iterable[lora.Factors], start: tf.Tensor) -> tf.Tensor:
  """`sum_l ||b_l[:, start:]||_F ||a_l[start:, :]||_F` over the modules of one client."""
  return tf.add_n([lora.tail_norm(factors, start) for factors in modules])


def pruned_rank(
  rank: tf.Tensor, candidate: tf.Tensor, tail_on_receipt: tf.Tensor, tail_after: tf.Tensor
) -> tf.Tensor:
  """`candidate` where training shrank the tail, else `rank`.

  A NaN in either tail compares false, so a client whose training diverged keeps its rank.
  """
  return tf.where(tail_after < tail_on_receipt, candidate, rank)
