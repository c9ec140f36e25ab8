# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run's numbers come to: evaluations, rounds and their summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import hetlora_tff
from tasks import metrics
from tasks.evaluator import Evaluator, rouge_l_by_client

_MAX_SAMPLES = 12


def evaluate(evaluator: Evaluator, parameters: Any, *, write: bool) -> dict[str, Any]:
  """Held-out loss and perplexity, by client and pooled; with `write` also text and RougeL."""
  losses = evaluator.losses(parameters)
  perplexity = metrics.pooled_perplexity(losses)
  result: dict[str, Any] = {
    'loss': float(np.log(perplexity)),
    'perplexity': perplexity,
    'clients': [
      {'client': client, 'loss': float(loss), 'tokens': int(count)}
      for client, loss, count in zip(*losses, strict=True)
    ],
    'written': [],
  }
  written = evaluator.write(parameters) if write else []
  if written:
    by_client = rouge_l_by_client(written)
    result['rouge_l'] = metrics.mean_interval(list(by_client.values())).mean
    result['rouge_l_by_client'] = by_client
    result['written'] = [w._asdict() for w in written]
  return result


def summarize(base: Mapping[str, Any], final: Mapping[str, Any]) -> dict[str, Any]:
  """Before, after and the paired change over the same held-out clients."""
  summary: dict[str, Any] = {
    name: {key: result[key] for key in ('perplexity', 'loss', 'rouge_l') if key in result}
    for name, result in (('base', base), ('final', final))
  }
  change = metrics.paired_relative_interval(_client_losses(base), _client_losses(final))
  summary['relative_perplexity_change'] = {**change._asdict(), 'clients': len(final['clients'])}
  summary['clients'] = len(final['clients'])
  if 'rouge_l' in final:
    before, after = base['rouge_l_by_client'], final['rouge_l_by_client']
    gains = [after[client] - before[client] for client in after]
    summary['rouge_l_change'] = {
      **metrics.mean_interval(gains)._asdict(),
      'clients': len(gains),
    }
  return summary


def round_row(
  measured: Mapping[str, Any], sizes: hetlora_tff.MessageSizes, ranks: np.ndarray
) -> dict[str, Any]:
  """The columns of `metrics.csv` that a round gives by itself.

  Args:
    measured: the metrics of the process.
    sizes: of its messages.
    ranks: int32 `[cohort]`, with which its clients trained.
  """
  sums = measured['client_work']
  predictions = float(sums['predictions'])
  row = {
    'train_loss': float(sums['loss']) / predictions if predictions else '',
    'upload_bytes': sum(sizes.upload(int(rank)) for rank in ranks),
    'download_bytes': sum(sizes.download(int(rank)) for rank in ranks),
    'cohort_clients': int(sums['clients']),
    'pruned_clients': int(sums['pruned_clients']),
    'non_finite_clients': int(sums['non_finite_clients']),
    'mean_rank': round(float(ranks.mean()), 3) if sizes.layout else '',
    'trained_parameters': int(sums['trained_parameters']),
  }
  if 'deviation_from_exact' in measured:
    row['deviation_from_exact'] = float(measured['deviation_from_exact'])
  return row


def bytes_by_rank(sizes: hetlora_tff.MessageSizes, ranks: np.ndarray) -> list[dict[str, int]]:
  """What a device of each rank trains, and what it sends; none for a method without ranks."""
  if sizes.layout is None:
    return []
  return [
    {'rank': rank, 'slice_bytes': sizes.slice(rank), 'padded_bytes': sizes.upload(rank)}
    for rank in sorted({int(rank) for rank in ranks})
  ]


def samples(before: Sequence[Mapping], after: Sequence[Mapping]) -> list[dict[str, str]]:
  """Some of the texts written before and after training."""
  pairs = list(zip(before, after, strict=True))[:_MAX_SAMPLES]
  return [
    {
      'client': new['client'],
      'source': new['source'],
      'reference': new['reference'],
      'base': old['prediction'],
      'tuned': new['prediction'],
    }
    for old, new in pairs
  ]


def _client_losses(evaluation: Mapping[str, Any]) -> metrics.ClientLosses:
  clients = evaluation['clients']
  return metrics.ClientLosses(
    tuple(c['client'] for c in clients),
    np.array([c['loss'] for c in clients]),
    np.array([c['tokens'] for c in clients], np.float64),
  )
