# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""That lines of a comparison can be told apart, and that their labels do not meet."""

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies

from tasks import comparison_curves, plots


def test_ten_groups_differ_in_more_than_colour():
  looks = [
    (comparison_curves.style_of(plots.LIGHT, i)['marker'], comparison_curves.dashes(i))
    for i in range(15)
  ]
  assert len(set(looks)) == 15


@pytest.mark.parametrize(
  ('colors', 'theme'),
  [
    (comparison_curves.LIGHT_COLORS, plots.LIGHT),
    (comparison_curves.DARK_COLORS, plots.DARK),
  ],
  ids=['light', 'dark'],
)
def test_colours_are_readable_and_survive_colour_blindness(colors, theme):
  def linear(color):
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)

  luminance = np.array([0.2126, 0.7152, 0.0722])
  ground = linear(theme.background) @ luminance
  for color in colors:
    pair = sorted([linear(color) @ luminance, ground])
    assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, color
  # Machado et al. 2009, severity 1.
  protan = np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]])
  deutan = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
  for seen in (np.eye(3), protan, deutan):
    points = np.array([np.clip(seen @ linear(color), 0, 1) ** (1 / 2.2) for color in colors])
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distances[~np.eye(len(colors), dtype=bool)].min() > 0.12


@hypothesis.given(
  hypothesis.extra.numpy.arrays(float, strategies.integers(1, 12), elements=strategies.floats(0, 1))
)
def test_labels_do_not_meet_and_keep_their_order(wanted):
  sizes = np.full(len(wanted), 0.08)
  places = comparison_curves._spread(np.sort(wanted), sizes, -0.08, 1.0)
  assert np.all(np.diff(places) >= 0.08 - 1e-9)
  assert places[0] - 0.04 >= -0.08 - 1e-9
  assert places[-1] + 0.04 <= 1 + 1e-9


def test_labels_that_have_room_stay_where_they_are():
  wanted = np.array([0.1, 0.5, 0.52, 0.9])
  places = comparison_curves._spread(wanted, np.full(4, 0.08), -0.08, 1.0)
  np.testing.assert_allclose(places, [0.1, 0.47, 0.55, 0.9])
