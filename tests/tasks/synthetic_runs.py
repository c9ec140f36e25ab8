# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Directories of finished runs that nothing trained."""

import csv
import json
import math
import pathlib
import random

from tasks import metrics

ROUNDS = 8
CONFIG = {
  'task': 'docstring_summarization',
  'method': 'hetlora',
  'seed': 0,
  'rounds': ROUNDS,
  'clients_per_round': 10,
  'backbone': 'embedded',
  'sequence_length': 128,
  'targets': ['query', 'value'],
  'max_rank': 32,
  'min_rank': 4,
  'prune_decay': 0.99,
  'weights': 'module',
  'padding': 'state',
  'local_steps': 5,
  'batch_size': 8,
  'eval_every': 2,
  'eval_split': 'validation',
  'eval_examples_per_client': 16,
  'decode_examples': 128,
}
_BASE_LOSS = 5.5


def write(
  directory: pathlib.Path,
  *,
  final_loss: float = 4.6,
  upload: float = 5e6,
  trained: float = 6e5,
  flops: float | None = 3e11,
  deviation: float | None = 0.3,
  rouge_l: float | None = 0.12,
  epsilons: tuple[float | None, float | None] | None = None,
  **config,
) -> pathlib.Path:
  """Writes a run.

  Args:
    directory: to make.
    final_loss: after the last round.
    upload: bytes a round; as many go down.
    trained: parameters of a round's clients.
    flops: of a round's clients, or None for a run that did not count them.
    deviation: from the exact average, or None likewise.
    rouge_l: after the last round, or None without decoding.
    epsilons: guaranteed and projected, of a privacy report; or None for a run without one.
    **config: what differs from `CONFIG`.

  Returns:
    The directory.
  """
  settings = {**CONFIG, **config}
  seed, rounds = settings['seed'], settings['rounds']
  noise = random.Random(f'{directory.name}')
  base_loss = _BASE_LOSS + 0.02 * seed
  directory.mkdir(parents=True)
  rows = []
  for number in range(rounds + 1):
    loss = final_loss + (base_loss - final_loss) * math.exp(-4 * number / rounds)
    loss += noise.gauss(0, 0.01) if 0 < number < rounds else 0
    row = {'round': number}
    if number % settings['eval_every'] == 0 or number == rounds:
      loss = final_loss if number == rounds else loss
      row |= {'eval_loss': loss, 'eval_perplexity': math.exp(loss)}
    if number:
      row |= {
        'train_loss': loss - 0.1,
        'upload_bytes': upload,
        'download_bytes': upload,
        'round_seconds': 9.0,
        'trained_parameters': trained,
        'client_flops': '' if flops is None else flops,
        'deviation_from_exact': '' if deviation is None else deviation * noise.uniform(0.7, 1.4),
      }
    rows.append(row)
  _write_csv(directory / 'metrics.csv', rows)
  _write_json(directory / 'config.json', settings)
  inputs = {'backbone_sha256': 'b' * 64, 'data_sha256': f'{seed:064d}'}
  _write_json(directory / 'environment.json', {'inputs': inputs})
  base, final = {'loss': base_loss}, {'loss': final_loss}
  if rouge_l is not None:
    base['rouge_l'], final['rouge_l'] = 0.05, rouge_l
  _write_json(directory / 'summary.json', {'base': base, 'final': final})
  if epsilons is not None:
    headline = dict(zip(('epsilon', 'projected_epsilon'), epsilons, strict=True))
    _write_json(directory / 'privacy_report.json', {'headline': headline})
  return directory


def client_results(clients: int = 58) -> dict:
  """What `summary.json` says of single clients: distributions and own adapters."""
  noise = random.Random(0)
  base = [math.exp(noise.gauss(_BASE_LOSS, 0.6)) for _ in range(clients)]
  tuned = [x * math.exp(noise.gauss(-0.4, 0.1)) for x in base]
  own = [x * math.exp(noise.gauss(-0.03, 0.05)) for x in tuned[:16]]
  scores = [[min(1, max(0, noise.gauss(x, 0.05))) for _ in base] for x in (0.05, 0.12)]

  def spread(values, high_is_worse):
    return metrics.distribution(values, high_is_worse=high_is_worse)

  return {
    'distribution': {
      'perplexity': {'base': spread(base, True), 'final': spread(tuned, True)},
      'rouge_1': {'base': spread(scores[0], False), 'final': spread(scores[1], False)},
      'rouge_l': {'base': spread(scores[0], False), 'final': spread(scores[1], False)},
    },
    'personalization': {
      'clients': 16,
      'left_out': 3,
      'non_finite': 0,
      'before': 201.5,
      'after': 196.2,
      'relative_perplexity_change': {'mean': -0.026, 'low': -0.04, 'high': -0.01, 'clients': 16},
      'better': sum(x < y for x, y in zip(own, tuned, strict=False)),
      'distribution': {'before': spread(tuned[:16], True), 'after': spread(own, True)},
      'tiers': [
        {'rank_up_to': 4, 'clients': 9, 'before': 210.0, 'after': 206.0},
        {'rank_up_to': 32, 'clients': 7, 'before': 190.0, 'after': 183.0},
      ],
      'by_client': [
        {'client': f'c{index}', 'rank': 4, 'before': before, 'after': after}
        for index, (before, after) in enumerate(zip(tuned, own, strict=False))
      ],
    },
    'left_out': ['12 records without an author.', '1,204 clients with fewer than 20 examples.'],
  }


def change_json(path: pathlib.Path, **changes) -> None:
  """Sets keys of a JSON file."""
  _write_json(path, {**json.loads(path.read_text()), **changes})


def _write_json(path: pathlib.Path, content) -> None:
  path.write_text(json.dumps(content))


def _write_csv(path: pathlib.Path, rows) -> None:
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[-1] | rows[0]), restval='')
    writer.writeheader()
    writer.writerows(rows)
