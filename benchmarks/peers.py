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
from typing import IO, Any

import psutil

from benchmarks import load
from tasks.errors import UserError

FLOWER = 'Flower + PEFT'
# What they are called with besides the work; Flower's first round starts its processes.
_COMMANDS = {
  'PyTorch + PEFT, a process per core': 'bench_torch.py --threads 1 --procs {cores}',
  'PyTorch + PEFT': 'bench_torch.py --threads {cores}',
  'PyTorch + PEFT, bfloat16': 'bench_torch.py --threads {cores} --mkldnn-bf16',
  FLOWER: 'bench_flower.py --num-cpus 1 --cache-model',
}
NAMES = tuple(_COMMANDS)
# Beyond a warm-up; rounds of the smallest size are too short to be told from each other by two.
_ROUNDS = {'tiny': 20}
_FEW_ROUNDS = 2
_SECONDS = 900.0


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
    for option, path in (
      ('--peers', self._directory / 'bench_torch.py'),
      ('--peers-python', self._python),
    ):
      if not path.is_file():
        raise UserError(f'{option}: there is no {path}.')

  def measure(self, name: str, size: str, clients: int, cores: int) -> load.Sample:
    """Runs one of `NAMES` for some rounds after a warm-up.

    Args:
      name: of the rival.
      size: of the work, one of `workload.SIZES`, which they call presets.
      clients: of a round.
      cores: that it may use.

    Returns:
      The median of its clean rounds, or of all if none is.

    Raises:
      UserError: if it fails.
    """
    program, *options = _COMMANDS[name].format(cores=cores).split()
    rounds = _ROUNDS.get(size, _FEW_ROUNDS)
    options += ['--preset', size, '--clients', f'{clients}']
    # Flower counts its warm-up.
    options += ['--rounds', f'{rounds + (name == FLOWER)}']
    result = self._run([program, *options])
    samples = [
      load.Sample(*pair)
      for pair in zip(result['round_s'][-rounds:], result['foreign_load'][-rounds:], strict=True)
    ]
    kept = [sample for sample in samples if sample.is_clean] or samples
    return load.Sample(*(statistics.median(values) for values in zip(*kept, strict=True)))

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
