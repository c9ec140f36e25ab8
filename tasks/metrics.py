# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Perplexity, Rouge and accuracy over clients: means with intervals, and their distribution."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rouge_score import rouge_scorer
from scipy import stats

# Rouge-1 and Rouge-2 count common words and pairs of words, RougeL the longest common subsequence.
ROUGE = {'rouge_1': 'rouge1', 'rouge_2': 'rouge2', 'rouge_l': 'rougeL'}
# The exponential of a larger loss could not be squared and summed over clients.
_LARGEST_LOSS = 300.0


class Interval(NamedTuple):
  """A mean and its two-sided confidence interval; no bounds from a single value."""

  mean: float
  low: float | None
  high: float | None


class ClientLosses(NamedTuple):
  """Held-out losses by client.

  Attributes:
    clients: Client ids, in order of first appearance.
    losses: Mean negative log-likelihood of a client's target tokens, nats per token, float64 [n].
    token_counts: Target tokens of each client, float64 [n].
  """

  clients: tuple[str, ...]
  losses: np.ndarray
  token_counts: np.ndarray


def _checked_vector(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
  vector = np.asarray(values, np.float64)
  if vector.ndim != 1:
    raise ValueError(f'{name} must be one-dimensional; got shape {vector.shape}.')
  if not len(vector):
    raise ValueError(f'{name} is empty; there is nothing to measure.')
  finite = np.isfinite(vector)
  if not finite.all():
    index = int(np.argmin(finite))
    raise ValueError(f'{name} must be finite; value {index} is {vector[index]}.')
  return vector


def perplexity(nll_sum: float, token_count: float) -> float:
  """Returns exp(nll_sum / token_count), or infinity where that overflows a float64.

  Args:
    nll_sum: Negative log-likelihood summed over tokens, nats.
    token_count: Number of these tokens.

  Raises:
    ValueError: If there are no tokens or the sum is not finite.
  """
  if not token_count > 0:
    raise ValueError(f'token_count must be positive; got {token_count}.')
  if not math.isfinite(nll_sum):
    raise ValueError(f'nll_sum must be finite; got {nll_sum}.')
  try:
    return math.exp(nll_sum / token_count)
  except OverflowError:
    return math.inf


def client_losses(
  clients: Sequence[str], nll_sums: Sequence[float], token_counts: Sequence[float]
) -> ClientLosses:
  """Reduces examples to one loss for each client.

  Clients whose examples hold no target token have no loss and are left out.

  Args:
    clients: The client of each example.
    nll_sums: Negative log-likelihood of each example's target tokens, summed, nats.
    token_counts: Number of target tokens of each example.

  Raises:
    ValueError: If the lengths differ, a value is not finite, a count is negative, or no token is
      left.
  """
  nll, counts = _checked_vector('nll_sums', nll_sums), _checked_vector('token_counts', token_counts)
  if not len(clients) == len(nll) == len(counts):
    raise ValueError(
      'clients, nll_sums and token_counts must have one entry for each example; got'
      f' {len(clients)}, {len(nll)} and {len(counts)}.'
    )
  if counts.min() < 0:
    raise ValueError(f'token_counts must not be negative; got {counts.min()}.')
  rows: dict[str, int] = {}
  index = [rows.setdefault(client, len(rows)) for client in clients]
  nll_by_client = np.bincount(index, nll, len(rows))
  tokens_by_client = np.bincount(index, counts, len(rows))
  kept = tokens_by_client > 0
  if not kept.any():
    raise ValueError('token_counts: no example has a target token; there is nothing to measure.')
  return ClientLosses(
    clients=tuple(client for client, keep in zip(rows, kept, strict=True) if keep),
    losses=nll_by_client[kept] / tokens_by_client[kept],
    token_counts=tokens_by_client[kept],
  )


def pooled_perplexity(losses: ClientLosses) -> float:
  """Returns the perplexity over all tokens of all clients."""
  return perplexity(float(losses.losses @ losses.token_counts), float(losses.token_counts.sum()))


def client_means(clients: Sequence[str], values: Sequence[float]) -> dict[str, float]:
  """Returns each client's mean of its examples' values, in order of first appearance.

  Raises:
    ValueError: If the lengths differ, there are no values, or one is not finite.
  """
  vector = _checked_vector('values', values)
  losses = client_losses(clients, vector.tolist(), np.ones_like(vector).tolist())
  return dict(zip(losses.clients, losses.losses.tolist(), strict=True))


def _ratio_interval(values: np.ndarray, weights: np.ndarray, confidence: float) -> Interval:
  """Student's t interval of sum(w x) / sum(w), by linearising the ratio over clients."""
  if not 0 < confidence < 1:
    raise ValueError(f'confidence must be between 0 and 1; got {confidence}.')
  mean, n = float(values @ weights / weights.sum()), len(values)
  if n == 1:
    return Interval(mean, None, None)
  residuals = weights / weights.mean() * (values - mean)
  error = math.sqrt(residuals @ residuals / (n * (n - 1)))
  margin = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
  return Interval(mean, mean - margin, mean + margin)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
  """Returns the mean of independent values, one for each client, with Student's t interval.

  Args:
    values: One value for each client; examples of one client are not independent, so average them
      first (`client_means`).
    confidence: Probability with which the interval covers the mean of the population of clients.

  Raises:
    ValueError: If there are no values, one is not finite, or `confidence` is not in (0, 1).
  """
  vector = _checked_vector('values', values)
  return _ratio_interval(vector, np.ones_like(vector), confidence)


def paired_relative_interval(
  before: ClientLosses, after: ClientLosses, confidence: float = 0.95
) -> Interval:
  """Returns the relative change of the pooled perplexity, with an interval over clients.

  With client losses l, token counts n, the change is exp(sum_k n_k (l'_k - l_k) / sum_k n_k) - 1,
  exactly what the two pooled perplexities give. The interval is Student's t on the differences of
  log-perplexity, with the ratio linearised over clients (Cochran, Sampling Techniques, section 6),
  and then mapped through exp(x) - 1. A t interval rather than a bootstrap because the differences
  of logarithms are close to symmetric, a bootstrap covers too little with few clients, and the
  result needs no seed. Pairing removes how hard each client's text is, which varies far more than
  the gain does.

  Args:
    before: Losses of the untuned model.
    after: Losses of the tuned model, for the same clients in the same order and the same tokens.
    confidence: Probability with which the interval covers the population's change.

  Returns:
    Fractions: -0.3 means that the perplexity is 30 % lower.

  Raises:
    ValueError: If the clients or their token counts differ, a loss is not finite, or `confidence`
      is not in (0, 1).
  """
  if before.clients != after.clients:
    raise ValueError('before and after must hold the same clients in the same order.')
  if not np.array_equal(before.token_counts, after.token_counts):
    raise ValueError('before and after must hold the same target tokens for each client.')
  differences = _checked_vector('after', after.losses) - _checked_vector('before', before.losses)
  interval = _ratio_interval(differences, np.asarray(before.token_counts, np.float64), confidence)
  low, high = (None if x is None else math.expm1(x) for x in (interval.low, interval.high))
  return Interval(math.expm1(interval.mean), low, high)


def client_perplexities(losses: ClientLosses) -> np.ndarray:
  """Returns the perplexity of every client by itself, float64 [n]; at most exp(300)."""
  return np.exp(np.minimum(losses.losses, _LARGEST_LOSS))


def distribution(
  values: Sequence[float] | np.ndarray, *, high_is_worse: bool, confidence: float = 0.95
) -> dict[str, Any]:
  """Returns how a measure is spread over clients, each counting the same.

  Args:
    values: One value for each client.
    high_is_worse: Whether the worst clients are those with the largest values.
    confidence: Of the interval of the mean, see `mean_interval`.

  Returns:
    `clients`, their number; `mean` with its interval `low` and `high`, None for a single client;
    `deciles`, the nine values below which 10, 20, ... 90 % of the clients lie, with linear
    interpolation; `worst_decile_mean`, the mean of the worst tenth of the clients, at least of one.

  Raises:
    ValueError: If there are no values, one is not finite, or `confidence` is not in (0, 1).
  """
  ordered = np.sort(_checked_vector('values', values))
  size = len(ordered)
  worst = ordered[-math.ceil(size / 10) :] if high_is_worse else ordered[: math.ceil(size / 10)]
  return {
    'clients': size,
    **mean_interval(ordered, confidence)._asdict(),
    'deciles': np.quantile(ordered, np.arange(1, 10) / 10).tolist(),
    'worst_decile_mean': float(worst.mean()),
  }


def perplexity_distribution(losses: ClientLosses) -> dict[str, Any]:
  """Returns how perplexity is spread over clients: `distribution` of the losses, through exp.

  Means are geometric so: an arithmetic one of perplexities is that of the few worst clients.
  """
  spread = distribution(np.minimum(losses.losses, _LARGEST_LOSS), high_is_worse=True)
  return {
    name: value
    if name == 'clients' or value is None
    else np.exp(np.minimum(value, _LARGEST_LOSS)).tolist()
    for name, value in spread.items()
  }


def rouge_scores(references: Sequence[str], predictions: Sequence[str]) -> dict[str, list[float]]:
  """Returns the Rouge F-measures of every prediction, in [0, 1], by the names of `ROUGE`.

  Overlaps of words after Porter stemming (Lin, 2004), as `rouge_score` computes them. Its tokenizer
  keeps ASCII letters and digits only, so other scripts score 0. An empty prediction or reference
  scores 0.

  Raises:
    ValueError: If there are no references or their number is not that of the predictions.
  """
  if not len(references):
    raise ValueError('references is empty; there is nothing to measure.')
  if len(references) != len(predictions):
    raise ValueError(
      f'references and predictions must be of one length; got {len(references)} and'
      f' {len(predictions)}.'
    )
  scorer = rouge_scorer.RougeScorer(list(ROUGE.values()), use_stemmer=True)
  pairs = zip(references, predictions, strict=True)
  scores = [scorer.score(target, text) for target, text in pairs]
  return {name: [float(score[key].fmeasure) for score in scores] for name, key in ROUGE.items()}
