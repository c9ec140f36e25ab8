# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import dp_accounting
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from privacy.noise import FreshSeeds, SeedChain
from privacy.queries import AdaptiveClipQuery, BandedQuery, GaussianQuery, build_tree_query
from tests.privacy.scale import check_scale, check_uncorrelated, is_gaussian

SPECS = [tf.TensorSpec([50, 40]), tf.TensorSpec([50, 40])]
STDDEV = 1.5
COEFFICIENTS = (1.0, 0.5, 0.375)


def _rounds(query, count, state=None):
  """`[count, entries]`: the noised sums of rounds without records; and the last state."""
  state = query.initial_global_state() if state is None else state
  results = []
  for _ in range(count):
    result, state, _ = query.get_noised_result([tf.zeros(s.shape) for s in SPECS], state)
    results.append(np.concatenate([np.ravel(t) for t in result]))
  return np.array(results), state


def _honaker_variance(leaf):
  """Variance of the estimate of the sum up to `leaf`, in units of a node's.

  The estimate of a full binary tree of height h averages one node, weighted by 1, and the two
  estimates below it: inverse variances `p_h = 1 + p_{h-1} / 2`, `p_0 = 1`. The trees that make up
  the sum are those of the binary digits of `leaf`.
  """
  precision, total = 1.0, 0.0
  while leaf:
    total += (leaf % 2) / precision
    leaf //= 2
    precision = 1 + precision / 2
  return total


def test_the_cumulative_noise_is_that_of_a_tree():
  assert _honaker_variance(2) == pytest.approx(2 / 3)
  query = build_tree_query(SPECS, 2.0, STDDEV, None, SeedChain(None))
  cumulative = np.cumsum(_rounds(query, 8)[0], 0)
  for leaf in range(1, 9):
    check_scale(cumulative[leaf - 1], STDDEV * np.sqrt(_honaker_variance(leaf)))
  check_uncorrelated(*np.split(cumulative[-1], 2))


def test_a_restarted_tree_is_a_new_one():
  query = build_tree_query(SPECS, 2.0, STDDEV, 3, SeedChain(None))
  results, _ = _rounds(query, 6)
  check_uncorrelated(results[:3].sum(0), results[3:].sum(0))
  for tree in (results[:3], results[3:]):
    for leaf, noise in enumerate(np.cumsum(tree, 0), 1):
      check_scale(noise, STDDEV * np.sqrt(_honaker_variance(leaf)))


def test_banded_noise_is_white_behind_its_matrix():
  query = BandedQuery(SPECS, 2.0, STDDEV, COEFFICIENTS, SeedChain(None))
  results, state = _rounds(query, 6)
  c = scipy.linalg.toeplitz([*COEFFICIENTS, 0, 0, 0], np.zeros(6))
  white = c @ results
  for row in white:
    check_scale(row, STDDEV * np.linalg.norm(COEFFICIENTS))
  for one, other in [(0, 1), (1, 2), (2, 4), (4, 5)]:
    check_uncorrelated(white[one], white[other])
  assert not is_gaussian(results[3], STDDEV * np.linalg.norm(COEFFICIENTS))
  assert state.past[0].shape == [2, 50, 40]


def test_a_band_of_one_is_independent_noise():
  results, _ = _rounds(BandedQuery(SPECS, 2.0, STDDEV, [1.0], SeedChain(None)), 2)
  check_scale(results, STDDEV)
  check_uncorrelated(*results)


def test_banded_coefficients_begin_with_one():
  for coefficients in ([], [0.9, 0.1]):
    with pytest.raises(ValueError, match='begin with 1'):
      BandedQuery(SPECS, 2.0, STDDEV, coefficients, SeedChain(None))


@pytest.mark.parametrize(
  'query',
  [
    build_tree_query(SPECS, 2.0, STDDEV, None, SeedChain(None)),
    build_tree_query(SPECS, 2.0, STDDEV, 2, SeedChain(None)),
    BandedQuery(SPECS, 2.0, STDDEV, COEFFICIENTS, SeedChain(None)),
  ],
)
def test_a_repeated_round_has_its_noise_again_where_rounds_hang_together(query):
  _, state = _rounds(query, 2)
  np.testing.assert_array_equal(_rounds(query, 2, state)[0], _rounds(query, 2, state)[0])
  assert isinstance(
    query.get_noised_result([tf.zeros(s.shape) for s in SPECS], state)[2],
    dp_accounting.UnsupportedDpEvent,
  )


def test_a_repeated_round_has_other_noise_where_they_do_not():
  query = GaussianQuery(SPECS, 2.0, STDDEV, FreshSeeds())
  _, state = _rounds(query, 1)
  check_uncorrelated(_rounds(query, 1, state)[0], _rounds(query, 1, state)[0])


@pytest.mark.parametrize(
  'query',
  [
    GaussianQuery(SPECS, 2.0, 0.0, FreshSeeds()),
    build_tree_query(SPECS, 2.0, 0.0, None, SeedChain(None)),
    BandedQuery(SPECS, 2.0, 0.0, COEFFICIENTS, SeedChain(None)),
  ],
)
def test_every_query_clips_jointly_and_screens(query):
  params = query.derive_sample_params(query.initial_global_state())
  clipped = query.preprocess_record(params, [tf.fill([50, 40], 9.0), tf.fill([50, 40], -9.0)])
  np.testing.assert_allclose(tf.linalg.global_norm(clipped), 2.0, rtol=1e-6)
  for bad in (np.nan, np.inf):
    clipped = query.preprocess_record(params, [tf.fill([50, 40], bad), tf.ones([50, 40])])
    np.testing.assert_array_equal(clipped[1], np.zeros([50, 40]))


def _adaptive(seeds=None, count_stddev=5.0):
  seeds = seeds or (FreshSeeds(), FreshSeeds())
  return AdaptiveClipQuery(SPECS, 2.0, 3.0, 0.5, 0.2, count_stddev, 100.0, seeds)


def test_an_adaptive_clip_moves_and_its_noise_with_it():
  query = _adaptive(count_stddev=0.0)
  state = query.initial_global_state()
  sample = query.initial_sample_state([tf.zeros(s.shape) for s in SPECS])
  # 100 records below the clip, each counted as +0.5.
  sample = sample._replace(quantile_estimator_state=tf.constant(50.0))
  result, state, _ = query.get_noised_result(sample, state)
  check_scale(np.ravel(result), 3.0 * 2.0)
  clip = 2.0 * np.exp(-0.2 * 0.5)
  np.testing.assert_allclose(query.derive_sample_params(state).sum_params, clip, rtol=1e-6)
  result, _, _ = query.get_noised_result(sample, state)
  check_scale(np.ravel(result), 3.0 * clip)


def test_the_count_of_an_adaptive_clip_is_noised():
  query = _adaptive(count_stddev=5.0)
  sample = query.initial_sample_state([tf.zeros(s.shape) for s in SPECS])
  initial = query.initial_global_state()
  draw = tf.function(
    lambda: tf.map_fn(
      lambda _: query.get_noised_result(sample, initial)[1].sum_state.l2_norm_clip,
      tf.zeros([2000]),
      parallel_iterations=1,
    )
  )
  # clip = 2 exp(-0.2 (0.5 + noise / 100 - 0.5)), with a noise too small to leave [0, 1].
  check_scale(np.log(draw() / 2.0) / -0.2 * 100, 5.0)


def test_the_count_of_a_record_says_whether_it_was_clipped():
  query = _adaptive()
  params = query.derive_sample_params(query.initial_global_state())
  # Zeros count as nobody: zeroing a client that was clipped moves the count by 0.5, not by 1.
  for entry, count in [(1e-3, 0.5), (1.0, -0.5), (0.0, 0.0), (np.nan, 0.0)]:
    record = query.preprocess_record(params, [tf.fill([50, 40], entry)] * 2)
    assert record.quantile_estimator_state == count


def test_an_adaptive_record_is_in_units_of_the_clip():
  query = AdaptiveClipQuery(SPECS, 4.0, 0.0, 0.5, 0.2, 0.0, 100.0, (FreshSeeds(), FreshSeeds()))
  state = query.initial_global_state()
  params = query.derive_sample_params(state)
  entry = 2.0 / 4000**0.5
  for fill, norm in [(entry, 0.5), (9.0, 1.0), (1e30, 1.0)]:
    record = query.preprocess_record(params, [tf.fill([50, 40], fill), tf.fill([50, 40], -fill)])
    np.testing.assert_allclose(tf.linalg.global_norm(record.sum_state), norm, rtol=1e-6)
    result, _, _ = query.get_noised_result(record, state)
    np.testing.assert_allclose(tf.linalg.global_norm(result), 4 * norm, rtol=1e-6)


def test_seeded_adaptive_noise_repeats_and_goes_on():
  runs = []
  for _ in range(2):
    query = _adaptive((SeedChain((1, 0)), SeedChain((1, 1))))
    state = query.initial_global_state()
    sample = query.initial_sample_state([tf.zeros(s.shape) for s in SPECS])
    first, state, _ = query.get_noised_result(sample, state)
    second, _, _ = query.get_noised_result(sample, state)
    runs.append(np.array([np.ravel(first), np.ravel(second)]))
  np.testing.assert_array_equal(*runs)
  check_uncorrelated(*runs[0])


def test_events_are_those_of_the_state():
  zeros = [tf.zeros(s.shape) for s in SPECS]
  query = GaussianQuery(SPECS, 2.0, 3.0, FreshSeeds())
  event = query.get_noised_result(zeros, query.initial_global_state())[2]
  assert float(event.noise_multiplier) == 1.5
  query = _adaptive()
  sample = query.initial_sample_state(zeros)
  event = query.get_noised_result(sample, query.initial_global_state())[2]
  assert [float(e.noise_multiplier) for e in event.events] == [3.0, 10.0]


def test_an_inflated_record_is_in_the_event_and_not_in_the_noise():
  zeros = [tf.zeros(s.shape) for s in SPECS]
  query = GaussianQuery(SPECS, 2.0, 3.0, FreshSeeds(), inflation=1.25)
  result, _, event = query.get_noised_result(zeros, query.initial_global_state())
  assert float(event.noise_multiplier) == pytest.approx(1.2)
  check_scale(np.ravel(result), 3.0)
