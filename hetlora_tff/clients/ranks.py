# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which rank a device gets before the first round."""

from collections.abc import Sequence

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
  if not 1 <= min_rank <= max_rank:
    raise ValueError(f'Ranks need 1 <= `min_rank` <= `max_rank`, got {min_rank} and {max_rank}.')
  ranks = np.arange(min_rank, max_rank + 1)
  density = ranks.astype(np.float64) ** (exponent - 1.0)
  generator = np.random.default_rng(seed)
  drawn = generator.choice(ranks, size=len(client_ids), p=density / density.sum())
  return {client_id: int(rank) for client_id, rank in zip(sorted(client_ids), drawn, strict=True)}
