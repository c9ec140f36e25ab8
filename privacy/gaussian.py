# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The epsilon of one Gaussian mechanism, in closed form (Balle and Wang, arXiv:1805.06530)."""

import math

from scipy import special

# Sensitivity with noise 1 below which floating point cannot be relied on.
_LEAST_MU = 1e-6


def epsilon(mu: float, delta: float) -> float:
  """The least epsilon of a Gaussian mechanism at a delta, from above.

  Args:
    mu: its sensitivity, where the noise has deviation 1.
    delta: in (0, 1).
  """
  if mu == 0:
    return 0.0
  mu = max(mu, _LEAST_MU)
  # What floating point may take from the logarithm of a delta.
  log_delta = math.log(delta) - 1e-6
  if _log_delta(mu, 0.0) <= log_delta:
    return 0.0
  # Above, delta is kept: the bound by concentrated DP.
  low, high = 0.0, mu**2 / 2 + mu * math.sqrt(-2 * log_delta)
  while True:
    middle = (low + high) / 2
    if not low < middle < high or high - low < 1e-12 * high:
      return high
    if _log_delta(mu, middle) <= log_delta:
      high = middle
    else:
      low = middle


def _log_delta(mu: float, epsilon: float) -> float:
  """The logarithm of `P(x <= -a) - e^epsilon P(x <= -b)`, x normal, with `b - a = mu`.

  `a = epsilon / mu - mu / 2`. Both terms are `exp(-a^2 / 2)` times a scaled error function, so none
  of them underflows (arXiv:1805.06530, Thm. 8).
  """
  a = epsilon / mu - mu / 2
  if a < -30:
    return 0.0
  root = math.sqrt(2)
  difference = special.erfcx(a / root) - special.erfcx((a + mu) / root)
  return float(math.log(difference / 2) - a**2 / 2)
