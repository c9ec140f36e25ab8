# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of the driver and its worker over rounds with two clients at a time; Linux.

Each case has a driver of its own, which has not seen the backbone's weights before. `pss` counts a
page that processes share, such as one of a mapped file, in parts that add up; `anonymous` leaves
out what is mapped from files; `rss` counts shared pages in each process.

    python -m benchmarks.round_memory [--sizes gpt2-base] [--dtypes float32 bfloat16]
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import tempfile

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import rich.console
import rich.table
from absl import logging

import hetlora_tff
from benchmarks import peak_memory, round_time, workload
from tasks.worker import LocalWorker

_CONCURRENCY = 2
_ROUNDS = 2
_KINDS = {'Pss': 'pss', 'Anonymous': 'anonymous', 'Rss': 'rss'}


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--sizes', nargs='+', choices=workload.SIZES, default=['gpt2-base'])
  parser.add_argument(
    '--dtypes', nargs='+', choices=round_time.DTYPES, default=list(round_time.DTYPES)
  )
  arguments = parser.parse_args()
  table = rich.table.Table('peak MB', 'driver pss', 'worker pss', *_KINDS.values(), box=None)
  result = {}
  with concurrent.futures.ProcessPoolExecutor(
    1, multiprocessing.get_context('spawn'), max_tasks_per_child=1
  ) as fresh:
    for size in arguments.sizes:
      with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder, 'backbone')
        fresh.submit(_save, size, directory).result()
        for dtype in arguments.dtypes:
          peaks = fresh.submit(_peaks, size, dtype, directory).result()
          result.setdefault(size, {})[dtype] = peaks
          table.add_row(f'{size}, {dtype}', *(f'{peak:.0f}' for peak in peaks.values()))
  rich.console.Console(width=100).print(table)
  print(json.dumps(result))


def _save(size: str, directory: pathlib.Path) -> None:
  logging.set_verbosity(logging.ERROR)
  workload.save_backbone(workload.SIZES[size], directory)


def _peaks(size: str, dtype: str, directory: pathlib.Path) -> dict[str, float]:
  """In MB: each process's `pss`, then the sums of both at one time."""
  logging.set_verbosity(logging.ERROR)
  work = workload.SIZES[size]
  peaks = dict.fromkeys(('driver', 'worker', *_KINDS.values()), 0.0)
  with LocalWorker(_CONCURRENCY) as worker:
    pids = {'driver': os.getpid(), 'worker': worker.pid}

    def take():
      held = {name: _held_mb(pid) for name, pid in pids.items()}
      now = {name: mb['pss'] for name, mb in held.items()}
      now |= {kind: sum(mb[kind] for mb in held.values()) for kind in _KINDS.values()}
      peaks.update({name: max(mb, now[name]) for name, mb in peaks.items()})

    with peak_memory.looking(take):
      backbone = hetlora_tff.FrozenBackbone.load(directory)
      model = hetlora_tff.CausalLanguageModel(backbone, work.length, dtype)
      run_round = round_time.build_round(work, model)
      for _ in range(_ROUNDS):
        run_round()
  return {name: round(mb, 1) for name, mb in peaks.items()}


def _held_mb(pid: int | None) -> dict[str, float]:
  """What the kernel says that a process holds now, by kind."""
  lines = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text('ascii').splitlines()
  fields = (line.split() for line in lines)
  sizes = {parts[0].rstrip(':'): parts[1] for parts in fields}
  return {kind: 1024 * int(sizes[field]) / 1e6 for field, kind in _KINDS.items()}


if __name__ == '__main__':
  main()
