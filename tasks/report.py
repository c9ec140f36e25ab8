# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one HTML file that needs no network, script or other file."""

import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tasks import client_plots, page, plots
from tasks.files import replace_file

_TEMPLATE = 'run_report.html'
_EXCERPT_CHARACTERS = 600

_CAPTIONS = {
  'loss': (
    'Mean loss per target token (per text, where texts have labels): of the clients that trained in'
    ' a round, and of the held-out clients where it was measured.'
  ),
  'perplexity': 'Perplexity on held-out clients; the dashed line is the untuned base model.',
  'ranks': 'How many devices have which rank after each round; a server would not see this.',
  'bytes': (
    'Bars: the part of the adapter that a client of this rank holds, in float32. Line: what it'
    ' sends: padded to the largest rank, so that uploads have one size and hide the rank, and in'
    ' the bits of this run.'
  ),
  **{
    f'distribution_{measure}': (
      f'{name} of each held-out client by itself, in ascending order: below it are that many per'
      ' cent of the clients. The ring is the mean of the tenth that fares worst.'
    )
    for measure, name in (
      ('perplexity', 'Perplexity'), ('rouge_l', 'RougeL'), ('accuracy', 'Accuracy'),
    )
  },
  'personalization': (
    'Each dot is a held-out client: perplexity with the adapter that all share, at the rank of its'
    ' device, and after local steps of its own.'
  ),
}  # fmt: skip
_MEASURES = {
  'perplexity': ('perplexity', plots.format_perplexity),
  'rouge_1': ('Rouge-1', '{:.3f}'.format),
  'rouge_2': ('Rouge-2', '{:.3f}'.format),
  'rouge_l': ('RougeL', '{:.3f}'.format),
  'accuracy': ('accuracy', '{:.3f}'.format),
}
# Plots whose names begin so have a section of their own.
_SECTIONS = ('distribution', 'personalization')
_MODELS = {'base': 'untuned', 'final': 'tuned', 'before': 'shared adapter', 'after': 'own adapter'}


class _Tile(NamedTuple):
  label: str
  value: str
  note: str


def _read_json(path: pathlib.Path, kind: type, required: bool = False) -> Any:
  if not required and not path.exists():
    return kind()
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f'{path}: cannot be read as JSON ({error}).') from error
  if not isinstance(content, kind):
    raise ValueError(f'{path}: must hold a JSON {"object" if kind is dict else "list"}.')
  return content


def _fields(record: Any, *names: str) -> list[float | None]:
  return [page.number(_mapping(record).get(name)) for name in names]


def _both(first: float | None, second: float | None) -> tuple[float, float] | None:
  return None if first is None or second is None else (first, second)


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def _records(value: Any) -> list[Mapping[str, Any]]:
  return [x for x in value if isinstance(x, Mapping)] if isinstance(value, list) else []


def _perplexities(summary: Mapping, metrics: plots.Table) -> tuple[float | None, float | None]:
  """Returns perplexity before and after, from the metrics where there is no summary."""
  (before,), (after,) = (_fields(summary.get(key), 'perplexity') for key in ('base', 'final'))
  rounds, values = plots.measured(metrics, 'eval_perplexity')
  if before is None and len(rounds) and rounds[0] == 0:
    before = float(values[0])
  if after is None and len(rounds) and rounds[-1] > 0:
    after = float(values[-1])
  return before, after


def _interval_note(summary: Mapping, key: str, form: Any) -> str:
  """Returns 'X (95 % interval A to B over N clients)' with what of it the summary has."""
  mean, low, high = _fields(summary.get(key), 'mean', 'low', 'high')
  if mean is None:
    return ''
  if low is None or high is None:
    return form(mean)
  (clients,) = _fields(summary.get(key), 'clients')
  over = f' over {clients:.0f} held-out clients' if clients is not None else ''
  return f'{form(mean)} (95 % interval {form(low)} to {form(high)}{over})'


def _perplexity_note(summary: Mapping, before: float | None, after: float | None) -> str:
  note = _interval_note(summary, 'relative_perplexity_change', page.percent_change)
  if not note and before and after:
    note = page.percent_change(after / before - 1)
  return note


def _headline(summary: Mapping, metrics: plots.Table) -> str:
  if accuracies := _both(*_scores(summary, 'accuracy')):
    key, what, unit = 'accuracy_change', 'accuracy', 'points'
    change = accuracies[1] - accuracies[0]
  elif perplexities := _both(*_perplexities(summary, metrics)):
    key, what, unit = 'relative_perplexity_change', 'perplexity', '%'
    (change,) = _fields(summary.get(key), 'mean')
    change = perplexities[1] / perplexities[0] - 1 if change is None else change
  else:
    return 'No held-out result of a tuned model was recorded in this run.'
  low, high = _fields(summary.get(key), 'low', 'high')
  size = f'{abs(100 * change):.1f}\N{NO-BREAK SPACE}{unit}'
  direction = 'below' if change < 0 else 'above'
  headline = f'Held-out {what} is {size} {direction} the untuned base model'
  if low is not None and high is not None and low <= 0 <= high:
    return f'{headline}; the interval includes no change.'
  return f'{headline}.'


def _scores(summary: Mapping, name: str) -> list[float | None]:
  """Returns a score before and after."""
  return [_fields(summary.get(key), name)[0] for key in ('base', 'final')]


def _tiles(summary: Mapping, metrics: plots.Table) -> list[_Tile]:
  tiles = []
  before, after = _perplexities(summary, metrics)
  arrow = ' \N{RIGHTWARDS ARROW} '
  known = [plots.format_perplexity(x) for x in (before, after) if x is not None]
  if known:
    note = _perplexity_note(summary, before, after)
    tiles.append(_Tile('Held-out perplexity', arrow.join(known), note))
  for name, label in (('accuracy', 'Held-out accuracy'), ('rouge_l', 'RougeL of decoded text')):
    known = [f'{x:.3f}' for x in _scores(summary, name) if x is not None]
    if known:
      note = _interval_note(summary, f'{name}_change', lambda x: page.signed(x, 3))
      tiles.append(_Tile(label, arrow.join(known), note))
  own = _mapping(summary.get('personalization'))
  if both := _both(*_fields(own, 'before', 'after')):
    note = _interval_note(own, 'relative_perplexity_change', page.percent_change)
    values = arrow.join(map(plots.format_perplexity, both))
    tiles.append(_Tile('Perplexity, shared to own adapter', values, note))
  moved = [plots.measured(metrics, name)[1].sum() for name in ('download_bytes', 'upload_bytes')]
  if any(moved):
    down, up = map(plots.format_bytes, moved)
    tiles.append(
      _Tile('Bytes moved in total', plots.format_bytes(sum(moved)), f'{down} down, {up} up')
    )
  seconds = plots.measured(metrics, 'round_seconds')[1]
  if len(seconds):
    # The first one may have had the evaluation of the base beside it.
    median = page.duration(statistics.median(seconds.tolist()))
    note = f'a median round takes {median} on the simulating machine'
    tiles.append(_Tile('Time of all rounds', page.duration(float(seconds.sum())), note))
  return tiles


def _figures(directory: pathlib.Path, summary: Mapping) -> list[page.Figure]:
  """Draws all plots, writes the light ones as files and returns them for the page."""
  sizes, changes, clients = _rank_bytes(summary), _changes(summary), _own_adapters(summary)
  light, dark = (
    plots.draw_run(directory, sizes, theme) | client_plots.draw(changes, clients, theme)
    for theme in (plots.LIGHT, plots.DARK)
  )
  plots.write_plots(directory, light)
  return page.figures(light, dark, _CAPTIONS)


def _changes(summary: Mapping) -> list[client_plots.Change]:
  """The measures over clients that there is a plot of."""
  changes = []
  for measure, models in _mapping(summary.get('distribution')).items():
    base, final = (_spread(_mapping(models).get(model)) for model in ('base', 'final'))
    if base and final and f'distribution_{measure}' in _CAPTIONS:
      changes.append(client_plots.Change(measure, base, final))
  return changes


def _spread(record: Any) -> client_plots.Spread | None:
  (worst,), values = _fields(record, 'worst_decile_mean'), _mapping(record).get('deciles')
  values = values if isinstance(values, list) else []
  deciles = [x for x in map(page.number, values) if x is not None]
  return None if worst is None or len(deciles) != 9 else client_plots.Spread(deciles, worst)


def _own_adapters(summary: Mapping) -> list[client_plots.Own]:
  rows = _records(_mapping(summary.get('personalization')).get('by_client'))
  pairs = [_both(*_fields(row, 'before', 'after')) for row in rows]
  return [client_plots.Own(*pair) for pair in pairs if pair]


def _spread_table(measures: Any) -> dict[str, Any] | None:
  """Returns a table of measures over clients, a row for each model; None without any."""
  rows = []
  for measure, models in _mapping(measures).items():
    if measure not in _MEASURES:
      continue
    name, form = _MEASURES[measure]
    for model, record in _mapping(models).items():
      spread = _spread(record)
      if spread is None or model not in _MODELS:
        continue
      mean, low, high = _fields(record, 'mean', 'low', 'high')
      interval = None if low is None or high is None else f'{form(low)} to {form(high)}'
      deciles = [spread.deciles[place] for place in (0, 4, 8)]
      cells = [form(x) for x in (*deciles, spread.worst)]
      cells = [None if mean is None else form(mean), interval, *cells]
      label = f'{name}, {_MODELS[model]}'
      rows.append([label, *('' if cell is None else cell for cell in cells)])
  if not rows:
    return None
  names = ('mean', '95 % interval', '10 % below', 'median', '90 % below', 'worst 10 %')
  return {'names': ['measure', *names], 'rows': rows}


def _excerpt(text: Any) -> str:
  text = text if isinstance(text, str) else ''
  if len(text) <= _EXCERPT_CHARACTERS:
    return text
  return text[:_EXCERPT_CHARACTERS].rstrip() + ' \N{HORIZONTAL ELLIPSIS}'


def _samples(path: pathlib.Path) -> list[dict[str, str]]:
  names = ('client', 'source', 'reference', 'base', 'tuned')
  return [{x: _excerpt(row.get(x)) for x in names} for row in _records(_read_json(path, list))]


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
  """Returns a table of the named columns that any row has, or None without any."""
  columns = {name: [page.number(row.get(name)) for row in rows] for name in names}
  columns = {name: values for name, values in columns.items() if set(values) - {None}}
  if not columns:
    return None
  return {
    'names': [name.replace('_', ' ') for name in columns],
    'rows': list(zip(*map(page.column, columns.values()), strict=True)),
  }


def _rounds_table(metrics: plots.Table) -> dict[str, Any] | None:
  rows = [dict(zip(metrics, line, strict=True)) for line in zip(*metrics.values(), strict=True)]
  return _table([{k: float(v) for k, v in row.items()} for row in rows], list(metrics))


def _rank_bytes(summary: Mapping) -> list[plots.RankBytes]:
  rows = [
    _fields(row, 'rank', 'slice_bytes', 'padded_bytes')
    for row in _records(summary.get('bytes_by_rank'))
  ]
  return [
    plots.RankBytes(int(rank), slice_bytes, padded_bytes)
    for rank, slice_bytes, padded_bytes in rows
    if rank is not None and slice_bytes is not None and padded_bytes is not None
  ]


def _title(config: Mapping, metrics: plots.Table) -> dict[str, Any]:
  last = metrics['round'][-1] if len(metrics['round']) else 0
  planned = page.number(config.get('rounds'))
  rounds = f'{last:.0f}'
  if planned is not None and planned != last:
    rounds += f' of {planned:.0f}'
  facts = [(name, config.get(name)) for name in ('task', 'method', 'backbone')]
  facts += [('rounds', rounds), ('clients per round', config.get('clients_per_round'))]
  facts += [('largest rank', config.get('max_rank'))]
  return {
    'task': page.value_text(config.get('task', 'run')),
    'method': page.value_text(config.get('method', '')),
    'facts': [(name, page.value_text(value)) for name, value in facts if value is not None],
  }


def _personalization(summary: Mapping) -> dict[str, Any] | None:
  """Returns what the page says of own adapters, or None where nobody had one."""
  own = _mapping(summary.get('personalization'))
  clients, better, left_out, odd = _fields(own, 'clients', 'better', 'left_out', 'non_finite')
  if not clients or better is None:
    return None
  text = f'{better:.0f} of {clients:.0f} clients are better off with an adapter of their own.'
  if left_out:
    text += f' Left out, with a single example each: {left_out:.0f}.'
  if odd:
    text += f' Left out, with a loss that is not finite: {odd:.0f}.'
  names = ('rank_up_to', 'clients', 'before', 'after')
  return {
    'text': text,
    'tiers': _table(_records(own.get('tiers')), names),
    'spread': _spread_table({'perplexity': own.get('distribution')}),
  }


def _samples_note(config: Mapping, has_accuracy: bool) -> str:
  if has_accuracy:
    return 'Labels that texts of held-out clients were given, before and after tuning.'
  (beams,) = _fields(config, 'num_beams')
  way = f'with {beams:.0f} beams' if beams and beams > 1 else 'greedily'
  return f'Decoded {way} for held-out clients, before and after tuning.'


def _render(directory: pathlib.Path) -> str:
  config = _read_json(directory / 'config.json', dict, required=True)
  metrics = plots.read_table(directory / 'metrics.csv', ['round'])
  summary = _read_json(directory / 'summary.json', dict)
  environment = _read_json(directory / 'environment.json', dict)
  samples = _samples(directory / 'samples.json')
  figures = _figures(directory, summary)
  tier_names = ('rank_up_to', 'clients', 'loss', 'perplexity')
  has_accuracy = _scores(summary, 'accuracy')[1] is not None
  left_out = summary.get('left_out')
  return page.render(
    _TEMPLATE,
    title=_title(config, metrics),
    headline=_headline(summary, metrics),
    tiles=_tiles(summary, metrics),
    figures={name: [f for f in figures if f.name.startswith(name)] for name in _SECTIONS},
    course=[f for f in figures if not f.name.startswith(_SECTIONS)],
    samples=samples,
    samples_note=_samples_note(config, has_accuracy),
    tiers=_table(_records(summary.get('tiers')), tier_names),
    spread=_spread_table(summary.get('distribution')),
    own=_personalization(summary),
    left_out=[x for x in left_out if isinstance(x, str)] if isinstance(left_out, list) else [],
    rounds=_rounds_table(metrics),
    config=page.flat(config),
    environment=page.flat(environment),
    private=config.get('privacy') not in (None, 'none'),
    has_rouge=_scores(summary, 'rouge_l')[1] is not None,
    has_accuracy=has_accuracy,
    has_interval=_fields(summary.get('relative_perplexity_change'), 'low')[0] is not None,
    command=page.value_text(summary.get('command') or ''),
  )


def write_run_report(run_directory: str | os.PathLike) -> pathlib.Path:
  """Writes `report.html` and `plots/*.png` from the files of a run directory.

  The report is one file: images, style and icon are inside it, and every text from the files is
  escaped. Sections whose file or column is absent are left out, so reports of interrupted runs work
  too.

  Args:
    run_directory: Holds `config.json` and `metrics.csv`, and may hold `summary.json`,
      `environment.json`, `ranks.csv` and `samples.json`.

  Returns:
    The path of the report, which is replaced at once or not at all.

  Raises:
    ValueError: If a required file is missing or a file is malformed; the message names it.
  """
  directory = pathlib.Path(run_directory)
  path = directory / 'report.html'
  replace_file(path, _render(directory).encode())
  return path
