# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Final perplexity against what it costs to hide clients: epsilon, and the bits of secure sums."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from tasks import comparison, comparison_curves, plots
from tasks.comparison import Group
from tasks.comparison_curves import Curve

# What decides how private a run is, and nothing else of it.
_PRIVACY_LEVEL = ('noise_multiplier', 'target_epsilon', 'delta', 'population_size')
# Accountants differ in how much of a budget they leave over.
_SAME_EPSILON = 1.1
# What secure sums have of their own, or keep from being measured.
_SECURE_KEYS = (
  'secure_aggregation', 'secure_bits', 'secure_rounding', 'secure_threshold', 'secure_coordinates',
  'assumed_colluders', 'deviation_from_exact',
)  # fmt: skip


class _Line(NamedTuple):
  """Groups that differ in their level alone, lowest first: the levels, and the groups there."""

  levels: list[float]
  groups: list[Group]

  @property
  def first(self) -> Group:
    """What the others are like."""
    return self.groups[0]


def _lines(
  groups: Sequence[Group],
  level: Callable[[Group], float | None],
  besides: Callable[[Group], Collection[str]],
) -> list[_Line]:
  """Puts those groups on a line that have a level and differ in nothing else.

  Args:
    groups: in the order of their styles.
    level: the horizontal place, or None.
    besides: the settings that are the level, or follow from it.
  """
  points: dict[str, list[tuple[float, Group]]] = {}
  for group in groups:
    place = level(group)
    if place is not None:
      points.setdefault(_key(group, besides(group)), []).append((place, group))
  ordered = [sorted(line, key=lambda point: point[0]) for line in points.values()]
  return [_Line([x for x, _ in line], [group for _, group in line]) for line in ordered]


def _key(group: Group, besides: Collection[str]) -> str:
  """All other settings, to tell groups apart by."""
  kept = {name: value for name, value in group.config.items() if name not in besides}
  return json.dumps(kept, sort_keys=True)


def _told_apart(
  names: Sequence[str], lines: Sequence[_Line], besides: Callable[[Group], Collection[str]]
) -> list[str]:
  """Adds the settings that differ to those names that lines of a method share."""
  told = []
  for name, line in zip(names, lines, strict=True):
    twins = [
      other.first
      for other_name, other in zip(names, lines, strict=True)
      if (other_name, other.first.method) == (name, line.first.method)
    ]
    keys = [x for x in comparison.differing_settings(twins) if x not in besides(line.first)]
    words = (name, comparison.settings_in_words(line.first, keys))
    told.append(', '.join(word for word in words if word))
  return told


def _curve(line: _Line, index: int, label: str, marker: str | None = None) -> Curve:
  seeds = [np.exp([run.final_loss for run in group.runs]) for group in line.groups]
  return Curve(
    index,
    label,
    np.array(line.levels, np.float64),
    np.array([group.perplexity.mean for group in line.groups]),
    np.array([values.min() for values in seeds]),
    np.array([values.max() for values in seeds]),
    marker,
  )


def _across(group: Group, index: int, label: str, ends: np.ndarray) -> Curve:
  """A group without a level, at its perplexity from end to end."""
  level = np.full(2, group.perplexity.mean)
  return Curve(index, label, ends, level, level, level)


def _marker(place: int) -> str:
  return comparison_curves.MARKERS[place % len(comparison_curves.MARKERS)]


def _places(names: Sequence[str]) -> dict[str, int]:
  """The place of each name among the different ones."""
  return {name: place for place, name in enumerate(dict.fromkeys(names))}


def _sheet(theme: plots.Theme, title: str, x_label: str, curves: Sequence[Curve]) -> plots.Sheet:
  height = comparison_curves.height_inches([curve.label for curve in curves])
  return plots.Sheet(theme, title, x_label, height)


def _png(
  sheet: plots.Sheet, groups: Sequence[Group], curves: Sequence[Curve], across: Sequence[Curve]
) -> bytes:
  """Draws lines between levels, and lines across, on a sheet that has its horizontal axis."""
  comparison_curves.draw_curves(sheet, curves)
  for curve in across:
    color = comparison_curves.style_of(sheet.theme, curve.index)['color']
    dashes = comparison_curves.DASHES[-1]
    sheet.axes.plot(curve.x, curve.mean, color=color, linewidth=1.2, dashes=dashes)
  comparison_curves.perplexity_axis(sheet, groups)
  comparison_curves.label_curves(sheet, [*curves, *across])
  return sheet.png()


def _epsilon(group: Group) -> float | None:
  return group.mean('epsilon') or group.mean('projected_epsilon') or None


def _epsilon_curves(groups: Sequence[Group]) -> list[Curve]:
  """A colour for each method, a marker for each way to be that private."""
  lines = _lines(groups, _epsilon, lambda _: _PRIVACY_LEVEL)
  firsts = [line.first for line in lines]
  parts = comparison.differing_hiding(firsts) - {'level'} | {'cohort'}
  words = [group.hiding.words(parts) for group in firsts]
  words = _told_apart(words, lines, lambda _: _PRIVACY_LEVEL)
  methods, ways = _places([group.method for group in groups]), _places(words)
  return [
    _curve(
      line,
      methods[line.first.method],
      f'{line.first.method} ({told})' if told else line.first.method,
      _marker(ways[told]),
    )
    for line, told in zip(lines, words, strict=True)
  ]


def _not_private(groups: Sequence[Group], curves: Sequence[Curve], ends: np.ndarray) -> list[Curve]:
  """Lines across, of the methods that have a curve."""
  methods = _places([group.method for group in groups])
  known = {curve.index for curve in curves}
  found = [g for g in groups if not g.is_private and methods[g.method] in known]
  parts = comparison.differing_hiding(found) | {'level'}
  return [
    _across(group, methods[group.method], f'{group.method} ({group.hiding.words(parts)})', ends)
    for group in found
  ]


def draw_perplexity_by_epsilon(groups: Sequence[Group], theme: plots.Theme) -> bytes | None:
  """Returns a PNG of final perplexity against epsilon, or None where no run has one.

  None too where runs of one method differ in other things and not in epsilon. Runs of the same
  methods without privacy are lines across.
  """
  curves = _epsilon_curves(groups)
  if not curves:
    return None
  low, high = min(curve.x.min() for curve in curves), max(curve.x.max() for curve in curves)
  if high < _SAME_EPSILON * low and len(curves) > len({curve.index for curve in curves}):
    return None
  ends = np.array([low / 1.3, high * 1.3])
  across = _not_private(groups, curves, ends)
  projected = all(group.mean('epsilon') is None for group in groups)
  x_label = 'projected epsilon of a production run' if projected else 'epsilon'
  sheet = _sheet(theme, 'Perplexity by privacy', x_label, [*curves, *across])
  sheet.axes.set_xscale('log')
  sheet.axes.set_xlim(*ends)
  sheet.axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  sheet.axes.xaxis.set_minor_locator(NullLocator())
  sheet.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
  return _png(sheet, groups, curves, across)


def _bits(group: Group) -> float | None:
  return group.config.get('secure_bits')


def _besides_bits(group: Group) -> Collection[str]:
  """The bits, and the noise where a budget decided it: rounding takes some of the budget."""
  decided = group.config.get('target_epsilon') is not None
  return ('secure_bits', 'noise_multiplier') if decided else ('secure_bits',)


def _arms(lines: Sequence[_Line]) -> list[str]:
  """What a line's runs have in common but for their method, in words."""
  firsts = [line.first for line in lines]
  parts = comparison.differing_hiding(firsts) - {'sums'} | {'mechanism', 'level'}
  return _told_apart([group.hiding.words(parts) for group in firsts], lines, _besides_bits)


def _bits_curves(lines: Sequence[_Line]) -> list[Curve]:
  """A colour for each arm, and a marker for each method if there are more."""
  words = _arms(lines)
  arms, methods = _places(words), _places([line.first.method for line in lines])
  several = len(methods) > 1
  return [
    _curve(
      line,
      arms[arm],
      f'{line.first.method} ({arm})' if several else arm,
      _marker(methods[line.first.method]) if several else None,
    )
    for line, arm in zip(lines, words, strict=True)
  ]


def _sums_in_the_clear(
  groups: Sequence[Group], lines: Sequence[_Line], curves: Sequence[Curve], ends: np.ndarray
) -> list[Curve]:
  """Lines across, of groups that sum in the clear and are like those of a curve in all else."""
  alike: dict[str, Curve] = {}
  for line, curve in zip(lines, curves, strict=True):
    # Arms that differ in their secure sums alone are one in the clear, in the colour of the first.
    alike.setdefault(_rest(line.first), curve)
  found = [(group, alike.get(_rest(group))) for group in groups if _bits(group) is None]
  return [
    _across(group, curve.index, f'{curve.label} (in the clear)', ends)
    for group, curve in found
    if curve is not None
  ]


def _rest(group: Group) -> str:
  """All settings but those of the sum."""
  return _key(group, (*_SECURE_KEYS, *_besides_bits(group)))


def draw_perplexity_by_bits(groups: Sequence[Group], theme: plots.Theme) -> bytes | None:
  """Returns a PNG of final perplexity against the bits of a number in a secure sum.

  Runs that are like others but sum in the clear are lines across.

  Returns:
    None without two different numbers of bits.
  """
  lines = _lines(groups, _bits, _besides_bits)
  levels = {level for line in lines for level in line.levels}
  if len(levels) < 2:
    return None
  curves = _bits_curves(lines)
  ends = np.array([min(levels) - 0.5, max(levels) + 0.5])
  across = _sums_in_the_clear(groups, lines, curves, ends)
  sheet = _sheet(
    theme, 'Perplexity by bits of a secure sum', 'bits of a number that a client sends',
    [*curves, *across],
  )  # fmt: skip
  sheet.axes.set_xlim(*ends)
  sheet.round_axis()
  return _png(sheet, groups, curves, across)
