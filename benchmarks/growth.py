# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a cost grows with a size; NumPy only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Of an exponent: what noise of two per cent may make of it.
TOLERANCE = 0.05
# Sizes at the end that tell it.
_LAST = 3


class Growth(NamedTuple):
  """A cost by size.

  Attributes:
    exponent: `p` of `cost ~ size^p` over the three largest sizes: a constant part, which flattens
      the start, does not hide what large sizes cost.
    intercept: of `cost ~ intercept + slope * size`, all sizes.
    slope: likewise; cost of one more.
    worst: largest error of that line over the cost itself; large where the growth is no line.
  """

  exponent: float
  intercept: float
  slope: float
  worst: float

  def within(self, limit: float) -> bool:
    """Whether the cost grows as `size^limit` or slower, within `TOLERANCE`."""
    return self.exponent <= limit + TOLERANCE


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Growth:
  """Fits both by least squares: the power in logarithms, the line in relative errors.

  Args:
    sizes: positive and ascending, three or more.
    costs: positive, one for each.

  Raises:
    ValueError: if they are not that.
  """
  x, y = np.asarray(sizes, np.float64), np.asarray(costs, np.float64)
  if x.ndim != 1 or x.shape != y.shape or len(x) < _LAST:
    raise ValueError(f'A fit takes three sizes or more with a cost each, got {sizes} and {costs}.')
  if x[0] <= 0 or np.any(np.diff(x) <= 0) or not np.all((y > 0) & np.isfinite(y)):
    raise ValueError(f'Sizes must ascend and costs be positive, got {sizes} and {costs}.')
  exponent = np.polyfit(np.log(x[-_LAST:]), np.log(y[-_LAST:]), 1)[0]
  # Else the largest size alone would draw the line.
  slope, intercept = np.polyfit(x, y, 1, w=1 / y)
  worst = np.max(np.abs(intercept + slope * x - y) / y)
  return Growth(*(float(number) for number in (exponent, intercept, slope, worst)))
