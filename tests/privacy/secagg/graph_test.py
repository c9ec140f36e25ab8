# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The graph is regular and random, and its degree is what the bounds ask for."""

import random

import numpy as np
import pytest
import scipy.stats

from privacy.secagg import graph


def test_complete_graph_joins_everybody():
  assert graph.holders(3, None) == {0: (0, 1, 2), 1: (0, 1, 2), 2: (0, 1, 2)}


@pytest.mark.parametrize(('num_clients', 'neighbours'), [(4, 2), (10, 4), (11, 8), (100, 20)])
def test_graph_is_regular_and_mutual(num_clients, neighbours):
  holders = graph.holders(num_clients, neighbours)
  assert list(holders) == list(range(num_clients))
  for client, around in holders.items():
    assert client in around
    assert len(set(around)) == len(around) == neighbours + 1
    assert sorted(around) == list(around)
    assert all(client in holders[peer] for peer in around)


def test_graph_is_another_one_each_time():
  assert graph.holders(50, 4) != graph.holders(50, 4)
  source = random.Random(0)
  counts = dict.fromkeys(range(1, 10), 0)
  for _ in range(9000):
    for peer in graph.holders(10, 2, source)[0]:
      counts[peer] = counts.get(peer, 0) + 1
  del counts[0]
  assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-6


def test_tail_is_hypergeometric():
  for population, marked, draws in ((50, 20, 10), (1000, 100, 60), (30, 3, 10)):
    for least in (0, 1, draws // 2, draws):
      expected = scipy.stats.hypergeom(population, marked, draws).sf(least - 1)
      assert graph._tail(population, marked, draws, least) == pytest.approx(expected, rel=1e-6)


def _is_connected(holders, removed):
  left = set(holders) - removed
  reached, border = set(), {min(left)}
  while border:
    reached |= border
    border = {p for c in border for p in holders[c] if p in left} - reached
  return reached == left


def test_cut_is_rarer_than_its_bound_and_not_by_much():
  source, trials = random.Random(1), 4000
  cut = sum(
    not _is_connected(graph.holders(60, 4, source), set(source.sample(range(60), 6)))
    for _ in range(trials)
  )
  bound = graph._cut(60, 4, 6) * trials
  assert 0.4 * bound < cut < bound + 5 * bound**0.5


def _serves(num_clients, dropped, corrupted, neighbours, threshold):
  """The same bounds, by SciPy and logarithms."""
  others, removed = num_clients - 1, dropped + corrupted
  log_gaps = sum(
    np.log2((removed - i) / (num_clients - i)) if i < removed else -np.inf
    for i in range(neighbours)
  )
  log_pairs = np.log2(num_clients * (num_clients - neighbours - 1) / 2)
  seen = scipy.stats.hypergeom(others, corrupted, neighbours)
  lost = scipy.stats.hypergeom(others, dropped, neighbours)
  return (
    log_pairs + log_gaps <= -41
    and num_clients * seen.sf(threshold - 1) <= 2**-41
    and num_clients * lost.sf(neighbours - threshold) <= 2**-20
  )


@pytest.mark.parametrize('case', [(100, 10, 10), (1000, 100, 100), (1000, 200, 100), (500, 0, 50)])
def test_degree_is_the_smallest_that_serves(case):
  neighbours, threshold = graph.degree(*case)
  assert neighbours % 2 == 0
  assert _serves(*case, neighbours, threshold)
  fewer = neighbours - 2
  assert not any(_serves(*case, fewer, t) for t in range(fewer // 2 + 1, fewer + 1))


def test_degree_grows_with_what_is_asked_for_and_with_the_logarithm_of_the_clients():
  found = graph.degree(1000, 100, 100)
  assert graph.degree(1000, 100, 100, security_bits=60) > found
  assert graph.degree(1000, 100, 100, correctness_bits=40) > found
  assert graph.degree(1000, 250, 100) > found
  assert graph.degree(1000, 100, 200) > found
  assert graph.degree(1000, 50, 50) < found
  assert graph.degree(100_000, 10_000, 10_000).neighbours < 1.5 * found.neighbours


def test_found_degree_keeps_its_bounds():
  num_clients, dropped, corrupted = 150, 25, 15
  neighbours, threshold = graph.degree(
    num_clients, dropped, corrupted, security_bits=6, correctness_bits=6
  )
  source, trials, bad = random.Random(2), 1000, [0, 0]
  for _ in range(trials):
    holders = graph.holders(num_clients, neighbours, source)
    lost, seen = set(range(dropped)), set(range(dropped, dropped + corrupted))
    bad[0] += any(len(lost & set(around)) > neighbours - threshold for around in holders.values())
    bad[1] += any(
      len(seen & set(around)) >= threshold for c, around in holders.items() if c not in seen
    )
    bad[1] += not _is_connected(holders, lost | seen)
  assert max(bad) < trials * 2**-6 * 2


def test_where_only_the_complete_graph_serves_it_says_so():
  with pytest.raises(ValueError, match='complete'):
    graph.degree(10, 4, 4)
