# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Perplexity against epsilon and against bits: what is one line, what lies across, what is said."""

import numpy as np
import pytest

from tasks import comparison, comparison_curves, comparison_levels, comparison_plots, plots
from tasks.finished_run import FinishedRun
from tests.tasks import pixels, synthetic_runs

_LEVEL = {'privacy': 'central', 'target_epsilon': 1.0}


def _run(tmp_path, name, epsilons, **settings):
  directory = synthetic_runs.write(tmp_path / name, epsilons=epsilons, **settings)
  return FinishedRun.read(directory)


@pytest.fixture(name='by_bits')
def by_bits_fixture(tmp_path):
  """Makes groups of three arms at some numbers of bits and in the clear, two seeds each."""

  def run(method, arm, bits, seed, **settings):
    secure = {'secure_bits': bits, 'secure_rounding': 'nearest', 'secure_threshold': 7}
    noise = {'target_epsilon': 8.0, 'noise_multiplier': 1 + 1 / (bits or 99)}
    return _run(
      tmp_path,
      f'{method} {arm} {bits} {seed}',
      None if arm == 'none' else (None, 8 - 0.01 * (bits or 0)),
      method=method,
      seed=seed,
      deviation=None,
      privacy=arm,
      final_loss={'none': 4.0, 'central': 4.2, 'distributed': 4.4}[arm]
      + 0.1 * seed
      + 1 / (bits or 99),
      secure_aggregation=bits is not None,
      **(secure if bits else {}),
      **({} if arm == 'none' else noise),
      **settings,
    )

  def groups(methods=('hetlora',), numbers=(16, 6, 8), **settings):
    runs = [
      run(method, arm, bits, seed, **settings)
      for method in methods
      for arm in ('none', 'central', 'distributed')
      for bits in (*numbers, None)
      for seed in range(2)
      if bits or arm != 'distributed'  # There is no noise of clients without a secure sum.
    ]
    return comparison.group_runs(runs, methods)

  return groups


def _drawn(groups):
  """The curves by bits, and the lines across."""
  lines = comparison_levels._lines(groups, comparison_levels._bits, comparison_levels._besides_bits)
  curves = comparison_levels._bits_curves(lines)
  ends = np.array([0.0, 1.0])
  return curves, comparison_levels._sums_in_the_clear(groups, lines, curves, ends)


def test_perplexity_by_epsilon_has_a_line_for_each_method_and_cohort(tmp_path):
  runs = [
    _run(
      tmp_path, f'{method}{cohort}{epsilon}', (None, epsilon), method=method, privacy='central',
      final_loss=5 - 0.1 * epsilon, target_epsilon=epsilon, noise_multiplier=1 / epsilon,
      noise_cohort_size=cohort, population_size=100 * cohort, delta=1e-3 / cohort,
    )
    for method in ('hetlora', 'ffa') for cohort in (1000, 10_000) for epsilon in (8.0, 1.0)
  ]  # fmt: skip
  groups = comparison.group_runs(runs, ['hetlora', 'ffa'])
  curves = comparison_levels._epsilon_curves(groups)
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
    image = comparison_levels.draw_perplexity_by_epsilon(groups, theme)
    assert min(pixels.count(image, color) for color in comparison_curves.colors(theme)[:2]) > 150


def test_runs_without_privacy_are_lines_across_for_the_same_methods(tmp_path):
  both = [_run(tmp_path, 'a', (2.0, None), **_LEVEL), _run(tmp_path, 'b', None)]
  images = []
  for runs in (both[:1], both, [*both, _run(tmp_path, 'c', None, method='svd')]):
    groups = comparison.group_runs(runs, ['hetlora', 'svd'])
    images.append(comparison_levels.draw_perplexity_by_epsilon(groups, plots.LIGHT))
  first, second = comparison_curves.LIGHT_COLORS[:2]
  assert pixels.count(images[1], first) > pixels.count(images[0], first) + 100
  assert pixels.count(images[2], second) == 0


def test_without_an_epsilon_there_is_no_such_plot(tmp_path):
  runs = [_run(tmp_path, 'a', (None, None), **_LEVEL)]
  drawn = comparison_plots.draw_comparison(comparison.group_runs(runs), plots.LIGHT)
  assert 'privacy' not in drawn


def test_what_else_differs_is_said_of_lines_by_epsilon(tmp_path):
  runs = [
    _run(
      tmp_path, f'{bits} {clip} {epsilon}', (epsilon, None), privacy='central', l2_clip_norm=clip,
      target_epsilon=epsilon, secure_bits=bits,
    )
    for bits, clip in ((None, 1.0), (16, 1.0), (16, 2.0)) for epsilon in (1.0, 8.0)
  ]  # fmt: skip
  curves = comparison_levels._epsilon_curves(comparison.group_runs(runs))
  assert [(curve.label, curve.marker) for curve in curves] == [
    ('hetlora (in the clear)', 'o'),
    ('hetlora (16 bits, l2_clip_norm 1.0)', 's'),
    ('hetlora (16 bits, l2_clip_norm 2.0)', '^'),
  ]


def test_runs_of_one_epsilon_that_differ_in_other_things_are_drawn_by_those(by_bits):
  drawn = comparison_plots.draw_comparison(by_bits(), plots.LIGHT)
  assert list(drawn) == ['final', 'bits', 'perplexity', 'upload']


def test_perplexity_by_bits_has_a_line_for_each_arm(by_bits):
  curves, across = _drawn(by_bits())
  assert [(curve.index, curve.label) for curve in curves] == [
    (0, 'no noise'),
    (1, 'central, epsilon 8'),
    (2, 'distributed, epsilon 8'),
  ]
  for curve, loss in zip(curves, (4.0, 4.2, 4.4), strict=True):
    np.testing.assert_allclose(curve.x, [6, 8, 16])
    for values, seed in ((curve.low, 0), (curve.mean, 0.5), (curve.high, 1)):
      np.testing.assert_allclose(np.log(values), loss + 0.1 * seed + 1 / curve.x)
  assert [(curve.index, curve.label) for curve in across] == [
    (0, 'no noise (in the clear)'),
    (1, 'central, epsilon 8 (in the clear)'),
  ]
  np.testing.assert_allclose(np.log(across[1].mean), 4.25 + 1 / 99)


def test_methods_by_bits_share_colours_and_differ_in_markers(by_bits):
  curves, across = _drawn(by_bits(('hetlora', 'ffa')))
  assert [(curve.index, curve.label, curve.marker) for curve in curves] == [
    (0, 'hetlora (no noise)', 'o'),
    (1, 'hetlora (central, epsilon 8)', 'o'),
    (2, 'hetlora (distributed, epsilon 8)', 'o'),
    (0, 'ffa (no noise)', 's'),
    (1, 'ffa (central, epsilon 8)', 's'),
    (2, 'ffa (distributed, epsilon 8)', 's'),
  ]
  assert [curve.label for curve in across[2:]] == [
    'ffa (no noise) (in the clear)',
    'ffa (central, epsilon 8) (in the clear)',
  ]


def test_arms_by_bits_that_differ_in_a_setting_are_told_apart(tmp_path):
  runs = [
    _run(tmp_path, f'{rounding} {bits}', None, secure_bits=bits, secure_rounding=rounding)
    for rounding in ('nearest', 'stochastic')
    for bits in (8, 16)
  ]
  clear = _run(tmp_path, 'clear', None)
  curves, across = _drawn(comparison.group_runs([*runs, clear]))
  assert [(curve.index, curve.label) for curve in curves] == [
    (0, 'no noise, secure_rounding nearest'),
    (1, 'no noise, secure_rounding stochastic'),
  ]
  # In the clear nothing is rounded: one run is like both.
  assert [curve.index for curve in across] == [0]


def test_noise_that_no_budget_decided_is_a_setting_of_an_arm(tmp_path):
  runs = [
    _run(tmp_path, f'{noise} {bits}', None, privacy='central', noise_multiplier=noise,
         secure_bits=bits)
    for noise in (0.5, 1.0) for bits in (8, 16)
  ]  # fmt: skip
  curves, _ = _drawn(comparison.group_runs(runs))
  assert [curve.label for curve in curves] == ['central, noise 0.5', 'central, noise 1.0']


def test_runs_in_the_clear_that_differ_in_more_are_not_drawn_by_bits(tmp_path):
  runs = [_run(tmp_path, f'{bits}', None, secure_bits=bits, max_rank=8) for bits in (8, 16)]
  groups = comparison.group_runs([*runs, _run(tmp_path, 'clear', None, max_rank=32)])
  assert _drawn(groups)[1] == []


@pytest.mark.parametrize('theme', [plots.LIGHT, plots.DARK], ids=['light', 'dark'])
def test_arms_by_bits_are_drawn_in_their_colours(by_bits, theme):
  image = comparison_levels.draw_perplexity_by_bits(by_bits(), theme)
  colors = comparison_curves.colors(theme)
  assert min(pixels.count(image, color) for color in colors[:3]) > 150
  assert pixels.count(image, colors[3]) == 0


def test_one_number_of_bits_is_no_plot(by_bits):
  assert comparison_levels.draw_perplexity_by_bits(by_bits(numbers=(16,)), plots.LIGHT) is None
