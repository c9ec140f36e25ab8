# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import pytest

from tasks import dp_settings
from tasks.config import RunConfig
from tasks.errors import UserError

_FINE = {'privacy': 'distributed', 'rounds': 1, 'secure_bits': 20}


def test_noise_for_a_budget_is_found_on_a_grid_too_fine_for_more():
  with pytest.raises(UserError, match='take 18 bits or fewer'):
    dp_settings.settle(RunConfig(**_FINE, noise_multiplier=1.0), 100, 1000)
  settled = dp_settings.settle(RunConfig(**_FINE, target_epsilon=100.0), 100, 1000)
  assert 0.05 < settled.noise_multiplier < 0.25
