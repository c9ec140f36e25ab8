# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison, for people who decide and have not read the code."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tasks import comparison, comparison_curves, metrics, page, plots
from tasks.comparison import Group
from tasks.methods import METHODS

_TEMPLATE = 'comparison.html'
_NONE = '\N{EN DASH}'
_UPPER_BOUND = 'full'
# What makes more or less training of it, whatever the method.
_EFFORT_KEYS = ('rounds', 'clients_per_round', 'local_steps', 'batch_size')
_CAPTIONS = {
  'final': 'The axis does not begin at zero.',
  'perplexity': 'The dashed line is the untuned base model. Logarithmic scale.',
  'upload': (
    'The same perplexities against what all clients together had sent by then: further left is'
    ' cheaper, further down is better. Logarithmic scales.'
  ),
  'privacy': (
    'Perplexity against what it takes to tell whether a client took part: further left is more'
    ' private, further down is better. Lines across are runs without privacy. Logarithmic scales.'
  ),
  'bits': (
    'Perplexity against the bits of a number that one client sends into a secure sum, which shows'
    ' the server no client by itself: further left is a smaller message, further down is better.'
    ' Lines across are runs that sum in the clear. Logarithmic scale of perplexity.'
  ),
  'deviation': (
    "How far the server's result was from the exact average of what clients had learned."
    ' Logarithmic scale; 0.0001 % and less is exact to rounding.'
  ),
}
_SEVERAL_CAPTIONS = {
  'final': (
    'Every circle is one seed, the bar their mean, the line its 95 % interval, which may go beyond'
    ' the figure. '
  ),
  'perplexity': 'Mean over seeds; shaded from the lowest to the highest seed. ',
}


class Cell(NamedTuple):
  """A cell of a table: a value, and below it what qualifies it."""

  value: str
  note: str = ''


class Row(NamedTuple):
  """A row of a table: the group's label, what it is, how its line looks, and its cells."""

  label: str
  about: Sequence[str]
  swatch: Mapping[str, str]
  cells: Sequence[Cell]


Column = tuple[str, Callable[[Group], Cell | None]]


def render(groups: Sequence[Group], light: Mapping[str, bytes], dark: Mapping[str, bytes]) -> str:
  """Returns the page.

  Args:
    groups: at least one, in the order of their styles.
    light: PNG images by name, as `comparison_plots` draws them for a light page.
    dark: the same for a dark one.
  """
  best_first = ranked(groups)
  several = any(len(group.runs) > 1 for group in groups)
  captions = {
    name: _SEVERAL_CAPTIONS.get(name, '') * several + text for name, text in _CAPTIONS.items()
  }
  swatches = {group.label: _swatch(index) for index, group in enumerate(groups)}
  return page.render(
    _TEMPLATE,
    headline=_headline(best_first),
    verdict=_verdict(best_first),
    facts=_facts(groups),
    notices=_notices(groups),
    figures=page.figures(light, dark, captions),
    quality=_ranking(best_first, swatches, QUALITY),
    cost=_ranking(best_first, swatches, COST),
    methods=_methods(groups),
    settings=_settings(groups, swatches),
    runs=_runs(groups),
    several=several,
    has_rouge=any(group.mean('rouge_l') is not None for group in groups),
    has_deviation='deviation' in light,
    has_privacy=any(group.is_private for group in groups),
    has_flops=any(group.mean('client_flops') is not None for group in groups),
  )


def ranked(groups: Sequence[Group]) -> list[Group]:
  """Returns the groups, that of the lowest perplexity first."""
  return sorted(groups, key=lambda group: group.perplexity.mean)


def _contenders(best_first: Sequence[Group]) -> list[Group]:
  """Those that a choice is between: not the upper bound, unless there is nothing else."""
  return [group for group in best_first if group.method != _UPPER_BOUND] or list(best_first)


def _headline(best_first: Sequence[Group]) -> str:
  contenders = _contenders(best_first)
  best = contenders[0]
  change = best.change.mean
  size = f'{abs(100 * change):.1f}\N{NO-BREAK SPACE}%'
  if len(contenders) == 1:
    direction = 'below' if change < 0 else 'above'
    return f'{best.label}: held-out perplexity is {size} {direction} the untuned base model'
  if change >= 0:
    return f'None of {len(contenders)} configurations is better than the untuned base model'
  return f'{best.label} has the lowest held-out perplexity, {size} below the untuned base model'


def _verdict(best_first: Sequence[Group]) -> str:
  """What these runs do not show, and what the upper bound reaches."""
  contenders = _contenders(best_first)
  parts = [_separation(contenders[0], contenders[1:])]
  parts += [
    f'Full fine-tuning of all weights ({group.label}), meant as the upper bound, reaches'
    f' {plots.format_perplexity(group.perplexity.mean)}; {contenders[0].label} reaches'
    f' {plots.format_perplexity(contenders[0].perplexity.mean)}.'
    for group in best_first
    if group not in contenders
  ]
  return ' '.join(part for part in parts if part)


def _separation(best: Group, others: Sequence[Group]) -> str:
  """Whether the best could be so by chance, in a sentence."""
  if not others:
    return ''
  if all(len(group.runs) == 1 for group in (best, *others)):
    return (
      'Every configuration ran with a single seed, so there are no intervals: another seed may'
      ' change the order.'
    )
  if len(best.runs) == 1:
    return 'But it ran with a single seed: there is no interval, and another may change the order.'
  unclear = [group.label for group in others if _overlap(best.perplexity, group.perplexity)]
  if not unclear:
    return 'Its 95 % interval over seeds is below those of all others.'
  if len(unclear) == len(others):
    return 'But its 95 % interval over seeds overlaps those of all others: these runs rank nobody.'
  listed = ', '.join(unclear[:-1]) + (' or ' if unclear[:-1] else '') + unclear[-1]
  return f'But its 95 % interval over seeds does not separate it from {listed}.'


def _overlap(best: metrics.Interval, other: metrics.Interval) -> bool:
  """Whether two intervals meet; one that nobody knows might."""
  return best.high is None or other.low is None or other.low <= best.high


def _facts(groups: Sequence[Group]) -> list[tuple[str, str]]:
  config = groups[0].config
  runs = sum(len(group.runs) for group in groups)
  facts = [
    ('task', page.value_text(config.get('task'))),
    ('backbone', _common(groups, 'backbone')),
    ('held-out clients of the split', page.value_text(config.get('eval_split', 'test'))),
    ('configurations', str(len(groups))),
    ('runs', str(runs)),
    ('rounds', _common(groups, 'rounds')),
    ('clients per round', _common(groups, 'clients_per_round')),
  ]
  return [(name, value) for name, value in facts if value]


def _common(groups: Sequence[Group], key: str) -> str:
  values = {page.value_text(group.config.get(key)) for group in groups}
  return ' or '.join(sorted(values))


def _notices(groups: Sequence[Group]) -> list[str]:
  """What a reader should know before trusting the tables."""
  notices = []
  counts = {len(group.runs) for group in groups}
  single = [group.label for group in groups if len(group.runs) == 1]
  if single and len(counts) > 1:
    notices.append(f'One seed only, and so no interval: {", ".join(single)}.')
  if len({tuple(group.seeds) for group in groups}) > 1:
    notices.append(
      'Configurations ran with different seeds. A seed also decides which clients are held out, so'
      ' compare the change to the base rather than the perplexity.'
    )
  if counts == {2}:
    notices.append(
      'Intervals over two seeds are very wide; a third seed would narrow them to about a third.'
    )
  differing = comparison.differing_settings(groups)
  effort = [key for key in _EFFORT_KEYS if key in differing]
  if effort:
    names = ', '.join(key.replace('_', ' ') for key in effort)
    notices.append(f'Configurations did not train alike long or on as much: {names} differ.')
  return notices + _privacy_notices(groups)


def _privacy_notices(groups: Sequence[Group]) -> list[str]:
  notices = []
  if len({(group.is_private, *_epsilon(group)) for group in groups}) > 1:
    notices.append(
      'Configurations do not protect clients alike: what is less private has less noise. Compare'
      ' those of the same epsilon and the same clients a round.'
    )
  if any(group.mean('projected_epsilon') is not None for group in groups):
    notices.append(
      'A projected epsilon is that of a production run with more clients, among whom noise counts'
      ' for less: that is why these runs have less of it. It is no guarantee of theirs.'
    )
  return notices


def _epsilon(group: Group) -> tuple[float | None, float | None]:
  return group.mean('epsilon'), group.mean('projected_epsilon')


def _swatch(index: int) -> dict[str, str]:
  place = index % len(comparison_curves.LIGHT_COLORS)
  return {
    'light': comparison_curves.LIGHT_COLORS[place],
    'dark': comparison_curves.DARK_COLORS[place],
    'dashes': ' '.join(f'{2 * length:g}' for length in comparison_curves.dashes(index)),
  }


def columns(groups: Sequence[Group], known: Sequence[Column]) -> dict[str, list[Cell]]:
  """Returns the columns that any group has, by name, with a cell for each group."""
  cells = {name: [value(group) for group in groups] for name, value in known}
  return {name: [x or Cell(_NONE) for x in column] for name, column in cells.items() if any(column)}


def _ranking(
  groups: Sequence[Group], swatches: Mapping[str, Mapping[str, str]], known: Sequence[Column]
) -> dict[str, Any]:
  return _rows(groups, swatches, columns(groups, known))


def _rows(
  groups: Sequence[Group],
  swatches: Mapping[str, Mapping[str, str]],
  cells: Mapping[str, Sequence[Cell]],
) -> dict[str, Any]:
  rows = [
    Row(group.label, _about(group), swatches[group.label], [c[i] for c in cells.values()])
    for i, group in enumerate(groups)
  ]
  return {'names': list(cells), 'rows': rows}


def _about(group: Group) -> list[str]:
  """What people call the method, and the settings that its label leaves out."""
  title = METHODS[group.method].title if group.method in METHODS else ''
  settings = '' if group.difference in group.label else group.difference
  return [text for text in (title, settings) if text]


def _interval_cell(interval: metrics.Interval | None, form: Callable[[float], str]) -> Cell | None:
  if interval is None:
    return None
  if interval.low is None or interval.high is None:
    return Cell(form(interval.mean))
  return Cell(form(interval.mean), f'{form(interval.low)} to {form(interval.high)}')


def _mean_cell(
  name: str, form: Callable[[float], str], total: str | None = None
) -> Callable[[Group], Cell | None]:
  """Returns what makes a cell of a measure, with that of the whole run below it."""

  def cell(group: Group) -> Cell | None:
    value, whole = group.mean(name), group.mean(total) if total else None
    if value is None:
      return None
    return Cell(form(value), '' if whole is None else f'{form(whole)} in all')

  return cell


def _deviation(value: float) -> str:
  percent = 100 * value
  if percent < 1e-4:
    return 'exact'
  return f'{percent:.3g}\N{NO-BREAK SPACE}%'


def _epsilon_cell(group: Group) -> Cell | None:
  if not group.is_private:
    return None
  epsilon, projected = _epsilon(group)
  if epsilon is not None:
    return Cell(f'{epsilon:.3g}')
  return Cell('no guarantee') if projected is None else Cell(f'{projected:.3g}', 'projected')


def _noise_cell(group: Group) -> Cell | None:
  if not group.is_private:
    return None
  noise, cohort = (group.config.get(key) for key in ('noise_multiplier', 'noise_cohort_size'))
  return Cell(page.value_text(noise), '' if cohort is None else f'among {cohort:,}')


QUALITY: Sequence[Column] = (
  ('perplexity', lambda group: _interval_cell(group.perplexity, plots.format_perplexity)),
  ('change to base', lambda group: _interval_cell(group.change, page.percent_change)),
  ('RougeL', lambda group: _interval_cell(group.interval('rouge_l'), lambda x: f'{x:.3f}')),
  ('deviation', _mean_cell('deviation_from_exact', _deviation)),
  ('epsilon', _epsilon_cell),
  ('noise', _noise_cell),
  ('seeds', lambda group: Cell(str(len(group.runs)))),
)
COST: Sequence[Column] = (
  ('sent', _mean_cell('upload_bytes_per_client', plots.format_bytes, 'upload_bytes')),
  ('received', _mean_cell('download_bytes_per_client', plots.format_bytes, 'download_bytes')),
  ('parameters trained', _mean_cell('trained_parameters_per_client', page.count)),
  ('FLOPs', _mean_cell('client_flops_per_client', page.count, 'client_flops')),
  ('time of a round', _mean_cell('round_seconds', page.duration, 'training_seconds')),
)


def _methods(groups: Sequence[Group]) -> list[dict[str, str]]:
  names = dict.fromkeys(group.method for group in groups)
  return [
    {
      'name': name,
      'title': METHODS[name].title,
      'paper': METHODS[name].paper,
      'description': METHODS[name].description,
    }
    for name in names
    if name in METHODS
  ]


def _settings(
  groups: Sequence[Group], swatches: Mapping[str, Mapping[str, str]]
) -> dict[str, Any] | None:
  """The settings in which groups differ, or None where it is the method alone."""
  differing = comparison.differing_settings(groups)
  if not differing:
    return None
  cells = {
    key: [Cell(_NONE if value is None else page.value_text(value)) for value in values]
    for key, values in differing.items()
  }
  return _rows(groups, swatches, cells)


def _runs(groups: Sequence[Group]) -> list[tuple[str, str]]:
  return [
    (f'{group.label}, seed {run.seed}', str(run.directory))
    for group in groups
    for run in group.runs
  ]
