# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest

from benchmarks import growth

SIZES = np.array([1, 2, 4, 8, 16, 32, 64, 128])


def test_a_line_is_found_with_its_constant_part():
  fitted = growth.fit(SIZES, 3 + 0.5 * SIZES)
  assert fitted.intercept == pytest.approx(3)
  assert fitted.slope == pytest.approx(0.5)
  assert fitted.worst == pytest.approx(0, abs=1e-9)
  assert fitted.within(1)


@pytest.mark.parametrize('power', [0, 1, 2])
def test_a_power_is_found_and_held_against_its_limit(power):
  fitted = growth.fit(SIZES, 7.0 * SIZES**power)
  assert fitted.exponent == pytest.approx(power, abs=1e-9)
  assert fitted.within(power)
  assert not fitted.within(power - 0.1)


def test_a_square_shows_behind_a_constant_that_hides_it_at_small_sizes():
  costs = 100 + 0.05 * SIZES**2
  assert not growth.fit(SIZES, costs).within(1)
  assert growth.fit(SIZES[:5], costs[:5]).within(1)
  assert growth.fit(SIZES, costs).worst > 0.3


def test_noise_of_a_per_cent_is_no_growth():
  generator = np.random.default_rng(0)
  for _ in range(20):
    costs = 2.0 * SIZES * generator.normal(1, 0.01, len(SIZES))
    assert growth.fit(SIZES, costs).within(1)


@pytest.mark.parametrize(
  ('sizes', 'costs'),
  [([1, 2], [1, 2]), ([1, 3, 2], [1, 2, 3]), ([1, 2, 4], [1, 0, 1]), ([1, 2, 4], [1, 2])],
)
def test_what_cannot_be_fitted_is_refused(sizes, costs):
  with pytest.raises(ValueError, match=r'A fit takes|must ascend'):
    growth.fit(sizes, costs)
