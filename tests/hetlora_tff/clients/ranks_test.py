# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ranks: bounds, law, shares, and independence of the clients' order."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from hetlora_tff.clients.ranks import (
  data_size_ranks,
  sampled_ranks,
  tier_ranks,
  truncated_power_law_ranks,
)

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


def counts_of(ranks):
  """How many clients have each rank."""
  return dict(collections.Counter(ranks.values()))


@pytest.mark.parametrize(
  ('number', 'tiers', 'counts'),
  [
    (10, {4: 0.5, 8: 0.3, 32: 0.2}, {4: 5, 8: 3, 32: 2}),
    (100, {2: 0.29, 3: 0.57, 5: 0.14}, {2: 29, 3: 57, 5: 14}),
    (7, {4: 0.5, 8: 0.3, 32: 0.2}, {4: 4, 8: 2, 32: 1}),  # Quotas 3.5, 2.1, 1.4.
    (2, {8: 0.4, 4: 0.3, 2: 0.3}, {8: 1, 2: 1}),  # 0.8, 0.6, 0.6: the smaller rank of two equals.
    (1, {4: 0.4, 8: 0.6}, {8: 1}),
    (0, {4: 1.0}, {}),
    (1000, {4: 1 / 3, 5: 1 / 3, 6: 1 / 3}, {4: 334, 5: 333, 6: 333}),
  ],
)
def test_tiers_are_dealt_by_largest_remainder(number, tiers, counts):
  assert counts_of(tier_ranks(CLIENTS[:number], tiers, seed=0)) == counts


def test_deal_of_tiers_follows_the_seed_and_not_the_order():
  tiers = {4: 0.5, 8: 0.5}
  dealt = tier_ranks(CLIENTS[:50], tiers, seed=3)
  assert dealt == tier_ranks(CLIENTS[:50][::-1], dict(reversed(tiers.items())), seed=3)
  assert dealt != tier_ranks(CLIENTS[:50], tiers, seed=4)
  assert all(type(rank) is int for rank in dealt.values())
  # Any client may be in any tier.
  first = {tier_ranks(CLIENTS[:50], tiers, seed=seed)[CLIENTS[0]] for seed in range(20)}
  assert first == {4, 8}


@pytest.mark.parametrize(
  ('tiers', 'message'),
  [
    ({}, 'ranks of at least 1'),
    ({0: 1.0}, 'ranks of at least 1'),
    ({4: 1.2, 8: -0.2}, 'positive shares'),
    ({4: 1.0, 8: float('nan')}, 'positive shares'),
    ({4: 0.5, 8: 0.4}, 'must sum to 1, got 0.9'),
  ],
)
def test_impossible_tiers_are_refused(tiers, message):
  with pytest.raises(ValueError, match=message):
    tier_ranks(['a'], tiers, seed=0)


@pytest.mark.parametrize(
  ('sizes', 'ranks'),
  [
    ([1, 2, 3, 4], [2, 3, 4, 5]),
    ([40, 10, 30, 20], [5, 2, 4, 3]),
    ([1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 3, 3, 4, 4, 5, 5]),
    ([7, 7, 7], [5, 5, 5]),
    ([1, 1, 9, 9], [3, 3, 5, 5]),
    ([1, 1000000], [3, 5]),
    ([3], [5]),
    ([], []),
  ],
)
def test_rank_by_quantile_of_size(sizes, ranks):
  by_client = data_size_ranks(dict(zip(CLIENTS, sizes, strict=False)), 2, 5)
  assert list(by_client.values()) == ranks


@hypothesis.given(
  sizes=st.lists(st.integers(0, 30), min_size=1, max_size=40),
  low=st.integers(1, 20),
  more=st.integers(0, 50),
)
def test_rank_grows_with_size_within_its_bounds(sizes, low, more):
  by_client = data_size_ranks(dict(zip(CLIENTS, sizes, strict=False)), low, low + more)
  pairs = sorted(zip(sizes, by_client.values(), strict=True))
  assert [rank for _, rank in pairs] == sorted(by_client.values())
  assert len(set(pairs)) == len(set(sizes))
  assert low <= pairs[0][1] <= pairs[-1][1] == low + more


def test_rank_by_size_refuses_impossible_bounds():
  with pytest.raises(ValueError, match='got 5 and 4'):
    data_size_ranks({'a': 1}, 5, 4)


def test_sampled_ranks_are_like_those_they_are_drawn_from():
  drawn = sampled_ranks(CLIENTS, [4, 9, 4, 4], seed=3)
  counts = counts_of(drawn)
  assert set(counts) == {4, 9}
  assert abs(counts[9] - 5000) < 4 * np.sqrt(20000 * 3 / 16)
  assert drawn == sampled_ranks(CLIENTS[::-1], [9, 4, 4, 4], seed=3)
  assert drawn != sampled_ranks(CLIENTS, [4, 9, 4, 4], seed=4)
