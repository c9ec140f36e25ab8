# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The plots of a privacy report: epsilon by the rounds started, and by delta."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from privacy import accounting, events, wording
from privacy.claim import Claim, Guarantee
from privacy.ledger import Ledger
from tasks.plots import Sheet, Theme

ROUNDS, DELTA = 'privacy_epsilon_rounds', 'privacy_epsilon_delta'
# With amplification a point takes up to a second, without it next to nothing.
_MOST_POINTS = {True: 7, False: 60}
# Below, the grid of the loss distributions is too coarse for a curve.
_DELTAS = (1e-9, 1e-2)


class Curve(NamedTuple):
  """Epsilons along rounds or deltas.

  Attributes:
    amplified: whether with amplification by sampling.
    x: float64 `[n]`, ascending.
    epsilon: float64 `[n]`.
  """

  amplified: bool
  x: np.ndarray
  epsilon: np.ndarray


def curves(ledger: Ledger, claim: Claim) -> OrderedDict[str, list[Curve]]:
  """Computes the curves of a claim, by plot; none where nothing is claimed or was started."""
  if not claim.bounds or not claim.rounds:
    return OrderedDict()
  delta = claim.bounds[0].delta
  ways = (True, False) if ledger.spec.amplified else (False,)
  deltas = np.geomspace(min(_DELTAS[0], delta / 10), max(_DELTAS[1], delta), 15)
  return OrderedDict(
    {
      ROUNDS: [_by_rounds(ledger, delta, amplified) for amplified in ways],
      DELTA: [_by_delta(ledger, deltas, amplified) for amplified in ways],
    }
  )


def _by_rounds(ledger: Ledger, delta: float, amplified: bool) -> Curve:
  # Dense where the curves bend: they are about square roots.
  steps = np.linspace(0, 1, _MOST_POINTS[amplified])
  rounds = np.unique(np.round(1 + (len(ledger.rounds) - 1) * steps**2))
  found = [_epsilons(ledger, int(count), [delta], amplified)[0] for count in rounds]
  return Curve(amplified, rounds, np.array(found))


def _by_delta(ledger: Ledger, deltas: np.ndarray, amplified: bool) -> Curve:
  found = _epsilons(ledger, len(ledger.rounds), deltas.tolist(), amplified)
  return Curve(amplified, deltas, np.array(found))


def _epsilons(ledger: Ledger, count: int, deltas: list[float], amplified: bool) -> list[float]:
  """Epsilons, by the accountant of the headline, of the first so many started rounds."""
  starts = [
    events.Start(*(entry.get(place) for place in events.Start._fields))
    for entry in ledger.rounds[:count]
  ]
  event = events.started_event(ledger.spec, starts, amplified=amplified)
  return accounting.epsilons(event, deltas, accounting.claiming_accountant(ledger.spec))


def draw(
  lines: Mapping[str, Sequence[Curve]], claim: Claim, theme: Theme
) -> OrderedDict[str, bytes]:
  """Returns PNG images of the curves, each with the headline as a dot.

  Args:
    lines: of `curves`.
    claim: which they are of.
    theme: colours.
  """
  return OrderedDict((name, _draw(name, lines[name], claim, theme)) for name in lines)


def _draw(name: str, lines: Sequence[Curve], claim: Claim, theme: Theme) -> bytes:
  what = 'Projected epsilon' if claim.guarantee is Guarantee.PROJECTED else 'Epsilon'
  by_rounds = name == ROUNDS
  x_label = 'rounds started' if by_rounds else 'delta'
  sheet = Sheet(theme, f'{what} by {x_label}', x_label)
  labels = []
  for curve in lines:
    color = theme.first if curve.amplified or len(lines) == 1 else theme.second
    # On a linear axis of logarithms, which the labels at the ends can be moved apart on.
    heights = np.log10(np.maximum(curve.epsilon, 1e-3))
    sheet.line(curve.x, heights, color, dots=False)
    label = 'with\nsampling' if curve.amplified else 'without\nsampling'
    labels.append((heights[-1], label if len(lines) > 1 else '', color))
  x = claim.rounds if by_rounds else claim.bounds[0].delta
  height = np.log10(max(claim.bounds[0].epsilon, 1e-3))
  sheet.axes.plot([x], [height], 'o', color=theme.text, markersize=6, zorder=5)
  sheet.axes.annotate(
    wording.bound(claim.bounds[0].epsilon), (x, height), (-7, 4 if by_rounds else -4),
    ha='right', va='bottom' if by_rounds else 'top',
    textcoords='offset points', color=theme.text, fontsize=10,
  )  # fmt: skip
  if by_rounds and claim.target_epsilon:
    budget = np.log10(claim.target_epsilon)
    sheet.axes.axhline(budget, color=theme.muted, linewidth=1.4, dashes=(4, 3))
    # At the left end: at the right one a run that keeps to it has its own labels.
    sheet.axes.annotate(
      'budget', (0.0, budget), (4, 4), xycoords=('axes fraction', 'data'),
      textcoords='offset points', color=theme.muted, fontsize=10,
    )  # fmt: skip
  _scale(sheet, by_rounds)
  sheet.end_labels(labels)
  return sheet.png()


def _scale(sheet: Sheet, by_rounds: bool) -> None:
  """Axes: whole rounds or powers of ten; epsilons at round numbers."""
  axes = sheet.axes
  if by_rounds:
    sheet.round_axis()
  else:
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
  low, high = axes.get_ylim()
  # Room for the text at the dot, and for a flat curve.
  room = max(0.12 * (high - low), 0.15)
  low, high = low - room, high + room
  axes.set_ylim(low, high)
  steps = (1, 2, 5) if high - low < 2 else (1, 3) if high - low < 4 else (1,)
  if high - low < 1:
    steps = (1, 1.5, 2, 3, 5, 7)
  ticks = [np.log10(s * 10.0**p) for p in range(int(low) - 2, int(high) + 2) for s in steps]
  axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{10**value:,.3g}'))
