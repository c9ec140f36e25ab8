# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from hetlora_tff.adapters import factors as lora


@st.composite
def drawn_factors(draw):
  """Factors of rank 1 to 6, some of them with zero rows, as float64 and as `LoraFactors`."""
  rank, d_in, d_out = (draw(st.integers(1, 6)) for _ in range(3))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  a, b = rng.normal(size=(rank, d_in)), rng.normal(size=(d_out, rank))
  a[draw(st.integers(0, rank)) :] = 0.0
  a, b = a.astype(np.float32), b.astype(np.float32)
  return lora.LoraFactors(a, b)


def _dynamic(fn, factors, *args):
  """Calls `fn` in a graph that does not know the rank."""
  d_in, d_out = factors.a.shape[1], factors.b.shape[0]

  @tf.function(
    input_signature=[
      tf.TensorSpec([None, d_in], tf.float32),
      tf.TensorSpec([d_out, None], tf.float32),
      *(tf.TensorSpec([], tf.int32) for _ in args),
    ]
  )
  def call(a, b, *args):
    return fn(lora.LoraFactors(a, b), *args)

  return call(*factors, *args)


@hypothesis.given(drawn_factors(), st.integers(1, 8))
def test_truncate(factors, rank):
  for result in (lora.truncate(factors, rank), _dynamic(lora.truncate, factors, rank)):
    np.testing.assert_array_equal(result.a, factors.a[:rank])
    np.testing.assert_array_equal(result.b, factors.b[:, :rank])


@hypothesis.given(drawn_factors(), st.integers(0, 3))
def test_pad_keeps_the_product(factors, more):
  rank, max_rank = factors.a.shape[0], factors.a.shape[0] + more
  for result in (
    lora.pad(factors, max_rank),
    _dynamic(lambda f: lora.pad(f, max_rank), factors),
  ):
    assert result.a.shape == (max_rank, factors.a.shape[1])
    assert result.b.shape == (factors.b.shape[0], max_rank)
    np.testing.assert_array_equal(result.a[:rank], factors.a)
    np.testing.assert_array_equal(result.b[:, :rank], factors.b)
    assert not np.any(result.a[rank:])
    assert not np.any(result.b[:, rank:])


def test_pad_has_a_static_shape_for_a_dynamic_rank():
  @tf.function(input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([2, None])])
  def call(a, b):
    padded = lora.pad(lora.LoraFactors(a, b), 5)
    assert padded.a.shape.as_list() == [5, 3]
    assert padded.b.shape.as_list() == [2, 5]
    return padded

  call(tf.ones([4, 3]), tf.ones([2, 4]))


def test_pad_refuses_a_rank_above_max_rank():
  factors = lora.LoraFactors(tf.ones([4, 3]), tf.ones([2, 4]))
  with pytest.raises(ValueError, match='rank 4 to max_rank 3'):
    lora.pad(factors, 3)
  with pytest.raises(tf.errors.InvalidArgumentError):
    _dynamic(lambda f: lora.pad(f, 3), factors)


@hypothesis.given(drawn_factors())
def test_product_norm(factors):
  expected = np.linalg.norm(factors.b.astype(np.float64) @ factors.a.astype(np.float64))
  # Rounding of the trace is relative to the factors, not to a product in which they cancel.
  slack = 1e-3 * np.linalg.norm(factors.a) * np.linalg.norm(factors.b)
  for result in (lora.product_norm(factors), _dynamic(lora.product_norm, factors)):
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=min(slack, 1e-3))


def test_product_norm_by_hand():
  factors = lora.LoraFactors(np.float32([[3, 4], [0, 0]]), np.float32([[2, 5], [0, 7]]))
  assert float(lora.product_norm(factors)) == 10.0


def test_product_norm_of_a_vanishing_product_is_a_number():
  row = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
  column = np.random.default_rng(1).normal(size=(40, 1)).astype(np.float32)
  factors = lora.LoraFactors(np.concatenate([row, row]), np.concatenate([column, -column], axis=1))
  norm = float(lora.product_norm(factors))
  assert 0.0 <= norm < 1e-2 * np.linalg.norm(row) * np.linalg.norm(column)


@hypothesis.given(drawn_factors(), st.integers(0, 8))
def test_tail_norm(factors, start):
  expected = np.linalg.norm(factors.b[:, start:]) * np.linalg.norm(factors.a[start:])
  for result in (lora.tail_norm(factors, start), _dynamic(lora.tail_norm, factors, start)):
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_tail_norm_has_the_gradient_of_the_equation():
  rng = np.random.default_rng(3)
  a, b = (tf.constant(rng.normal(size=s), tf.float32) for s in ((4, 3), (2, 4)))
  with tf.GradientTape() as tape:
    tape.watch((a, b))
    norm = lora.tail_norm(lora.LoraFactors(a, b), 1)
  grad_a, grad_b = tape.gradient(norm, (a, b))
  norm_a, norm_b = np.linalg.norm(a[1:]), np.linalg.norm(b[:, 1:])
  expected_a, expected_b = np.zeros([4, 3]), np.zeros([2, 4])
  expected_a[1:] = norm_b * a[1:] / norm_a
  expected_b[:, 1:] = norm_a * b[:, 1:] / norm_b
  np.testing.assert_allclose(grad_a, expected_a, rtol=1e-5)
  np.testing.assert_allclose(grad_b, expected_b, rtol=1e-5)


@pytest.mark.parametrize(('scale_a', 'scale_b'), [(1, 0), (0, 1), (0, 0), (1, 1e-22)])
@pytest.mark.parametrize('start', [0, 2, 4])
def test_tail_norm_gradient_is_finite_at_zero(scale_a, scale_b, start):
  a, b = tf.fill([4, 3], float(scale_a)), tf.fill([2, 4], float(scale_b))
  with tf.GradientTape() as tape:
    tape.watch((a, b))
    norm = lora.tail_norm(lora.LoraFactors(a, b), start)
  assert float(norm) < 1e-18
  for gradient in tape.gradient(norm, (a, b)):
    assert np.all(np.isfinite(gradient))
