# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Directories of private runs that nothing trained: settings, a ledger, metrics and draws."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from privacy.ledger import Ledger
from tasks import dp_settings
from tasks.config import RunConfig

CLIENTS, COORDINATES = 250, 10_000
_CENTRAL = {'privacy': 'central', 'noise_multiplier': 1.0, 'delta': 1e-4}
_TREE = {
  'privacy': 'tree', 'noise_multiplier': 6.0, 'delta': 1e-4, 'min_separation': 5,
  'max_participations': 4,
}  # fmt: skip
# The settings of runs that a report says different things about.
KINDS: dict[str, dict[str, Any]] = {
  'poisson': {**_CENTRAL, 'target_epsilon': 4.0},
  'tree': _TREE,
  'fixed': {**_CENTRAL, 'sampling': 'fixed', 'noise_multiplier': 8.0},
  'projection': {
    **_CENTRAL, 'population_size': 1_000_000, 'noise_cohort_size': 10_000, 'delta': 1e-7,
    'target_epsilon': 2.0,
  },
  'none': {},
  'no_noise': {**_CENTRAL, 'noise_multiplier': 0.0},
  'seeded': {**_CENTRAL, 'insecure_seeded_noise': True},
}  # fmt: skip


def write(
  directory: pathlib.Path,
  kind: str,
  *,
  rounds: int = 16,
  torn: bool = False,
  draws: Iterable[Iterable[int]] = (),
  **settings: Any,
) -> pathlib.Path:
  """Writes a run.

  Args:
    directory: to make.
    kind: of `KINDS`.
    rounds: that were started, each once.
    torn: whether a kill tore the ledger's line of another round.
    draws: who took part in the first rounds, as indices of clients.
    **settings: keys of the configuration that differ.

  Returns:
    The directory.
  """
  config = RunConfig(rounds=max(1, rounds), **{**KINDS[kind], **settings})
  config = dp_settings.settle(config, config.population_size or CLIENTS, COORDINATES)
  directory.mkdir(parents=True)
  write_json(directory / 'config.json', config.to_json())
  write_json(
    directory / 'environment.json',
    {'python': '3.11.2', 'packages': {'tensorflow-federated': '0.87.0'}},
  )
  lines = ['round,train_loss,eval_loss,eval_perplexity']
  lines += [f'{i},,{5 - i / 50:.4f},{148 - i:.2f}' for i in range(rounds + 1)]
  (directory / 'metrics.csv').write_text('\n'.join(lines) + '\n')
  if dp_settings.is_private(config):
    _write_ledger(directory / 'ledger.jsonl', config, rounds, torn)
    (directory / 'secrets').mkdir(mode=0o700)
    _write_draws(directory / 'secrets/draws.jsonl', draws)
  return directory


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes a JSON file."""
  path.write_text(json.dumps(content))


def _write_ledger(path: pathlib.Path, config: RunConfig, rounds: int, torn: bool) -> None:
  ledger = Ledger(path)
  spec = dp_settings.spec_of(config)
  digest = dp_settings.digest(config)
  ledger.begin(spec, digest, delta=config.delta, target_epsilon=config.target_epsilon)
  is_tree = config.privacy == 'tree'
  for number in range(1, rounds + 1):
    place = {'tree': 0, 'leaf': number - 1} if is_tree else {}
    ledger.start_round(number, **place)
  if torn:
    with path.open('ab') as file:
      file.write(b'{"index": 17, "kind": "rou')


def _write_draws(path: pathlib.Path, draws: Iterable[Iterable[int]]) -> None:
  lines = [
    json.dumps({'round_number': number, 'attempt': number - 1, 'clients': sorted(clients)})
    for number, clients in enumerate(draws, 1)
  ]
  path.write_text(''.join(f'{line}\n' for line in lines))
  path.chmod(0o600)
