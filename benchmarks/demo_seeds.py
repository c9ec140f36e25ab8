# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo on three seeds: held-out perplexity at least 10 % below the untuned base's on each.

    python -m benchmarks.demo_seeds [--output-dir runs/seeds]

Exit code 1 if a seed misses that, or if the 95 % interval over its held-out clients touches zero.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import rich.console
import rich.table

_SEEDS = (0, 1, 2)
_CHANGE = -0.10


def main() -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--output-dir', type=pathlib.Path, default=pathlib.Path('runs/seeds'))
  output_dir = parser.parse_args().output_dir
  table = rich.table.Table('seed', 'base', 'tuned', 'change (95 % interval)', 'minutes', box=None)
  missed = 0
  for seed in _SEEDS:
    started = time.monotonic()
    summary = _run(output_dir / f'seed-{seed}', seed)
    minutes = (time.monotonic() - started) / 60
    change = summary['relative_perplexity_change']
    missed += change['mean'] > _CHANGE or change['high'] >= 0
    table.add_row(
      str(seed),
      f'{summary["base"]["perplexity"]:.1f}',
      f'{summary["final"]["perplexity"]:.1f}',
      f'{change["mean"]:+.1%} ({change["low"]:+.1%} to {change["high"]:+.1%})',
      f'{minutes:.1f}',
    )
  rich.console.Console().print(table)
  return 1 if missed else 0


def _run(directory: pathlib.Path, seed: int) -> dict:
  """Trains as a user would, or takes up a run that is there."""
  command = [sys.executable, '-m', 'tasks.cli', 'train', '--output-dir', str(directory)]
  # A resumed run knows its seed; a finished one is only read.
  again = ['--resume'] if (directory / 'config.json').is_file() else ['--seed', str(seed)]
  subprocess.run(command + again, check=True)
  return json.loads((directory / 'summary.json').read_text('utf-8'))


if __name__ == '__main__':
  sys.exit(main())
