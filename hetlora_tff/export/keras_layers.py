# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers of keras-nlp, rebuilt from layers that tf-keras itself has, and from TensorFlow's ops.

Most functions take symbolic inputs and a built keras-nlp layer, `source`, and apply new layers with
its weights under its names. keras-nlp keeps its sublayers in private attributes: its version is in
the lock, and a test compares the outputs of every family. Shapes: `n` texts of `L` tokens, `d`
wide. There is no dropout.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

_Layer = Callable[[Any], Any]


def positions(token_ids: Any) -> Any:
  """`0 ... L - 1`, int32 `[L]`."""
  return tf.range(tf.shape(token_ids)[1])


def padding_mask(mask: Any) -> Any:
  """Which tokens are seen, boolean `[n, 1, L]`, of 1 for a token and 0 for padding, `[n, L]`."""
  return tf.expand_dims(tf.cast(mask, tf.bool), 1)


def causal_mask(mask: Any, window: int | None = None) -> Any:
  """As `padding_mask`, and only from later tokens, fewer than `window` later: `[n, L, L]`."""
  key = tf.expand_dims(positions(mask), 0)
  query = tf.expand_dims(positions(mask), 1)
  seen = tf.greater_equal(query, key)
  if window is not None:
    seen = tf.logical_and(seen, tf.less(query, tf.add(key, window)))
  return tf.logical_and(padding_mask(mask), seen)


def embedding(matrix: tf.Variable, name: str) -> tf_keras.layers.Embedding:
  """A new embedding with the rows of `matrix`, for ids of any shape."""
  layer = tf_keras.layers.Embedding(*matrix.shape, name=name)
  layer.build(None)
  layer.set_weights([matrix.numpy()])
  return layer


def normalize(x: Any, source: Any, name: str) -> Any:
  """`LayerNormalization`."""
  layer = tf_keras.layers.LayerNormalization(epsilon=source.epsilon, name=name)
  return _apply(layer, x, source.get_weights())


def rms_normalize(x: Any, source: Any, name: str) -> Any:
  """The norm of Llama (arXiv:1910.07467), which tf-keras lacks; an einsum layer has the scale."""
  mean = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
  normal = tf.multiply(x, tf.math.rsqrt(tf.add(mean, source.epsilon)))
  return _einsum(normal, 'abc,c->abc', (None, x.shape[-1]), source.get_weights(), name)


def project(x: Any, kernel: np.ndarray, name: str) -> Any:
  """`x kernel`, without a bias, on the last axis."""
  layer = tf_keras.layers.Dense(kernel.shape[-1], use_bias=False, name=name)
  return _apply(layer, x, [kernel])


def transformer_layer(x: Any, mask: Any, source: Any, activation: _Layer) -> Any:
  """A `TransformerDecoder` or `TransformerEncoder`, which differ by their masks.

  Args:
    x: `[n, L, d]`.
    mask: `[n, 1, L]` or `[n, L, L]`.
    source: the layer.
    activation: between the dense layers.
  """
  name, heads = source.name, source.num_heads

  def attend(x):
    layer = tf_keras.layers.MultiHeadAttention(
      heads, x.shape[-1] // heads, name=f'{name}_self_attention'
    )
    weights = source._self_attention_layer.get_weights()
    return _apply(layer, x, weights, value=x, attention_mask=mask)

  def feed_forward(x):
    x = _dense(x, source._feedforward_intermediate_dense, f'{name}_feedforward_intermediate')
    return _dense(activation(x), source._feedforward_output_dense, f'{name}_feedforward_output')

  for part, norm, kind in (
    (attend, source._self_attention_layer_norm, 'self_attention'),
    (feed_forward, source._feedforward_layer_norm, 'feedforward'),
  ):
    norm_name = f'{name}_{kind}_layer_norm'
    if source.normalize_first:
      x = tf.add(x, part(normalize(x, norm, norm_name)))
    else:
      x = normalize(tf.add(x, part(x)), norm, norm_name)
  return x


def llama_layer(x: Any, mask: Any, source: Any) -> Any:
  """A decoder layer of Llama or Mistral; arguments as of `transformer_layer`."""
  name, attention = source.name, source._self_attention_layer
  rotary = functools.partial(_rotate, source=attention.rotary_embedding_layer)
  normal = rms_normalize(x, source._self_attention_layernorm, f'{name}_self_attention_layer_norm')
  x = tf.add(x, _attend(normal, mask, attention, f'{name}_self_attention', rotate=rotary))
  normal = rms_normalize(x, source._feedforward_layernorm, f'{name}_feedforward_layer_norm')
  gate = tf.nn.silu(_dense(normal, source._feedforward_gate_dense, f'{name}_feedforward_gate'))
  inner = _dense(normal, source._feedforward_intermediate_dense, f'{name}_feedforward_intermediate')
  inner = tf.multiply(inner, gate)
  return tf.add(x, _dense(inner, source._feedforward_output_dense, f'{name}_feedforward_output'))


def bloom_layer(x: Any, mask: Any, source: Any) -> Any:
  """A decoder layer of Bloom; arguments as of `transformer_layer`."""
  name, attention = source.name, source._self_attention_layer
  normal = normalize(x, source._pre_attention_layernorm, f'{name}_pre_attention_layer_norm')
  bias = _distance_bias(mask, attention)
  x = tf.add(x, _attend(normal, mask, attention, f'{name}_self_attention', bias=bias))
  normal = normalize(x, source._post_attention_layernorm, f'{name}_post_attention_layer_norm')
  inner = _dense(normal, source._mlp_intermediate_dense, f'{name}_feedforward_intermediate')
  inner = tf.nn.gelu(inner, approximate=True)
  return tf.add(x, _dense(inner, source._mlp_output_dense, f'{name}_feedforward_output'))


def _attend(
  x: Any, mask: Any, source: Any, name: str, *, rotate: _Layer | None = None, bias: Any = None
) -> Any:
  """Attention in which `g` queries share each of `v` keys and values of width `h`.

  Args:
    x: `[n, L, d]`.
    mask: `[n, L, L]`.
    source: the keras-nlp layer.
    name: of it.
    rotate: applied to queries `[n, v, g, L, h]` and to keys `[n, v, 1, L, h]`.
    bias: added to the scores `[n, v, g, L, L]`.
  """
  heads, width = source._query_dense.kernel.shape[1:]
  shared = source._key_dense.kernel.shape[1]

  def per_head(kind, group):
    weights = getattr(source, f'_{kind}_dense').get_weights()
    shape = (shared, group, None, width)
    return _einsum(x, 'abc,cvgh->avgbh', shape, weights, f'{name}_{kind}')

  query, key, value = per_head('query', heads // shared), per_head('key', 1), per_head('value', 1)
  if rotate is not None:
    query, key = rotate(query), rotate(key)
  scores = tf.multiply(tf.matmul(query, key, transpose_b=True), 1 / math.sqrt(width))
  if bias is not None:
    scores = tf.add(scores, bias)
  seen = tf.expand_dims(tf.expand_dims(mask, 1), 1)
  attention = tf.nn.softmax(tf.where(seen, scores, scores.dtype.min))
  weights = source._output_dense.get_weights()
  result = tf.matmul(attention, value)
  return _einsum(result, 'avgbh,vghc->abc', (None, x.shape[-1]), weights, f'{name}_output')


def _rotate(x: Any, source: Any) -> Any:
  """Rotary positions (arXiv:2104.09864) of `[n, v, g, L, h]`."""
  width = x.shape[-1]
  wavelengths = source.max_wavelength ** (np.arange(0, width, 2) / width)
  frequencies = np.float32(1 / (wavelengths * source.scaling_factor))
  places = tf.cast(tf.range(tf.shape(x)[-2]), tf.float32)
  angles = tf.multiply(tf.expand_dims(places, 1), frequencies)
  cos, sin = tf.cos(angles), tf.sin(angles)
  left, right = tf.split(x, 2, axis=-1)
  rotated = [
    tf.subtract(tf.multiply(left, cos), tf.multiply(right, sin)),
    tf.add(tf.multiply(right, cos), tf.multiply(left, sin)),
  ]
  return tf.concat(rotated, axis=-1)


def _distance_bias(mask: Any, source: Any) -> Any:
  """ALiBi (arXiv:2108.12409), `[heads, 1, 1, L]`; softmax takes no notice of the query's place."""
  slopes = np.float32(source._alibi_layer._get_slopes(source.num_heads))
  behind = tf.subtract(positions(mask), tf.subtract(tf.shape(mask)[1], 1))
  return tf.multiply(tf.cast(behind, tf.float32), slopes.reshape([-1, 1, 1, 1]))


def _dense(x: Any, source: Any, name: str) -> Any:
  """`Dense` without its activation."""
  layer = tf_keras.layers.Dense(source.units, use_bias=source.use_bias, name=name)
  return _apply(layer, x, source.get_weights())


def _einsum(
  x: Any, equation: str, shape: Sequence[int | None], weights: Sequence[np.ndarray], name: str
) -> Any:
  """`EinsumDense`; `shape` is that of the output without the texts, None for the tokens."""
  bias_axes = re.sub('[ab]', '', equation.partition('->')[2]) if len(weights) > 1 else None
  layer = tf_keras.layers.EinsumDense(equation, shape, bias_axes=bias_axes, name=name)
  return _apply(layer, x, weights)


def _apply(layer: Any, x: Any, weights: Sequence[np.ndarray], **kwargs) -> Any:
  """Applies a layer, which builds it, and gives it its weights, reshaped."""
  result = layer(x, **kwargs)
  layer.set_weights([w.reshape(v.shape) for w, v in zip(weights, layer.weights, strict=True)])
  return result
