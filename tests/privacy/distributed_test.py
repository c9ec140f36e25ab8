# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections
import dataclasses

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_federated as tff

from privacy.aggregators import build_dp_aggregator, build_dp_sum
from privacy.distributed import add_skellam
from privacy.noise import FreshSeeds
from privacy.quantization import decode, encode, wrap
from privacy.secure_sum import Rounding, SecureSumSpec
from privacy.skellam import MOST_VARIANCE
from privacy.spec import DpSpec, Mechanism
from tests.privacy.scale import check_uncorrelated, is_gaussian

pytestmark = pytest.mark.usefixtures('tff_runtime')

SHAPE = [40, 50]
ENTRIES = 2 * 40 * 50
VALUE = tff.to_type(collections.OrderedDict(a=(np.float32, SHAPE), b=[(np.float32, SHAPE)]))
CLIP, SMALLEST = 3.0, 4
# Steps as large as the noise: a sum has one of variance 16, a client's share one of 4.
GRID = SecureSumSpec(5, 12, l2_clip_norm=CLIP, coordinates=ENTRIES, rounding=Rounding.STOCHASTIC)
SPEC = DpSpec(
  4 * GRID.step / CLIP, CLIP, 8, Mechanism.SKELLAM, secure_sum=GRID, smallest_cohort=SMALLEST
)


def _value(a, b=0.0):
  return collections.OrderedDict(a=np.full(SHAPE, a, np.float32), b=[np.full(SHAPE, b, np.float32)])


def _numbers(result):
  return np.float64([result['a'], result['b'][0]])


def _is_skellam(steps, variance):
  """Whether whole numbers are Skellam noise: their counts by chi-square, and the variance."""
  steps = np.int64(np.ravel(steps))
  law = scipy.stats.skellam(variance / 2, variance / 2)
  edge = int(law.isf(10 / steps.size))
  cells = np.arange(-edge, edge + 1)
  shares = np.concatenate([[law.cdf(-edge - 1)], law.pmf(cells), [law.sf(edge)]])
  counts = np.bincount(np.clip(steps, -edge - 1, edge + 1) + edge + 1, minlength=shares.size)
  return scipy.stats.chisquare(counts, shares * steps.size).pvalue > 1e-6


def _check_skellam(steps, variance):
  assert _is_skellam(steps, variance)
  assert not _is_skellam(steps, variance * 4 / 9)
  assert not _is_skellam(steps, variance * 9 / 4)


@pytest.fixture(scope='module')
def noisy():
  return build_dp_sum(SPEC).create(VALUE)


def _steps(process, clients, value=None):
  """Rounds of so many equal clients: the sum in steps."""
  output = process.next(process.initialize(), [value or _value(0)] * clients)
  assert output.measurements['released']
  steps = _numbers(output.result) / GRID.step
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
  return np.round(steps)


def test_the_spec_is_as_the_tests_have_it():
  assert SPEC.local_variance == pytest.approx(4)
  assert SPEC.wrap_probability <= 1e-6
  assert SPEC.secure_sum.noise_margin > 0


def test_zero_updates_leave_noise_in_whole_steps(noisy):
  # Equal clients, of whom each draws noise of its own: four times one share would have 64.
  steps = _steps(noisy, SMALLEST)
  _check_skellam(steps, 16)
  check_uncorrelated(steps[0], steps[1])
  check_uncorrelated(steps, _steps(noisy, SMALLEST))


def test_clients_above_the_threshold_only_add(noisy):
  _check_skellam(_steps(noisy, 9), 36)


def test_the_sum_is_under_the_noise(noisy):
  value = 2 * GRID.step
  # 3 clients in 4 entries of 1000: within the clip.
  few = _value(0)
  few['a'][:2, :2] = value
  steps = _steps(noisy, 6, few)
  assert abs(np.mean(steps[0, :2, :2]) - 12) < 6 * np.sqrt(24 / 4)
  steps[0, :2, :2] -= 12
  _check_skellam(steps, 24)


def test_too_few_clients_release_nothing(noisy):
  for clients in (0, 1, SMALLEST - 1):
    output = noisy.next(noisy.initialize(), [_value(0.1, 0.2)] * clients)
    assert not output.measurements['released']
    np.testing.assert_array_equal(_numbers(output.result), np.zeros([2, *SHAPE]))


def test_the_mean_divides_by_the_public_number():
  process = build_dp_aggregator(SPEC).create(VALUE)
  output = process.next(process.initialize(), [_value(0)] * SMALLEST)
  _check_skellam(np.round(_numbers(output.result) * 8 / GRID.step), 16)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_client_that_is_not_finite_adds_noise_alone(noisy, bad):
  _check_skellam(_steps(noisy, SMALLEST, _value(0.01, bad)), 16)


def test_a_huge_client_moves_the_sum_by_the_rounded_clip():
  process = build_dp_sum(dataclasses.replace(SPEC, noise_multiplier=0.0)).create(VALUE)
  moved = [
    _numbers(process.next(process.initialize(), [_value(0)] * SMALLEST + more).result)
    for more in ([], [_value(1e30, -3e38)])
  ]
  assert 0 < np.linalg.norm(moved[1] - moved[0]) <= GRID.rounded_clip


def test_a_projection_scales_the_noise_to_its_cohort():
  spec = dataclasses.replace(SPEC, population_size=1000, noise_cohort_size=16)
  _check_skellam(_steps(build_dp_sum(spec).create(VALUE), SMALLEST), 4)


def test_noise_beyond_the_modulus_is_off_by_a_multiple_of_it():
  # A modulus with room for the values, and none for noise of deviation 200.
  encoded = encode(tf.zeros(SHAPE), GRID, FreshSeeds())
  noised = add_skellam(encoded, 200.0**2, tf.constant([1, 2], tf.int64))
  assert np.max(np.abs(noised)) > GRID.modulus / 2
  residues = wrap(noised, GRID)
  assert np.min(residues) >= 0
  assert np.max(residues) < GRID.modulus
  error = (decode(residues, GRID, tf.TensorSpec(SHAPE, tf.float64)) / GRID.step) - noised.numpy()
  turns = error / GRID.modulus
  np.testing.assert_allclose(turns, np.round(turns), atol=1e-9)
  assert np.mean(turns != 0) > 0.1
  # With the margin of the spec, of the noise that it is for, there is none.
  fitting = add_skellam(encoded, SPEC.local_variance * 12, tf.constant([1, 2], tf.int64))
  decoded = decode(
    wrap(fitting, SPEC.secure_sum), SPEC.secure_sum, tf.TensorSpec(SHAPE, tf.float64)
  )
  np.testing.assert_allclose(decoded / GRID.step, fitting, atol=1e-9)


@pytest.mark.parametrize('variance', [0.5, 4.0, 1e3])
def test_noise_is_skellam(variance):
  zeros = [tf.zeros([20_000], tf.int64)] * 2
  one, other = add_skellam(zeros, variance, FreshSeeds().next(())[0])
  _check_skellam(one, variance)
  _check_skellam(other, variance)
  check_uncorrelated(one, other)
  assert _is_skellam(one + other, 2 * variance)


def test_wide_noise_is_as_good_as_gaussian():
  (noise,) = add_skellam(
    [tf.zeros([50_000], tf.int64)], MOST_VARIANCE, tf.constant([5, 6], tf.int64)
  )
  assert is_gaussian(noise, 2.0**16)
  assert not is_gaussian(noise, 2.0**16 * 1.05)


def test_without_noise_nothing_is_added():
  encoded = [tf.constant([1, -2], tf.int64)]
  assert add_skellam(encoded, 0.0, tf.constant([1, 2], tf.int64)) is encoded


def test_refuses_an_inner_sum_and_a_seed():
  with pytest.raises(ValueError, match='takes no `inner`'):
    build_dp_sum(SPEC, tff.aggregators.SumFactory())
  with pytest.raises(ValueError, match='`insecure_seed`'):
    build_dp_sum(dataclasses.replace(SPEC, insecure_seed=1))


def test_refuses_noise_that_the_sampler_does_not_do_and_names_the_bits():
  def spec(bits):
    grid = SecureSumSpec(bits, 12, l2_clip_norm=CLIP, coordinates=ENTRIES)
    return dataclasses.replace(SPEC, noise_multiplier=1.0, secure_sum=grid)

  with pytest.raises(ValueError, match='take 18 bits or fewer'):
    spec(24)
  build_dp_sum(spec(18))
  with pytest.raises(ValueError, match='take 18 bits or fewer'):
    spec(19)


def test_refuses_more_entries_than_coordinates():
  few = dataclasses.replace(GRID, coordinates=ENTRIES - 1)
  with pytest.raises(ValueError, match=f'all {ENTRIES} entries .* got {ENTRIES - 1}'):
    build_dp_sum(dataclasses.replace(SPEC, secure_sum=few)).create(VALUE)
