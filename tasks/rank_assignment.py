# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The ranks that a run's devices begin with, as its configuration asks for them."""

import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from hetlora_tff.clients import ranks
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.rank_file import read_rank_file


def assign_ranks(
  config: RunConfig,
  sizes: Mapping[str, int],
  seed: Any,
  *,
  unlisted: Literal['refuse', 'draw'] = 'refuse',
) -> dict[str, int]:
  """Gives every client its rank.

  Args:
    config: of the run.
    sizes: number of examples by client id.
    seed: of the draw, where there is one; as `numpy.random.default_rng` takes it.
    unlisted: what happens to clients that a rank file leaves out: they are refused, or draw from
      the ranks in the file, as held-out clients do.

  Returns:
    Rank in `[1, max_rank]` by client id; 1 for all in a method without ranks.

  Raises:
    UserError: naming the rank file, and the line or client that is wrong.
  """
  match config.rank_assignment:
    case 'power_law':
      return ranks.truncated_power_law_ranks(
        list(sizes), config.min_rank, config.max_rank, exponent=config.rank_exponent, seed=seed
      )
    case 'tiers':
      return ranks.tier_ranks(list(sizes), config.rank_tiers, seed=seed)
    case 'data_size':
      return ranks.data_size_ranks(sizes, config.min_rank, config.max_rank)
    case 'max':
      return dict.fromkeys(sizes, config.max_rank)
    case 'file':
      return _ranks_from_file(config, sizes, seed, unlisted)
  return dict.fromkeys(sizes, 1)


def tier_bounds(config: RunConfig) -> list[int]:
  """Largest ranks of the tiers in which devices are evaluated, ascending to `max_rank`.

  They are the ranks of the device tiers, where those are given, and else about four that are evenly
  spaced in the logarithm of the rank; none for a method without ranks.
  """
  if config.max_rank is None:
    return []
  bounds = config.rank_tiers or np.rint(np.geomspace(config.min_rank, config.max_rank, 5)[1:])
  return sorted({int(bound) for bound in bounds} | {config.max_rank})


def _ranks_from_file(
  config: RunConfig, sizes: Mapping[str, int], seed: Any, unlisted: str
) -> dict[str, int]:
  listed = read_rank_file(pathlib.Path(config.rank_file), config.max_rank)
  others = sorted(set(sizes) - set(listed))
  if others and unlisted == 'refuse':
    raise UserError(
      f'--rank-file: {config.rank_file} gives no rank to client {others[0]!r} '
      f'({len(others)} of {len(sizes)} clients that train are missing); add it.'
    )
  drawn = ranks.sampled_ranks(others, list(listed.values()), seed=seed)
  return {client: listed.get(client) or drawn[client] for client in sizes}
