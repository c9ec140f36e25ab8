# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run says about its secure sums: no more than holds."""

import pytest

from tasks import dp_settings, secure_facts
from tasks.config import RunConfig

_SECURE = {'secure_aggregation': True, 'l2_clip_norm': 2.0, 'clients_per_round': 10}
_CENTRAL = {'privacy': 'central', 'secure_aggregation': True, 'noise_multiplier': 1.0}


def _grid(**given):
  return secure_facts.grid(dp_settings.settle(RunConfig(**given), 100, 1000))


def test_a_mean_of_equal_clients_moves_by_half_a_step():
  # 2 / (2^15 - 1) = 6.1e-5.
  assert _grid(**_SECURE) == (
    'Secure sums (simulated): 16 bits a number, nearest rounding in steps of 6.1e-05, which moves a'
    ' number of the mean of 10 clients by at most 3.1e-05; modulo 2^20, where no sum can wrap'
    ' around.'
  )


@pytest.mark.parametrize(
  ('given', 'moved'),
  [
    ({'weights': 'module', 'weight_reference': 0.1}, '0.00061'),
    ({'weights': 'examples'}, '0.00031'),
    ({'method': 'coverage', 'rank_tiers': {4: 0.5, 32: 0.5}, 'rank_dynamics': 'tier'}, '0.00031'),
  ],
)
def test_nothing_is_said_of_a_mean_that_is_divided_by_less_than_its_clients(given, moved):
  said = _grid(**_SECURE, **given)
  assert f' a number of the sum of 10 clients by at most {moved};' in said
  assert 'mean' not in said


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
