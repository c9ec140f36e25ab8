# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The worst case of a forest against all patterns one by one, and against TensorFlow Privacy."""

import itertools

import pytest
import tensorflow_privacy as tfp

from privacy.trees import Tree, squared_sensitivity


def _sum_of_squares(leaves, joined):
  """Sum over all complete subtrees of one tree of the squared number of joined leaves."""
  total = 0
  for level in range(leaves.bit_length()):
    for first in range(0, leaves - (1 << level) + 1, 1 << level):
      total += sum(first <= leaf < first + (1 << level) for leaf in joined) ** 2
  return total


def _by_patterns(forest, separation, most):
  """The same by trying every set of leaves in which different rounds are far enough apart."""
  leaves = [(index, leaf) for index, tree in enumerate(forest) for leaf in range(tree.leaves)]
  rounds = {(index, leaf): forest[index].first_round + leaf for index, leaf in leaves}
  best = 0
  for chosen in itertools.product([False, True], repeat=len(leaves)):
    joined = list(itertools.compress(leaves, chosen))
    apart = (abs(rounds[a] - rounds[b]) for a, b in itertools.combinations(joined, 2))
    if len(joined) <= most and all(distance == 0 or distance >= separation for distance in apart):
      value = sum(
        _sum_of_squares(tree.leaves, [leaf for at, leaf in joined if at == index])
        for index, tree in enumerate(forest)
      )
      best = max(best, value)
  return best


@pytest.mark.parametrize('leaves', [1, 2, 3, 6, 7, 8, 11, 13])
@pytest.mark.parametrize('separation', [1, 2, 3, 5])
def test_one_tree_is_the_worst_of_all_patterns(leaves, separation):
  forest = [Tree(4, leaves)]
  for most in (1, 2, 3, leaves):
    assert squared_sensitivity(
      forest, min_separation=separation, max_participations=most
    ) == _by_patterns(forest, separation, most)


@pytest.mark.parametrize(
  'forest',
  [
    [Tree(0, 4), Tree(4, 4), Tree(8, 3)],
    [Tree(0, 5), Tree(5, 2), Tree(7, 4)],
    [Tree(1, 3), Tree(6, 4), Tree(10, 2)],
  ],
)
@pytest.mark.parametrize('separation', [1, 2, 3, 5])
def test_forest_whose_rounds_ascend_is_the_worst_of_all_patterns(forest, separation):
  for most in (1, 2, 4, 11):
    assert squared_sensitivity(
      forest, min_separation=separation, max_participations=most
    ) == _by_patterns(forest, separation, most)


@pytest.mark.parametrize(
  'forest',
  [[Tree(0, 5), Tree(4, 6)], [Tree(0, 6), Tree(2, 3), Tree(5, 3)], [Tree(3, 4), Tree(0, 4)]],
)
@pytest.mark.parametrize('separation', [1, 3, 4])
def test_repeated_rounds_are_bounded_from_above(forest, separation):
  for most in (1, 2, 4, 12):
    bound = squared_sensitivity(forest, min_separation=separation, max_participations=most)
    assert bound >= _by_patterns(forest, separation, most)
    # And not by more than separate trees come to.
    assert bound <= sum(
      squared_sensitivity([tree], min_separation=separation, max_participations=most)
      for tree in forest
    )


def test_without_a_bound_on_participations_the_separation_alone_counts():
  forest = [Tree(0, 13)]
  assert squared_sensitivity(forest, min_separation=3) == _by_patterns(forest, 3, 13)
  # All 8 leaves of a complete tree: 8 + 4 * 4 + 2 * 16 + 64.
  assert squared_sensitivity([Tree(0, 8)], min_separation=1) == 120
  assert squared_sensitivity([], min_separation=1) == 0


@pytest.mark.parametrize('leaves', [16, 33, 100])
@pytest.mark.parametrize('separation', [1, 3, 8, 20])
def test_one_tree_is_that_of_tensorflow_privacy(leaves, separation):
  for most in (1, 2, 5):
    # TFP counts the rounds in between, one less, and gives rho = m / (2 z^2).
    rho = tfp.compute_zcdp_single_tree(2.0, leaves, most, separation - 1)
    ours = squared_sensitivity(
      [Tree(0, leaves)], min_separation=separation, max_participations=most
    )
    assert ours / 8 == pytest.approx(rho)


def test_restarts_are_those_of_tensorflow_privacy():
  # It restarts once an epoch, with every client once in every tree.
  steps = [16, 5, 21]
  forest = [Tree(0, 16), Tree(21, 5), Tree(47, 21)]
  ours = squared_sensitivity(forest, min_separation=21)
  assert ours * 3.0 / (2 * 4.0) == pytest.approx(tfp.compute_rdp_tree_restart(2.0, steps, 3.0))


def test_thousands_of_rounds_take_no_time():
  # 2^12 leaves, 100 rounds apart: at most 41 participations.
  value = squared_sensitivity([Tree(0, 4096)], min_separation=100)
  assert 41**2 <= value <= 2 * 41**2 + 41 * 7


@pytest.mark.parametrize(
  ('forest', 'separation', 'most'), [([Tree(0, 4)], 0, 2), ([Tree(0, 0)], 1, 2), ([], 1, -1)]
)
def test_numbers_out_of_range_are_refused(forest, separation, most):
  with pytest.raises(ValueError, match='at least 1'):
    squared_sensitivity(forest, min_separation=separation, max_participations=most)
