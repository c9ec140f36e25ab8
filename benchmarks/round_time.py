# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time of a federated round beside the bare loop, the matrix peak, PyTorch and Flower.

All do the local work of some clients x 4 steps on a GPT-2 with adapters of rank 8 (see
`benchmarks.workload`). The bare loop takes the very same steps without TFF, as many clients at a
time, with the worker's thread counts; GFLOP/s count the matrix products that a step cannot do
without. The rivals run where their programs and environment are named. Everything alternates within
a repeat, so that ratios hold when the machine's speed drifts; a measurement during which others
kept the machine busy is taken again, and marked if they go on. So are losses that differ where they
should not; a rival that fails is left out, and said to have.

    python -m benchmarks.round_time [--sizes tiny small] [--dtypes float32 bfloat16] [--repeats 3]
      [--peers DIR --peers-python PYTHON] [--output FILE]
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import psutil
import rich.console
import rich.status
from absl import logging

import hetlora_tff
from benchmarks import bare_loop, load, peers, round_report, workload
from tasks.errors import UserError
from tasks.worker import LocalWorker

DTYPES = ('float32', 'bfloat16')
_MOST_TRIES = 3
# Of a table, where the output is a file.
_WIDTH = 120
_PACKAGES = ('tensorflow', 'tensorflow-federated', 'keras-nlp')
_NO_PEERS = (
  'Without PyTorch and Flower: name the directory of bench_torch.py and bench_flower.py with '
  '--peers, and a Python that has torch, transformers, peft and flwr[simulation] with '
  '--peers-python (or both in HETLORA_PEERS and HETLORA_PEERS_PYTHON).'
)


class Kind:
  """Something to measure again and again."""

  def __init__(self, flops: int, measure: Callable[[], load.Sample], loss: float | None = None):
    self.flops, self._measure, self.loss = flops, measure, loss
    self._samples: list[load.Sample] = []

  def repeat(self) -> None:
    """Measures until it is clean, at most `_MOST_TRIES` times; keeps the least disturbed."""
    tries = []
    while len(tries) < _MOST_TRIES and not (tries and tries[-1].is_clean):
      tries.append(self._measure())
    self._samples.append(min(tries, key=lambda sample: sample.foreign))

  @property
  def measured(self) -> round_report.Measured:
    return round_report.Measured(self.flops, self._samples, self.loss)


def measure(
  size: str,
  dtypes: Sequence[str],
  repeats: int,
  rivals: peers.Peers | None,
  progress: Callable[[str], None],
) -> tuple[dict[str, round_report.Measured], dict[str, str]]:
  """Alternates all kinds after a warm-up of each.

  Args:
    size: of `workload.SIZES`.
    dtypes: that the model computes in.
    repeats: measurements of each kind.
    rivals: to be measured as well.
    progress: is told what is measured next.

  Returns:
    The measurements, and of rivals that failed why.
  """
  work, cores = workload.SIZES[size], len(os.sched_getaffinity(0))
  with contextlib.ExitStack() as stack:
    progress('warm-up')
    kinds = _own_kinds(stack, work, dtypes, cores)
    if rivals is not None:
      for name in peers.NAMES:
        run = functools.partial(rivals.measure, name, size, work.clients, cores)
        kinds[name] = _rival(workload.round_flops(work), run)
    return alternate(kinds, repeats, progress)


def alternate(
  kinds: Mapping[str, Kind], repeats: int, progress: Callable[[str], None]
) -> tuple[dict[str, round_report.Measured], dict[str, str]]:
  """See `measure`; a rival that has failed is left out, also of what it had measured."""
  failed = {}
  for repeat in range(repeats):
    for name, kind in kinds.items():
      if name in failed:
        continue
      progress(f'{name}, {repeat + 1} of {repeats}')
      try:
        kind.repeat()
      except UserError as error:
        if name not in peers.NAMES:
          raise
        failed[name] = str(error)
  return {name: kind.measured for name, kind in kinds.items() if name not in failed}, failed


def _rival(flops: int, run: Callable[[], peers.Result]) -> Kind:
  def measure() -> load.Sample:
    result = run()
    kind.loss = result.loss
    return result.sample

  kind = Kind(flops, measure)
  return kind


def _own_kinds(
  stack: contextlib.ExitStack, work: workload.Work, dtypes: Sequence[str], cores: int
) -> dict[str, Kind]:
  """Rounds and bare loops in each type, and matrix products in both; all have run once."""
  directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), 'backbone')
  backbone = workload.save_backbone(work, directory)
  worker = stack.enter_context(LocalWorker(cores))
  environment = _thread_counts(worker)
  kinds = {}
  for dtype in dtypes:
    model = hetlora_tff.CausalLanguageModel(backbone, work.length, dtype)
    start = bare_loop.started(work, str(directory), dtype, cores, environment)
    run_round, loop = build_round(work, model), stack.enter_context(start)
    for name, run in (
      (round_report.round_of(dtype), run_round),
      (round_report.loop_of(dtype), functools.partial(loop, 'loop')),
    ):
      kinds[name] = Kind(workload.round_flops(work), functools.partial(load.measure, run), run())
  for dtype in DTYPES:
    run = functools.partial(loop, f'peak_{dtype}')  # Of the last process: they are alike.
    run()
    flops = cores * bare_loop.MATMUL_FLOPS
    kinds[round_report.peak_of(dtype)] = Kind(flops, functools.partial(load.measure, run))
  return kinds


def build_round(work: workload.Work, model: hetlora_tff.CausalLanguageModel) -> Callable[[], float]:
  """A function that runs the first round of a process and returns the mean loss of its steps."""
  process = workload.build_process(work, model)
  data = workload.client_data_of(work, workload.examples_of(work))
  state = process.initialize()

  def run() -> float:
    sums = process.next(state, data).metrics['client_work']
    return float(sums['loss'] / sums['predictions'])

  return run


def _thread_counts(worker: LocalWorker) -> dict[str, str]:
  """What the worker's environment says about threads and products."""
  environment = psutil.Process(worker.pid).environ()
  return {
    name: value
    for name, value in environment.items()
    if name.startswith(('TF_', 'ONEDNN_', 'OMP_'))
  }


def machine() -> dict[str, Any]:
  """What the figures depend on."""
  models = [
    line.partition(':')[2].strip()
    for line in pathlib.Path('/proc/cpuinfo').read_text('utf-8').splitlines()
    if line.startswith('model name')
  ]
  return {
    'cores': len(os.sched_getaffinity(0)),
    'processor': models[0] if models else platform.processor(),
    'versions': {name: importlib.metadata.version(name) for name in _PACKAGES},
  }


def main() -> None:
  """The command line."""
  parser, arguments = _arguments()
  logging.set_verbosity(logging.ERROR)
  progress, console = rich.console.Console(stderr=True), rich.console.Console(width=_WIDTH)
  result: dict[str, Any] = {'machine': machine(), 'sizes': {}}
  try:
    rivals = _rivals(arguments, progress)
    for size in arguments.sizes:
      with progress.status(size) as status:
        say = functools.partial(_say, status, size)
        kinds, failed = measure(size, arguments.dtypes, arguments.repeats, rivals, say)
      for name, reason in failed.items():
        progress.print(f'{size}: {name} is left out: {reason}', markup=False, soft_wrap=True)
      figures = round_report.summary(kinds, arguments.dtypes)
      work = workload.SIZES[size]
      facts = {'work': dataclasses.asdict(work), 'step_flops': workload.step_flops(work)}
      result['sizes'][size] = {**facts, **figures, 'failed': failed}
      for table in round_report.tables(size, kinds, figures):
        console.print(table)
  except UserError as error:
    parser.error(str(error))
  print(json.dumps(result))
  if arguments.output:
    pathlib.Path(arguments.output).write_text(json.dumps(result) + '\n', encoding='utf-8')


def _arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--sizes', nargs='+', choices=workload.SIZES, default=['tiny', 'small'])
  parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
  parser.add_argument('--repeats', type=int, default=3, help='measurements of each kind')
  parser.add_argument('--peers', default=os.environ.get('HETLORA_PEERS'), metavar='DIR')
  python = os.environ.get('HETLORA_PEERS_PYTHON')
  parser.add_argument('--peers-python', default=python, metavar='PYTHON')
  parser.add_argument('--output', help='also write the JSON to this file')
  arguments = parser.parse_args()
  if arguments.repeats < 1:
    parser.error(f'--repeats must be at least 1, got {arguments.repeats}')
  return parser, arguments


def _rivals(arguments: argparse.Namespace, console: rich.console.Console) -> peers.Peers | None:
  if arguments.peers and arguments.peers_python:
    rivals = peers.Peers(arguments.peers, arguments.peers_python)
    rivals.check()
    return rivals
  console.print(_NO_PEERS, markup=False)
  return None


def _say(status: rich.status.Status, size: str, what: str) -> None:
  status.update(f'{size}: {what}')


if __name__ == '__main__':
  main()
