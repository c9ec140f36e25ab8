# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.aggregation.low_rank import best_low_rank


def _compiled(d_in, d_out, rank):
  """With a number of rows that only the running graph knows."""
  function = tf.function(lambda a, b: best_low_rank(a, b, rank))
  return function.get_concrete_function(tf.TensorSpec([None, d_in]), tf.TensorSpec([None, d_out]))


def _with_spectrum(rng, singular, d_in, d_out, rows):
  """Rows of factors whose product has these singular values, none of them a singular vector."""
  number = len(singular)
  a = np.linalg.qr(rng.normal(size=(d_in, number)))[0].T * np.sqrt(singular)[:, np.newaxis]
  b = np.linalg.qr(rng.normal(size=(d_out, number)))[0].T * np.sqrt(singular)[:, np.newaxis]
  mix = np.linalg.qr(rng.normal(size=(rows, number)))[0]
  return (mix @ a).astype(np.float32), (mix @ b).astype(np.float32)


def _error(product, factors, rank):
  kept = np.float64(factors.b.numpy()[:, :rank]) @ np.float64(factors.a.numpy()[:rank])
  return np.linalg.norm(product - kept)


@pytest.mark.parametrize('rows', [3, 40, 100, 300], ids=lambda n: f'{n} rows')
@pytest.mark.parametrize(('d_in', 'd_out'), [(130, 170), (170, 130), (20, 150), (150, 20)])
def test_is_the_best_approximation_of_every_rank_up_to_its_own(rows, d_in, d_out):
  rng = np.random.default_rng(rows)
  a = rng.normal(size=(rows, d_in)).astype(np.float32)
  b = rng.normal(size=(rows, d_out)).astype(np.float32)
  # 7 (4 + 10) = 98 rows or columns are the border between the exact and the randomised basis.
  factors = _compiled(d_in, d_out, 4)(a, b)
  product = np.float64(b).T @ np.float64(a)
  singular = np.linalg.svd(product, compute_uv=False)
  for rank in (1, 3, 4):
    best = np.linalg.norm(singular[rank:])
    assert abs(_error(product, factors, rank) - best) <= 1e-5 * np.linalg.norm(singular)


@pytest.mark.parametrize('rows', [60, 250])
@pytest.mark.parametrize(
  'singular',
  [np.ones(60), np.exp(-np.arange(60) / 4), 1 / np.arange(1, 61), np.repeat([1, 0.01], [4, 56])],
  ids=['equal', 'exponential', 'harmonic', 'step'],
)
def test_is_the_best_approximation_for_other_spectra(rows, singular):
  a, b = _with_spectrum(np.random.default_rng(0), singular, 130, 170, rows)
  factors = _compiled(130, 170, 4)(a, b)
  product = np.float64(b).T @ np.float64(a)
  best = np.linalg.norm(np.linalg.svd(product, compute_uv=False)[4:])
  assert abs(_error(product, factors, 4) - best) <= 5e-6 * np.linalg.norm(singular)


@pytest.mark.parametrize('rows', [10, 300])
def test_a_is_orthonormal_and_b_has_the_singular_values_in_order(rows):
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(rows, 130)), rng.normal(size=(rows, 170))
  factors = _compiled(130, 170, 5)(a.astype(np.float32), b.astype(np.float32))
  singular = np.linalg.svd(b.T @ a, compute_uv=False)[:5]
  np.testing.assert_allclose(factors.a @ tf.transpose(factors.a), np.eye(5), atol=1e-3)
  gram = tf.transpose(factors.b) @ factors.b
  np.testing.assert_allclose(gram, np.diag(singular**2), atol=1e-3 * singular[0] ** 2)


def test_above_the_numerical_rank_there_are_exact_zeros():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 2, 20)).astype(np.float32)
  # The same rows twice: 4 rows, of which float32 makes a product of rank 2 and rounding.
  factors = _compiled(20, 20, 6)(np.concatenate([a, a]), np.concatenate([b, b]))
  np.testing.assert_array_equal(factors.a[2:], np.zeros([4, 20]))
  np.testing.assert_array_equal(factors.b[:, 2:], np.zeros([20, 4]))
  np.testing.assert_allclose(factors.b @ factors.a, 2 * b.T @ a, atol=1e-5)


@pytest.mark.parametrize('rows', [0, 5, 300])
def test_nothing_gives_exact_zeros(rows):
  factors = _compiled(130, 170, 4)(np.zeros([rows, 130]), np.zeros([rows, 170]))
  np.testing.assert_array_equal(factors.a, np.zeros([4, 130]))
  np.testing.assert_array_equal(factors.b, np.zeros([170, 4]))
