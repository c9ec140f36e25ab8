# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the adapters are: their rank, scale and place in the backbone."""

import dataclasses
import math
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Adapters as the server holds them.

  One scale serves clients of every rank: a scale that depended on a client's own rank would
  change the model by mere truncation.

  Attributes:
    max_rank: rank `R` of the server's factors, at least 1.
    alpha: numerator of the scale, positive.
    targets: module names (`'query'`) or regular expressions over module paths; every one must
      match at least one layer of the backbone.
    rank_stabilized: scale by `alpha / sqrt(R)` (Kalajdzievski 2023, arXiv:2312.03732) instead of
      `alpha / R`.
    init_seed: seed of the Gaussian that `a` starts from; `b` starts at zero.
    rank_pattern: other ranks than `max_rank` for some modules, as PEFT names them: regular
      expressions over the end of a module's path, the first that matches counts. A client of rank
      `r` then trains `min(r, R_l)` ranks of module `l`. The scale stays `alpha / max_rank` in all.
  """

  max_rank: int
  alpha: float
  targets: tuple[str, ...] = ('query', 'value')
  rank_stabilized: bool = False
  init_seed: int = 0
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)

  def __post_init__(self):
    if self.max_rank < 1:
      raise ValueError(f'`max_rank` must be at least 1, got {self.max_rank}.')
    if not (self.alpha > 0 and math.isfinite(self.alpha)):
      raise ValueError(f'`alpha` must be positive and finite, got {self.alpha}.')
    if isinstance(self.targets, str) or not self.targets:
      raise ValueError(f'`targets` must be a non-empty tuple of names, got {self.targets!r}.')
    object.__setattr__(self, 'targets', tuple(self.targets))
    object.__setattr__(self, 'rank_pattern', dict(self.rank_pattern))
    for pattern, rank in self.rank_pattern.items():
      if not 1 <= rank <= self.max_rank:
        raise ValueError(
          f'`rank_pattern` {pattern!r} must have a rank in [1, {self.max_rank}], got {rank}.'
        )
      try:
        re.compile(pattern)
      except re.error as error:
        raise ValueError(
          f'`rank_pattern` {pattern!r} is no regular expression: {error}.'
        ) from error

  def module_rank(self, path: str) -> int:
    """The rank that the server holds for a module: that of the first pattern which matches."""
    ranks = (rank for pattern, rank in self.rank_pattern.items() if matches(pattern, path))
    return next(ranks, self.max_rank)

  @property
  def scaling(self) -> float:
    """The factor of `b @ a` in the effective weight."""
    divisor = math.sqrt(self.max_rank) if self.rank_stabilized else self.max_rank
    return self.alpha / divisor


def matches(pattern: str, path: str) -> bool:
  """Whether a pattern is the end of a module's path, as PEFT reads its `rank_pattern`."""
  return re.fullmatch(rf'(.*[/.])?({pattern})', path) is not None
