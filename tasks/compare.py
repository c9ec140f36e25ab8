# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora compare`: finished runs side by side, as a table, CSV files, plots and one page."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table
import rich.text

from tasks import comparison, comparison_page, comparison_plots, metrics, page, plots
from tasks.comparison import Group
from tasks.errors import UserError
from tasks.files import replace_file
from tasks.finished_run import FinishedRun
from tasks.methods import METHODS


def compare(directories: Sequence[pathlib.Path], output_dir: pathlib.Path) -> None:
  """Compares runs; those that differ in the seed alone are one configuration.

  Writes `comparison.csv` (a row for each configuration), `runs.csv` (a row for each run),
  `plots/*.png` and `comparison.html`, and prints a table.

  Args:
    directories: of finished runs.
    output_dir: made if missing; what an earlier comparison wrote there is replaced.

  Raises:
    UserError: naming the directory that holds no finished run, or one that cannot be compared with
      the others; nothing is written then.
  """
  if not directories:
    raise UserError('There is nothing to compare: name the directories of runs, or give --config.')
  groups = comparison.group_runs([FinishedRun.read(path) for path in directories], list(METHODS))
  light, dark = (comparison_plots.draw_comparison(groups, x) for x in (plots.LIGHT, plots.DARK))
  text = comparison_page.render(groups, light, dark)
  try:
    (output_dir / 'plots').mkdir(parents=True, exist_ok=True)
    for name, image in light.items():
      replace_file(output_dir / 'plots' / f'{name}.png', image)
    _write_csv(output_dir / 'comparison.csv', [_group_row(group) for group in groups])
    _write_csv(output_dir / 'runs.csv', [_run_row(g, run) for g in groups for run in g.runs])
    replace_file(output_dir / 'comparison.html', text.encode())
  except (FileExistsError, NotADirectoryError) as error:
    raise UserError(f'--output-dir {output_dir} is not a directory.') from error
  for known in (comparison_page.QUALITY, comparison_page.COST):
    _print_table(comparison_page.ranked(groups), known, notes=known is comparison_page.QUALITY)


def _group_row(group: Group) -> dict[str, Any]:
  settings = {f'config.{key}': _plain(value) for key, value in group.config.items()}
  row: dict[str, Any] = {
    'configuration': group.label,
    'method': group.method,
    'runs': len(group.runs),
    'seeds': ' '.join(map(str, group.seeds)),
    **_interval_cells('perplexity', group.perplexity),
    **_interval_cells('relative_perplexity_change', group.change),
  }
  for name in ('rouge_l', 'rouge_l_change', 'deviation_from_exact'):
    row |= _interval_cells(name, group.interval(name))
  for name in comparison.measure(group.runs[0]):
    if name not in row and 'loss' not in name:
      row[name] = group.mean(name)
  return row | settings


def _interval_cells(name: str, interval: metrics.Interval | None) -> dict[str, float | None]:
  mean, low, high = interval or (None, None, None)
  return {name: mean, f'{name}_low': low, f'{name}_high': high}


def _run_row(group: Group, run: FinishedRun) -> dict[str, Any]:
  about = {'directory': str(run.directory), 'configuration': group.label, 'seed': run.seed}
  return about | comparison.measure(run)


def _plain(value: Any) -> Any:
  return None if value is None else page.value_text(value)


def _write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows with the columns of all of them; what is None or missing is empty."""
  text = io.StringIO()
  columns = list(dict.fromkeys(name for row in rows for name in row))
  writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  replace_file(path, text.getvalue().encode())


def _print_table(
  groups: Sequence[Group], known: Sequence[comparison_page.Column], *, notes: bool
) -> None:
  table = rich.table.Table('configuration', box=None)
  columns = comparison_page.columns(groups, known)
  for name in columns:
    table.add_column(name, justify='right')
  for index, group in enumerate(groups):
    cells = (column[index] for column in columns.values())
    texts = (f'{cell.value} ({cell.note})' if notes and cell.note else cell.value for cell in cells)
    table.add_row(*map(rich.text.Text, (group.label, *texts)))
  rich.console.Console().print(table, '')
