# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run's numbers come to: evaluations, rounds and their summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import hetlora_tff
from tasks import metrics
from tasks.evaluator import Evaluator, Written

_MAX_SAMPLES = 12
# Means over clients of which higher is better, by their column of `metrics.csv`.
_SCORES = {**{name: f'eval_{name}' for name in metrics.ROUGE}, 'accuracy': 'eval_accuracy'}


def evaluate(evaluator: Evaluator, parameters: Any, *, write: bool) -> dict[str, Any]:
  """Measures held-out clients.

  Args:
    evaluator: of the clients.
    parameters: what it is to evaluate.
    write: whether to decode text, too.

  Returns:
    `loss` and `perplexity`, pooled; `accuracy` where texts have labels and `rouge_1`, `rouge_2` and
    `rouge_l` of decoded text, each the mean over clients; `clients`, the loss of each, and
    `scores`, the values of each client by score; `distribution` over clients, by measure; and what
    was `written`.
  """
  measured = evaluator.measure(parameters)
  written = evaluator.write(parameters) if write else []
  scores = {'accuracy': dict(measured.accuracy)} if measured.accuracy else {}
  if written and not scores:
    scores = _rouge_by_client(written)
  perplexity = metrics.pooled_perplexity(measured.losses)
  spread = {name: list(by_client.values()) for name, by_client in scores.items()}
  distribution = {
    'perplexity': metrics.perplexity_distribution(measured.losses),
    **{name: metrics.distribution(x, high_is_worse=False) for name, x in spread.items()},
  }
  return {
    'loss': float(np.log(perplexity)),
    'perplexity': perplexity,
    **{name: distribution[name]['mean'] for name in scores},
    'clients': [
      {'client': client, 'loss': float(loss), 'tokens': int(count)}
      for client, loss, count in zip(*measured.losses, strict=True)
    ],
    'scores': scores,
    'distribution': distribution,
    'written': [w._asdict() for w in written],
  }


def evaluation_row(evaluation: Mapping[str, Any]) -> dict[str, Any]:
  """The columns of `metrics.csv` that an evaluation gives.

  Args:
    evaluation: of `evaluate`.
  """
  spread = evaluation['distribution']['perplexity']
  return {
    'eval_loss': evaluation['loss'],
    'eval_perplexity': evaluation['perplexity'],
    'eval_client_perplexity_mean': spread['mean'],
    'eval_client_perplexity_worst_decile': spread['worst_decile_mean'],
    **{column: evaluation[name] for name, column in _SCORES.items() if name in evaluation},
  }


def summarize(
  base: Mapping[str, Any], final: Mapping[str, Any], *, single_clients: bool
) -> dict[str, Any]:
  """Before, after and the paired change over the same held-out clients.

  Args:
    base: of `evaluate`, for the untuned base model.
    final: likewise, for the tuned one.
    single_clients: whether there may be a distribution, whose deciles are single clients.
  """
  scores = [name for name in _SCORES if name in final]
  summary: dict[str, Any] = {
    name: {key: result[key] for key in ('perplexity', 'loss', *scores)}
    for name, result in (('base', base), ('final', final))
  }
  change = metrics.paired_relative_interval(_client_losses(base), _client_losses(final))
  summary['relative_perplexity_change'] = {**change._asdict(), 'clients': len(final['clients'])}
  summary['clients'] = len(final['clients'])
  for name in scores:
    before, after = base['scores'][name], final['scores'][name]
    gains = [after[client] - before[client] for client in after]
    interval = metrics.mean_interval(gains)
    summary[f'{name}_change'] = {**interval._asdict(), 'clients': len(gains)}
  if single_clients:
    summary['distribution'] = {
      name: {'base': base['distribution'][name], 'final': spread}
      for name, spread in final['distribution'].items()
    }
  return summary


def personalization(
  clients: Sequence[str],
  outputs: Sequence[Mapping[str, Any]],
  *,
  left_out: int,
  tiers: Sequence[int] = (),
) -> dict[str, Any]:
  """What held-out clients gain by an adapter of their own.

  Args:
    clients: their ids.
    outputs: of `hetlora_tff.build_hetlora_personalization_eval`, in the same order.
    left_out: number of clients that were passed over since they had one example only, and so none
      to be measured on.
    tiers: the largest rank of each tier, ascending; none for no table by tier.

  Returns:
    Perplexities `before` and `after` local steps, pooled, with their relative change and its
    interval, and the same by tier and by client; how many clients are `better` off;
    `distribution` over clients; `left_out`, and how many were `non_finite` and are left out, too.
  """
  rows = [
    {
      'client': client,
      'rank': int(output['rank']),
      'before': float(output['before']['loss']),
      'after': float(output['after']['loss']),
      'tokens': float(output['before']['predictions']),
    }
    for client, output in zip(clients, outputs, strict=True)
  ]
  finite = [row for row in rows if np.isfinite([row['before'], row['after']]).all()]
  kept = [row for row in finite if row['tokens']]
  result = {'clients': len(kept), 'left_out': left_out, 'non_finite': len(rows) - len(finite)}
  if not kept:
    return result
  shared, own = (_own_losses(kept, when) for when in ('before', 'after'))
  change = metrics.paired_relative_interval(shared, own)
  by_client = [metrics.client_perplexities(x).tolist() for x in (shared, own)]
  bounds = list(zip([0, *tiers], tiers, strict=False))
  return {
    **result,
    **_before_and_after(kept),
    'relative_perplexity_change': {**change._asdict(), 'clients': len(kept)},
    'better': int(np.sum(own.losses < shared.losses)),
    'distribution': {
      when: metrics.perplexity_distribution(x) for when, x in (('before', shared), ('after', own))
    },
    'tiers': [
      {'rank_up_to': high, 'clients': len(inside), **_before_and_after(inside)}
      for low, high in bounds
      if (inside := [row for row in kept if low < row['rank'] <= high])
    ],
    'by_client': [
      {'client': row['client'], 'rank': row['rank'], 'before': before, 'after': after}
      for row, before, after in zip(kept, *by_client, strict=True)
    ],
  }


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
  """Some of the texts written, or labels given, before and after training."""
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


def _rouge_by_client(written: Sequence[Written]) -> dict[str, dict[str, float]]:
  scores = metrics.rouge_scores([w.reference for w in written], [w.prediction for w in written])
  clients = [w.client for w in written]
  return {name: metrics.client_means(clients, values) for name, values in scores.items()}


def _client_losses(evaluation: Mapping[str, Any]) -> metrics.ClientLosses:
  clients = evaluation['clients']
  return metrics.ClientLosses(
    tuple(c['client'] for c in clients),
    np.array([c['loss'] for c in clients]),
    np.array([c['tokens'] for c in clients], np.float64),
  )


def _own_losses(rows: Sequence[Mapping[str, Any]], when: str) -> metrics.ClientLosses:
  clients, sums, tokens = zip(*((r['client'], r[when], r['tokens']) for r in rows), strict=True)
  return metrics.client_losses(clients, sums, tokens)


def _before_and_after(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  return {when: metrics.pooled_perplexity(_own_losses(rows, when)) for when in ('before', 'after')}
