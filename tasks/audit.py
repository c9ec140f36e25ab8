# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Looks for the canaries of a run in its model, and says what epsilon their traces prove."""

import collections
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hetlora_tff.clients.canaries import canary_direction
from hetlora_tff.clients.messages import pack_alternating
from privacy.audit import epsilon_lower_bound
from tasks.config import RunConfig
from tasks.files import replace_file

# Held-out canaries cost no training, and the more there are, the more the planted ones can prove.
_HELD_OUT_PER_CANARY = 10
# Bounds the memory for directions: 64 MiB.
_NUMBERS_AT_A_TIME = 2**24

Message = Mapping[str, Any]


def write_audit(
  root: pathlib.Path, config: RunConfig, start: Mapping[str, Any], end: Mapping[str, Any]
) -> None:
  """Writes `audit.json`: what the canaries of a run prove of it.

  Args:
    root: directory of the run.
    config: of the run; canaries are numbered from 0.
    start: trained weights before the first round, as arrays.
    end: after the last one.
  """
  release = released(start, end, alternates=config.method == 'rolora')
  planted = range(config.audit_canaries)
  held_out = range(len(planted), (1 + _HELD_OUT_PER_CANARY) * len(planted))
  scores = canary_scores([release], [*planted, *held_out])[:, 0]
  bound = epsilon_lower_bound(scores[planted], scores[held_out], config.delta or 0.0)
  result = {
    'epsilon_lower_bound': _shortened(bound.epsilon),
    'largest_provable_epsilon': _shortened(bound.ceiling),
    'confidence': bound.confidence,
    'delta': bound.delta,
    'planted_canaries': bound.planted,
    'held_out_canaries': bound.held_out,
    'threshold': bound.threshold,
    'attack_auc': round(bound.auc, 4),
    'mean_planted_score': _shortened(float(np.mean(scores[planted]))),
  }
  replace_file(root / 'audit.json', (json.dumps(result, indent=2) + '\n').encode())


def released(start: Message, end: Message, *, alternates: bool) -> Message:
  """What a run's rounds came to, laid out as clients' messages are.

  Args:
    start: trained weights before the first round.
    end: after the last one.
    alternates: whether messages hold one factor of each module, as `pack_alternating` lays it.
  """
  # A message is what its sender received less what it made of it.
  moved = collections.OrderedDict(
    (path, tf.nest.map_structure(np.subtract, start[path], end[path])) for path in start
  )
  if not alternates:
    return moved
  # A canary sends the same matrix in both kinds of round, and either factor cuts its part from it.
  return collections.OrderedDict(
    (path, pack_alternating(f, tf.constant(True)) + pack_alternating(f, tf.constant(False)))
    for path, f in moved.items()
  )


def canary_scores(releases: Sequence[Message], numbers: Sequence[int]) -> np.ndarray:
  """How far releases point the way of canaries.

  The score is the inner product of release and direction, in standard deviations of that of a
  canary which took no part: `sqrt(sum_l ||v_l||^2 / d_l)` for parts `v_l` of `d_l` numbers, since
  directions are uniformly distributed in every module. (With one module, and nearly so with more,
  it is `sqrt(d)` times the cosine.)

  Args:
    releases: each laid out as a client's message.
    numbers: of canaries.

  Returns:
    float32 `[len(numbers), len(releases)]`; zeros for a release that is zero or not finite, which
    tells nothing.
  """
  like = releases[0]
  rows = np.stack([_standardised(release) for release in releases])
  chunk = max(1, _NUMBERS_AT_A_TIME // rows.shape[1])

  @tf.function(input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec(rows.shape)])
  def score(numbers, rows):
    directions = tf.map_fn(
      lambda number: _flat(canary_direction(like, number)), numbers, fn_output_signature=tf.float32
    )
    return tf.matmul(directions, rows, transpose_b=True)

  parts = [numbers[begin : begin + chunk] for begin in range(0, len(numbers), chunk)]
  return np.concatenate([score(tf.constant(part, tf.int64), rows) for part in parts])


def _standardised(release: Message) -> np.ndarray:
  """A release as one vector, divided by the standard deviation of a held-out canary's product."""
  parts = [np.concatenate([np.ravel(t) for t in tf.nest.flatten(v)]) for v in release.values()]
  variance = sum(np.sum(np.square(part, dtype=np.float64)) / part.size for part in parts)
  row = np.concatenate(parts).astype(np.float32)
  if not 0 < variance < math.inf:
    return np.zeros_like(row)
  return (row / math.sqrt(variance)).astype(np.float32)


def _flat(message: Message) -> tf.Tensor:
  return tf.concat([tf.reshape(t, [-1]) for v in message.values() for t in tf.nest.flatten(v)], 0)


def _shortened(number: float) -> float:
  return float(f'{number:.4g}')
