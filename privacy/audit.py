# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A lower bound on epsilon from what a release gives away about planted clients.

Canary clients send random directions as large as the clip lets through (Andrew et al. 2023,
arXiv:2302.03098). A canary's score says how far the release points its way; held-out canaries,
which never took part, show what the score is by chance. If a threshold tells the two apart better
than (epsilon, delta) allows, the claim is wrong. A low bound certifies nothing.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

# In standard deviations of a held-out score. Fixed before any score is seen: from 2 to 3 for small
# epsilons, 5 for a bound as high as the number of canaries allows, -1 for the other tail.
THRESHOLDS = (-1.0, 1.0, 2.0, 2.5, 3.0, 5.0)


@dataclasses.dataclass(frozen=True)
class EpsilonBound:
  """What an audit proved, up to its confidence.

  Attributes:
    epsilon: the release is not (e, delta)-private for any `e` below this; 0 proves nothing.
    delta: of that statement.
    confidence: the probability that a bound made like this one holds.
    planted: number of canaries that took part.
    held_out: number of canaries that did not.
    threshold: the score that gave the bound; None where it is 0.
    ceiling: the bound if all scores had been told apart: more cannot be proved with so few.
    auc: probability that a planted canary scores higher than a held-out one; 0.5 is chance.
  """

  epsilon: float
  delta: float
  confidence: float
  planted: int
  held_out: int
  threshold: float | None
  ceiling: float
  auc: float


def epsilon_lower_bound(
  planted: Any,
  held_out: Any,
  delta: float,
  *,
  confidence: float = 0.95,
  thresholds: Sequence[float] = THRESHOLDS,
) -> EpsilonBound:
  """Bounds epsilon from below by counting scores above thresholds.

  With `t` the probability that a planted canary scores at least `tau`, and `f` that of a held-out
  one, (epsilon, delta)-privacy of a client's presence means, for both sides of every `tau`,

    t <= e^epsilon f + delta   and   1 - f <= e^epsilon (1 - t) + delta.

  `f` is bounded from above and `t` from below by Clopper and Pearson (1934), each with the share
  `(1 - confidence) / (2 len(thresholds))` of the error, so that all bounds hold together with
  `confidence` and the best threshold may be taken. `k` canaries, with as many held out, cannot show
  more than about `log(k / 5)`.

  The counts are taken as those of independent trials. Given the release, held-out scores are.
  Planted ones are up to the inner products of random directions, of order `1 / sqrt(d)` for
  messages of `d` numbers: choose far fewer canaries than numbers.

  Args:
    planted: scores `[k]` of canaries that took part, in standard deviations of a held-out score.
    held_out: scores `[m]` of canaries that did not, drawn like them.
    delta: in [0, 1).
    confidence: in (0, 1).
    thresholds: chosen before the scores were seen.

  Raises:
    ValueError: if an argument is out of range, empty or not finite.
  """
  planted, held_out = _checked('planted', planted), _checked('held_out', held_out)
  levels = _checked('thresholds', thresholds)
  if not 0 <= delta < 1:
    raise ValueError(f'`delta` must be in [0, 1), got {delta}.')
  if not 0 < confidence < 1:
    raise ValueError(f'`confidence` must be in (0, 1), got {confidence}.')
  error = (1 - confidence) / (2 * len(levels))
  sizes = len(planted), len(held_out)
  bounds = [
    _bound(int(np.sum(planted >= level)), int(np.sum(held_out >= level)), sizes, delta, error)
    for level in levels
  ]
  best = int(np.argmax(bounds))
  return EpsilonBound(
    epsilon=bounds[best],
    delta=delta,
    confidence=confidence,
    planted=sizes[0],
    held_out=sizes[1],
    threshold=float(levels[best]) if bounds[best] > 0 else None,
    ceiling=_bound(sizes[0], 0, sizes, delta, error),
    auc=_auc(planted, held_out),
  )


def _bound(hits: int, false_hits: int, sizes: tuple[int, int], delta: float, error: float) -> float:
  """The epsilon that the counts above one threshold prove, both of their sides."""
  planted, held_out = sizes
  # Clopper-Pearson: quantiles of beta distributions.
  least_hits = special.betaincinv(hits, planted - hits + 1, error) if hits else 0.0
  most_false = 1.0
  if false_hits < held_out:
    most_false = special.betaincinv(false_hits + 1, held_out - false_hits, 1 - error)
  above = (least_hits - delta) / most_false
  below = (1 - most_false - delta) / (1 - least_hits)
  return math.log(max(above, below, 1.0))


def _auc(planted: np.ndarray, held_out: np.ndarray) -> float:
  """Area under the ROC curve: Mann and Whitney's statistic, ties counting half."""
  ordered = np.sort(held_out)
  below = np.searchsorted(ordered, planted, 'left') + np.searchsorted(ordered, planted, 'right')
  return float(np.mean(below) / (2 * len(held_out)))


def _checked(name: str, numbers: Any) -> np.ndarray:
  array = np.asarray(numbers, np.float64)
  if array.ndim != 1 or not array.size or not np.all(np.isfinite(array)):
    raise ValueError(f'`{name}` must be a sequence of finite numbers, got {numbers!r:.80}.')
  return array
