# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How much one client can move all nodes of a forest of binary trees (DP-FTRL, arXiv:2103.00039).

A round is a leaf, a node the sum of the leaves below it, and only a node with all its leaves is
ever released, with noise of its own; prefix sums and residuals follow from the nodes. A client that
joins `c` rounds below a node moves it by at most `c` clip norms. So the squared L2 sensitivity of
all that is released, in squared clip norms, is the sum of `c^2` over the nodes, and the forest is
one Gaussian mechanism, whatever earlier outputs did to later inputs (arXiv:2202.08312, Thm. 2.1).
"""

import collections
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

# Best ways to join so far: (rounds after the last leaf that are still closed to the client, sum of
# c^2), the first ascending, and so the second.
_Front: TypeAlias = tuple[tuple[int, int], ...]
# One front for every number of participations, from 0.
_Ways: TypeAlias = tuple[_Front, ...]


class Tree(NamedTuple):
  """A tree of a forest.

  Attributes:
    first_round: number of the round that is its first leaf, the next leaf being the next round.
    leaves: how many there are, at least 1.
  """

  first_round: int
  leaves: int


def squared_sensitivity(
  forest: Sequence[Tree], *, min_separation: int, max_participations: int | None = None
) -> int:
  """The worst case over all ways in which a client may join the leaves of a forest.

  In one tree, and in two whose rounds follow each other, any two rounds of a client are at least
  `min_separation` apart. Where a tree has rounds of the one before again, nothing is assumed of
  the two: it does not matter whether such rounds keep their clients or have others.

  Args:
    forest: trees with independent noise.
    min_separation: `b`, at least 1.
    max_participations: `K`, the most leaves of a client in the whole forest; None for no such
      bound.

  Returns:
    In units of the squared clip norm; 0 for an empty forest.

  Raises:
    ValueError: if a number is out of range.
  """
  leaves = sum(tree.leaves for tree in forest)
  most = leaves if max_participations is None else min(max_participations, leaves)
  if min_separation < 1 or most < 0 or any(tree.leaves < 1 for tree in forest):
    raise ValueError(
      '`min_separation` and the leaves of every tree must be at least 1, `max_participations` not '
      f'negative; got {min_separation}, {list(forest)} and {max_participations}.'
    )
  ways: _Ways = (((0, 0),),)
  end = -math.inf
  for tree in forest:
    ways = _wait(ways, tree.first_round - end)
    for level in reversed(range(tree.leaves.bit_length())):
      if tree.leaves >> level & 1:
        ways = _join(ways, level, min_separation, most)
    end = tree.first_round + tree.leaves
  return max(front[-1][1] for front in ways)


def _wait(ways: _Ways, rounds: float) -> _Ways:
  """Lets rounds pass between two trees; a negative number of them opens all."""
  if rounds < 0:
    return tuple(((0, front[-1][1]),) for front in ways)
  return tuple(
    _best([(int(max(0, closed - rounds)), value) for closed, value in front]) for front in ways
  )


def _join(ways: _Ways, level: int, separation: int, most: int) -> _Ways:
  """Goes on through a subtree with `2^level` leaves."""
  # A limit that does not depend on the rest of the forest lets all trees share the subtrees.
  limit = min(most, 1 << level)
  joined: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
  for before, front in enumerate(ways):
    for closed, value in front:
      for within, behind in enumerate(_subtree(level, closed, separation, limit)):
        if before + within <= most:
          joined[before + within] += [(after, value + gain) for after, gain in behind]
  return tuple(_best(joined[count]) for count in range(len(joined)))


@functools.lru_cache(maxsize=100_000)
def _subtree(level: int, closed: int, separation: int, most: int) -> _Ways:
  """What a subtree with `2^level` leaves, of which the first `closed` are closed, gains."""
  leaves = 1 << level
  if closed >= leaves:
    return (((closed - leaves, 0),),)
  if level == 0:
    return ((0, 0),), ((separation - 1, 1),)
  below = (((closed, 0),),)
  for _ in range(2):
    below = _join(below, level - 1, separation, most)
  return tuple(
    tuple((after, value + count**2) for after, value in front) for count, front in enumerate(below)
  )


def _best(ways: list[tuple[int, int]]) -> _Front:
  """Those that no other one beats in both respects."""
  best: list[tuple[int, int]] = []
  for closed, value in sorted(ways, key=lambda way: (way[0], -way[1])):
    if not best or value > best[-1][1]:
      best.append((closed, value))
  return tuple(best)
