# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What costs most in a local step, computed cheaply: activations and the loss of a vocabulary.

TFF's worker runs a graph as it was written: nothing is rewritten or fused there, so that, for
example, Keras' `pow(x, 3)` in a gelu costs as much as a matrix product. Everything here can be
differentiated once.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

_GELU_SCALE = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715
# Logits that are held at a time: 16 MB of float32 do not leave the cache between two operations.
_MAX_LOGITS = 1 << 22
_PROBES = np.linspace(-6.0, 6.0, 97, dtype=np.float32)[None, :]


def cheap_activation(activation: Callable[[tf.Tensor], tf.Tensor]) -> Callable:
  """An activation that computes the same for less, or the same one where none is known.

  It is known by its values: keras-nlp wraps the approximate gelu in functions of many names.

  Args:
    activation: elementwise.
  """
  return approximate_gelu if _is_approximate_gelu(activation) else activation


@tf.custom_gradient
def approximate_gelu(x: tf.Tensor):
  """`x / 2 (1 + tanh(u))`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`, as `x sigmoid(2 u)`.

  Hendrycks and Gimpel 2016 (arXiv:1606.08415), section 2.
  """
  square = x * x
  gate = tf.sigmoid(x * (2 * _GELU_SCALE + (2 * _GELU_SCALE * _GELU_CUBIC) * square))
  outputs = x * gate

  def gradient(by_outputs):
    slope = 2 * _GELU_SCALE + (6 * _GELU_SCALE * _GELU_CUBIC) * square
    return by_outputs * (gate + outputs * (1.0 - gate) * slope)

  return outputs, gradient


@functools.lru_cache
def _is_approximate_gelu(activation: Callable) -> bool:
  # Not eagerly: a plain graph that is being built, as in TFF, leaves no way to do so.
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    expected, actual = session.run([approximate_gelu(_PROBES), activation(tf.constant(_PROBES))])
  # Rounding; the exact gelu is fifty times as far away.
  return bool(np.allclose(expected, actual, rtol=0.0, atol=1e-5))


class FrozenVocabulary:
  """The map from hidden states back to a vocabulary, whose own gradient nobody needs.

  The loss and its gradient are computed together and piece by piece, so that neither the
  log-probabilities nor all logits are ever held.
  """

  def __init__(self, embedding: tf.keras.layers.Layer, dtype: tf.DType):
    """Reads the matrix in the current graph or eagerly.

    Args:
      embedding: the `token_embedding` of a causal backbone.
      dtype: float32, or bfloat16: products that sum in float32, and logits and probabilities
        that are rounded to it.
    """
    self._rows_are_tokens = embedding.tie_weights
    stored = embedding.embeddings if self._rows_are_tokens else embedding.reverse_embeddings
    matrix = tf.convert_to_tensor(stored)
    if dtype != matrix.dtype:
      # A softmax ignores what all logits share, which may be ten times what tells them apart:
      # without it, they survive in fewer bits.
      axis = 0 if self._rows_are_tokens else 1
      matrix = tf.cast(matrix - tf.reduce_mean(matrix, axis, keepdims=True), dtype)
    self._matrix = matrix

  # Nothing below is for autograph to rewrite.
  @tf.autograph.experimental.do_not_convert
  def loss(self, hidden: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Summed cross-entropy.

    Args:
      hidden: float32 `[n, d]`.
      labels: int32 `[n]`.
      weights: float32 `[n]`, of each prediction; no gradient flows to them.

    Returns:
      Float32 scalar.
    """

    @tf.custom_gradient
    def total(hidden):
      value, by_hidden = self._loss_and_gradient(hidden, labels, weights)
      return value, lambda by_value: by_value * by_hidden

    return total(hidden)

  def _loss_and_gradient(self, hidden, labels, weights):
    size, width = tf.shape(hidden)[0], hidden.shape[1]
    vocabulary = self._matrix.shape[0 if self._rows_are_tokens else 1]
    rows = max(1, _MAX_LOGITS // vocabulary)
    # One of no rows where nothing is predicted: no pieces cannot be joined.
    number = tf.maximum(1, -(-size // rows))
    pieces = tf.TensorArray(tf.float32, size=number, infer_shape=False, element_shape=[None, width])

    def step(place, total, pieces):
      piece = slice(place * rows, (place + 1) * rows)
      loss, gradient = self._piece(hidden[piece], labels[piece], weights[piece])
      return place + 1, total + loss, pieces.write(place, gradient)

    _, total, pieces = tf.while_loop(
      lambda place, *_: place < number, step, (0, 0.0, pieces), parallel_iterations=1
    )
    return total, tf.ensure_shape(pieces.concat(), [None, width])

  def _piece(self, hidden, labels, weights):
    matrix, tied = self._matrix, self._rows_are_tokens
    logits = tf.matmul(tf.cast(hidden, matrix.dtype), matrix, transpose_b=tied)
    probabilities = tf.nn.softmax(logits)
    # The log of the sum of exponentials by the largest one, whose probability cannot vanish.
    largest, likeliest, true = (
      tf.cast(values, tf.float32)
      for values in (
        tf.reduce_max(logits, axis=1),
        tf.reduce_max(probabilities, axis=1),
        tf.gather(logits, labels, batch_dims=1),
      )
    )
    losses = largest - tf.math.log(likeliest) - true
    expected = tf.cast(tf.matmul(probabilities, matrix, transpose_b=not tied), tf.float32)
    seen = tf.cast(self._of_tokens(labels), tf.float32)
    return tf.reduce_sum(weights * losses), weights[:, None] * (expected - seen)

  def _of_tokens(self, labels):
    if self._rows_are_tokens:
      return tf.gather(self._matrix, labels)
    return tf.transpose(tf.gather(self._matrix, labels, axis=1))
