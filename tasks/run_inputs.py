# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run depends on besides its configuration: kept at its start, compared when it goes on."""

import platform
from typing import Any

from tasks import dp_settings, harvest
from tasks.errors import UserError
from tasks.experiment import Experiment
from tasks.run_directory import REMOTE_WORKERS, SECRETS, RunDirectory

_ENVIRONMENT = 'environment.json'
_SECRET_INPUTS = f'{SECRETS}/inputs.json'
_DISTRIBUTIONS = (
  'tensorflow', 'tensorflow-federated', 'tensorflow-privacy', 'keras-nlp', 'keras', 'numpy',
  'hetlora-tff',
)  # fmt: skip


def check(experiment: Experiment, directory: RunDirectory) -> None:
  """Checks that model and data are those with which a run began.

  Raises:
    UserError: naming what has changed, or the file that does not say what was there.
  """
  recorded: dict[str, str] = {}
  for name in (_ENVIRONMENT, _SECRET_INPUTS):
    path = directory.root / name
    if not path.exists():  # None in this run, or a kill came right after `config.json`.
      continue
    content = directory.read_json(name)
    inputs = content.get('inputs', {}) if isinstance(content, dict) else None
    if not isinstance(inputs, dict):
      raise UserError(f'{path} does not describe a run.')
    recorded |= inputs
  experiment.check_inputs(recorded)


def record(experiment: Experiment, directory: RunDirectory, *, remote_workers: bool) -> None:
  """Writes what the run needs besides its configuration, and what made it.

  Args:
    experiment: of the run.
    directory: of the run.
    remote_workers: whether its clients train on other machines from now on.
  """
  public, secret = experiment.inputs(), {}
  if dp_settings.is_private(experiment.config):
    # Whoever knows all other clients could try out what the last one has.
    secret['data_sha256'] = public.pop('data_sha256')
    directory.write_json(_SECRET_INPUTS, {'inputs': secret})
  environment = _environment()
  # What they saw they saw, whoever does the rounds that are left.
  environment[REMOTE_WORKERS] = remote_workers or _had_remote_workers(directory)
  directory.write_json(_ENVIRONMENT, {'inputs': public, **environment})


def _had_remote_workers(directory: RunDirectory) -> bool:
  if not (directory.root / _ENVIRONMENT).exists():
    return False
  content = directory.read_json(_ENVIRONMENT)
  return isinstance(content, dict) and content.get(REMOTE_WORKERS) is True


def _environment() -> dict[str, Any]:
  return {
    'python': platform.python_version(),
    'platform': platform.platform(),
    'processor': platform.machine(),
    'packages': {name: harvest.version(name) for name in _DISTRIBUTIONS},
  }
