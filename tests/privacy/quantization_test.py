# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections
import dataclasses
import math

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from privacy.noise import FreshSeeds, SeedChain
from privacy.quantization import decode, encode, wrap
from privacy.secure_sum import Rounding, SecureSumSpec
from tests.privacy.scale import is_gaussian

# Levels 3, step 1.
COARSE = SecureSumSpec(3, 10, value_range=3.0)
BY_CHANCE = (Rounding.STOCHASTIC, Rounding.CONDITIONAL)


def _encode(value, spec, seeds=None):
  return tf.nest.map_structure(lambda t: t.numpy(), encode(value, spec, seeds or FreshSeeds()))


def _sum(values, spec):
  """The residues of the sum, as a protocol has them."""
  total = tf.add_n([wrap(encode(value, spec, FreshSeeds()), spec) for value in values])
  return tf.math.floormod(total, tf.constant(spec.modulus, tf.int64))


def _clipped(bits, coordinates, rounding, clip=1.0):
  return SecureSumSpec(bits, 10, l2_clip_norm=clip, coordinates=coordinates, rounding=rounding)


def test_nearest_by_hand():
  value = tf.constant([0.0, 0.4, 0.6, -0.6, -1.4, 2.6, 2.9])
  np.testing.assert_array_equal(_encode(value, COARSE), [0, 0, 1, -1, -1, 3, 3])


def test_the_step_follows_the_range():
  spec = SecureSumSpec(5, 1, value_range=0.3)
  np.testing.assert_array_equal(_encode(tf.constant([0.3, 0.1, -0.02]), spec), [15, 5, -1])


def test_what_is_longer_than_the_clip_is_clipped_jointly():
  spec = SecureSumSpec(8, 1, value_range=12.7, l2_clip_norm=2.5, coordinates=2)
  for scale in (10.0, 1e30):
    encoded = _encode([tf.constant([3.0 * scale]), tf.constant(-4.0 * scale)], spec)
    np.testing.assert_array_equal(encoded[0], [15])
    assert encoded[1] == -20


def test_a_structure_keeps_its_shape_and_its_order():
  value = collections.OrderedDict(
    b=tf.constant([[1.0, 2.0]]), count=tf.constant(3, tf.int32), a=[tf.constant(-1.0)]
  )
  encoded = _encode(value, COARSE)
  assert list(encoded) == ['b', 'count', 'a']
  np.testing.assert_array_equal(encoded['b'], [[1, 2]])
  assert encoded['count'] == 3
  assert encoded['a'][0] == -1
  assert {e.dtype for e in tf.nest.flatten(encoded)} == {np.dtype(np.int64)}


@pytest.mark.parametrize('rounding', [Rounding.NEAREST, Rounding.STOCHASTIC])
@hypothesis.given(st.lists(st.floats(-2.0, 2.0, width=32), min_size=1, max_size=20))
def test_the_error_is_what_the_spec_says(rounding, numbers):
  spec = SecureSumSpec(7, 10, value_range=2.0, rounding=rounding)
  error = _encode(tf.constant(numbers), spec) * spec.step - np.float64(np.float32(numbers))
  # A rounding of float64 beyond it.
  assert np.max(np.abs(error)) <= spec.error_of_sum(1) * (1 + 1e-12)


@pytest.mark.parametrize('rounding', Rounding)
def test_zeros_stay_zeros(rounding):
  spec = _clipped(4, 200, rounding)
  value = np.zeros(200, np.float32)
  value[:2] = 0.5, -0.3
  assert not np.any(_encode(tf.constant(value), spec)[2:])


@pytest.mark.parametrize('uniform', [0.0, 1 - 2.0**-53])
def test_chance_moves_no_grid_point(monkeypatch, uniform):
  monkeypatch.setattr(
    tf.random,
    'stateless_uniform',
    lambda shape, *_, dtype, **__: tf.fill(shape, np.float64(uniform)),
  )
  spec = SecureSumSpec(32, 1, value_range=float(2**31 - 1), rounding=Rounding.STOCHASTIC)
  points = [0, 1, -1, 2**31 - 1, 1 - 2**31, 2**30]
  np.testing.assert_array_equal(_encode(tf.constant(points, tf.float64), spec), points)


@pytest.mark.parametrize('rounding', BY_CHANCE)
def test_chance_has_the_right_mean_and_deviation(rounding):
  # Values of 0.3 steps: the deviation of one is sqrt(0.3 0.7).
  entries, clip = 20_000, 100.0
  spec = _clipped(8, entries, rounding, clip)
  encoded = _encode(tf.fill([entries], np.float32(0.3 * spec.step)), spec)
  assert set(np.unique(encoded)) == {0, 1}
  z = (np.mean(encoded) - np.float64([0.3, 0.2, 0.45])) / math.sqrt(0.21 / entries)
  assert abs(z[0]) < 5 < min(abs(z[1:]))


@pytest.mark.parametrize('rounding', BY_CHANCE)
def test_chance_is_not_shared(rounding):
  spec = _clipped(8, 4000, rounding, 10.0)
  half = tf.fill([2000], np.float32(spec.step / 2))
  first, second = (np.array(_encode([half, half], spec)) - 0.5 for _ in range(2))
  for one, other in [(first[0], first[1]), (first[0], second[0])]:
    assert abs(np.sum(one * other)) / 0.25 < 5 * math.sqrt(2000)
  seeds = SeedChain((1, 2))
  np.testing.assert_array_equal(_encode([half], spec, seeds), _encode([half], spec, seeds))


def _adversaries(spec, entries):
  """Float64 `[entries]` that rounding lengthens most, and what no honest client sends."""
  rng = np.random.default_rng(0)
  halves = np.full(entries, 0.5001 * spec.step)
  near = rng.choice([-1, 1], entries) * (rng.integers(0, 3, entries) + 0.5001) * spec.step
  direction = rng.normal(size=entries)
  spike = np.zeros(entries)
  spike[0] = spec.l2_clip_norm
  return [
    halves,
    near,
    direction / np.linalg.norm(direction) * spec.l2_clip_norm,
    spike,
    spike + halves,
    np.full(entries, 1e300),
    rng.normal(size=entries) * 1e6,
  ]


@pytest.mark.parametrize('rounding', Rounding)
@pytest.mark.parametrize('bits', [2, 4, 10])
@pytest.mark.parametrize('coordinates', [1, 50, 400])
def test_the_norm_after_rounding_keeps_its_bound(rounding, bits, coordinates):
  # Also where a client changes more coordinates than the spec has.
  spec = _clipped(bits, coordinates, rounding)
  encoder = tf.function(lambda v: encode(v, spec, FreshSeeds()))
  for value in _adversaries(spec, 400):
    encoded = np.float64(encoder(tf.constant(value))) * spec.step
    assert np.linalg.norm(encoded) <= spec.rounded_clip
    assert np.sum(np.abs(encoded)) <= math.sqrt(coordinates) * spec.rounded_clip * (1 + 1e-12)
    assert np.max(np.abs(encoded)) <= spec.value_range


def test_nearest_all_but_reaches_its_bound():
  # Otherwise the test above would not see a bound that is missed by a little.
  spec = _clipped(5, 100, Rounding.NEAREST)
  value = tf.fill([99], np.float64(1.5001 * spec.step))
  assert np.linalg.norm(_encode(value, spec)) * spec.step > 0.99 * spec.rounded_clip


def test_conditional_draws_again_and_does_not_shorten():
  # In steps of 1, 2.5 and 2.5 become 2 or 3; 3 and 3 are too long.
  spec = SecureSumSpec(4, 1, 7.0, math.sqrt(12.5), 2, Rounding.CONDITIONAL)
  assert math.sqrt(13) < spec.rounded_clip < math.sqrt(18)
  draw = tf.function(lambda: encode(tf.constant([2.5, 2.5]), spec, FreshSeeds()))
  draws = [tuple(draw().numpy()) for _ in range(600)]
  assert set(draws) == {(2, 2), (2, 3), (3, 2)}
  # A third of them each; were what is refused shortened, half of them 2 and 2.
  z = (draws.count((2, 2)) / 600 - np.float64([1 / 3, 1 / 2])) / math.sqrt(0.25 / 600)
  assert abs(z[0]) < 5 < abs(z[1])


def test_a_draw_that_never_fits_is_shortened(monkeypatch):
  # Always up.
  monkeypatch.setattr(
    tf.random, 'stateless_uniform', lambda shape, *_, dtype, **__: tf.zeros(shape, dtype)
  )
  spec = SecureSumSpec(4, 1, 7.0, math.sqrt(12.5), 2, Rounding.CONDITIONAL)
  np.testing.assert_array_equal(_encode(tf.constant([2.5, 2.5]), spec), [2, 2])


@pytest.mark.parametrize('rounding', Rounding)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_all_zeros(rounding, bad):
  spec = SecureSumSpec(8, 1, value_range=4.0)
  if rounding is not Rounding.NEAREST:
    spec = _clipped(8, 4, rounding)
  value = [tf.constant([1.0, bad]), tf.constant(0.5)]
  if spec.l2_clip_norm is None:
    value.append(tf.constant([3], tf.int32))
  for encoded in _encode(value, spec):
    np.testing.assert_array_equal(encoded, np.zeros_like(encoded))


def test_what_is_out_of_range_is_cut():
  value = [tf.constant([1e30, -3e38, 5.0]), tf.constant([7, -(2**31), 2], tf.int32)]
  encoded = _encode(value, COARSE)
  np.testing.assert_array_equal(encoded[0], [3, -3, 3])
  np.testing.assert_array_equal(encoded[1], [3, -3, 2])


def test_decode_inverts():
  like = [tf.TensorSpec([3]), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float64)]
  encoded = [
    tf.constant([-30, 0, 30], tf.int64),
    tf.constant(-7, tf.int64),
    tf.constant(2, tf.int64),
  ]
  decoded = decode(wrap(encoded, COARSE), COARSE, like)
  np.testing.assert_array_equal(decoded[0], [-30.0, 0.0, 30.0])
  assert decoded[1:] == [-7, 2]
  assert [t.dtype for t in decoded] == [tf.float32, tf.int32, tf.float64]


@pytest.mark.parametrize('bits', [2, 3, 8, 32])
@pytest.mark.parametrize('clients', [1, 2, 5, 64])
def test_the_largest_sums_do_not_wrap_around(bits, clients):
  spec = SecureSumSpec(bits, clients, value_range=3.0)
  for sign in (-1, 1):
    total = _sum([tf.fill([2], sign * np.float32(3.0))] * clients, spec)
    decoded = decode(total, spec, tf.TensorSpec([2], tf.float64))
    np.testing.assert_allclose(decoded, [sign * 3.0 * clients] * 2, rtol=1e-12)


def test_one_bit_less_is_refused_and_would_wrap_around():
  spec = SecureSumSpec(3, 8, value_range=3.0)
  with pytest.raises(ValueError, match=f'it needs {spec.sum_bits} to'):
    dataclasses.replace(spec, modulus_bits=spec.sum_bits - 1)
  # As large a modulus as that of fewer clients.
  small = dataclasses.replace(spec, largest_cohort=4)
  assert small.sum_bits == spec.sum_bits - 1
  decoded = decode(_sum([tf.constant([3.0])] * 8, small), small, tf.TensorSpec([1]))
  assert decoded[0] == 24.0 - small.modulus * small.step


def test_a_modulus_of_62_bits_survives_sums_beyond_64():
  spec = SecureSumSpec(4, 8, value_range=7.0, modulus_bits=62)
  # Residues of negative numbers lie just below the modulus: eight of them pass 2^64.
  total = decode(_sum([tf.constant([-7.0, 5.0])] * 8, spec), spec, tf.TensorSpec([2]))
  np.testing.assert_array_equal(total, [-56.0, 40.0])


def test_the_rounding_of_many_clients_averages_out():
  # Sums of STOCHASTIC rounding are unbiased, of a deviation known beforehand.
  clients, share = 400, 0.25
  spec = SecureSumSpec(8, clients, value_range=1.0, rounding=Rounding.STOCHASTIC)
  value = tf.fill([2000], np.float32(share * spec.step))
  message = tf.function(lambda: encode(value, spec, FreshSeeds()))
  error = np.sum([message().numpy() for _ in range(clients)], 0) - clients * share
  stddev = math.sqrt(clients * share * (1 - share))
  # A binomial of 400 is close enough to a Gaussian for its moments, not for its smallest steps.
  smooth = error + np.random.default_rng(0).uniform(-0.5, 0.5, error.shape)
  assert is_gaussian(smooth, stddev)
  assert not is_gaussian(smooth, stddev * 1.5)
