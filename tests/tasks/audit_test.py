# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Canaries' traces in a model, planted by hand, and the file that says what they prove."""

import collections
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.clients import canaries, messages
from tasks import audit

_SIZES = {'first': (40, 60), 'second': (7, 300)}  # path: (d_in, d_out)
_RANK = 3


def _adapters(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return collections.OrderedDict(
    (
      path,
      LoraFactors(
        (scale * rng.normal(size=[_RANK, d_in])).astype(np.float32),
        (scale * rng.normal(size=[d_out, _RANK])).astype(np.float32),
      ),
    )
    for path, (d_in, d_out) in _SIZES.items()
  )


def _matrices():
  return collections.OrderedDict(
    (path, np.zeros([_RANK, max(sizes)], np.float32)) for path, sizes in _SIZES.items()
  )


def _plus(messages_, scale):
  """What the server holds after `scale` times these messages."""
  start = _adapters(1)
  moved = tf.nest.map_structure(lambda *parts: scale * sum(parts), *messages_)
  return start, tf.nest.map_structure(lambda s, m: np.asarray(s - m), start, moved)


def _config(canaries_, **fields):
  return types.SimpleNamespace(
    **{'audit_canaries': canaries_, 'delta': 1e-3, 'method': 'hetlora', **fields}
  )


def _written(tmp_path, *arguments):
  audit.write_audit(tmp_path, *arguments)
  return json.loads((tmp_path / 'audit.json').read_text())


@pytest.mark.parametrize('scale', [1e-8, 1.0, 1e12])
def test_scores_of_held_out_canaries_are_standard_normal(scale):
  # Nearly all of the release lies in the module with fewer numbers.
  release = _adapters(2, scale)
  release['second'] = LoraFactors(*(50 * part for part in release['second']))
  scores = audit.canary_scores([release], range(3000))[:, 0]
  assert stats.kstest(scores, 'norm').pvalue > 1e-3
  assert np.std(scores) == pytest.approx(1.0, abs=0.05)


def test_the_score_is_the_inner_product_in_its_standard_deviations():
  release = _adapters(2)
  direction = canaries.canary_direction(release, 5)
  product, variance = 0.0, 0.0
  for path, factors in release.items():
    product += sum(
      np.sum(part * np.asarray(along)) for part, along in zip(factors, direction[path], strict=True)
    )
    variance += sum(np.sum(part**2) for part in factors) / (_RANK * sum(_SIZES[path]))
  scores = audit.canary_scores([_adapters(3), release], [4, 5])
  assert scores.shape == (2, 2)
  assert scores[1, 1] == pytest.approx(product / np.sqrt(variance), rel=1e-4)


def test_many_numbers_are_scored_as_few_are(monkeypatch):
  release = _adapters(2)
  whole = audit.canary_scores([release], range(20))
  monkeypatch.setattr(audit, '_NUMBERS_AT_A_TIME', 5000)
  np.testing.assert_allclose(audit.canary_scores([release], range(20)), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('value', [0.0, np.nan, np.inf])
def test_a_release_that_tells_nothing_proves_nothing(value, tmp_path):
  start = _adapters(1)
  end = tf.nest.map_structure(np.copy, start)
  end['first'].a[0, 0] += value
  written = _written(tmp_path, _config(50), start, end)
  assert written['epsilon_lower_bound'] == 0.0
  assert written['attack_auc'] == 0.5


def test_the_file_says_what_was_found(tmp_path):
  directions = [canaries.canary_direction(_adapters(1), number) for number in range(50)]
  written = _written(tmp_path, _config(50), *_plus(directions, 0.01))
  assert written['epsilon_lower_bound'] > 2.0
  assert written['epsilon_lower_bound'] <= written['largest_provable_epsilon']
  assert (written['planted_canaries'], written['held_out_canaries']) == (50, 500)
  assert (written['confidence'], written['delta']) == (0.95, 1e-3)
  assert written['attack_auc'] > 0.95
  # Other canaries than those of the run are not found.
  others = [canaries.canary_direction(_adapters(1), number) for number in range(1000, 1050)]
  written = _written(tmp_path, _config(50), *_plus(others, 0.01))
  assert written['epsilon_lower_bound'] == 0.0


def test_traces_in_alternating_factors_are_found(tmp_path):
  # Two rounds: the first moves `b`, the second `a`.
  matrices = [canaries.canary_direction(_matrices(), number) for number in range(50)]
  sent = [
    collections.OrderedDict(
      (path, messages.unpack_alternating(matrix[path], tf.constant(b), *_SIZES[path]))
      for path in _SIZES
    )
    for matrix in matrices
    for b in (True, False)
  ]
  start, end = _plus(sent, 0.01)
  written = _written(tmp_path, _config(50, method='rolora'), start, end)
  assert written['epsilon_lower_bound'] > 2.0
  release = audit.released(start, end, alternates=True)
  scores = audit.canary_scores([release], range(50, 2050))[:, 0]
  assert np.std(scores) == pytest.approx(1.0, abs=0.06)
  # The product with a canary's matrix is that with all it sent.
  for path in _SIZES:
    product = sum(
      np.sum((before - after) * part)
      for message in sent[:2]
      for before, after, part in zip(start[path], end[path], message[path], strict=True)
    )
    assert np.sum(release[path] * matrices[0][path]) == pytest.approx(product, rel=1e-3)


def test_one_factor_alone_is_scored(tmp_path):
  start = collections.OrderedDict((path, f.b) for path, f in _adapters(1).items())
  directions = [canaries.canary_direction(start, number) for number in range(50)]
  end = collections.OrderedDict(
    (path, start[path] - 0.1 * sum(np.asarray(d[path]) for d in directions)) for path in start
  )
  assert _written(tmp_path, _config(50, method='ffa'), start, end)['epsilon_lower_bound'] > 2.0
