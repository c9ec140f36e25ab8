# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import types

import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.adapters import fast_ops

_RNG = np.random.default_rng(0)
_VOCABULARY, _WIDTH = 37, 5


@pytest.mark.parametrize('wrapped', [False, True])
def test_approximate_gelu_is_known_and_equal(wrapped):
  def keras_gelu(x):
    return tf.keras.activations.gelu(x, approximate=True)

  activation = (lambda x: keras_gelu(x)) if wrapped else keras_gelu
  cheap = fast_ops.cheap_activation(activation)
  assert cheap is fast_ops.approximate_gelu
  x = tf.constant(_RNG.normal(scale=3.0, size=[50, 4]), tf.float32)
  (ours, slope), (theirs, true_slope) = (_with_gradient(f, x) for f in (cheap, activation))
  np.testing.assert_allclose(ours, theirs, atol=2e-5)
  np.testing.assert_allclose(slope, true_slope, atol=2e-5)


@pytest.mark.parametrize(
  'activation', [tf.keras.activations.gelu, tf.nn.relu, tf.nn.silu, tf.keras.activations.linear]
)
def test_other_activations_are_left_alone(activation):
  assert fast_ops.cheap_activation(activation) is activation


def test_activation_is_known_while_a_graph_is_built():
  def activation(x):
    return tf.keras.activations.gelu(x, approximate=True)

  with tf.Graph().as_default() as graph:
    assert fast_ops.cheap_activation(activation) is fast_ops.approximate_gelu
  assert not graph.get_operations()


def _with_gradient(function, x):
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = function(x)
    total = tf.reduce_sum(y * tf.cos(y))
  return y, tape.gradient(total, x)


def _embedding(tied, scale=1.0, shift=0.0):
  matrix = (_RNG.normal(size=[_VOCABULARY, _WIDTH]) * scale + shift).astype(np.float32)
  return types.SimpleNamespace(
    tie_weights=tied,
    embeddings=tf.constant(matrix if tied else np.zeros_like(matrix)),
    reverse_embeddings=tf.constant(matrix.T),
  ), matrix.astype(np.float64)


def _inputs(count=11, scale=1.0):
  return (
    tf.constant(_RNG.normal(size=[count, _WIDTH]) * scale, tf.float32),
    tf.constant(_RNG.integers(0, _VOCABULARY, count), tf.int32),
    tf.constant(_RNG.uniform(0.5, 2.0, count), tf.float32),
  )


def _oracle(matrix, hidden, labels, weights):
  """Weighted loss and its gradient by the hidden states in float64."""
  hidden, weights = np.array(hidden, np.float64), np.array(weights, np.float64)
  logits = hidden @ matrix.T
  shifted = logits - logits.max(axis=1, keepdims=True)
  probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
  rows = np.arange(len(labels))
  losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]
  wrong = probabilities.copy()
  wrong[rows, labels] -= 1.0
  return weights @ losses, weights[:, None] * (wrong @ matrix)


@pytest.mark.parametrize('rows', [1, 4, 11, 100])
@pytest.mark.parametrize('tied', [True, False])
def test_loss_of_vocabulary_in_pieces(tied, rows, monkeypatch):
  monkeypatch.setattr(fast_ops, '_MAX_LOGITS', rows * _VOCABULARY)
  embedding, matrix = _embedding(tied)
  hidden, labels, weights = _inputs()
  vocabulary = fast_ops.FrozenVocabulary(embedding, tf.float32)

  @tf.function
  def tripled(hidden):
    with tf.GradientTape() as tape:
      tape.watch(hidden)
      loss = 3.0 * vocabulary.loss(hidden, labels, weights)
    return loss, tape.gradient(loss, hidden)

  loss, gradient = tripled(hidden)
  expected_loss, expected_gradient = _oracle(matrix, hidden, labels.numpy(), weights)
  assert float(loss) == pytest.approx(3 * expected_loss, rel=1e-5)
  np.testing.assert_allclose(gradient, 3 * expected_gradient, rtol=1e-4, atol=1e-5)


def test_no_prediction_has_no_loss():
  vocabulary = fast_ops.FrozenVocabulary(_embedding(True)[0], tf.float32)
  hidden, labels, weights = (tensor[:0] for tensor in _inputs())
  loss, gradient = _with_gradient(lambda h: vocabulary.loss(h, labels, weights), hidden)
  assert float(loss) == 0.0
  assert gradient.shape == (0, _WIDTH)


def test_token_whose_probability_vanishes_has_a_finite_loss():
  embedding, matrix = _embedding(True)
  hidden, labels, weights = _inputs(scale=200.0)
  expected, _ = _oracle(matrix, hidden, labels.numpy(), weights)
  assert expected > 11 * 150.0
  loss = fast_ops.FrozenVocabulary(embedding, tf.float32).loss(hidden, labels, weights)
  assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_what_all_logits_share_costs_bfloat16_no_digits():
  # Without the shift removed, logits of about 600 in 8 bits are off by 2.
  embedding, matrix = _embedding(True, shift=200.0)
  hidden, labels, weights = _inputs(count=200)
  expected, by_hidden = _oracle(matrix, hidden, labels.numpy(), weights)
  vocabulary = fast_ops.FrozenVocabulary(embedding, tf.bfloat16)
  loss, gradient = _with_gradient_of_loss(vocabulary, hidden, labels, weights)
  assert float(loss) == pytest.approx(expected, rel=5e-3)
  assert np.linalg.norm(gradient - by_hidden) < 0.02 * np.linalg.norm(by_hidden)


def _with_gradient_of_loss(vocabulary, hidden, labels, weights):
  with tf.GradientTape() as tape:
    tape.watch(hidden)
    loss = vocabulary.loss(hidden, labels, weights)
  return loss, tape.gradient(loss, hidden)
