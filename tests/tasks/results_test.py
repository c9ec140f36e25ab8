# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import math

import numpy as np
import pytest

from tasks import metrics, results
from tasks.evaluator import Measured, Written

_LOSSES = metrics.ClientLosses(('a', 'b', 'c'), np.array([1.0, 2.0, 4.0]), np.array([8, 4, 4.0]))
_WRITTEN = [
  Written('a', 's', 'the cat sat', 'the cat sat'),
  Written('b', 's', 'the cat sat', 'the cat sat'),
  Written('a', 's', 'the cat sat', 'dogs'),
]


class _Evaluator:
  """Stands in for `tasks.evaluator.Evaluator`; its parameter is what all losses gain."""

  def __init__(self, accuracy=None, written=()):
    self._accuracy = accuracy or {}
    self._written = list(written)

  def measure(self, gain):
    losses = _LOSSES._replace(losses=_LOSSES.losses - gain)
    return Measured(losses, {c: x + gain / 10 for c, x in self._accuracy.items()})

  def write(self, gain):
    return self._written


def _evaluate(gain=0.0, write=True, **evaluator):
  return results.evaluate(_Evaluator(**evaluator), gain, write=write)


def test_every_client_counts_the_same_in_scores():
  evaluation = _evaluate(written=_WRITTEN)
  assert evaluation['scores']['rouge_2'] == {'a': 0.5, 'b': 1.0}
  for name in ('rouge_1', 'rouge_2', 'rouge_l'):
    assert evaluation[name] == pytest.approx(0.75)
  assert evaluation['written'][2]['prediction'] == 'dogs'


def test_perplexity_is_pooled_and_spread_over_clients():
  evaluation = _evaluate(write=False)
  assert evaluation['loss'] == pytest.approx((8 * 1 + 4 * 2 + 4 * 4) / 16)
  spread = evaluation['distribution']
  assert list(spread) == ['perplexity']
  assert spread['perplexity']['mean'] == pytest.approx(math.exp(7 / 3))
  assert spread['perplexity']['worst_decile_mean'] == pytest.approx(math.exp(4))
  assert evaluation['written'] == []


def test_accuracy_does_not_wait_for_writing():
  evaluation = _evaluate(write=False, accuracy={'a': 0.5, 'b': 0.0, 'c': 1.0})
  assert evaluation['accuracy'] == pytest.approx(0.5)
  assert evaluation['distribution']['accuracy']['worst_decile_mean'] == 0.0
  labelled = _evaluate(write=True, accuracy={'a': 0.5}, written=_WRITTEN)
  assert set(labelled['scores']) == {'accuracy'}  # Labels are no text.


def test_row_has_what_was_measured():
  plain = _evaluate(written=_WRITTEN)
  row = results.evaluation_row(plain)
  assert row['eval_rouge_1'] == row['eval_rouge_l'] == plain['rouge_l']
  assert row['eval_client_perplexity_worst_decile'] == pytest.approx(math.exp(4))
  labelled = _evaluate(accuracy={'a': 0.5})
  assert set(results.evaluation_row(labelled)) == {
    'eval_loss', 'eval_perplexity', 'eval_client_perplexity_mean', 'eval_accuracy',
    'eval_client_perplexity_worst_decile',
  }  # fmt: skip


def test_summary_pairs_clients():
  accuracy = {'a': 0.5, 'b': 0.0, 'c': 0.1}
  base, final = (_evaluate(gain, accuracy=accuracy) for gain in (0.0, 0.5))
  summary = results.summarize(base, final, single_clients=True)
  assert summary['base'] == {key: base[key] for key in ('perplexity', 'loss', 'accuracy')}
  assert summary['relative_perplexity_change']['mean'] == pytest.approx(math.expm1(-0.5))
  change = summary['accuracy_change']
  assert (change['mean'], change['clients']) == (pytest.approx(0.05), 3)
  spread = summary['distribution']['perplexity']
  assert spread['final']['mean'] == pytest.approx(spread['base']['mean'] * math.exp(-0.5))
  assert 'distribution' not in results.summarize(base, final, single_clients=False)


def test_evaluation_and_summary_are_json():
  evaluation = _evaluate(written=_WRITTEN)
  for value in (evaluation, results.summarize(evaluation, evaluation, single_clients=True)):
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def _output(rank, before, after, tokens):
  return {
    'rank': np.int32(rank),
    'own_rank': np.int32(rank),
    'before': {'loss': np.float32(before), 'predictions': np.float32(tokens)},
    'after': {'loss': np.float32(after), 'predictions': np.float32(tokens)},
  }


def test_what_own_adapters_gain():
  outputs = [
    _output(1, 8.0, 4.0, 4),
    _output(4, 3.0, 3.0, 1),
    _output(2, 5.0, math.nan, 5),
    _output(2, 0.0, 0.0, 0),
    _output(8, 10.0, 15.0, 5),
  ]
  found = results.personalization(list('abcde'), outputs, left_out=3, tiers=(2, 4, 16))
  assert (found['clients'], found['left_out'], found['non_finite']) == (3, 3, 1)
  assert found['better'] == 1
  assert found['before'] == pytest.approx(math.exp(21 / 10))
  assert found['after'] == pytest.approx(math.exp(22 / 10))
  assert found['relative_perplexity_change']['mean'] == pytest.approx(math.expm1(0.1))
  assert [(t['rank_up_to'], t['clients']) for t in found['tiers']] == [(2, 1), (4, 1), (16, 1)]
  assert found['tiers'][2]['after'] == pytest.approx(math.exp(3))
  assert [row['client'] for row in found['by_client']] == ['a', 'b', 'e']
  assert found['by_client'][0]['after'] == pytest.approx(math.e)
  assert found['distribution']['before']['clients'] == 3
  assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_nobody_can_have_an_own_adapter():
  expected = {'clients': 0, 'left_out': 2, 'non_finite': 0}
  assert results.personalization([], [], left_out=2) == expected
