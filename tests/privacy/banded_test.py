# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Banded matrices against dense ones, and the stored table."""

import itertools
import json

import numpy as np
import pytest
from scipy import linalg

from privacy import banded

_ALL = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def _matrix(coefficients, rounds):
  column = np.zeros(rounds)
  used = min(rounds, len(coefficients))
  column[:used] = coefficients[:used]
  return linalg.toeplitz(column, np.zeros(rounds))


@pytest.mark.parametrize('bands', [1, 2, 3])
def test_no_pattern_moves_the_product_further_than_the_sensitivity(bands):
  rounds, dimensions = 8, 3
  coefficients = banded.banded_coefficients(bands)
  matrix = _matrix(coefficients, rounds)
  generator = np.random.default_rng(0)
  attained = {1: 0.0, 2: 0.0}
  for participations in attained:
    for joined in itertools.combinations(range(rounds), participations):
      if any(after - before < bands for before, after in itertools.pairwise(joined)):
        continue
      for _ in range(20):
        moved = np.zeros((rounds, dimensions))
        directions = generator.normal(size=(participations, dimensions))
        moved[list(joined)] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        attained[participations] = max(
          attained[participations], float(np.linalg.norm(matrix @ moved))
        )
  for participations, most in attained.items():
    assert most == pytest.approx(banded.sensitivity(coefficients, participations))


def test_rounds_nearer_than_the_bands_would_move_it_further():
  coefficients = banded.banded_coefficients(4)
  moved = np.zeros(8)
  moved[:2] = 1
  assert np.linalg.norm(_matrix(coefficients, 8) @ moved) > banded.sensitivity(coefficients, 2)


@pytest.mark.parametrize('bands', [1, 3, 8])
def test_error_is_that_of_the_dense_matrix(bands):
  rounds = 20
  coefficients = banded.banded_coefficients(bands)
  sums = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(_matrix(coefficients, rounds))
  variance = np.square(sums).sum(axis=1) * banded.sensitivity(coefficients, 1) ** 2
  assert banded.mean_squared_error(coefficients, rounds) == pytest.approx(variance.mean())


def test_more_bands_have_less_error():
  rows = [banded.banded_coefficients(bands) for bands in _ALL]
  assert [len(row) for row in rows] == list(_ALL)
  errors = [banded.mean_squared_error(row, 200) for row in rows]
  assert errors == sorted(errors, reverse=True)
  assert errors[0] == pytest.approx(100.5)
  assert errors[-1] < 7.1


def test_separation_between_two_rows_takes_the_shorter():
  assert len(banded.banded_coefficients(5)) == 4
  assert len(banded.banded_coefficients(1000)) == 64
  with pytest.raises(ValueError, match='min_separation'):
    banded.banded_coefficients(0)


@pytest.mark.parametrize('bands', [2, 4, 8])
def test_table_is_what_the_module_computes(bands):
  stored = banded.banded_coefficients(bands)
  np.testing.assert_allclose(stored, banded.optimal_coefficients(bands, 200), atol=2e-4)
  np.testing.assert_array_equal(stored, stored.astype(np.float32))


@pytest.mark.parametrize('bands', [4, 16, 64])
def test_noise_does_not_grow_after_the_rounds_that_it_is_the_best_for(bands):
  # All roots of c outside of the unit circle: the recursion forgets.
  assert np.abs(np.roots(banded.banded_coefficients(bands)[::-1])).min() > 1.01


def test_optimum_is_one():
  best = banded.optimal_coefficients(3, 50)
  least = banded.mean_squared_error(best, 50)
  for index, step in itertools.product((1, 2), (-0.01, 0.01)):
    other = best.copy()
    other[index] += step
    assert banded.mean_squared_error(other, 50) > least


def test_changed_table_is_refused(tmp_path, monkeypatch):
  table = json.loads(banded._TABLE.read_text('ascii'))
  table['coefficients']['2'][1] += 0.01
  changed = tmp_path / 'banded_coefficients.json'
  changed.write_text(json.dumps(table), 'ascii')
  monkeypatch.setattr(banded, '_TABLE', changed)
  banded._rows.cache_clear()
  with pytest.raises(ValueError, match='not as it was written'):
    banded.banded_coefficients(2)
  monkeypatch.undo()
  assert banded.table_sha256() == json.loads(banded._TABLE.read_text('ascii'))['sha256']
