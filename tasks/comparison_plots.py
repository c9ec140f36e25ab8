# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The plots of a comparison: up to ten groups and more, told apart without colour too."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tasks import comparison_curves, comparison_levels, plots
from tasks.comparison import Group
from tasks.comparison_curves import Curve
from tasks.finished_run import FinishedRun

# Below this, 32-bit sums of the same numbers in another order differ as much.
_EXACT = 1e-6


def _per_seed(run: FinishedRun, column: str) -> dict[float, float]:
  return dict(zip(*(x.tolist() for x in plots.measured(run.metrics, column)), strict=True))


def _curve(index: int, group: Group, column: str, x: Callable, average: Callable) -> Curve | None:
  """A group's curve where all of its seeds were measured.

  Args:
    index: of the group.
    group: the runs.
    column: of `metrics.csv`.
    x: from (run, round) to the horizontal place.
    average: of the seeds, over the first axis.
  """
  seeds = [_per_seed(run, column) for run in group.runs]
  rounds = sorted(set.intersection(*map(set, seeds)))
  if not rounds:
    return None
  values = np.array([[seed[number] for number in rounds] for seed in seeds])
  places = np.array([[x(run, number) for number in rounds] for run in group.runs]).mean(axis=0)
  known = np.isfinite(places)
  if not known.any():
    return None
  low, high, mean = values.min(axis=0), values.max(axis=0), average(values)
  return Curve(index, group.label, *(part[known] for part in (places, mean, low, high)))


def _curves(groups: Sequence[Group], column: str, x: Callable, average: Callable) -> list[Curve]:
  found = [_curve(index, group, column, x, average) for index, group in enumerate(groups)]
  return [curve for curve in found if curve is not None]


def _geometric(values: np.ndarray) -> np.ndarray:
  return np.exp(np.log(values).mean(axis=0))


def _arithmetic(values: np.ndarray) -> np.ndarray:
  return values.mean(axis=0)


def _log_ticks(axis: Axis, values: np.ndarray) -> None:
  """Ticks at powers of ten, and between them where there are few."""
  wide = values.max() > 20 * values.min()
  axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
  axis.set_minor_locator(NullLocator())


def draw_perplexity_by_round(groups: Sequence[Group], theme: plots.Theme) -> bytes | None:
  """Returns a PNG of held-out perplexity against the round, or None without a measurement."""
  curves = _curves(groups, 'eval_perplexity', lambda _, number: number, _geometric)
  if not curves:
    return None
  sheet = plots.Sheet(
    theme,
    'Held-out perplexity',
    'round',
    comparison_curves.height_inches([c.label for c in curves]),
  )
  comparison_curves.draw_curves(sheet, curves)
  comparison_curves.perplexity_axis(sheet, groups)
  sheet.round_axis()
  comparison_curves.label_curves(sheet, curves)
  return sheet.png()


def _uploaded(run: FinishedRun, number: float) -> float:
  """Bytes sent up to a round; NaN before the first, and where a round is not counted."""
  values = run.per_round('upload_bytes')
  rounds = run.metrics['round']
  if values is None:
    return np.nan
  return float(values[rounds[rounds > 0] <= number].sum()) or np.nan


def draw_perplexity_by_upload(groups: Sequence[Group], theme: plots.Theme) -> bytes | None:
  """Returns a PNG of held-out perplexity against the bytes that all clients sent, or None."""
  curves = _curves(groups, 'eval_perplexity', _uploaded, _geometric)
  if not curves:
    return None
  height = comparison_curves.height_inches([c.label for c in curves])
  sheet = plots.Sheet(theme, 'Perplexity by upload', 'bytes that all clients sent so far', height)
  sheet.axes.set_xscale('log')
  _log_ticks(sheet.axes.xaxis, np.concatenate([curve.x for curve in curves]))
  sheet.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plots.format_bytes(value)))
  comparison_curves.draw_curves(sheet, curves)
  comparison_curves.perplexity_axis(sheet, groups)
  comparison_curves.label_curves(sheet, curves)
  return sheet.png()


def _percent_tick(value: float, _: int) -> str:
  return f'\N{LESS-THAN OR EQUAL TO} {100 * value:g} %' if value <= _EXACT else f'{100 * value:g} %'


def draw_deviation(groups: Sequence[Group], theme: plots.Theme) -> bytes | None:
  """Returns a PNG of the distance from the exact average by round, or None without any."""
  curves = _curves(groups, 'deviation_from_exact', lambda _, number: number, _arithmetic)
  if not curves:
    return None
  curves = [
    curve._replace(**{x: np.maximum(getattr(curve, x), _EXACT) for x in ('mean', 'low', 'high')})
    for curve in curves
  ]
  height = comparison_curves.height_inches([c.label for c in curves])
  sheet = plots.Sheet(theme, 'Deviation from the exact average', 'round', height)
  sheet.axes.set_yscale('log')
  _log_ticks(sheet.axes.yaxis, np.concatenate([curve.mean for curve in curves]))
  sheet.axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
  comparison_curves.draw_curves(sheet, curves)
  bottom = min(float(curve.low.min()) for curve in curves)
  top = max(float(curve.high.max()) for curve in curves)
  sheet.axes.set_ylim(max(bottom / 3, _EXACT / 1.5), max(2 * top, 1e-3))
  sheet.round_axis()
  comparison_curves.label_curves(sheet, curves)
  return sheet.png()


def draw_final(groups: Sequence[Group], theme: plots.Theme) -> bytes:
  """Returns a PNG of every seed's final perplexity, its mean and interval, the best on top."""
  order = sorted(range(len(groups)), key=lambda i: -groups[i].perplexity.mean)
  labels = [comparison_curves.folded(groups[i].label) for i in order]
  sheet = plots.Sheet(
    theme,
    'Held-out perplexity after tuning',
    'perplexity, lower is better',
    comparison_curves.height_inches(labels),
  )
  axes = sheet.axes
  axes.grid(visible=False, axis='y')
  axes.grid(axis='x', color=theme.grid, linewidth=0.9)
  axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
  for row, i in enumerate(order):
    style, found = comparison_curves.style_of(theme, i), groups[i].perplexity
    if found.low is not None and found.high is not None:
      axes.plot([found.low, found.high], [row, row], color=style['color'], linewidth=1.4, alpha=0.6)
    seeds = np.exp([run.final_loss for run in groups[i].runs])
    axes.scatter(seeds, np.full(len(seeds), row), s=16, color=theme.background,
                 edgecolors=style['color'], linewidths=1.1, zorder=3)  # fmt: skip
    axes.plot([found.mean] * 2, [row - 0.28, row + 0.28], color=style['color'], linewidth=2.6)
  losses = [run.final_loss for group in groups for run in group.runs]
  pad = 0.12 * (max(losses) - min(losses)) or 0.05
  # Intervals of two seeds are so long that with all of them in view nothing else would be seen.
  axes.set_xlim(np.exp(min(losses) - pad), np.exp(max(losses) + pad))
  axes.set_ylim(-0.7, len(order) - 0.3)
  axes.set_yticks(range(len(order)), labels, fontsize=9.5)
  for i, tick in zip(order, axes.get_yticklabels(), strict=True):
    tick.set_color(comparison_curves.style_of(theme, i)['color'])
  return sheet.png()


def draw_comparison(groups: Sequence[Group], theme: plots.Theme) -> OrderedDict[str, bytes]:
  """Draws every plot that the groups have data for.

  Args:
    groups: in the order of their styles.
    theme: colours of background and text.

  Returns:
    PNG images by name: `final`, `privacy`, `bits`, `perplexity`, `upload`, `deviation`.
  """
  images = (
    ('final', draw_final(groups, theme)),
    ('privacy', comparison_levels.draw_perplexity_by_epsilon(groups, theme)),
    ('bits', comparison_levels.draw_perplexity_by_bits(groups, theme)),
    ('perplexity', draw_perplexity_by_round(groups, theme)),
    ('upload', draw_perplexity_by_upload(groups, theme)),
    ('deviation', draw_deviation(groups, theme)),
  )
  return OrderedDict((name, image) for name, image in images if image is not None)
