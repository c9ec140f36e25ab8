# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the settings of a run say about its secure sums, for its output and its reports.

No TensorFlow here: a report is written where there is none.
"""

from tasks import dp_settings
from tasks.config import RunConfig

_NONE = (
  'None: neither a protocol nor a simulation of one. Each update reaches the server by itself.'
)
_SIMULATED = (
  'Simulated: updates and measurements are integers that are summed modulo a power of two, as a'
  ' protocol would, in one process that holds each of them; privacy.secagg has a protocol. Until it'
  ' or another one runs between devices and server, the server is trusted with single updates.'
)


def describe(config: RunConfig) -> list[str]:
  """Sentences on the cohorts and, where the run is settled, the grid and the modulus."""
  if not config.secure_aggregation:
    return [_NONE]
  filled_in = (config.noise_multiplier, config.population_size, config.secure_coordinates)
  sentences = [_SIMULATED]
  if not dp_settings.is_private(config) or None not in filled_in:
    sentences.append(grid(config))
  if config.sampling == 'poisson':
    sentences.append(
      'Cohorts have any size, as amplification by sampling needs it: a protocol, which gives up'
      ' below a threshold and sees who is there, would not have the amplified figures.'
    )
  else:
    sentences.append(
      f'All {config.clients_per_round} clients of a round are in its sums here; a protocol is to'
      f' open none of fewer than {config.secure_threshold}.'
    )
  return sentences


def grid(config: RunConfig) -> str:
  """How numbers become integers of secure sums, and what that changes; empty for plain sums."""
  spec = dp_settings.secure_sum(config)
  if spec is None:
    return ''
  wraps, counted = 'no sum can wrap around', ''
  if dp_settings.is_private(config):
    mechanism = dp_settings.spec_of(config)
    grows = (
      f'{mechanism.inflation:.3g} times' if mechanism.inflation >= 1.01 else 'less than 1.01 times'
    )
    counted = f' and lets its norm grow to {grows} the clip, which the account counts with'
    if mechanism.wrap_probability:
      probability = f'{mechanism.wrap_probability:.1g} a round'
      wraps = f'noise makes one wrap around with a probability of at most {probability}'
  # In units of an update; a record of a run without privacy is in units of the clip.
  unit = config.l2_clip_norm / (spec.levels * spec.step)
  steps = f'{unit * spec.step:.2g}' + ' at the first clip' * (config.clip == 'adaptive')
  return (
    f'Secure sums (simulated): {spec.bits} bits a number, {spec.rounding.value} rounding in steps'
    f' of {steps}, which moves each number of a client, and so of a mean of equal clients, by at'
    f' most {unit * spec.error_of_sum(1):.2g}{counted}; modulo 2^{spec.sum_bits}, where {wraps}.'
  )
