# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import math

import pytest

from hetlora_tff.adapters.config import LoraConfig


def test_scaling_is_alpha_over_max_rank():
  assert LoraConfig(max_rank=8, alpha=16.0).scaling == 2.0
  assert LoraConfig(max_rank=16, alpha=8.0, rank_stabilized=True).scaling == 2.0
  assert LoraConfig(max_rank=3, alpha=1.0, rank_stabilized=True).scaling == 1 / math.sqrt(3)


@pytest.mark.parametrize(
  ('argument', 'value'),
  [
    ('max_rank', 0),
    ('max_rank', -1),
    ('alpha', 0.0),
    ('alpha', -1.0),
    ('alpha', math.inf),
    ('alpha', math.nan),
    ('targets', ()),
    ('targets', 'query'),
  ],
)
def test_refuses_what_cannot_be_and_names_it(argument, value):
  with pytest.raises(ValueError, match=f'`{argument}`'):
    LoraConfig(**{'max_rank': 4, 'alpha': 8.0, argument: value})


def test_is_an_immutable_value():
  config = LoraConfig(max_rank=4, alpha=8.0, targets=['query'])
  assert config == LoraConfig(max_rank=4, alpha=8.0, targets=('query',))
  assert hash(config) == hash(LoraConfig(max_rank=4, alpha=8.0, targets=('query',)))
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.max_rank = 5
