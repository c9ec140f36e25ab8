# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The plots of a run, drawn from the files of its run directory."""

import csv
import dataclasses
import io
import os
import pathlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

Table = Mapping[str, np.ndarray]

_WIDTH_INCHES = 5.0
_HEIGHT_INCHES = 3.1
_DOTS_PER_INCH = 200
_MOST_BARS = 14


@dataclasses.dataclass(frozen=True)
class Theme:
  """Colours of one appearance; first and second are near Okabe and Ito's blue and vermilion.

  `ramp_ends` are the places of the fewest and the most clients on the map from white to blue.
  """

  background: str
  text: str
  muted: str
  grid: str
  first: str
  second: str
  ramp_ends: tuple[float, float]


LIGHT = Theme('#ffffff', '#1f2328', '#59636e', '#e4e7eb', '#0072b2', '#c2500a', (0.25, 0.95))
DARK = Theme('#161b22', '#e6edf3', '#9aa4af', '#2d343d', '#56b4e9', '#f0a04b', (0.9, 0.15))


class RankBytes(NamedTuple):
  """Bytes of one adapter message at a rank: its slice in float32, and the padded one as sent."""

  rank: int
  slice_bytes: float
  padded_bytes: float


def _cell(path: pathlib.Path, line: int, column: str, text: str) -> float:
  if not text.strip():
    return np.nan
  try:
    return float(text)
  except ValueError:
    raise ValueError(
      f'{path}: line {line}, column {column}: {text!r} is not a number; restore the file or run'
      ' again.'
    ) from None


def read_table(path: str | os.PathLike, required: Sequence[str] = ()) -> Table:
  """Reads a CSV file of numbers.

  Args:
    path: The file; its first line names the columns.
    required: Columns that must be there.

  Returns:
    Columns by name, float64 [lines]; NaN where a cell is empty.

  Raises:
    ValueError: If the file cannot be read, lacks a required column, or holds a line of another
      width or a cell that is not a number. The message names the file and the line.
  """
  path = pathlib.Path(path)
  try:
    with path.open(newline='', encoding='utf-8') as file:
      rows = list(csv.reader(file))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f'{path}: cannot be read as CSV ({error}).') from error
  header = rows[0] if rows else []
  missing = [name for name in required if name not in header]
  if missing or not header:
    raise ValueError(f'{path}: column {", ".join(missing) or "round"} is missing from line 1.')
  columns: OrderedDict[str, list[float]] = OrderedDict((name, []) for name in header)
  for line, row in enumerate(rows[1:], start=2):
    if len(row) != len(header):
      raise ValueError(f'{path}: line {line} has {len(row)} cells, but line 1 has {len(header)}.')
    for name, text in zip(header, row, strict=True):
      columns[name].append(_cell(path, line, name, text))
  return OrderedDict((name, np.array(values)) for name, values in columns.items())


def measured(table: Table, column: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns rounds and values of a column where it was measured; both empty if it never was."""
  rounds = table['round']
  values = table.get(column, np.full_like(rounds, np.nan))
  known = np.isfinite(rounds) & np.isfinite(values)
  return rounds[known], values[known]


def format_bytes(value: float) -> str:
  """Returns a size in decimal units with three digits, such as '1.23 MB'."""
  for unit, size in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
    if abs(value) >= size:
      return f'{value / size:.3g} {unit}'
  return f'{value:.0f} B'


def format_perplexity(value: float) -> str:
  """Returns a perplexity with two decimals, or without any from a thousand on."""
  return f'{value:,.2f}' if value < 1000 else f'{value:,.0f}' if value < 1e7 else f'{value:.1e}'


class Sheet:
  """One figure with the house style: a light horizontal grid, no box, labels beside the lines."""

  def __init__(self, theme: Theme, title: str, x_label: str, height_inches: float = _HEIGHT_INCHES):
    """Initializes an empty figure, as wide as a telephone shows it."""
    self.theme = theme
    self.figure = Figure(
      figsize=(_WIDTH_INCHES, height_inches),
      facecolor=theme.background,
      layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
    )
    FigureCanvasAgg(self.figure)
    self.axes = self.figure.add_subplot(facecolor=theme.background)
    self.axes.set_title(title, loc='left', color=theme.text, fontsize=11.5, pad=10, weight='bold')
    self.axes.set_xlabel(x_label, color=theme.muted, fontsize=10.5)
    self.axes.tick_params(colors=theme.muted, labelsize=10, length=0, pad=5)
    self.axes.spines[['top', 'right', 'left']].set_visible(False)
    self.axes.spines['bottom'].set_color(theme.muted)
    self.axes.grid(axis='y', color=theme.grid, linewidth=0.9)
    self.axes.set_axisbelow(True)

  def line(self, rounds: np.ndarray, values: np.ndarray, color: str, *, dots: bool) -> None:
    """Draws a curve."""
    # Dots mark what was measured; on a line that is measured every round they only blur it.
    self.axes.plot(
      rounds,
      values,
      color=color,
      linewidth=2 if dots else 1.5,
      marker='o' if dots and len(rounds) <= 60 else None,
      markersize=4,
      solid_capstyle='round',
    )
    if len(rounds) == 1:
      self.axes.plot(rounds, values, color=color, marker='o', markersize=5)

  def end_labels(self, labels: Iterable[tuple[float, str, str]]) -> None:
    """Writes (value, text, colour) labels right of the axes, moved apart where they collide."""
    low, high = self.axes.get_ylim()
    gap, placed = 0.085 * (high - low), -np.inf
    for value, text, color in sorted(labels):
      placed = max(value, placed + gap * (1 + text.count('\n')))
      self.axes.annotate(
        text,
        xy=(1, placed),
        xycoords=self.axes.get_yaxis_transform(),
        xytext=(6, 0),
        textcoords='offset points',
        color=color,
        fontsize=10.5,
        va='center',
        annotation_clip=False,
      )

  def round_axis(self) -> None:
    """Puts whole numbers on the horizontal axis."""
    self.axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))

  def png(self) -> bytes:
    """Returns the figure."""
    buffer = io.BytesIO()
    # Without the metadata the bytes do not depend on the version of matplotlib's banner.
    self.figure.savefig(
      buffer, format='png', dpi=_DOTS_PER_INCH, metadata={'Software': None}, facecolor='auto'
    )
    return buffer.getvalue()


def draw_loss(metrics: Table, theme: Theme = LIGHT) -> bytes | None:
  """Returns a PNG of training and held-out loss by round, or None if neither was measured."""
  series = (
    ('train_loss', 'training', theme.first, False),
    ('eval_loss', 'held-out', theme.second, True),
  )
  known = [
    (*measured(metrics, column), label, color, dots) for column, label, color, dots in series
  ]
  known = [entry for entry in known if len(entry[0])]
  if not known:
    return None
  sheet = Sheet(theme, 'Loss, nats per token', 'round')
  for rounds, values, _, color, dots in known:
    sheet.line(rounds, values, color, dots=dots)
  sheet.round_axis()
  sheet.end_labels((values[-1], label, color) for _, values, label, color, _ in known)
  return sheet.png()


def draw_perplexity(metrics: Table, theme: Theme = LIGHT) -> bytes | None:
  """Returns a PNG of held-out perplexity by round with the untuned base dashed, or None."""
  rounds, values = measured(metrics, 'eval_perplexity')
  if not len(rounds):
    return None
  sheet = Sheet(theme, 'Held-out perplexity', 'round')
  labels = []
  if rounds[0] == 0:
    sheet.axes.axhline(values[0], color=theme.muted, linewidth=1.4, dashes=(4, 3))
    labels.append((values[0], f'untuned\n{format_perplexity(values[0])}', theme.muted))
  if len(rounds) > 1 or rounds[0] != 0:
    sheet.line(rounds, values, theme.second, dots=True)
    labels.append((values[-1], f'tuned\n{format_perplexity(values[-1])}', theme.second))
  sheet.round_axis()
  sheet.end_labels(labels)
  return sheet.png()


def _rank_grid(ranks: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns rounds [n], ranks [m] and clients [m, n] of the table's finite lines."""
  columns = np.stack([ranks[name] for name in ('round', 'rank', 'clients')])
  columns = columns[:, np.isfinite(columns).all(axis=0)]
  rounds, round_index = np.unique(columns[0], return_inverse=True)
  levels, rank_index = np.unique(columns[1], return_inverse=True)
  grid = np.zeros([len(levels), len(rounds)])
  np.add.at(grid, (rank_index, round_index), columns[2])
  return rounds, levels, grid


def _paint_grid(sheet: Sheet, rounds: np.ndarray, grid: np.ndarray) -> None:
  """Paints the clients of each round and row, with a colour bar; nothing where there are none."""
  theme = sheet.theme
  shades = np.linspace(theme.ramp_ends[0], theme.ramp_ends[1], 256)
  image = sheet.axes.pcolormesh(
    np.append(rounds, rounds[-1] + 1) - 0.5,
    np.arange(len(grid) + 1) - 0.5,
    np.where(grid > 0, grid, np.nan),
    cmap=ListedColormap(mpl.colormaps['Blues'](shades)),
    vmin=min(1, grid.max()),
    vmax=max(2, grid.max()),
    linewidth=0,
  )
  bar = sheet.figure.colorbar(image, ax=sheet.axes, pad=0.02, aspect=24)
  bar.set_label('clients', color=theme.muted, fontsize=10.5)
  bar.ax.tick_params(colors=theme.muted, labelsize=10, length=0)
  bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
  bar.outline.set_visible(False)


def draw_ranks(ranks: Table, theme: Theme = LIGHT) -> bytes | None:
  """Returns a PNG of how many clients trained at which rank in each round, or None without any."""
  rounds, levels, grid = _rank_grid(ranks)
  if not grid.sum() > 0:
    return None
  sheet = Sheet(theme, 'Clients by rank', 'round')
  sheet.axes.grid(visible=False)
  _paint_grid(sheet, rounds, grid)
  step = -(-len(levels) // 9)
  sheet.axes.set_ylabel('rank', color=theme.muted, fontsize=10.5)
  rows = np.arange(len(levels))
  sheet.axes.set_yticks(rows[::step], [f'{level:g}' for level in levels[::step]])
  held = grid.sum(axis=0) > 0
  means = levels @ grid[:, held] / grid[:, held].sum(axis=0)
  # The rows are ranks in order, not to scale, so a mean lies between its two neighbours.
  sheet.line(rounds[held], np.interp(means, levels, rows), theme.second, dots=False)
  sheet.axes.set_title('line: mean rank', loc='right', color=theme.second, fontsize=10.5, pad=10)
  sheet.round_axis()
  return sheet.png()


def _thinned(rows: Sequence[RankBytes]) -> list[RankBytes]:
  """Keeps the smallest, the largest and an even choice between them where bars would not fit."""
  rows = sorted(rows)
  if len(rows) <= _MOST_BARS:
    return rows
  return [rows[i] for i in np.linspace(0, len(rows) - 1, _MOST_BARS).round().astype(int)]


def draw_bytes(bytes_by_rank: Sequence[RankBytes], theme: Theme = LIGHT) -> bytes | None:
  """Returns a PNG of the size of a rank's slice beside its padded message, or None without any."""
  rows = _thinned(bytes_by_rank)
  if not rows:
    return None
  sheet = Sheet(theme, 'Adapter message, per client and round', 'rank of the client')
  places = np.arange(len(rows))
  slices, padded = [np.array([row[i] for row in rows], np.float64) for i in (1, 2)]
  sheet.axes.bar(places, slices, width=0.68, color=theme.first)
  sheet.axes.hlines(padded, places - 0.5, places + 0.5, color=theme.second, linewidth=2)
  sheet.axes.set_xticks(places, [str(row.rank) for row in rows])
  sheet.axes.set_xlim(-0.5, len(rows) - 0.5)
  sheet.axes.set_ylim(0, 1.12 * max(slices.max(), padded.max(), 1))
  sheet.axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
  sheet.axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
  sheet.end_labels(
    [(slices[-1] / 2, "rank's\nslice", theme.first), (padded[-1], 'sent', theme.second)]
  )
  return sheet.png()


def draw_run(
  run_directory: str | os.PathLike,
  bytes_by_rank: Sequence[RankBytes] = (),
  theme: Theme = LIGHT,
) -> OrderedDict[str, bytes]:
  """Draws every plot that the files of a run directory have data for.

  Args:
    run_directory: Holds `metrics.csv`, and `ranks.csv` where ranks may be shown.
    bytes_by_rank: Message sizes; empty leaves that plot out.
    theme: Colours.

  Returns:
    PNG images by name: `loss`, `perplexity`, `ranks`, `bytes`.

  Raises:
    ValueError: If `metrics.csv` is missing, or either file is malformed.
  """
  directory = pathlib.Path(run_directory)
  metrics = read_table(directory / 'metrics.csv', ['round'])
  drawings: OrderedDict[str, Callable[[], bytes | None]] = OrderedDict(
    loss=lambda: draw_loss(metrics, theme),
    perplexity=lambda: draw_perplexity(metrics, theme),
  )
  ranks_file = directory / 'ranks.csv'
  if ranks_file.exists():
    ranks = read_table(ranks_file, ['round', 'rank', 'clients'])
    drawings['ranks'] = lambda: draw_ranks(ranks, theme)
  drawings['bytes'] = lambda: draw_bytes(bytes_by_rank, theme)
  images = ((name, draw()) for name, draw in drawings.items())
  return OrderedDict((name, image) for name, image in images if image is not None)


def write_plots(
  run_directory: str | os.PathLike, images: Mapping[str, bytes]
) -> OrderedDict[str, pathlib.Path]:
  """Writes PNG images by name to `plots/NAME.png` of a run's directory and returns their paths."""
  folder = pathlib.Path(run_directory) / 'plots'
  folder.mkdir(exist_ok=True)
  paths = OrderedDict((name, folder / f'{name}.png') for name in images)
  for name, image in images.items():
    paths[name].write_bytes(image)
  return paths
