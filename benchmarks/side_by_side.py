# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line of a benchmark that times two kinds of rounds beside each other."""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import rich.console
import rich.table
from absl import logging

from benchmarks import workload


def main(
  description: str | None,
  names: Sequence[str],
  measure: Callable[[workload.Work, int], dict[str, Any]],
) -> None:
  """Measures, prints a table and JSON, and writes the JSON if asked to.

  Args:
    description: of the benchmark; its first line is shown.
    names: of the kinds; `{name}_seconds` of the result are their rounds.
    measure: does so many repeats of the workload.
  """
  parser = argparse.ArgumentParser(description=(description or '').partition('\n')[0])
  parser.add_argument('--repeats', type=int, default=5, help='measured rounds of each kind')
  parser.add_argument('--output', help='also write the JSON to this file')
  arguments = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  result = measure(workload.Work(), arguments.repeats)
  table = rich.table.Table('', 'median s', 'min s', 'max s', box=None)
  for name in names:
    seconds = result[f'{name}_seconds']
    table.add_row(name, *(f'{f(seconds):.2f}' for f in (statistics.median, min, max)))
  rich.console.Console().print(table)
  text = json.dumps(result)
  print(text)
  if arguments.output:
    with open(arguments.output, 'w', encoding='utf-8') as file:
      file.write(text + '\n')
