# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The sweeps of `benchmarks.scaling` in one picture."""

import io
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks import plots

_COLUMNS = 4
_INCHES = (3.1, 2.6)
_DOTS_PER_INCH = 150


def draw(sweeps: Mapping[str, Any], theme: plots.Theme = plots.LIGHT) -> bytes:
  """Returns a PNG with a panel for each sweep: points, fitted line, and what would be allowed.

  Args:
    sweeps: as `scaling.as_json` gives them, at least one.
    theme: colours.
  """
  rows = -(-len(sweeps) // _COLUMNS)
  columns = min(_COLUMNS, len(sweeps))
  figure = Figure(
    figsize=(columns * _INCHES[0], rows * _INCHES[1]),
    facecolor=theme.background,
    layout='constrained',
  )
  FigureCanvasAgg(figure)
  for place, (name, sweep) in enumerate(sweeps.items(), 1):
    _panel(figure.add_subplot(rows, columns, place, facecolor=theme.background), name, sweep, theme)
  buffer = io.BytesIO()
  # Without the metadata the bytes do not depend on the version of matplotlib's banner.
  figure.savefig(buffer, format='png', dpi=_DOTS_PER_INCH, metadata={'Software': None})
  return buffer.getvalue()


def _panel(axes: Axes, name: str, sweep: Mapping[str, Any], theme: plots.Theme) -> None:
  sizes = np.array([point['size'] for point in sweep['points']], np.float64)
  seconds = np.array([statistics.median(point['seconds']) for point in sweep['points']])
  fitted = sweep['time']
  between = np.geomspace(sizes[0], sizes[-1], 50)
  line = fitted['intercept'] + fitted['slope'] * between
  color = theme.second if sweep['too_fast'] else theme.first
  axes.set(xscale='log', yscale='log')
  axes.plot(sizes, seconds, 'o', color=color, markersize=4)
  # A line that is no fit may be negative.
  axes.plot(between, np.where(line > 0, line, np.nan), color=color, linewidth=1.2)
  allowed = seconds[-1] * (sizes / sizes[-1]) ** sweep['time_limit']
  axes.plot(sizes, allowed, color=theme.muted, linewidth=1, dashes=(4, 3))
  axes.set_ylim(0.5 * seconds.min(), 2 * seconds.max())
  axes.set_title(
    f'{name}, s: size^{fitted["exponent"]:.2f}', loc='left', color=theme.text, fontsize=10
  )
  axes.tick_params(colors=theme.muted, labelsize=8, length=0, which='both')
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_color(theme.muted)
  axes.grid(axis='y', color=theme.grid, linewidth=0.8)
