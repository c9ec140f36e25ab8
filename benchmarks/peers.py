# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What else a user could run: PyTorch + PEFT and Flower, on the same work.

Their programs, `bench_torch.py` and `bench_flower.py`, are no part of this repository; they run in
an environment of their own and print a line of JSON.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
from typing import IO, Any, NamedTuple

import psutil

from benchmarks import load
from tasks.errors import UserError

FLOWER = 'Flower + PEFT'
# All draw the same model and tokens: what others lose is held against this float32.
REFERENCE = 'PyTorch + PEFT'
# What they are called with besides the work. The first rounds of some start processes or compile:
# one is no measured round, and where later ones compile, too, three.
_COMMANDS = {
  'PyTorch + PEFT, a process per core': 'bench_torch.py --threads 1 --procs {cores}',
  REFERENCE: 'bench_torch.py --threads {cores}',
  'PyTorch + PEFT, compiled': 'bench_torch.py --threads {cores} --compile --warmup-rounds 3',
  'PyTorch + PEFT, bfloat16': 'bench_torch.py --threads {cores} --mkldnn-bf16',
  FLOWER: 'bench_flower.py --num-cpus 1 --cache-model',
}
NAMES = tuple(_COMMANDS)
# Beyond a warm-up; rounds of the smallest size are too short to be told from each other by two.
_ROUNDS = {'tiny': 20}
_FEW_ROUNDS = 2
_SECONDS = 900.0
_PROGRAMS = ('bench_torch.py', 'bench_flower.py')
_MODULES = ('torch', 'transformers', 'peft', 'flwr', 'ray', 'psutil')
_CHECK_SECONDS = 120.0
_CHECK = """
import importlib, sys
lacks = []
for name in sys.argv[1:]:
  try:
    importlib.import_module(name)
  except Exception:
    lacks.append(name)
sys.exit(f'it cannot import {", ".join(lacks)}' if lacks else None)
"""


class Result(NamedTuple):
  """What a rival's run gave.

  Attributes:
    sample: median of its clean rounds, or of all if none is.
    loss: mean over the rounds from the first on, as many of every rival; not a number where it says
      none.
  """

  sample: load.Sample
  loss: float


class Peers:
  """The rivals' programs."""

  def __init__(self, directory: str, python: str):
    """Initializes the rivals.

    Args:
      directory: of their programs.
      python: an interpreter with `torch`, `transformers`, `peft` and `flwr[simulation]`.

    Raises:
      UserError: if one of them is not there.
    """
    self._directory, self._python = pathlib.Path(directory), pathlib.Path(python)
    programs = [('--peers', self._directory / name) for name in _PROGRAMS]
    for option, path in (*programs, ('--peers-python', self._python)):
      if not path.is_file():
        raise UserError(f'{option}: there is no {path}.')

  def check(self) -> None:
    """Asks the interpreter for its packages.

    Raises:
      UserError: naming those that cannot be imported.
    """
    try:
      done = subprocess.run(
        [str(self._python), '-c', _CHECK, *_MODULES],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=_CHECK_SECONDS,
      )
    except (OSError, subprocess.TimeoutExpired) as error:
      raise UserError(f'--peers-python {self._python} does not run: {error}') from error
    if done.returncode:
      reason = (done.stderr.strip().splitlines() or [f'status {done.returncode}'])[-1]
      raise UserError(f'--peers-python {self._python}: {reason}.')

  def measure(self, name: str, size: str, clients: int, cores: int) -> Result:
    """Runs one of `NAMES` for some rounds after a warm-up.

    Args:
      name: of the rival.
      size: of the work, one of `workload.SIZES`, which they call presets.
      clients: of a round.
      cores: that it may use.

    Raises:
      UserError: if it fails.
    """
    program, *options = _COMMANDS[name].format(cores=cores).split()
    rounds = _ROUNDS.get(size, _FEW_ROUNDS)
    options += ['--preset', size, '--clients', f'{clients}']
    # Flower counts its warm-up.
    options += ['--rounds', f'{rounds + (name == FLOWER)}']
    result = self._run([program, *options])
    if len(result['round_s']) <= rounds or len(result['foreign_load']) < rounds:
      raise UserError(f'{program} {" ".join(options)} ended before its last round.')
    samples = [
      load.Sample(*pair)
      for pair in zip(result['round_s'][-rounds:], result['foreign_load'][-rounds:], strict=True)
    ]
    kept = [sample for sample in samples if sample.is_clean] or samples
    sample = load.Sample(*(statistics.median(values) for values in zip(*kept, strict=True)))
    # A further warm-up trains, too, and comes after what the others did.
    losses = (result.get('losses') or [])[: 1 + rounds]
    return Result(sample, statistics.fmean(losses) if len(losses) > rounds else float('nan'))

  def _run(self, arguments: list[str]) -> dict[str, Any]:
    """The JSON that a program prints."""
    # Files: processes that outlive the program would hold a pipe open.
    with tempfile.TemporaryFile('w+') as output, tempfile.TemporaryFile('w+') as errors:
      status = self._wait([str(self._python), *arguments], output, errors)
      output.seek(0)
      errors.seek(0)
      lines = [line for line in output if line.startswith('{"bench"')]
      result = json.loads(lines[-1]) if lines else {}
      failure = result.get('error') or (errors.read().strip().splitlines() or ['no output'])[-1]
    if status or not result.get('round_s'):
      raise UserError(f'{" ".join(arguments)} failed: {failure}')
    return result

  def _wait(self, command: list[str], output: IO[str], errors: IO[str]) -> int:
    """Runs a command to its end, or ends it with all that it has started."""
    process = subprocess.Popen(
      command,
      cwd=self._directory,
      env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'},
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=errors,
    )
    try:
      return process.wait(_SECONDS)
    except subprocess.TimeoutExpired as error:
      raise UserError(f'{" ".join(command[1:])} took more than {_SECONDS:.0f} s.') from error
    finally:
      if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
          with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
        process.kill()
