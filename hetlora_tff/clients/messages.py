# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a client's message says of its factors, in one shape for every rank."""

import collections
import enum

import tensorflow as tf

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors
from hetlora_tff.adapters.model import Adapters


class Padding(enum.Enum):
  """What stands in the rows that a client does not have.

  STATE (HetLoRA): the padded factors are averaged, so an absent row pulls towards zero.
  UPDATE: an absent row contributes a zero update.
  NONE: the message is no update but the factors themselves, for an aggregator of products, to
    whose products an absent row adds nothing.
  """

  STATE = 'state'
  UPDATE = 'update'
  NONE = 'none'


def message(
  layout: AdapterLayout,
  padding: Padding,
  received: Adapters,
  start: Adapters,
  kept: Adapters,
  trains_b: tf.Tensor | None = None,
):
  """The client's message.

  Args:
    layout: of the run.
    padding: what absent rows say.
    received: what arrived, of any rank from the client's own on.
    start: the same, cut to the rank that the client keeps.
    kept: the trained factors, cut likewise.
    trains_b: for ALTERNATING layouts, whether `b` is the factor of this round.

  Returns:
    Per module, of the server's rank `R_l` (by TFF's convention a difference is received minus
    trained, what a server optimizer takes for a gradient):
      BOTH: `LoraFactors`, a difference or, for `NONE`, the factors;
      B: the difference of `b` `[d_out, R_l]`;
      ALTERNATING: the difference of the round's factor alone, as `pack_alternating` lays it.
  """
  if padding is Padding.NONE:
    return collections.OrderedDict(
      (path, padded(layout, path, lora.LoraFactors(f.a, f.b))) for path, f in kept.items()
    )
  differences = difference(layout, received if padding is Padding.STATE else start, kept)
  if layout.trained is TrainedFactors.B:
    return collections.OrderedDict((path, f.b) for path, f in differences.items())
  if layout.trained is TrainedFactors.ALTERNATING:
    return collections.OrderedDict(
      (path, pack_alternating(f, trains_b)) for path, f in differences.items()
    )
  return differences


def asked(
  layout: AdapterLayout, padding: Padding, received: Adapters, start: Adapters, kept: Adapters
) -> Adapters:
  """What the client would have the server hold, `LoraFactors` of the server's rank.

  Args:
    layout: of the run.
    padding: `UPDATE` leaves the rows that the client lacks as it received them, which then must be
      all; otherwise they are zero.
    received: see `message`.
    start: likewise.
    kept: likewise.
  """
  if padding is not Padding.UPDATE:
    return collections.OrderedDict((path, padded(layout, path, f)) for path, f in kept.items())
  moved = difference(layout, start, kept)
  result = collections.OrderedDict()
  for path, update in moved.items():
    whole = padded(layout, path, received[path])
    result[path] = lora.LoraFactors(whole.a - update.a, whole.b - update.b)
  return result


def difference(layout: AdapterLayout, base: Adapters, kept: Adapters) -> Adapters:
  """`pad(base) - pad(kept)` per module."""
  result = collections.OrderedDict()
  for path, factors in kept.items():
    before, after = padded(layout, path, base[path]), padded(layout, path, factors)
    result[path] = lora.LoraFactors(before.a - after.a, before.b - after.b)
  return result


def padded(layout: AdapterLayout, path: str, factors: lora.Factors) -> lora.LoraFactors:
  """Factors of the server's rank, without a residual."""
  return lora.pad(lora.LoraFactors(factors.a, factors.b), layout.config.module_rank(path))


def pack_alternating(factors: lora.Factors, holds_b: tf.Tensor) -> tf.Tensor:
  """`b^T` or `a` in a matrix `[R, max(d_in, d_out)]`: one shape for both kinds of round."""
  d_in, d_out = factors.a.shape[1], factors.b.shape[0]
  width = max(d_in, d_out)
  a = tf.pad(factors.a, [[0, 0], [0, width - d_in]])
  b = tf.pad(tf.transpose(factors.b), [[0, 0], [0, width - d_out]])
  return tf.where(holds_b, b, a)


def unpack_alternating(
  matrix: tf.Tensor, holds_b: tf.Tensor, d_in: int, d_out: int
) -> lora.LoraFactors:
  """The factors that `pack_alternating` packed, with zeros for the other one."""
  a, b = matrix[:, :d_in], tf.transpose(matrix[:, :d_out])
  return lora.LoraFactors(
    tf.where(holds_b, tf.zeros_like(a), a), tf.where(holds_b, b, tf.zeros_like(b))
  )
