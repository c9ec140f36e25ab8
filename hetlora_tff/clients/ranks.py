# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which rank a device gets before the first round."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def truncated_power_law_ranks(
  client_ids: Sequence[str], min_rank: int, max_rank: int, *, exponent: float = 0.1, seed: int
) -> dict[str, int]:
  """Draws ranks on `[min_rank, max_rank]`, most of them small.

  `P(r)` is proportional to `r^(exponent - 1)`: NumPy's power distribution, on integers. The setting
  of HetLoRA (arXiv:2401.06432, Sec. 5) is 5, 50 and 0.1.

  Args:
    client_ids: the devices; the draw depends on their set, not on their order.
    min_rank: the smallest rank, at least 1.
    max_rank: the largest rank.
    exponent: below 1 skews to small ranks, 1 is uniform.
    seed: of the draw.

  Returns:
    Rank by client id.

  Raises:
    ValueError: if the bounds are not `1 <= min_rank <= max_rank`.
  """
  _check_bounds(min_rank, max_rank)
  ranks = np.arange(min_rank, max_rank + 1)
  density = ranks.astype(np.float64) ** (exponent - 1.0)
  generator = np.random.default_rng(seed)
  drawn = generator.choice(ranks, size=len(client_ids), p=density / density.sum())
  return {client_id: int(rank) for client_id, rank in zip(sorted(client_ids), drawn, strict=True)}


def tier_ranks(
  client_ids: Sequence[str], tiers: Mapping[int, float], *, seed: int
) -> dict[str, int]:
  """Deals the ranks of device tiers to clients, in the shares that are asked for.

  Every tier gets the whole part of its share of the clients; clients that are left over go to the
  tiers with the largest remainders (Hamilton's method), the smaller rank first among equals.

  Args:
    client_ids: the devices; the deal depends on their set, not on their order.
    tiers: share of the clients by rank; positive, and 1 in sum.
    seed: decides who is in which tier.

  Returns:
    Rank by client id.

  Raises:
    ValueError: if a rank is below 1, a share not positive, or their sum not 1.
  """
  if min(tiers, default=0) < 1 or not all(share > 0 for share in tiers.values()):
    raise ValueError(f'`tiers` needs ranks of at least 1 with positive shares, got {tiers}.')
  if not math.isclose(sum(tiers.values()), 1.0, abs_tol=1e-6):
    raise ValueError(f'The shares in `tiers` must sum to 1, got {sum(tiers.values())}.')
  ranks = np.array(sorted(tiers))
  shares = np.array([tiers[rank] for rank in ranks])
  quotas = len(client_ids) * shares / shares.sum()
  # A quota of 29 may come out of floating point as 28.999...
  counts = np.floor(quotas + 1e-9).astype(int)
  by_remainder = np.argsort(counts - quotas, kind='stable')
  counts[by_remainder[: len(client_ids) - counts.sum()]] += 1
  dealt = np.random.default_rng(seed).permutation(np.repeat(ranks, counts))
  return {client_id: int(rank) for client_id, rank in zip(sorted(client_ids), dealt, strict=True)}


def data_size_ranks(sizes: Mapping[str, int], min_rank: int, max_rank: int) -> dict[str, int]:
  """Gives clients with more data larger ranks, about as many clients to each rank.

  The client at the quantile `q` in (0, 1] of the sizes, the share of clients that have no more data
  than it has, gets the `ceil(q (max_rank - min_rank + 1))`-th rank. So the largest client has
  `max_rank`, and clients of one size have one rank. Rank then shows size: not for private runs.

  Args:
    sizes: number of examples by client id.
    min_rank: the smallest rank, at least 1.
    max_rank: the largest rank.

  Returns:
    Rank by client id.

  Raises:
    ValueError: if the bounds are not `1 <= min_rank <= max_rank`.
  """
  _check_bounds(min_rank, max_rank)
  ascending = np.sort(list(sizes.values()))
  levels = max_rank - min_rank + 1
  return {
    client_id: min_rank
    + (int(np.searchsorted(ascending, size, 'right')) * levels - 1) // len(ascending)
    for client_id, size in sizes.items()
  }


def sampled_ranks(client_ids: Sequence[str], ranks: Sequence[int], *, seed: int) -> dict[str, int]:
  """Draws ranks like those that other devices have, with replacement.

  Args:
    client_ids: the devices; the draw depends on their set, not on their order.
    ranks: the ranks to draw from, at least one.
    seed: of the draw.

  Returns:
    Rank by client id.
  """
  drawn = np.random.default_rng(seed).choice(sorted(ranks), size=len(client_ids))
  return {client_id: int(rank) for client_id, rank in zip(sorted(client_ids), drawn, strict=True)}


def _check_bounds(min_rank: int, max_rank: int) -> None:
  if not 1 <= min_rank <= max_rank:
    raise ValueError(f'Ranks need 1 <= `min_rank` <= `max_rank`, got {min_rank} and {max_rank}.')
