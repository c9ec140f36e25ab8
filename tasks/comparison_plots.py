# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The plots of a comparison: up to ten groups and more, told apart without colour too."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tasks import plots
from tasks.comparison import Group
from tasks.finished_run import FinishedRun

# Blue, vermilion, green, purple, black (yellow on dark) after Okabe and Ito, each readable as text
# and apart under colour blindness: a yellow dark enough to read would not be, beside vermilion. A
# marker for each, and a dash where colours come round again, so no pair needs its colour.
LIGHT_COLORS = ('#0067a3', '#c2500a', '#00785a', '#a8327e', '#2b2f36')
DARK_COLORS = ('#5bb8ee', '#f28e4b', '#2cc295', '#e884c0', '#e0c341')
_MARKERS = 'os^Dv'
DASHES = ((), (4, 1.6), (1.2, 1.4))
# Below this, 32-bit sums of the same numbers in another order differ as much.
_EXACT = 1e-6
# What decides how private a run is, and nothing else of it.
_PRIVACY_LEVEL = ('noise_multiplier', 'target_epsilon', 'delta', 'population_size')
_HEIGHT_INCHES = 3.6
_LABEL_INCHES = 0.19


class _Curve(NamedTuple):
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
  return DASHES[index // len(_MARKERS) % len(DASHES)]


def _style(theme: plots.Theme, index: int) -> dict:
  place = index % len(_MARKERS)
  return {
    'color': colors(theme)[place],
    'marker': _MARKERS[place],
    'dashes': dashes(index) or (None, None),
    'linewidth': 1.6,
    'markersize': 4,
    'solid_capstyle': 'round',
  }


def _per_seed(run: FinishedRun, column: str) -> dict[float, float]:
  return dict(zip(*(x.tolist() for x in plots.measured(run.metrics, column)), strict=True))


def _curve(index: int, group: Group, column: str, x: Callable, average: Callable) -> _Curve | None:
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
  return _Curve(index, group.label, *(part[known] for part in (places, mean, low, high)))


def _curves(groups: Sequence[Group], column: str, x: Callable, average: Callable) -> list[_Curve]:
  found = [_curve(index, group, column, x, average) for index, group in enumerate(groups)]
  return [curve for curve in found if curve is not None]


def _geometric(values: np.ndarray) -> np.ndarray:
  return np.exp(np.log(values).mean(axis=0))


def _arithmetic(values: np.ndarray) -> np.ndarray:
  return values.mean(axis=0)


def _height(labels: Sequence[str]) -> float:
  """Inches, so that a label for each line fits beside the axes."""
  lines = sum(_folded(label).count('\n') + 1 for label in labels)
  return max(_HEIGHT_INCHES, 1.1 + _LABEL_INCHES * lines)


def _folded(label: str) -> str:
  """A label with its settings below the method."""
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


def _label_curves(sheet: plots.Sheet, curves: Sequence[_Curve]) -> None:
  """Writes each curve's name right of the axes, with a line in its style from its end."""
  axes = sheet.axes
  sheet.figure.draw_without_rendering()  # Places in the axes are known from here on.
  to_axes = (axes.transData + axes.transAxes.inverted()).transform
  ends = np.array([to_axes((curve.x[-1], curve.mean[-1])) for curve in curves])
  order = np.argsort(ends[:, 1], kind='stable')
  inches = axes.get_window_extent().height / sheet.figure.dpi
  texts = [_folded(curves[i].label) for i in order]
  sizes = np.array([(text.count('\n') + 1) * _LABEL_INCHES / inches for text in texts])
  places = _spread(ends[order, 1], sizes, -0.08, 1.0)
  for i, text, place in zip(order, texts, places, strict=True):
    style = _style(sheet.theme, curves[i].index)
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


def _draw_curves(sheet: plots.Sheet, curves: Sequence[_Curve]) -> None:
  for curve in curves:
    style = _style(sheet.theme, curve.index)
    style['marker'] = curve.marker or style['marker']
    if np.any(curve.high > curve.low):
      sheet.axes.fill_between(
        curve.x, curve.low, curve.high, color=style['color'], alpha=0.12, linewidth=0
      )
    if len(curve.x) > 40:
      style['marker'] = None
    sheet.axes.plot(curve.x, curve.mean, **style)


def _perplexity_axis(sheet: plots.Sheet, groups: Sequence[Group]) -> None:
  """A logarithmic axis with plain numbers, and the untuned base as a dashed line."""
  axes = sheet.axes
  axes.set_yscale('log')
  base = float(np.exp(np.mean([run.base_loss for group in groups for run in group.runs])))
  axes.axhline(base, color=sheet.theme.muted, linewidth=1.2, dashes=(2, 2), zorder=1)
  axes.annotate(
    f'untuned {plots.format_perplexity(base)}', xy=(0, base), xycoords=axes.get_yaxis_transform(),
    xytext=(4, 4), textcoords='offset points', color=sheet.theme.muted, fontsize=9,
  )  # fmt: skip
  low, high = axes.get_ylim()
  if high > 3 * low:
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7), numticks=20))
  else:  # Too short for round numbers of a logarithm.
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
  axes.yaxis.set_minor_locator(NullLocator())
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.4g}'))


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
  sheet = plots.Sheet(theme, 'Held-out perplexity', 'round', _height([c.label for c in curves]))
  _draw_curves(sheet, curves)
  _perplexity_axis(sheet, groups)
  sheet.round_axis()
  _label_curves(sheet, curves)
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
  height = _height([c.label for c in curves])
  sheet = plots.Sheet(theme, 'Perplexity by upload', 'bytes that all clients sent so far', height)
  sheet.axes.set_xscale('log')
  _log_ticks(sheet.axes.xaxis, np.concatenate([curve.x for curve in curves]))
  sheet.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plots.format_bytes(value)))
  _draw_curves(sheet, curves)
  _perplexity_axis(sheet, groups)
  _label_curves(sheet, curves)
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
  height = _height([c.label for c in curves])
  sheet = plots.Sheet(theme, 'Deviation from the exact average', 'round', height)
  sheet.axes.set_yscale('log')
  _log_ticks(sheet.axes.yaxis, np.concatenate([curve.mean for curve in curves]))
  sheet.axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
  _draw_curves(sheet, curves)
  bottom = min(float(curve.low.min()) for curve in curves)
  top = max(float(curve.high.max()) for curve in curves)
  sheet.axes.set_ylim(max(bottom / 3, _EXACT / 1.5), max(2 * top, 1e-3))
  sheet.round_axis()
  _label_curves(sheet, curves)
  return sheet.png()


def _privacy_curves(groups: Sequence[Group]) -> Iterator[_Curve]:
  """Perplexity by epsilon: a colour for each method, a marker for each size of cohort."""
  lines: dict[str, list[tuple[float, Group]]] = {}
  for group in groups:
    epsilon = group.mean('epsilon') or group.mean('projected_epsilon')
    if epsilon:
      key = {name: value for name, value in group.config.items() if name not in _PRIVACY_LEVEL}
      lines.setdefault(json.dumps(key, sort_keys=True), []).append((epsilon, group))
  cohorts = [points[0][1].config.get('noise_cohort_size') for points in lines.values()]
  sizes, methods = list(dict.fromkeys(cohorts)), list(dict.fromkeys(g.method for g in groups))
  for points, cohort in zip(lines.values(), cohorts, strict=True):
    points.sort(key=lambda point: point[0])
    seeds = [np.exp([run.final_loss for run in group.runs]) for _, group in points]
    method = points[0][1].method
    yield _Curve(
      methods.index(method),
      method if cohort is None else f'{method} ({cohort:,} a round)',
      np.array([epsilon for epsilon, _ in points]),
      np.array([group.perplexity.mean for _, group in points]),
      np.array([values.min() for values in seeds]),
      np.array([values.max() for values in seeds]),
      _MARKERS[sizes.index(cohort) % len(_MARKERS)],
    )


def draw_perplexity_by_epsilon(groups: Sequence[Group], theme: plots.Theme) -> bytes | None:
  """Returns a PNG of final perplexity against epsilon, or None where no run has one.

  Runs of the same methods without privacy are lines across.
  """
  curves = list(_privacy_curves(groups))
  if not curves:
    return None
  methods = list(dict.fromkeys(group.method for group in groups))
  ends = np.array([min(c.x.min() for c in curves) / 1.3, max(c.x.max() for c in curves) * 1.3])
  across = [
    _Curve(methods.index(group.method), f'{group.method} (not private)', ends, level, level, level)
    for group in groups
    if not group.is_private and group.method in {methods[curve.index] for curve in curves}
    for level in [np.full(2, group.perplexity.mean)]
  ]
  projected = all(group.mean('epsilon') is None for group in groups)
  sheet = plots.Sheet(
    theme,
    'Perplexity by privacy',
    'projected epsilon of a production run' if projected else 'epsilon',
    _height([curve.label for curve in (*curves, *across)]),
  )
  sheet.axes.set_xscale('log')
  sheet.axes.set_xlim(*ends)
  sheet.axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  sheet.axes.xaxis.set_minor_locator(NullLocator())
  sheet.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
  _draw_curves(sheet, curves)
  for curve in across:
    color = _style(theme, curve.index)['color']
    sheet.axes.plot(curve.x, curve.mean, color=color, linewidth=1.2, dashes=DASHES[-1])
  _perplexity_axis(sheet, groups)
  _label_curves(sheet, [*curves, *across])
  return sheet.png()


def draw_final(groups: Sequence[Group], theme: plots.Theme) -> bytes:
  """Returns a PNG of every seed's final perplexity, its mean and interval, the best on top."""
  order = sorted(range(len(groups)), key=lambda i: -groups[i].perplexity.mean)
  labels = [_folded(groups[i].label) for i in order]
  sheet = plots.Sheet(
    theme, 'Held-out perplexity after tuning', 'perplexity, lower is better', _height(labels)
  )
  axes = sheet.axes
  axes.grid(visible=False, axis='y')
  axes.grid(axis='x', color=theme.grid, linewidth=0.9)
  axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
  for row, i in enumerate(order):
    style, found = _style(theme, i), groups[i].perplexity
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
    tick.set_color(_style(theme, i)['color'])
  return sheet.png()


def draw_comparison(groups: Sequence[Group], theme: plots.Theme) -> OrderedDict[str, bytes]:
  """Draws every plot that the groups have data for.

  Args:
    groups: in the order of their styles.
    theme: colours of background and text.

  Returns:
    PNG images by name: `final`, `privacy`, `perplexity`, `upload`, `deviation`.
  """
  images = (
    ('final', draw_final(groups, theme)),
    ('privacy', draw_perplexity_by_epsilon(groups, theme)),
    ('perplexity', draw_perplexity_by_round(groups, theme)),
    ('upload', draw_perplexity_by_upload(groups, theme)),
    ('deviation', draw_deviation(groups, theme)),
  )
  return OrderedDict((name, image) for name, image in images if image is not None)
