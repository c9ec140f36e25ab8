# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How time and memory of a round grow: clients, rank, depth, width, sequence and population.

One size changes at a time, from small to large. A point has a process and a TFF worker of its own,
so that none has the memory of another. Every growth is fitted, and marked where it is faster than
it should be.

Beside whole rounds, `updates` is the server alone: random updates of GPT-2 small at rank 8, that
are aggregated. `measured` has `deviation_from_exact`, which `hetlora train` measures by default.
`population` is `hetlora train` itself with as many clients a round of ever more.

    python -m benchmarks.scaling [--sweeps clients rank] [--largest 64] [--repeats 3]
      [--output FILE.json] [--plot FILE.png]
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import rich.console
import rich.progress
import rich.table

from benchmarks import growth, scaling_plot, scaling_points

# A row of the table; a terminal may be narrower.
_WIDTH = 150
_CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
# Of the driver: tokens of a client of a round; name, size and rank of one that may be drawn.
_CLIENT_MB, _PERSON_MB = 0.1, 0.002
# By so much the driver of one point may differ from another's for no reason.
_NOISE_MB = 30


class Sweep(NamedTuple):
  """One size that changes.

  Attributes:
    measure: a point, of size and repeats.
    sizes: ascending.
    limit: the exponent that time may grow with.
    memory_limit: that of the worker's memory.
    driver_limit: MB of the driver that one more may take, where the driver holds something for
      each: beside what it needs for itself, no exponent would show that.
  """

  measure: Callable[[int, int], scaling_points.Point]
  sizes: tuple[int, ...]
  limit: float
  memory_limit: float
  driver_limit: float | None = None


SWEEPS: Mapping[str, Sweep] = {
  'clients': Sweep(scaling_points.clients, _CLIENTS, 1, 1, _CLIENT_MB),
  'measured': Sweep(scaling_points.measured, _CLIENTS, 1, 1, _CLIENT_MB),
  'updates': Sweep(scaling_points.updates, (1, 4, 16, 64, 256, 1000), 1, 1, _CLIENT_MB),
  'rank': Sweep(scaling_points.rank, (1, 2, 4, 8, 16, 32, 64, 128, 256), 1, 1),
  'depth': Sweep(scaling_points.depth, (1, 2, 4, 8), 1, 1),
  'width': Sweep(scaling_points.width, (64, 128, 256, 512), 2, 2),
  'sequence': Sweep(scaling_points.sequence, (16, 32, 64, 128, 256, 512), 2, 2),
  'population': Sweep(scaling_points.population, (1000, 10_000, 100_000), 0, 0, _PERSON_MB),
}


class Result(NamedTuple):
  """A sweep, measured.

  Attributes:
    points: by size.
    sweep: what is allowed.
    time: growth of the median round.
    worker: growth of the worker's memory.
    driver: growth of the driver's.
  """

  points: list[scaling_points.Point]
  sweep: Sweep
  time: growth.Growth
  worker: growth.Growth
  driver: growth.Growth

  @property
  def too_fast(self) -> str:
    """What grows faster than it should, in words; empty where nothing does."""
    found = {
      'time': not self.time.within(self.sweep.limit),
      'memory': not self.worker.within(self.sweep.memory_limit),
      'driver memory': self._driver_grows_too_fast,
    }
    return ', '.join(name for name, is_so in found.items() if is_so)

  @property
  def _driver_grows_too_fast(self) -> bool:
    slope, limit = self.driver.slope, self.sweep.driver_limit
    more = self.points[-1].size - self.points[0].size
    return limit is not None and slope > limit and slope * more > _NOISE_MB


def main() -> None:
  arguments = _arguments()
  results = {}
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(console=console, transient=True) as progress:
    for name in arguments.sweeps:
      sizes = [size for size in SWEEPS[name].sizes if size <= (arguments.largest or size)]
      if len(sizes) < 3:
        sys.exit(f'--largest {arguments.largest}: leaves {name} {len(sizes)} sizes; it takes 3.')
      points = _points(name, progress.track(sizes, description=name), arguments.repeats)
      results[name] = summarize(SWEEPS[name], points)
  shown = rich.console.Console(width=max(_WIDTH, rich.console.Console().width))
  shown.print(table(results))
  document = as_json(results)
  if arguments.output:
    arguments.output.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
  if arguments.plot:
    arguments.plot.write_bytes(scaling_plot.draw(document))


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument(
    '--sweeps',
    nargs='+',
    choices=SWEEPS,
    default=list(SWEEPS),
    metavar='NAME',
    help=f'of {", ".join(SWEEPS)}',
  )
  parser.add_argument('--largest', type=int, help='leave larger sizes out')
  parser.add_argument('--repeats', type=int, default=3, help='measured rounds of each point')
  parser.add_argument('--output', type=pathlib.Path, help='file for all numbers, as JSON')
  parser.add_argument('--plot', type=pathlib.Path, help='file for a PNG of all sweeps')
  return parser.parse_args()


def _points(name: str, sizes: Iterable[int], repeats: int) -> list[scaling_points.Point]:
  """The points of a sweep, each measured in a new process."""
  start = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(
    1, start, scaling_points.quieten, max_tasks_per_child=1
  ) as process:
    return [process.submit(SWEEPS[name].measure, size, repeats).result() for size in sizes]


def summarize(sweep: Sweep, points: Sequence[scaling_points.Point]) -> Result:
  """Fits the points of a sweep."""
  sizes = [point.size for point in points]
  costs = (
    [statistics.median(point.seconds) for point in points],
    [point.worker_mb for point in points],
    [point.driver_mb for point in points],
  )
  return Result(list(points), sweep, *(growth.fit(sizes, cost) for cost in costs))


def table(results: Mapping[str, Result]) -> rich.table.Table:
  """A row for each sweep."""
  columns = ('', 'sizes', 's a round', 'exponent', 'at most', 's for one more')
  memory = ('worker MB', 'exponent', 'MB for one more')
  driver = ('driver MB', 'MB for one more', 'too fast')
  shown = rich.table.Table(*columns, *memory, *driver, box=None)
  for name, result in results.items():
    first, last = result.points[0], result.points[-1]
    seconds = [statistics.median(point.seconds) for point in (first, last)]
    shown.add_row(
      *(name, f'{first.size:,} to {last.size:,}', f'{seconds[0]:.3g} to {seconds[1]:.3g}'),
      *(f'{result.time.exponent:.2f}', f'{result.sweep.limit:g}', f'{result.time.slope:.2g}'),
      *(f'{first.worker_mb:.0f} to {last.worker_mb:.0f}', f'{result.worker.exponent:.2f}'),
      *(f'{result.worker.slope:.2g}', f'{first.driver_mb:.0f} to {last.driver_mb:.0f}'),
      *(f'{result.driver.slope:.2g}', result.too_fast or '-'),
    )
  return shown


def as_json(results: Mapping[str, Result]) -> dict[str, Any]:
  """All numbers."""
  return {
    name: {
      'points': [point._asdict() for point in result.points],
      'time_limit': result.sweep.limit,
      'memory_limit': result.sweep.memory_limit,
      'driver_limit': result.sweep.driver_limit,
      'time': result.time._asdict(),
      'worker': result.worker._asdict(),
      'driver': result.driver._asdict(),
      'too_fast': result.too_fast,
    }
    for name, result in results.items()
  }


if __name__ == '__main__':
  main()
