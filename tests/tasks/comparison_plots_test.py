# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The plots of a comparison: what is drawn, what is left out, and that groups can be told apart."""

import csv

import numpy as np
import pytest

from tasks import comparison, comparison_curves, comparison_plots, plots
from tasks.finished_run import FinishedRun
from tests.tasks import pixels, synthetic_runs


@pytest.fixture(name='groups')
def groups_fixture(tmp_path):
  """Makes groups of some methods, two seeds each."""

  def groups(methods, **settings):
    runs = [
      synthetic_runs.write(
        tmp_path / f'{method}{seed}',
        method=method,
        seed=seed,
        final_loss=4 + 0.1 * place + 0.02 * seed,
        **settings,
      )
      for place, method in enumerate(methods)
      for seed in range(2)
    ]
    return comparison.group_runs([FinishedRun.read(run) for run in runs], methods)

  return groups


@pytest.mark.parametrize('theme', [plots.LIGHT, plots.DARK], ids=['light', 'dark'])
def test_every_group_is_drawn_in_its_colour(groups, theme):
  drawn = comparison_plots.draw_comparison(groups(['hetlora', 'naive', 'svd']), theme)
  assert list(drawn) == ['final', 'perplexity', 'upload', 'deviation']
  for name, image in drawn.items():
    colors = comparison_curves.colors(theme)
    assert min(pixels.count(image, color) for color in colors[:3]) > 150, name
    assert pixels.count(image, colors[3]) == 0, name
    assert pixels.count(image, theme.background) > 100_000


def test_what_was_not_measured_is_left_out(groups):
  drawn = comparison_plots.draw_comparison(groups(['svd'], deviation=None), plots.LIGHT)
  assert list(drawn) == ['final', 'perplexity', 'upload']


def test_one_group_without_a_measure_is_left_out_of_its_plot(groups, tmp_path):
  run = synthetic_runs.write(tmp_path / 'full', method='full', deviation=None)
  both = [*groups(['svd']), *comparison.group_runs([FinishedRun.read(run)])]
  image = comparison_plots.draw_deviation(both, plots.LIGHT)
  assert pixels.count(image, comparison_curves.LIGHT_COLORS[0]) > 150
  assert pixels.count(image, comparison_curves.LIGHT_COLORS[1]) == 0


def test_uploads_add_up_and_begin_with_the_first_round(groups):
  (group,) = groups(['svd'], upload=100.0)
  curve = comparison_plots._curve(
    0, group, 'eval_perplexity', comparison_plots._uploaded, comparison_plots._geometric
  )
  assert curve.x.tolist() == [200, 400, 600, 800]


def test_a_curve_has_the_rounds_that_all_seeds_measured(groups, tmp_path):
  (group,) = groups(['svd'], eval_every=2)
  path = tmp_path / 'svd1/metrics.csv'
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  rows[-1]['eval_perplexity'] = ''
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  (shorter,) = comparison.group_runs([FinishedRun.read(tmp_path / f'svd{s}') for s in range(2)])
  curves = [
    comparison_plots._curve(
      0, each, 'eval_perplexity', lambda _, number: number, comparison_plots._geometric
    )
    for each in (group, shorter)
  ]
  assert [curve.x.tolist() for curve in curves] == [[0, 2, 4, 6, 8], [0, 2, 4, 6]]
  losses = [np.log(curves[0].low[-1]), np.log(curves[0].mean[-1]), np.log(curves[0].high[-1])]
  np.testing.assert_allclose(losses, [4.0, 4.01, 4.02])


def test_degenerate_runs_are_drawn(groups):
  drawn = comparison_plots.draw_comparison(groups(['svd'], rounds=1, deviation=0.0), plots.LIGHT)
  assert list(drawn) == ['final', 'perplexity', 'upload', 'deviation']
