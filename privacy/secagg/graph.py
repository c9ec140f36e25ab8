# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Who shares masks and secrets with whom, where that is not everybody (Bell et al. 2020).

The graph is a ring in random order in which everybody is joined to the `k / 2` next on both sides.
Then a client's neighbours are a uniformly random set, and only two gaps of `k / 2` successive
clients cut the rest in two.
"""

import math
import random
import secrets
from typing import NamedTuple


class Degree(NamedTuple):
  """Of a graph that serves.

  Attributes:
    neighbours: how many each client has, an even number.
    threshold: how many of a client and its neighbours recover its secrets.
  """

  neighbours: int
  threshold: int


def holders(
  num_clients: int, neighbours: int | None, source: random.Random | None = None
) -> dict[int, tuple[int, ...]]:
  """For each client, in order, itself and its neighbours: who holds shares of its secrets.

  Args:
    num_clients: how many there are.
    neighbours: of each, an even number; None for all others.
    source: of the random order; None for that of the operating system.
  """
  everybody = tuple(range(num_clients))
  if neighbours is None:
    return dict.fromkeys(everybody, everybody)
  ring = list(everybody)
  (source or secrets.SystemRandom()).shuffle(ring)
  reach = range(-neighbours // 2, neighbours // 2 + 1)
  around = {
    client: tuple(sorted(ring[(place + step) % num_clients] for step in reach))
    for place, client in enumerate(ring)
  }
  return dict(sorted(around.items()))


def degree(
  num_clients: int,
  dropped: int,
  corrupted: int,
  *,
  security_bits: int = 40,
  correctness_bits: int = 20,
) -> Degree:
  """The smallest degree of a graph that is safe against a server that only looks.

  With probability `1 - 2^-security_bits` the honest clients that stay are connected by masks, and
  no honest client has a threshold of corrupted neighbours; with `1 - 2^-correctness_bits`
  everybody's secrets can be recovered. The bounds are those of Bell et al. 2020, section 3: exact
  hypergeometric tails of one client's neighbours, and a union over clients and pairs of gaps.

  Args:
    num_clients: `n`, who is asked to join.
    dropped: most clients that drop out, chosen regardless of the graph.
    corrupted: most clients that tell the server what they see, likewise.
    security_bits: as above.
    correctness_bits: as above.

  Raises:
    ValueError: if no graph but the complete one serves.
  """
  others = num_clients - 1
  for neighbours in range(2, num_clients - 1, 2):
    if _cut(num_clients, neighbours, dropped + corrupted) * 2 ** (security_bits + 1) > 1:
      continue
    # Half of itself and its neighbours is the least that the protocol takes. More is safer, and
    # harder to keep.
    for threshold in range(neighbours // 2 + 1, neighbours + 1):
      exposed = num_clients * _tail(others, corrupted, neighbours, threshold)
      if exposed * 2 ** (security_bits + 1) > 1:
        continue
      lost = num_clients * _tail(others, dropped, neighbours, neighbours - threshold + 1)
      if lost * 2**correctness_bits <= 1:
        return Degree(neighbours, threshold)
      break
  raise ValueError(
    f'No graph but the complete one serves {num_clients} clients of which {dropped} drop out and '
    f'{corrupted} are corrupted; leave `neighbours` out.'
  )


def _tail(population: int, marked: int, draws: int, least: int) -> float:
  """Probability that at least so many of the draws, without replacement, are marked."""
  ways = sum(
    math.comb(marked, hits) * math.comb(population - marked, draws - hits)
    for hits in range(least, min(marked, draws) + 1)
  )
  return ways / math.comb(population, draws)


def _cut(num_clients: int, neighbours: int, removed: int) -> float:
  """Bound of the probability that the clients that are not removed fall apart."""
  if neighbours > removed:
    return 0.0
  pairs_of_gaps = num_clients * (num_clients - neighbours - 1) / 2
  gaps = math.perm(removed, neighbours) / math.perm(num_clients, neighbours)
  return pairs_of_gaps * gaps
