# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The plots of a comparison: what is drawn, what is left out, and that groups can be told apart."""

import csv
import io

import hypothesis
import hypothesis.extra.numpy
import matplotlib.image
import numpy as np
import pytest
from hypothesis import strategies

from tasks import comparison, comparison_plots, plots
from tasks.finished_run import FinishedRun
from tests.tasks import synthetic_runs


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


def _pixels(png, color, tolerance=0.02):
  image = matplotlib.image.imread(io.BytesIO(png))[..., :3]
  target = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  return int((np.abs(image - target).max(axis=-1) < tolerance).sum())


@pytest.mark.parametrize('theme', [plots.LIGHT, plots.DARK], ids=['light', 'dark'])
def test_every_group_is_drawn_in_its_colour(groups, theme):
  drawn = comparison_plots.draw_comparison(groups(['hetlora', 'naive', 'svd']), theme)
  assert list(drawn) == ['final', 'perplexity', 'upload', 'deviation']
  for name, image in drawn.items():
    colors = comparison_plots.colors(theme)
    assert min(_pixels(image, color) for color in colors[:3]) > 150, name
    assert _pixels(image, colors[3]) == 0, name
    assert _pixels(image, theme.background) > 100_000


def test_what_was_not_measured_is_left_out(groups):
  drawn = comparison_plots.draw_comparison(groups(['svd'], deviation=None), plots.LIGHT)
  assert list(drawn) == ['final', 'perplexity', 'upload']


def test_one_group_without_a_measure_is_left_out_of_its_plot(groups, tmp_path):
  run = synthetic_runs.write(tmp_path / 'full', method='full', deviation=None)
  both = [*groups(['svd']), *comparison.group_runs([FinishedRun.read(run)])]
  image = comparison_plots.draw_deviation(both, plots.LIGHT)
  assert _pixels(image, comparison_plots.LIGHT_COLORS[0]) > 150
  assert _pixels(image, comparison_plots.LIGHT_COLORS[1]) == 0


def test_ten_groups_differ_in_more_than_colour():
  looks = [
    (comparison_plots._style(plots.LIGHT, i)['marker'], comparison_plots.dashes(i))
    for i in range(15)
  ]
  assert len(set(looks)) == 15


@pytest.mark.parametrize(
  ('colors', 'theme'),
  [
    (comparison_plots.LIGHT_COLORS, plots.LIGHT),
    (comparison_plots.DARK_COLORS, plots.DARK),
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
  places = comparison_plots._spread(np.sort(wanted), sizes, -0.08, 1.0)
  assert np.all(np.diff(places) >= 0.08 - 1e-9)
  assert places[0] - 0.04 >= -0.08 - 1e-9
  assert places[-1] + 0.04 <= 1 + 1e-9


def test_labels_that_have_room_stay_where_they_are():
  wanted = np.array([0.1, 0.5, 0.52, 0.9])
  places = comparison_plots._spread(wanted, np.full(4, 0.08), -0.08, 1.0)
  np.testing.assert_allclose(places, [0.1, 0.47, 0.55, 0.9])


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


_LEVEL = {'privacy': 'central', 'target_epsilon': 1.0}


def _private(tmp_path, name, epsilons, **settings):
  directory = synthetic_runs.write(tmp_path / name, epsilons=epsilons, **settings)
  return FinishedRun.read(directory)


def test_perplexity_by_epsilon_has_a_line_for_each_method_and_cohort(tmp_path):
  runs = [
    _private(
      tmp_path, f'{method}{cohort}{epsilon}', (None, epsilon), method=method, privacy='central',
      final_loss=5 - 0.1 * epsilon, target_epsilon=epsilon, noise_multiplier=1 / epsilon,
      noise_cohort_size=cohort, population_size=100 * cohort, delta=1e-3 / cohort,
    )
    for method in ('hetlora', 'ffa') for cohort in (1000, 10_000) for epsilon in (8.0, 1.0)
  ]  # fmt: skip
  groups = comparison.group_runs(runs, ['hetlora', 'ffa'])
  curves = list(comparison_plots._privacy_curves(groups))
  assert [(curve.index, curve.label, curve.marker) for curve in curves] == [
    (0, 'hetlora (1,000 a round)', 'o'),
    (0, 'hetlora (10,000 a round)', 's'),
    (1, 'ffa (1,000 a round)', 'o'),
    (1, 'ffa (10,000 a round)', 's'),
  ]
  for curve in curves:
    np.testing.assert_allclose(curve.x, [1, 8])
    np.testing.assert_allclose(np.log(curve.mean), [4.9, 4.2])
  for theme in (plots.LIGHT, plots.DARK):
    image = comparison_plots.draw_perplexity_by_epsilon(groups, theme)
    assert min(_pixels(image, color) for color in comparison_plots.colors(theme)[:2]) > 150


def test_runs_without_privacy_are_lines_across_for_the_same_methods(tmp_path):
  both = [_private(tmp_path, 'a', (2.0, None), **_LEVEL), _private(tmp_path, 'b', None)]
  images = []
  for runs in (both[:1], both, [*both, _private(tmp_path, 'c', None, method='svd')]):
    groups = comparison.group_runs(runs, ['hetlora', 'svd'])
    images.append(comparison_plots.draw_perplexity_by_epsilon(groups, plots.LIGHT))
  first, second = comparison_plots.LIGHT_COLORS[:2]
  assert _pixels(images[1], first) > _pixels(images[0], first) + 100
  assert _pixels(images[2], second) == 0


def test_without_an_epsilon_there_is_no_such_plot(groups, tmp_path):
  assert comparison_plots.draw_perplexity_by_epsilon(groups(['svd']), plots.LIGHT) is None
  runs = [_private(tmp_path, 'a', (None, None), **_LEVEL)]
  drawn = comparison_plots.draw_comparison(comparison.group_runs(runs), plots.LIGHT)
  assert 'privacy' not in drawn


def test_degenerate_runs_are_drawn(groups):
  drawn = comparison_plots.draw_comparison(groups(['svd'], rounds=1, deviation=0.0), plots.LIGHT)
  assert list(drawn) == ['final', 'perplexity', 'upload', 'deviation']
