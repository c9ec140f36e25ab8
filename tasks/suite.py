# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A suite: runs by seeds from one file, each in a process of its own, kept as they finish."""

import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import pathlib
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tasks import config_files, program_loader, registry
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.files import read_json
from tasks.options import as_flag, option
from tasks.privacy_rules import RESOLVED_LATER
from tasks.run_directory import RunDirectory

_KEYS = ('base', 'runs', 'seeds')
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')
_PR_SET_PDEATHSIG = 1


class PlannedRun(NamedTuple):
  """A run of a suite.

  Attributes:
    name: of its directory.
    directory: where it is, or will be.
    config: its settings.
    given: the keys of it that the file has.
  """

  name: str
  directory: pathlib.Path
  config: RunConfig
  given: tuple[str, ...]

  @property
  def begun(self) -> bool:
    """Whether its directory holds a run."""
    return (self.directory / 'config.json').is_file()

  @property
  def finished(self) -> bool:
    """Whether that run has a result."""
    return self.begun and (self.directory / 'summary.json').is_file()


def run_suite(config: pathlib.Path, output_dir: pathlib.Path) -> list[pathlib.Path]:
  """Does the runs of a suite that are not done yet.

  The file is a JSON object of `base`, configuration keys of all runs; `runs`, a list of objects of
  a `name` and the keys that this run adds or changes; and `seeds`. Run NAME with seed K goes to
  `output_dir`/runs/NAME-seedK. One seed is done for all runs before the next, so that a suite that
  is cut short can be compared too. A run that fails does not keep the others from running.

  Args:
    config: the file.
    output_dir: made if missing. Finished runs of the same suite in it are kept, others go on from
      their last round.

  Returns:
    The directories of all runs.

  Raises:
    UserError: naming what is wrong with the file, or the directory that holds another run, before
      any run begins; or naming the runs that failed, after the others.
  """
  runs = plan(config, output_dir)
  if output_dir.exists() and not output_dir.is_dir():
    raise UserError(f'--output-dir {output_dir} is not a directory.')
  for run in runs:
    _check_directory(run)
  failed = []
  for number, run in enumerate(runs, start=1):
    if run.finished:
      _say(f'[{number}/{len(runs)}] {run.name}: done before')
      continue
    _say(f'[{number}/{len(runs)}] {run.name}: {"going on" if run.begun else "starting"}')
    try:
      _train_apart(run)
    except UserError as error:
      _say(f'{run.name} failed: {error}')
      failed.append(run.name)
  if failed:
    raise UserError(
      f'{len(failed)} of {len(runs)} runs failed ({", ".join(failed)}); mend what is said above and'
      ' run the suite again: finished runs are kept.'
    )
  return [run.directory for run in runs]


def plan(config: pathlib.Path, output_dir: pathlib.Path) -> list[PlannedRun]:
  """Reads a suite's file and resolves all its runs, seed by seed.

  Raises:
    UserError: as `run_suite`, of the file alone.
  """
  suite = _read(config)
  planned: list[PlannedRun] = []
  for seed in suite['seeds']:
    for entry in suite['runs']:
      name = entry['name']
      values = {**suite['base'], **entry, 'seed': seed}
      del values['name']
      try:
        resolved = config_files.from_values('its settings', values)
        registry.find_task(resolved.task)
      except UserError as error:
        raise UserError(f'{config}: run {name!r}: {error}') from error
      directory = output_dir / 'runs' / f'{name}-seed{seed}'
      run = PlannedRun(directory.name, directory, resolved, tuple(values))
      twins = [other.name for other in planned if other.config == resolved]
      if twins:
        raise UserError(f'{config}: runs {twins[0]} and {run.name} have the same settings.')
      planned.append(run)
  return planned


def _read(path: pathlib.Path) -> dict[str, Any]:
  suite = read_json(path)
  if not isinstance(suite, dict):
    raise UserError(f'{path} must hold a JSON object with {", ".join(_KEYS)}.')
  for key in suite:
    if key not in _KEYS:
      raise UserError(f'{path}: unknown key {key!r}; a suite has {", ".join(_KEYS)}.')
  suite = {'base': {}, 'seeds': [0], **suite}
  problem = _base_problem(suite['base']) or _runs_problem(suite.get('runs'))
  problem = problem or _seeds_problem(suite['seeds'])
  if problem:
    raise UserError(f'{path}: {problem}')
  return suite


def _base_problem(base: Any) -> str | None:
  if not isinstance(base, dict):
    return "'base' must be an object of configuration keys."
  return _reserved_problem("'base'", base, ('seed', 'name'))


def _runs_problem(runs: Any) -> str | None:
  if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
    return "'runs' must be a list of objects, one for each run."
  names = [run.get('name') for run in runs]
  for place, (run, name) in enumerate(zip(runs, names, strict=True), start=1):
    if not isinstance(name, str) or not _NAME.fullmatch(name):
      return f"run {place} needs a 'name' of letters, digits, '.', '_' and '-', got {name!r}."
    if names.index(name) < place - 1:
      return f'two runs are named {name!r}.'
    problem = _reserved_problem(f'run {name!r}', run, ('seed',))
    if problem:
      return problem
  return None


def _reserved_problem(where: str, keys: Mapping[str, Any], reserved: Sequence[str]) -> str | None:
  for key in reserved:
    if key in keys:
      mend = "list seeds in 'seeds'" if key == 'seed' else "give names in 'runs'"
      return f'{where} must not have {key!r}; {mend}.'
  return None


def _seeds_problem(seeds: Any) -> str | None:
  if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
    return "'seeds' must be a list of whole numbers."
  return f"'seeds' has a number twice: {seeds}." if len(set(seeds)) < len(seeds) else None


def _check_directory(run: PlannedRun) -> None:
  """Checks that a run can begin, go on, or is done, in its directory."""
  if run.begun:
    kept = config_files.from_json(run.directory / 'config.json')
    for field in dataclasses.fields(kept):
      have, want = (getattr(each, field.name) for each in (kept, run.config))
      if have != want and not (want is None and field.name in RESOLVED_LATER):
        raise UserError(
          f'{run.directory} holds a run with {option(field.name)} {have}, not {want}; choose'
          ' another --output-dir.'
        )
  if run.directory.exists() and not run.finished:
    RunDirectory(run.directory, resume=run.begun).close()


def _train_apart(run: PlannedRun) -> None:
  """Trains in a child: TensorFlow frees its memory, and its settings, with the process alone.

  Raises:
    UserError: what the run raised, or that its process ended otherwise.
  """
  context = multiprocessing.get_context('fork')
  receiver, sender = context.Pipe(duplex=False)
  child = context.Process(target=_child, args=(run, sender, os.getpid()))
  child.start()
  sender.close()
  try:
    child.join()
  except KeyboardInterrupt:
    if child.pid is not None and child.is_alive():
      os.kill(child.pid, signal.SIGINT)
      child.join()
    raise
  with contextlib.suppress(EOFError):  # It had nothing to say.
    raise receiver.recv()
  if child.exitcode:
    raise UserError(
      f'the process of the run ended with status {child.exitcode} (-9: out of memory?); finished'
      ' rounds are kept.'
    )


def _child(run: PlannedRun, sender: Connection, parent: int) -> None:
  """Trains, and sends the parent what a user can mend."""
  _die_with(parent)
  # Ctrl-C reaches the parent alone, which passes it on once, so that a round can end in order.
  os.setsid()
  try:
    flags = [word for key in run.given for word in as_flag(key, getattr(run.config, key))]
    command = ['hetlora', 'train', '--output-dir', str(run.directory), *flags]
    program = program_loader.import_program()
    program.train(run.config, run.directory, resume=run.begun, command=command)
  except (UserError, OSError) as error:
    sender.send(error)
  except KeyboardInterrupt:
    sys.exit(130)


def _die_with(parent: int) -> None:
  """Has the kernel kill this process when its parent ends, however it ends."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # It ended before.
      os._exit(1)


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
