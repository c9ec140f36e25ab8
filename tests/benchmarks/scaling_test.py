# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import json

import pytest

from benchmarks import scaling, scaling_plot
from benchmarks.scaling_points import Point

SIZES = (1, 4, 16, 64)


def _never(size, repeats):
  raise AssertionError


def _points(seconds, megabytes, driver=lambda _: 400.0):
  # The median counts.
  return [Point(n, [seconds(n), 1e9, 0.0], 5.0, driver(n), megabytes(n)) for n in SIZES]


@pytest.fixture
def results():
  def linear(size):
    return 1.0 * size

  def square(size):
    return 0.1 * size**2

  def flat(size):
    return 50.0

  sweep = scaling.Sweep(_never, SIZES, 1, 1)
  return {
    'linear': scaling.summarize(sweep, _points(linear, flat)),
    'slow': scaling.summarize(sweep, _points(square, flat)),
    'large': scaling.summarize(sweep, _points(linear, square)),
    'both': scaling.summarize(sweep, _points(square, square)),
  }


def test_what_grows_too_fast_is_named(results):
  found = {name: result.too_fast for name, result in results.items()}
  assert found == {'linear': '', 'slow': 'time', 'large': 'memory', 'both': 'time, memory'}


@pytest.mark.parametrize(
  ('constant', 'each', 'limit', 'found'),
  [
    (900.0, 0.9, 1.0, ''),
    # A tenth of what the driver needs for itself: an exponent of 0.03.
    (900.0, 1.5, 1.0, 'driver memory'),
    (0.0, 0.9, 1.0, ''),
    (0.0, 1.5, 1.0, 'driver memory'),
    (900.0, 1.5, None, ''),
    # 6 MB in all are noise.
    (900.0, 0.1, 0.01, ''),
  ],
)
def test_what_the_driver_holds_for_each_has_a_limit_of_its_own(constant, each, limit, found):
  sweep = scaling.Sweep(_never, SIZES, 0, 0, limit)
  points = _points(lambda _: 1.0, lambda _: 50.0, lambda size: constant + each * size)
  assert scaling.summarize(sweep, points).too_fast == found


def test_the_population_has_a_limit_for_the_driver_that_holds_it():
  assert scaling.SWEEPS['population'].driver_limit


def test_the_json_holds_all_points_and_is_what_the_picture_is_drawn_from(results):
  document = json.loads(json.dumps(scaling.as_json(results)))
  assert document['slow']['points'][1]['seconds'] == [pytest.approx(1.6), 1e9, 0.0]
  assert document['slow']['time']['exponent'] == pytest.approx(2)
  assert document['slow']['too_fast'] == 'time'
  assert scaling_plot.draw(document).startswith(b'\x89PNG')


def test_every_sweep_can_be_fitted_and_has_a_row(results):
  assert all(len(sweep.sizes) >= 3 for sweep in scaling.SWEEPS.values())
  assert scaling.table(results).row_count == 4
