# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Lines of many groups in one figure: how they look and are labelled, and the axis they share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tasks import plots
from tasks.comparison import Group

# Blue, vermilion, green, purple, black (yellow on dark) after Okabe and Ito, each readable as text
# and apart under colour blindness: a yellow dark enough to read would not be, beside vermilion. A
# marker for each, and a dash where colours come round again, so no pair needs its colour.
LIGHT_COLORS = ('#0067a3', '#c2500a', '#00785a', '#a8327e', '#2b2f36')
DARK_COLORS = ('#5bb8ee', '#f28e4b', '#2cc295', '#e884c0', '#e0c341')
MARKERS = 'os^Dv'
DASHES = ((), (4, 1.6), (1.2, 1.4))
_HEIGHT_INCHES = 3.6
_LABEL_INCHES = 0.19


class Curve(NamedTuple):
  """A line: `low` and `high` are those of the seeds; `marker` is its own, or that of its colour."""

  index: int
  label: str
  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  marker: str | None = None


def colors(theme: plots.Theme) -> tuple[str, ...]:
  """Returns the colours of the groups on a theme's background; they repeat, with other dashes."""
  return DARK_COLORS if theme is plots.DARK else LIGHT_COLORS


def dashes(index: int) -> tuple[float, ...]:
  """Returns the dash of a group's line, lengths of ink and gap in line widths; empty is solid."""
  return DASHES[index // len(MARKERS) % len(DASHES)]


def style_of(theme: plots.Theme, index: int) -> dict[str, Any]:
  """Returns how a group's line looks, as arguments of `plot`."""
  place = index % len(MARKERS)
  return {
    'color': colors(theme)[place],
    'marker': MARKERS[place],
    'dashes': dashes(index) or (None, None),
    'linewidth': 1.6,
    'markersize': 4,
    'solid_capstyle': 'round',
  }


def height_inches(labels: Sequence[str]) -> float:
  """Returns the height of a figure with room for a label for each line beside the axes."""
  lines = sum(folded(label).count('\n') + 1 for label in labels)
  return max(_HEIGHT_INCHES, 1.1 + _LABEL_INCHES * lines)


def folded(label: str) -> str:
  """Returns a label with its settings below the method."""
  return label.replace(' (', '\n(')


def _spread(wanted: np.ndarray, sizes: np.ndarray, low: float, high: float) -> np.ndarray:
  """Moves intervals on a line apart, each as little as its neighbours let it.

  Args:
    wanted: the centres, ascending.
    sizes: the lengths.
    low: where the first may begin.
    high: where the last may end, if all fit.

  Returns:
    The centres, in the same order.
  """
  blocks: list[list[float]] = []  # sum of (wanted - offset), members, offset of the next member
  starts = np.concatenate([[0.0], np.cumsum(sizes)])
  for place, (centre, size) in enumerate(zip(wanted, sizes, strict=True)):
    blocks.append([centre - size / 2 - starts[place], 1.0])
    while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
      total, members = blocks.pop()
      blocks[-1][0] += total
      blocks[-1][1] += members
  shifts = np.concatenate([np.full(int(n), total / n) for total, n in blocks])
  shifts = np.maximum(np.minimum(shifts, high - starts[-1]), low)
  return shifts + starts[:-1] + sizes / 2


def label_curves(sheet: plots.Sheet, curves: Sequence[Curve]) -> None:
  """Writes each curve's name right of the axes, with a line in its style from its end."""
  axes = sheet.axes
  sheet.figure.draw_without_rendering()  # Places in the axes are known from here on.
  to_axes = (axes.transData + axes.transAxes.inverted()).transform
  ends = np.array([to_axes((curve.x[-1], curve.mean[-1])) for curve in curves])
  order = np.argsort(ends[:, 1], kind='stable')
  inches = axes.get_window_extent().height / sheet.figure.dpi
  texts = [folded(curves[i].label) for i in order]
  sizes = np.array([(text.count('\n') + 1) * _LABEL_INCHES / inches for text in texts])
  places = _spread(ends[order, 1], sizes, -0.08, 1.0)
  for i, text, place in zip(order, texts, places, strict=True):
    style = style_of(sheet.theme, curves[i].index)
    axes.plot(
      [ends[i, 0], 1.02, 1.08],
      [ends[i, 1], place, place],
      transform=axes.transAxes,
      clip_on=False,
      color=style['color'],
      linewidth=0.8,
      alpha=0.6,
    )
    axes.text(
      1.1, place, text, transform=axes.transAxes, color=style['color'], fontsize=9.5,
      va='center_baseline', linespacing=1.05,
    )  # fmt: skip


def draw_curves(sheet: plots.Sheet, curves: Sequence[Curve]) -> None:
  """Draws lines, shaded from the lowest to the highest seed."""
  for curve in curves:
    style = style_of(sheet.theme, curve.index)
    style['marker'] = curve.marker or style['marker']
    if np.any(curve.high > curve.low):
      sheet.axes.fill_between(
        curve.x, curve.low, curve.high, color=style['color'], alpha=0.12, linewidth=0
      )
    if len(curve.x) > 40:
      style['marker'] = None
    sheet.axes.plot(curve.x, curve.mean, **style)


def perplexity_axis(sheet: plots.Sheet, groups: Sequence[Group]) -> None:
  """Makes the vertical axis logarithmic, with plain numbers, and dashes a line at the base."""
  axes = sheet.axes
  axes.set_yscale('log')
  base = float(np.exp(np.mean([run.base_loss for group in groups for run in group.runs])))
  axes.axhline(base, color=sheet.theme.muted, linewidth=1.2, dashes=(2, 2), zorder=1)
  axes.annotate(
    f'untuned {plots.format_perplexity(base)}', xy=(0, base), xycoords=axes.get_yaxis_transform(),
    xytext=(4, 4), textcoords='offset points', color=sheet.theme.muted, fontsize=9,
    # Readable where a curve crosses it.
    path_effects=[withStroke(linewidth=3, foreground=sheet.theme.background)], zorder=3,
  )  # fmt: skip
  low, high = axes.get_ylim()
  if high > 3 * low:
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7), numticks=20))
  else:  # Too short for round numbers of a logarithm.
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
  axes.yaxis.set_minor_locator(NullLocator())
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.4g}'))
