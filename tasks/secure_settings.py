# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The settings of a run as specifications of its secure sums.

No TensorFlow here: the report reads settings by the same rules.
"""

from typing import Any

import privacy
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.options import option


def largest_cohort(config: RunConfig) -> int:
  """The most clients that one sum can have, of the run and of the one that it stands for."""
  if config.sampling == 'poisson':  # Everybody may be drawn.
    return config.population_size + config.audit_canaries
  return max(config.clients_per_round, config.noise_cohort_size or 0)


def update_sum(config: RunConfig) -> privacy.SecureSumSpec | None:
  """The sum of clipped updates, in the unit in which clients send them; None for a plain sum.

  Under privacy the clip bounds what is rounded; it counts as 1 where it adapts, since updates are
  divided by it. Without privacy a client sends the record of `SummedDenominatorFactory`, whose
  numbers lie within [-1, 1].

  Args:
    config: settled, see `tasks.dp_settings`.

  Raises:
    UserError: naming the option that does not fit.
  """
  if not config.secure_aggregation:
    return None
  if config.privacy == 'none':
    return real_sum(config, 1.0, config.secure_bits)
  clip = 1.0 if config.clip == 'adaptive' else config.l2_clip_norm
  return _sum(config, config.secure_bits, l2_clip_norm=clip, coordinates=config.secure_coordinates)


def _sum(config: RunConfig, bits: int, **bounds: Any) -> privacy.SecureSumSpec:
  try:
    return privacy.SecureSumSpec(
      bits=bits,
      largest_cohort=largest_cohort(config),
      rounding=privacy.Rounding(config.secure_rounding),
      **bounds,
    )
  except ValueError as error:
    raise UserError(f'{option("secure_bits")} {config.secure_bits}: {error}') from error


def real_sum(config: RunConfig, most: float, bits: int = 32) -> privacy.SecureSumSpec:
  """The sum of numbers up to a public bound."""
  return _sum(config, bits, value_range=most)


def count_sum(config: RunConfig, most: int) -> privacy.SecureSumSpec:
  """The sum of whole numbers from 0 to a public bound, in steps of 1 and so exact."""
  bits = max(1, most).bit_length() + 1
  return privacy.SecureSumSpec(
    bits=bits, largest_cohort=largest_cohort(config), value_range=2 ** (bits - 1) - 1
  )
