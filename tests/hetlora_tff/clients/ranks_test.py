# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The draw of ranks: bounds, law, and independence of the clients' order."""

import numpy as np
import pytest

from hetlora_tff.clients.ranks import truncated_power_law_ranks

# 99.9 % quantile of chi-square with 45 degrees of freedom: ranks 5 to 50.
CHI_SQUARE_45 = 80.08
CLIENTS = [f'client_{index:05d}' for index in range(20000)]


def chi_square(drawn, exponent):
  """Pearson's statistic of the draw against `P(r) ~ r^(exponent - 1)` on 5 to 50."""
  ranks = np.arange(5, 51)
  law = ranks ** (exponent - 1.0)
  expected = len(drawn) * law / law.sum()
  counts = np.bincount(list(drawn.values()), minlength=51)[5:]
  return np.sum(np.square(counts - expected) / expected)


@pytest.mark.parametrize('exponent', [0.1, 1.0, 2.0])
def test_follows_the_power_law_and_no_other(exponent):
  drawn = truncated_power_law_ranks(CLIENTS, 5, 50, exponent=exponent, seed=3)
  assert set(drawn.values()) == set(range(5, 51))
  assert chi_square(drawn, exponent) < CHI_SQUARE_45
  others = {0.0, 0.1, 1.0, 1.1, 2.0} - {exponent}
  assert all(chi_square(drawn, other) > CHI_SQUARE_45 for other in others)


def test_default_is_the_papers_skew():
  drawn = truncated_power_law_ranks(CLIENTS, 5, 50, seed=3)
  assert drawn == truncated_power_law_ranks(CLIENTS, 5, 50, exponent=0.1, seed=3)


def test_seed_decides_and_order_does_not():
  drawn = truncated_power_law_ranks(CLIENTS[:50], 1, 16, seed=3)
  assert drawn == truncated_power_law_ranks(CLIENTS[:50][::-1], 1, 16, seed=3)
  assert drawn != truncated_power_law_ranks(CLIENTS[:50], 1, 16, seed=4)
  assert all(type(rank) is int for rank in drawn.values())


def test_one_possible_rank_and_no_clients():
  assert truncated_power_law_ranks(['a', 'b'], 7, 7, seed=0) == {'a': 7, 'b': 7}
  assert truncated_power_law_ranks([], 1, 4, seed=0) == {}


@pytest.mark.parametrize('bounds', [(0, 4), (-1, 4), (5, 4), (0, 0)])
def test_impossible_bounds_are_refused(bounds):
  with pytest.raises(ValueError, match=f'got {bounds[0]} and {bounds[1]}'):
    truncated_power_law_ranks(['a'], *bounds, seed=0)
