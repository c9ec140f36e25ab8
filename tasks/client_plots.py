# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Plots about held-out clients: how results spread over them, and what own adapters gain."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tasks import plots

_PERCENT = np.arange(10, 100, 10)
# Above this ratio of the largest to the smallest perplexity most clients would be in one corner.
_LINEAR_RATIO = 10
_TITLES = {
  'perplexity': 'Perplexity by client',
  'rouge_l': 'RougeL by client',
  'accuracy': 'Accuracy by client',
}


class Spread(NamedTuple):
  """A measure over clients.

  Attributes:
    deciles: below which 10, 20, ... 90 % of the clients lie.
    worst: mean of the worst tenth of the clients.
  """

  deciles: Sequence[float]
  worst: float


class Change(NamedTuple):
  """A measure over clients before and after tuning.

  Attributes:
    measure: `perplexity`, `rouge_l` or `accuracy`.
    base: of the untuned model.
    final: of the tuned one.
  """

  measure: str
  base: Spread
  final: Spread


class Own(NamedTuple):
  """One client's perplexity with the shared adapter, and with its own after local steps."""

  before: float
  after: float


def draw_distribution(change: Change, theme: plots.Theme = plots.LIGHT) -> bytes:
  """Returns a PNG of the deciles before and after tuning, with the worst tenth as a ring."""
  sheet = plots.Sheet(theme, _TITLES[change.measure], 'share of clients below, %')
  # The worst tenth are the last ones of a measure of which less is better, else the first ones.
  worst = 95 if change.measure == 'perplexity' else 5
  labels = []
  for label, spread, color in (
    ('untuned', change.base, theme.muted),
    ('tuned', change.final, theme.second),
  ):
    sheet.line(_PERCENT, np.asarray(spread.deciles), color, dots=True)
    sheet.axes.plot([worst], [spread.worst], 'o', color=color, markersize=6, fillstyle='none')
    labels.append((spread.worst if worst == 95 else spread.deciles[-1], label, color))
  sheet.axes.set_xticks(_PERCENT)
  sheet.axes.set_xlim(2, 98)
  _remark(sheet, 'ring: mean of worst 10 %')
  sheet.end_labels(labels)
  return sheet.png()


def draw_personalization(clients: Sequence[Own], theme: plots.Theme = plots.LIGHT) -> bytes | None:
  """Returns a PNG of the clients, those who gain below the diagonal, or None without any."""
  points = np.array([client for client in clients if np.isfinite(client).all()])
  if not len(points):
    return None
  sheet = plots.Sheet(theme, 'Perplexity, own adapter', 'perplexity, shared adapter', 4.0)
  low, high = points.min(), points.max()
  is_wide = high > _LINEAR_RATIO * low > 0
  room = (high / low) ** 0.05 if is_wide else 0.05 * (high - low) or 0.05 * high
  limits = (low / room, high * room) if is_wide else (low - room, high + room)
  axes = sheet.axes
  axes.grid(axis='both', color=theme.grid, linewidth=0.9)
  axes.plot(limits, limits, color=theme.muted, linewidth=1.4, dashes=(4, 3))
  axes.plot(*points.T, 'o', color=theme.second, markersize=6, alpha=0.75, markeredgewidth=0)
  for scale, axis, limit in (
    (axes.set_xscale, axes.xaxis, axes.set_xlim),
    (axes.set_yscale, axes.yaxis, axes.set_ylim),
  ):
    scale('log' if is_wide else 'linear')
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if is_wide else MaxNLocator(nbins=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.4g}'))
    limit(*limits)
  _remark(sheet, 'below the line: gains')
  return sheet.png()


def _remark(sheet: plots.Sheet, text: str) -> None:
  sheet.axes.set_title(text, loc='right', color=sheet.theme.muted, fontsize=10.5, pad=10)


def draw(
  changes: Sequence[Change], clients: Sequence[Own], theme: plots.Theme = plots.LIGHT
) -> OrderedDict[str, bytes]:
  """Returns the plots that there are data for, by name: `distribution_MEASURE`, `personalization`.

  Args:
    changes: measures over clients.
    clients: with their own adapters.
    theme: colours.
  """
  images = OrderedDict(
    (f'distribution_{change.measure}', draw_distribution(change, theme)) for change in changes
  )
  own = draw_personalization(clients, theme)
  return images if own is None else OrderedDict(images, personalization=own)
