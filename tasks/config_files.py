# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Configurations from files, flags and the records of runs; no TensorFlow."""

import difflib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tasks import values
from tasks.config import TYPES, RunConfig, is_open
from tasks.errors import UserError
from tasks.files import read_json
from tasks.options import option

_PATHS = ('rank_file', 'data_dir', 'initial_adapter')


def from_json(path: pathlib.Path) -> RunConfig:
  """Reads a configuration that may leave out what has a default.

  Raises:
    UserError: naming the file and the key that is wrong.
  """
  return RunConfig(**_read(path))


def from_values(source: str | os.PathLike, content: Any) -> RunConfig:
  """Makes a configuration of JSON values; null leaves a key open that depends on others.

  Args:
    source: what to name in errors.
    content: an object of configuration keys; may leave out what has a default.

  Raises:
    UserError: naming the source and the key that is wrong.
  """
  return RunConfig(**_with_absolute_paths(_typed(source, content)))


def resolve(config_file: pathlib.Path | None, flags: Mapping[str, Any]) -> RunConfig:
  """Merges defaults, a JSON file and flags, the later over the earlier.

  Args:
    config_file: a JSON object of configuration keys.
    flags: values given on the command line.

  Raises:
    UserError: naming the file, key or option that is wrong.
  """
  given = {**(_read(config_file) if config_file else {}), **flags}
  return RunConfig(**_with_absolute_paths(given))


def resolve_resumed(
  directory: pathlib.Path, config_file: pathlib.Path | None, flags: Mapping[str, Any]
) -> RunConfig:
  """The configuration of the run in a directory, of which only the number of rounds may change.

  Args:
    directory: of the run.
    config_file: as in `resolve`; may repeat what the run has.
    flags: likewise.

  Raises:
    UserError: naming what differs, or the directory without a run.
  """
  kept = directory / 'config.json'
  if not kept.is_file():
    raise UserError(f'--resume: {directory} holds no run (no config.json).')
  kept = from_json(kept).to_json()
  given = _with_absolute_paths({**(_read(config_file) if config_file else {}), **flags})
  changed = {key: value for key, value in given.items() if value not in (None, kept[key])}
  for key in changed:
    if key != 'rounds':
      raise UserError(
        f'{option(key)}: the run in {directory} has {kept[key]!r}, and a resumed run keeps its '
        'configuration (only --rounds may change).'
      )
  return RunConfig(**{**kept, **changed})


def _with_absolute_paths(given: dict[str, Any]) -> dict[str, Any]:
  """The same files from wherever the run is resumed or evaluated."""
  paths = {key: os.path.abspath(given[key]) for key in _PATHS if given.get(key)}
  if os.path.exists(given.get('backbone') or ''):  # Else it is a name.
    paths['backbone'] = os.path.abspath(given['backbone'])
  file, _, name = str(given.get('task', '')).rpartition(':')
  if file.endswith('.py'):
    paths['task'] = f'{os.path.abspath(file)}:{name}'
  return {**given, **paths}


def _read(path: pathlib.Path) -> dict[str, Any]:
  return _typed(path, read_json(path))


def _typed(source: str | os.PathLike, content: Any) -> dict[str, Any]:
  if not isinstance(content, dict):
    raise UserError(f'{source} must hold a JSON object.')
  return {key: _convert(source, key, value) for key, value in content.items()}


def _convert(source: str | os.PathLike, key: str, value: Any) -> Any:
  if key not in TYPES:
    near = difflib.get_close_matches(key, TYPES, 1)
    meant = f'; did you mean {near[0]!r}?' if near else '.'
    raise UserError(f'{source}: unknown key {key!r}{meant}')
  if value is None and is_open(RunConfig.__dataclass_fields__[key]):
    return None
  try:
    return values.from_json(TYPES[key], value)
  except ValueError as error:
    expected = values.type_name(TYPES[key])
    raise UserError(f'{source}: {key!r} must be {expected}, got {value!r}.') from error
