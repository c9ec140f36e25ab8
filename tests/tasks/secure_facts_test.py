# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run says about its secure sums: no more than holds."""

from tasks import dp_settings, secure_facts
from tasks.config import RunConfig

_SECURE = {'secure_aggregation': True, 'l2_clip_norm': 2.0, 'clients_per_round': 10}
_CENTRAL = {'privacy': 'central', 'secure_aggregation': True, 'noise_multiplier': 1.0}


def _grid(**given):
  return secure_facts.grid(dp_settings.settle(RunConfig(**given), 100, 1000))


def test_numbers_of_a_client_and_of_a_mean_of_equal_ones_move_by_half_a_step():
  # 2 / (2^15 - 1) = 6.1e-5.
  assert _grid(**_SECURE) == (
    'Secure sums (simulated): 16 bits a number, nearest rounding in steps of 6.1e-05, which moves'
    ' each number of a client, and so of a mean of equal clients, by at most 3.1e-05; modulo 2^20,'
    ' where no sum can wrap around.'
  )


def test_a_coarse_grid_is_said_to_cost_privacy():
  # sqrt(1 + 1000 / 31^2 / 4 + (1 + sqrt(1000) / 31 / 2) / 31)
  assert ' grow to 1.14 times the clip, which the account' in _grid(**_CENTRAL, secure_bits=6)
  assert ' grow to less than 1.01 times the clip' in _grid(**_CENTRAL)


def test_noise_of_clients_may_wrap_a_sum_and_none_cannot():
  distributed = {'privacy': 'distributed', 'clients_per_round': 10}
  assert 'noise makes one wrap around' in _grid(**distributed, noise_multiplier=1.0)
  assert 'no sum can wrap around' in _grid(**distributed, noise_multiplier=0.0)


def test_steps_that_follow_a_clip_are_those_of_the_first():
  assert ' 6.1e-05 at the first clip,' in _grid(
    **{**_CENTRAL, 'noise_multiplier': 0.5, 'clip': 'adaptive'}
  )
  assert 'first clip' not in _grid(**_CENTRAL)


def test_a_run_that_never_was_settled_has_no_grid():
  settled = secure_facts.describe(dp_settings.settle(RunConfig(**_CENTRAL), 100, 1000))
  sentences = secure_facts.describe(RunConfig(**_CENTRAL))
  assert 'bits a number' in settled[1]
  assert sentences == [settled[0], settled[2]]


def test_a_threshold_is_told():
  (*_, said) = secure_facts.describe(dp_settings.settle(RunConfig(**_SECURE), 100, 1000))
  assert said == (
    'All 10 clients of a round are in its sums here; a protocol is to open none of fewer than 7.'
  )
