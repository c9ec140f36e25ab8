# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Plots about held-out clients: where the dots are, and which of them are left out."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from tasks import client_plots, plots
from tasks.client_plots import Change, Own, Spread

_BASE, _FINAL = Spread(range(20, 110, 10), 150.0), Spread(range(10, 100, 10), 120.0)


@pytest.fixture(name='drawn')
def drawn_fixture(monkeypatch):
  """Figures in place of their images."""
  monkeypatch.setattr(plots.Sheet, 'png', lambda sheet: sheet.figure)


def _dots(figure: Figure) -> list[tuple[str, list]]:
  """Colour and points of each line."""
  return [(line.get_color(), line.get_xydata().tolist()) for line in figure.axes[0].get_lines()]


@pytest.mark.parametrize(('measure', 'worst_place'), [('perplexity', 95), ('rouge_l', 5)])
def test_deciles_and_the_worst_tenth_are_where_they_belong(drawn, measure, worst_place):
  figure = client_plots.draw_distribution(Change(measure, _BASE, _FINAL))
  expected = []
  for color, spread in ((plots.LIGHT.muted, _BASE), (plots.LIGHT.second, _FINAL)):
    expected.append((color, [[10.0 * (n + 1), x] for n, x in enumerate(spread.deciles)]))
    expected.append((color, [[worst_place, spread.worst]]))
  assert _dots(figure) == expected
  assert {text.get_text() for text in figure.axes[0].texts} == {'untuned', 'tuned'}


@pytest.mark.parametrize(('largest', 'scale'), [(90.0, 'linear'), (900.0, 'log')])
def test_dots_below_the_diagonal_are_gains(drawn, largest, scale):
  clients = [Own(20.0, 10.0), Own(largest, 30.0)]
  figure = client_plots.draw_personalization([*clients, Own(np.inf, 3.0)])
  axes = figure.axes[0]
  diagonal, dots = (points for _, points in _dots(figure))
  assert all(x == y for x, y in diagonal)
  assert dots == [list(client) for client in clients]
  assert axes.get_xlim() == axes.get_ylim()
  assert axes.get_xlim()[0] < 10 < largest < axes.get_xlim()[1]
  assert (axes.get_xscale(), axes.get_yscale()) == (scale, scale)


def test_images_by_name():
  changes = [Change('perplexity', _BASE, _FINAL), Change('accuracy', _FINAL, _BASE)]
  images = client_plots.draw(changes, [Own(7.0, 7.0)], plots.DARK)
  assert list(images) == ['distribution_perplexity', 'distribution_accuracy', 'personalization']
  assert all(image.startswith(b'\x89PNG') for image in images.values())


def test_nothing_is_drawn_of_nobody():
  assert client_plots.draw([], [Own(np.nan, 1.0)]) == {}
