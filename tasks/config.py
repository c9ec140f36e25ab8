# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The settings of a run: one table for the configuration file, the flags and the record kept.

No TensorFlow here: `hetlora --help` and a wrong flag answer at once.
"""

import dataclasses
import json
import math
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from tasks.errors import UserError


def _key(default: Any, help_text: str, check: Callable[[Any], str | None] | None = None) -> Any:
  return dataclasses.field(default=default, metadata={'help': help_text, 'check': check})


def _at_least(bound: float) -> Callable[[Any], str | None]:
  return lambda value: None if value >= bound else f'must be at least {bound}'


def _seed(value: int) -> str | None:
  return None if 0 <= value < 2**31 else 'must be in [0, 2^31)'


def _positive(value: float) -> str | None:
  return None if value > 0 else 'must be positive'


def _in_unit(value: float) -> str | None:
  return None if 0 < value <= 1 else 'must be in (0, 1]'


def _one_of(*names: str) -> Callable[[Any], str | None]:
  return lambda value: None if value in names else f'must be one of {", ".join(names)}'


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All settings of `hetlora train`; every key is a flag of the same name.

  Raises:
    UserError: naming the option and what it takes.
  """

  task: str = _key('docstring_summarization', 'What to learn; `hetlora tasks` lists them.')
  seed: int = _key(0, 'Of initial adapters, ranks, splits, cohorts and data order.', _seed)
  rounds: int = _key(16, 'Federated rounds.', _at_least(1))
  clients_per_round: int = _key(10, 'Clients that train in a round.', _at_least(1))
  backbone: str = _key(
    'embedded',
    'Base model: `embedded`, a backbone directory, a keras-nlp preset name or directory, '
    'or a .keras file.',
  )
  sequence_length: int = _key(128, 'Tokens per example, source and target.', _at_least(32))
  targets: tuple[str, ...] = _key(
    ('query', 'value'), 'Modules to adapt: names or regular expressions, comma-separated.'
  )
  max_rank: int = _key(32, 'Rank of the server and of the largest device.', _at_least(1))
  min_rank: int = _key(4, 'Rank of the smallest device; none prunes itself below.', _at_least(1))
  rank_exponent: float = _key(0.1, 'Skew of the ranks: P(r) ~ r^(x - 1); 1 is uniform.', _positive)
  alpha: float = _key(64.0, 'LoRA alpha; the scale is alpha / max_rank for all.', _positive)
  prune_decay: float = _key(0.99, 'Self-pruning decay (gamma); 1 is off.', _in_unit)
  prune_weight: float = _key(
    0.01, 'Weight of the pruning penalty (lambda) in the loss.', _at_least(0)
  )
  weights: str = _key(
    'module', 'Client weights: uniform, module or model.', _one_of('uniform', 'module', 'model')
  )
  padding: str = _key('state', 'Zero padding: state or update.', _one_of('state', 'update'))
  distribution: str = _key(
    'broadcast', 'How adapters are sent: broadcast or select.', _one_of('broadcast', 'select')
  )
  local_steps: int = _key(5, 'Local steps of a client in a round.', _at_least(1))
  batch_size: int = _key(8, 'Examples per local step.', _at_least(1))
  client_optimizer: str = _key('adam', 'adam or sgd.', _one_of('adam', 'sgd'))
  client_learning_rate: float = _key(1e-2, 'Local learning rate.', _positive)
  server_optimizer: str = _key('sgd', 'sgd or adam.', _one_of('sgd', 'adam'))
  server_learning_rate: float = _key(1.0, 'Server learning rate.', _positive)
  eval_every: int = _key(4, 'Rounds between evaluations.', _at_least(1))
  eval_split: str = _key(
    'test', 'Held-out clients to evaluate on: test or validation.', _one_of('test', 'validation')
  )
  eval_examples_per_client: int = _key(16, 'Most examples of a held-out client.', _at_least(1))
  decode_examples: int = _key(
    128, 'Held-out examples to decode for RougeL at start and end; 0 for none.', _at_least(0)
  )
  concurrent_clients: int = _key(
    0, 'Clients that train at the same time; 0 for one per core.', _at_least(0)
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      check = field.metadata['check']
      if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'{option(field.name)} must be finite, got {value}.')
      problem = check(value) if check else None
      if problem:
        raise UserError(f'{option(field.name)} {problem}, got {value!r}.')
    if self.min_rank > self.max_rank:
      raise UserError(f'--min-rank {self.min_rank} is above --max-rank {self.max_rank}.')
    if not self.targets:
      raise UserError('--targets needs at least one module name.')

  def to_json(self) -> dict[str, Any]:
    """All values, as `config.json` keeps them."""
    return dataclasses.asdict(self)


def option(key: str) -> str:
  """The flag of a configuration key."""
  return '--' + key.replace('_', '-')


def from_json(path: pathlib.Path) -> RunConfig:
  """Reads a configuration that may leave out what has a default.

  Raises:
    UserError: naming the file and the key that is wrong.
  """
  return RunConfig(**_read(path))


def resolve(config_file: pathlib.Path | None, flags: Mapping[str, Any]) -> RunConfig:
  """Merges defaults, a JSON file and flags, the later over the earlier.

  Args:
    config_file: a JSON object of configuration keys.
    flags: values given on the command line.

  Raises:
    UserError: naming the file, key or option that is wrong.
  """
  values: dict[str, Any] = {}
  if config_file is not None:
    values.update(_read(config_file))
  values.update(flags)
  return RunConfig(**values)


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
  values = from_json(kept).to_json()
  given = {**(_read(config_file) if config_file else {}), **flags}
  for key, value in given.items():
    if key != 'rounds' and value != values[key]:
      raise UserError(
        f'{option(key)}: the run in {directory} has {values[key]!r}, and a resumed run keeps its '
        'configuration (only --rounds may change).'
      )
  return RunConfig(**{**values, **given})


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text('utf-8'))
  except OSError as error:
    raise UserError(f'Cannot read {path}: {error.strerror}.') from error
  except ValueError as error:
    raise UserError(f'{path} is not JSON: {error}.') from error
  if not isinstance(content, dict):
    raise UserError(f'{path} must hold a JSON object.')
  types_of = typing.get_type_hints(RunConfig)
  for key, value in content.items():
    if key not in types_of:
      raise UserError(f'{path}: unknown key {key!r}.')
    content[key] = _convert(path, key, value, types_of[key])
  return content


def _convert(path: pathlib.Path, key: str, value: Any, expected: Any) -> Any:
  if isinstance(expected, types.GenericAlias):
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
      return tuple(value)
  elif expected is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  elif type(value) is expected:
    return value
  name = 'a list of strings' if isinstance(expected, types.GenericAlias) else expected.__name__
  raise UserError(f'{path}: {key!r} must be {name}, got {value!r}.')
