# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the plots of a privacy report: which curves there are, and where they end."""

import io

import matplotlib.image
import numpy as np
import pytest

from privacy.claim import Claim
from privacy.ledger import Ledger
from tasks import plots, privacy_plots
from tests.tasks import synthetic_private_runs


def _claim(directory, kind, **more):
  synthetic_private_runs.write(directory / kind, kind, **more)
  ledger = Ledger(directory / kind / 'ledger.jsonl')
  return ledger, Claim.of(ledger)


def _pixels(png, color):
  image = matplotlib.image.imread(io.BytesIO(png))[..., :3]
  target = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  return int((np.abs(image - target).max(axis=-1) < 0.02).sum())


@pytest.mark.parametrize(
  ('kind', 'ways'), [('poisson', [True, False]), ('fixed', [False]), ('tree', [False])]
)
def test_curves_go_through_the_claim(tmp_path, kind, ways):
  ledger, claim = _claim(tmp_path, kind)
  curves = privacy_plots.curves(ledger, claim)
  assert list(curves) == [privacy_plots.ROUNDS, privacy_plots.DELTA]
  claimed = {b.amplified: b.epsilon for b in claim.bounds if b.accountant == 'pld'}
  for by_rounds, by_delta in zip(*curves.values(), strict=True):
    assert (by_rounds.x[0], by_rounds.x[-1]) == (1, 16)
    assert by_rounds.epsilon[-1] == pytest.approx(claimed[by_rounds.amplified], rel=1e-6)
    assert by_rounds.epsilon[0] < by_rounds.epsilon[-1]
    assert np.all(np.diff(by_rounds.epsilon) >= 0)
    assert np.all(np.diff(by_delta.epsilon) < 0)
    near = np.interp(np.log(1e-4), np.log(by_delta.x), by_delta.epsilon)
    assert near == pytest.approx(claimed[by_delta.amplified], rel=0.05)
  assert [curve.amplified for curve in curves[privacy_plots.ROUNDS]] == ways


def test_repeated_rounds_are_on_the_axis(tmp_path):
  ledger, _ = _claim(tmp_path, 'fixed', rounds=3)
  ledger.start_round(3)
  (curve,) = privacy_plots.curves(ledger, Claim.of(ledger))[privacy_plots.ROUNDS]
  assert curve.x.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(('kind', 'rounds'), [('seeded', 4), ('no_noise', 4), ('fixed', 0)])
def test_there_is_nothing_to_draw_without_a_claim_or_a_round(tmp_path, kind, rounds):
  assert not privacy_plots.curves(*_claim(tmp_path, kind, rounds=rounds))


def test_many_rounds_are_thinned(tmp_path):
  ledger, claim = _claim(tmp_path, 'fixed', rounds=300)
  (curve,) = privacy_plots.curves(ledger, claim)[privacy_plots.ROUNDS]
  assert len(curve.x) <= 60
  assert curve.x[-1] == 300


@pytest.mark.parametrize('theme', [plots.LIGHT, plots.DARK], ids=['light', 'dark'])
def test_draws_a_curve_for_each_way(tmp_path, theme):
  for kind, both in (('poisson', True), ('fixed', False)):
    ledger, claim = _claim(tmp_path, kind)
    for image in privacy_plots.draw(privacy_plots.curves(ledger, claim), claim, theme).values():
      assert _pixels(image, theme.first) > 500
      assert (_pixels(image, theme.second) > 500) == both
      assert _pixels(image, theme.text) > 100


def test_draws_a_single_round(tmp_path):
  ledger, claim = _claim(tmp_path, 'fixed', rounds=1)
  images = privacy_plots.draw(privacy_plots.curves(ledger, claim), claim, plots.LIGHT)
  assert _pixels(images[privacy_plots.ROUNDS], plots.LIGHT.text) > 100
