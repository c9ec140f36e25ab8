# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How much a client's update counts in the weighted mean: pure functions of tensors."""

import collections
import enum
from collections.abc import Mapping

import tensorflow as tf

from hetlora_tff.adapters import factors as lora

# Keeps a client whose factors are zero in the mean: equal tiny weights are uniform weights.
_SMALLEST_WEIGHT = 1e-12


class ClientWeighting(enum.Enum):
  """The weight that a client sends with its update.

  MODULE and MODEL are the sparsity weights of HetLoRA (Fig. 2): the norm of what the client holds
  after pruning, one weight per module or one for all. Sources of the method differ in the scope.
  COVERAGE has a weight for every row: 1 for those that the client holds.
  """

  MODULE = 'module'
  MODEL = 'model'
  UNIFORM = 'uniform'
  EXAMPLES = 'examples'
  COVERAGE = 'coverage'

  @property
  def per_module(self) -> bool:
    """Whether the weight is a structure with one entry per module."""
    return self is ClientWeighting.MODULE


def client_weight(
  weighting: ClientWeighting,
  factors: Mapping[str, lora.Factors],
  num_examples: tf.Tensor,
  held_rows: tf.Tensor | None = None,
) -> tf.Tensor | collections.OrderedDict[str, tf.Tensor]:
  """The weight of one client.

  Args:
    weighting: which rule.
    factors: what the client holds after training and pruning.
    num_examples: int scalar, the number of examples it trained on.
    held_rows: float32 `[R]`, 1 for the rows that the client holds and else 0; for `COVERAGE` only.

  Returns:
    A float32 scalar, 1 or the number of examples; for `MODULE` one per module, `||b a||_F + 1e-12`
    (`MODEL`: `sqrt(sum_l ||b_l a_l||_F^2) + 1e-12`); for `COVERAGE` the held rows. Exactly 0
    for a client without examples.
  """
  present = tf.cast(num_examples > 0, tf.float32)
  if weighting is ClientWeighting.UNIFORM:
    return present
  if weighting is ClientWeighting.EXAMPLES:
    return tf.cast(num_examples, tf.float32)
  if weighting is ClientWeighting.COVERAGE:
    return present * held_rows
  norms = collections.OrderedDict((name, lora.product_norm(f)) for name, f in factors.items())
  if weighting is ClientWeighting.MODULE:
    return collections.OrderedDict(
      (name, present * (norm + _SMALLEST_WEIGHT)) for name, norm in norms.items()
    )
  squared = tf.add_n([tf.square(norm) for norm in norms.values()])
  return present * (tf.sqrt(squared) + _SMALLEST_WEIGHT)
