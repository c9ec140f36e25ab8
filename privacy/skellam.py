# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bounds on Skellam noise: the difference of two independent Poisson draws of equal mean.

Sums of independent Skellam draws are Skellam again, with the sum of the variances: clients can each
add a share of the noise, and what a secure sum shows has noise of a known distribution.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dp_accounting.rdp import rdp_privacy_accountant

# Far above it, the rounding of `log k!` in TensorFlow's sampler of Poisson numbers shows.
MOST_VARIANCE = 2.0**32
# The bound is for whole ones.
_ORDERS = (*range(2, 128), *range(128, 1024, 8), *range(1024, 8193, 64))


class Sums(NamedTuple):
  """Sums of integers under noise of their own, of which one client can move each.

  Attributes:
    variance: of the noise on a coordinate.
    l1: how far a client can move a sum in L1 norm.
    l2: the same in L2 norm.
    count: how many sums.
  """

  variance: float
  l1: float
  l2: float
  count: int


def renyi_divergence(order: int, variance: float, l1: float, l2: float) -> float:
  """Bound of the Renyi divergence between Skellam noise and the same noise moved by integers.

  `order l2^2 / (2 v) + min(((2 order - 1) l2^2 + 6 l1) / (4 v^2), 3 l1 / (2 v))` for variance `v`
  (Agarwal, Kairouz, Liu 2021, arXiv:2110.04995, Cor. 3.6). The first term is what Gaussian noise of
  the same variance has.

  Args:
    order: integer, at least 2.
    variance: of the noise on a coordinate, positive.
    l1: bound of the L1 norm of the move.
    l2: bound of its L2 norm.

  Raises:
    ValueError: if a number is out of range.
  """
  if order != int(order) or order < 2:
    raise ValueError(f'`order` must be a whole number of at least 2, got {order}.')
  if not 0 < variance < math.inf or min(l1, l2) < 0:
    raise ValueError(
      f'Needs a positive variance and norms of at least 0, got {variance}, {l1} and {l2}.'
    )
  squared = l2**2
  first = order * squared / (2 * variance)
  second = ((2 * order - 1) * squared + 6 * l1) / (4 * variance**2)
  return first + min(second, 3 * l1 / (2 * variance))


def epsilon(sums: Sequence[Sums], delta: float) -> float:
  """An epsilon of all sums together, by Renyi DP of the best order (arXiv:2004.00010, Prop. 12).

  Args:
    sums: with the noise that all of them have, whatever earlier ones did to later ones.
    delta: in (0, 1).
  """
  divergences = [
    sum(part.count * renyi_divergence(order, part.variance, part.l1, part.l2) for part in sums)
    for order in _ORDERS
  ]
  return float(rdp_privacy_accountant.compute_epsilon(_ORDERS, divergences, delta)[0])


def tail_bound(variance: float, coordinates: int, margin: int) -> float:
  """Bound of the chance that noise reaches beyond a margin in any of the coordinates.

  Chernoff's: `E exp(t X) = exp(v (cosh t - 1))`, at the best `t`, for both signs and each
  coordinate.

  Args:
    variance: `v`, of the noise on a coordinate.
    coordinates: how many have such noise.
    margin: at least 0; noise of `-margin` to `margin` stays within it.
  """
  if variance == 0:
    return 0.0
  reach = margin + 1
  # v (cosh t - 1) - t reach at t = asinh(reach / v), without cancellation.
  exponent = reach**2 / (variance + math.hypot(variance, reach)) - reach * math.asinh(
    reach / variance
  )
  return min(1.0, math.exp(min(0.0, math.log(2 * coordinates) + exponent)))


def wrap_margin(variance: float, coordinates: int, probability: float) -> int:
  """The least margin that noise reaches beyond with at most this chance, by `tail_bound`.

  Args:
    variance: of the noise on a coordinate.
    coordinates: how many have such noise.
    probability: of reaching beyond it in any of them, in (0, 1).

  Raises:
    ValueError: if a number is out of range.
  """
  if not 0 <= variance < math.inf or coordinates < 1 or not 0 < probability < 1:
    raise ValueError(
      'Needs a variance of at least 0, a coordinate and a probability in (0, 1), got'
      f' {variance}, {coordinates} and {probability}.'
    )
  low, high = -1, 1
  while tail_bound(variance, coordinates, high) > probability:
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    if tail_bound(variance, coordinates, middle) > probability:
      low = middle
    else:
      high = middle
  return high
