# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from hetlora_tff.adapters import factors as factors_lib
from hetlora_tff.adapters import layers

SCALING = 0.5


def _dense(units=5, d_in=3, **kwargs):
  layer = tf.keras.layers.Dense(units, bias_initializer='random_normal', **kwargs)
  layer.build((None, None, d_in))
  return layer


def _einsum(equation, output_shape, input_shape, **kwargs):
  layer = tf.keras.layers.EinsumDense(
    equation, output_shape, bias_initializer='random_normal', **kwargs
  )
  layer.build(input_shape)
  return layer


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _factors(layer, rank=2):
  return factors_lib.LoraFactors(_random(rank, layer.d_in), _random(layer.d_out, rank, seed=1))


class LoraLayerTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.named_parameters(('linear', None), ('activated', 'gelu'))
  def test_dense_equals_numpy(self, activation):
    base = _dense(activation=activation)
    layer = layers.wrap(base, SCALING)
    factors = _factors(layer)
    layer.bind(factors)
    x = _random(2, 4, 3, seed=2)

    effective = base.kernel.numpy() + SCALING * (factors.b @ factors.a).T
    expected = tf.keras.activations.get(activation)(x @ effective + base.bias.numpy())
    self.assertAllClose(layer(x), expected, rtol=1e-5, atol=1e-6)

  @parameterized.named_parameters(
    ('query', 'abc,cde->abde', (None, 2, 5), (None, 4, 3), 'de', (3, 10)),
    ('output', 'abcd,cde->abe', (None, 5), (None, 4, 2, 3), 'e', (6, 5)),
    ('kernel_output_first', 'ibnd,hnd->ibh', (None, 5), (None, 4, 2, 3), 'h', (6, 5)),
    ('ellipsis', '...x,xy->...y', (5,), (None, 4, 3), 'y', (3, 5)),
    ('kernel_new_axes_around', 'btd,ndh->btnh', (None, 2, 5), (None, 4, 3), 'nh', (3, 10)),
  )
  def test_einsum_dense_equals_numpy(self, equation, output_shape, input_shape, bias, sizes):
    for activation in (None, 'gelu'):
      base = _einsum(equation, output_shape, input_shape, bias_axes=bias, activation=activation)
      layer = layers.wrap(base, SCALING)
      self.assertEqual((layer.d_in, layer.d_out), sizes)
      self._check_frozen(layer, _random(*(axis or 2 for axis in input_shape), seed=2))
      factors = _factors(layer)
      layer.bind(factors)
      x = _random(2, *input_shape[1:], seed=2)

      plain = np.einsum(equation, x, base.kernel.numpy())
      update = SCALING * x.reshape(8, layer.d_in) @ factors.a.T @ factors.b.T
      expected = plain + base.bias.numpy() + update.reshape(plain.shape)
      expected = tf.keras.activations.get(activation)(expected)
      self.assertAllClose(layer(x), expected, rtol=1e-5, atol=1e-5)

      layer.bind(None)
      base.kernel.assign_add(layer.kernel_update(factors))
      self.assertAllClose(layer(x), expected, rtol=1e-5, atol=1e-5)

  def test_dense_kernel_update(self):
    layer = layers.wrap(_dense(), SCALING)
    factors = _factors(layer)
    self.assertAllClose(layer.kernel_update(factors), SCALING * (factors.b @ factors.a).T)

  def test_without_factors_is_exactly_the_base(self):
    base = _dense(activation='gelu')
    layer = layers.wrap(base, SCALING)
    x = _random(2, 4, 3)
    self.assertAllEqual(layer(x), base(x))
    layer.bind(_factors(layer))
    self.assertNotAllClose(layer(x), base(x))
    layer.bind(None)
    self.assertAllEqual(layer(x), base(x))

  def test_variables(self):
    layer = layers.wrap(_dense(units=400, d_in=100), SCALING)
    layer.create_variables(7, seed=3)
    self.assertEqual(layer.lora_a.shape, (7, 100))
    self.assertEqual(layer.lora_b.shape, (400, 7))
    self.assertAllEqual(layer.lora_b, np.zeros((400, 7)))
    self.assertBetween(np.std(layer.lora_a.numpy()), 0.09, 0.11)

    same = layers.wrap(_dense(units=400, d_in=100), SCALING)
    same.create_variables(7, seed=3)
    other = layers.wrap(_dense(units=400, d_in=100), SCALING)
    other.create_variables(7, seed=4)
    self.assertAllEqual(layer.lora_a, same.lora_a)
    self.assertNotAllClose(layer.lora_a, other.lora_a)
    with self.assertRaisesRegex(ValueError, 'already'):
      layer.create_variables(7, seed=3)

  def test_bound_factors_win_over_variables(self):
    layer = layers.wrap(_dense(), SCALING)
    layer.create_variables(2, seed=0)
    x = _random(4, 3)
    before = layer(x)
    factors = _factors(layer)
    with layers.bound({'x': layer}, {'x': factors}):
      self.assertNotAllClose(layer(x), before)
    self.assertAllEqual(layer(x), before)

  def test_bound_restores_after_an_error_and_checks_paths(self):
    first, second = layers.wrap(_dense(), SCALING), layers.wrap(_dense(units=9), SCALING)
    modules = {'first': first, 'second': second}
    with (
      self.assertRaisesRegex(ValueError, r'must be \[9, rank\]'),
      layers.bound(modules, dict.fromkeys(modules, _factors(first))),
    ):
      pass
    self.assertIsNone(first.factors)
    with self.assertRaisesRegex(ValueError, 'second'), layers.bound(modules, {'first': None}):
      pass

  def test_dynamic_rank_in_a_loop_of_a_plain_graph(self):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      layer = layers.wrap(_dense(), SCALING)
      rank = tf.compat.v1.placeholder(tf.int32, [])
      full = _factors(layer, rank=4)
      x = _random(6, 3, seed=2)

      def step(i, a, b):
        with tf.GradientTape() as tape:
          tape.watch((a, b))
          layer.bind(factors_lib.LoraFactors(a, b))
          loss = tf.reduce_sum(layer(x) ** 2)
          layer.bind(None)
        grad_a, grad_b = tape.gradient(loss, (a, b))
        return i + 1, a - 0.01 * grad_a, b - 0.01 * grad_b

      a = tf.convert_to_tensor(full.a)[:rank]
      b = tf.convert_to_tensor(full.b)[:, :rank]
      self.assertIsNone(a.shape[0])
      invariants = [tf.TensorShape([]), a.shape, b.shape]
      result = tf.while_loop(lambda i, *_: i < 2, step, [0, a, b], invariants)
      session.run(tf.compat.v1.global_variables_initializer())
      got = session.run((layer.base.kernel, layer.base.bias, *result[1:]), {rank: 3})

    kernel, bias, got_a, got_b = got
    a, b = full.a[:3], full.b[:, :3]
    for _ in range(2):
      grad_y = 2.0 * (x @ (kernel + SCALING * (b @ a).T) + bias)
      grad_update = SCALING * grad_y.T @ x
      a, b = a - 0.01 * b.T @ grad_update, b - 0.01 * grad_update @ a.T
    self.assertAllClose(got_a, a, rtol=1e-4, atol=1e-4)
    self.assertAllClose(got_b, b, rtol=1e-4, atol=1e-4)

  def _check_frozen(self, layer, x):
    """A frozen base gives what it gave, alone and under factors; its kernel is read just once."""
    for factors in (None, _factors(layer)):
      layer.bind(factors)
      before = layer(x)
      for dtype, close in ((tf.float32, 1e-5), (tf.bfloat16, 3e-2)):
        layer.freeze_base(dtype)
        kernel = layer.base.kernel.numpy()
        layer.base.kernel.assign(np.zeros_like(kernel))
        self.assertAllClose(layer(x), before, rtol=close, atol=close)
        layer.base.kernel.assign(kernel)
      self.assertNotAllClose(layer(x), before, rtol=1e-6, atol=1e-6)
      layer._binding.base = None
    layer.bind(None)

  @parameterized.named_parameters(
    ('linear', None), ('gelu', 'gelu'), ('approximate', tf.nn.gelu), ('softmax', 'softmax')
  )
  def test_frozen_dense(self, activation):
    layer = layers.wrap(_dense(activation=activation), SCALING)
    self._check_frozen(layer, _random(2, 4, 3, seed=2))

  @parameterized.named_parameters(('pure', 'bfloat16'), ('mixed', 'mixed_bfloat16'))
  def test_other_precision_is_not_frozen(self, dtype):
    layer = layers.wrap(_dense(dtype=dtype), SCALING)
    with self.assertRaisesRegex(ValueError, 'computes in bfloat16'):
      layer.freeze_base(tf.float32)

  @parameterized.named_parameters(('linear', None), ('activated', 'relu'))
  def test_bfloat16_base(self, activation):
    layer = layers.wrap(_dense(dtype='bfloat16', activation=activation), SCALING)
    layer.create_variables(2, seed=0)
    self.assertEqual(layer.lora_a.dtype, tf.float32)
    layer.bind(_factors(layer))
    outputs = layer(tf.constant(_random(2, 4, 3)))
    self.assertEqual(outputs.dtype, tf.bfloat16)

  def test_mixed_precision_base_keeps_float32_factors(self):
    layer = layers.wrap(_dense(dtype='mixed_bfloat16'), SCALING)
    layer.create_variables(2, seed=0)
    self.assertEqual(layer(tf.constant(_random(2, 4, 3))).dtype, tf.bfloat16)
    self.assertEqual(layer.factors.a.dtype, tf.float32)

  @parameterized.named_parameters(
    ('a_width', (2, 4), (5, 2), r'`a` .*\[rank, 3\]'),
    ('b_height', (2, 3), (4, 2), r'`b` .*\[5, rank\]'),
    ('b_transposed', (2, 3), (2, 5), r'`b` .*\[5, rank\]'),
    ('ranks_differ', (2, 3), (5, 3), 'share their rank'),
  )
  def test_bind_refuses_shapes(self, a, b, message):
    layer = layers.wrap(_dense(), SCALING)
    with self.assertRaisesRegex(ValueError, message):
      layer.bind(factors_lib.LoraFactors(_random(*a), _random(*b)))
    self.assertIsNone(layer.factors)

  def test_bind_refuses_other_dtypes(self):
    layer = layers.wrap(_dense(), SCALING)
    with self.assertRaisesRegex(ValueError, 'float32'):
      layer.bind(factors_lib.LoraFactors(np.ones((2, 3)), np.ones((5, 2))))

  @parameterized.named_parameters(
    ('contracts_the_middle', 'abc,bd->adc', (4, None), (None, 3, 4)),
    ('new_axis_first', 'abc,cd->adb', (5, 4), (None, 4, 3)),
    ('diagonal', 'abc,c->abc', (4, 3), (None, 4, 3)),
    ('right_ellipsis', 'ab...,bc->ac...', (5, 2), (None, 3, 2)),
  )
  def test_refuses_other_equations(self, equation, output_shape, input_shape):
    base = _einsum(equation, output_shape, input_shape, name='odd_one')
    with self.assertRaisesRegex(ValueError, 'odd_one') as raised:
      layers.wrap(base, SCALING)
    self.assertIn(equation, str(raised.exception))

  def test_refuses_unbuilt_and_other_layers(self):
    with self.assertRaisesRegex(ValueError, 'not built'):
      layers.wrap(tf.keras.layers.Dense(3), SCALING)
    with self.assertRaisesRegex(ValueError, 'Embedding'):
      layers.wrap(tf.keras.layers.Embedding(3, 4), SCALING)


if __name__ == '__main__':
  tf.test.main()
