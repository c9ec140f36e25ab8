# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import keras_nlp
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from absl.testing import parameterized

from hetlora_tff.adapters import config as config_lib
from hetlora_tff.adapters import factors as factors_lib
from hetlora_tff.adapters import injection, layers

LENGTH = 5
_SIZES = {'vocabulary_size': 11, 'num_layers': 1, 'hidden_dim': 8, 'intermediate_dim': 12}
_HEADS = {**_SIZES, 'num_heads': 2}
_CAPPED = {**_HEADS, 'max_sequence_length': LENGTH}
_GROUPED = {**_SIZES, 'num_query_heads': 4, 'num_key_value_heads': 2}
ARCHITECTURES = {
  'GPT2Backbone': _CAPPED,
  'OPTBackbone': _CAPPED,
  'BloomBackbone': _HEADS,
  'LlamaBackbone': _GROUPED,
  'Llama3Backbone': _GROUPED,
  'MistralBackbone': _GROUPED,
  'Phi3Backbone': _GROUPED,
  'FalconBackbone': {**_SIZES, 'num_attention_heads': 2},
  'BertBackbone': _CAPPED,
  'RobertaBackbone': _CAPPED,
  'XLMRobertaBackbone': _CAPPED,
  'DistilBertBackbone': _CAPPED,
  'DebertaV3Backbone': {**_CAPPED, 'bucket_size': 4},
  'AlbertBackbone': {**_CAPPED, 'num_layers': 2, 'embedding_dim': 6},
  'ElectraBackbone': {
    **{key: value for key, value in _CAPPED.items() if key != 'vocabulary_size'},
    'vocab_size': 11,
    'embedding_dim': 6,
  },
  'BartBackbone': _CAPPED,
  'FNetBackbone': {**_SIZES, 'max_sequence_length': LENGTH},
  'XLNetBackbone': _HEADS,
}


def _build(name='GPT2Backbone', **changes):
  tf.keras.utils.set_random_seed(1)
  return getattr(keras_nlp.models, name)(**{**ARCHITECTURES[name], **changes})


def _config(*targets, max_rank=3, alpha=6.0):
  return config_lib.LoraConfig(max_rank=max_rank, alpha=alpha, targets=targets)


def _inputs(backbone, batch=2):
  rng = np.random.default_rng(0)

  def value(name):
    if 'mask' in name:
      return np.array([[1] * LENGTH, [1] * (LENGTH - 1) + [0]], np.int32)
    return rng.integers(0, 2 if 'segment' in name else 11, (batch, LENGTH), np.int32)

  # In a plain graph Keras adds ":0".
  names = [tensor.name.split(':')[0] for tensor in backbone.inputs]
  return {name: tf.constant(value(name)) for name in names}


def _outputs(backbone, inputs):
  outputs = backbone(inputs)
  if isinstance(outputs, dict):
    return tf.concat([outputs[key] for key in sorted(outputs) if 'sequence' in key], axis=1)
  return outputs


def _random_factors(adapters, rank=2):
  rng = np.random.default_rng(5)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32) * 0.3

  return {
    path: factors_lib.LoraFactors(draw(rank, layer.d_in), draw(layer.d_out, rank))
    for path, layer in adapters.items()
  }


def _merge(layer, factors):
  """Adds the update to the base's kernel by NumPy alone."""
  product = layer.scaling * factors.b @ factors.a
  equation = getattr(layer.base, 'equation', 'xi,io->xo')
  kernel_spec, result = equation.split(',')[1].split('->')
  output_is_last = kernel_spec[-1] in result
  shape = layer.base.kernel.shape
  layer.base.kernel.assign_add((product.T if output_is_last else product).reshape(shape))


class InjectionTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(*ARCHITECTURES)
  def test_every_linear_layer_of_every_architecture(self, name):
    backbone = _build(name)
    inputs = _inputs(backbone)
    before = _outputs(backbone, inputs)
    frozen = len(backbone.weights)

    adapters = injection.inject_lora(backbone, _config('.*'))

    own = [weight for layer in adapters.values() for weight in (layer.lora_a, layer.lora_b)]
    self.assertCountEqual(
      [id(weight) for weight in backbone.trainable_variables], [id(weight) for weight in own]
    )
    self.assertLen({id(weight) for weight in backbone.weights}, frozen + len(own))
    self.assertLen(backbone.weights, frozen + len(own))
    self.assertAllEqual(_outputs(backbone, inputs), before)
    kinds = {path.rsplit('/', 1)[1] for path in adapters}
    self.assertIn('output' if name == 'FNetBackbone' else 'query', kinds)

    factors = _random_factors(adapters)
    adapted, gradients = self._call_with_dynamic_rank(backbone, adapters, factors, inputs)
    for path, (grad_a, grad_b) in gradients.items():
      self.assertGreater(np.abs(grad_a).max(), 0.0, path)
      self.assertGreater(np.abs(grad_b).max(), 0.0, path)
    for path, layer in adapters.items():
      _merge(layer, factors[path])
    self.assertAllClose(_outputs(backbone, inputs), adapted, rtol=1e-4, atol=1e-4)
    self.assertNotAllClose(adapted, before, rtol=1e-2, atol=1e-2)

  def _call_with_dynamic_rank(self, backbone, adapters, factors, inputs):
    signature = {
      path: factors_lib.LoraFactors(
        tf.TensorSpec([None, layer.d_in]), tf.TensorSpec([layer.d_out, None])
      )
      for path, layer in adapters.items()
    }

    @tf.function(input_signature=[signature])
    def run(factors):
      with tf.GradientTape() as tape, injection.bound(adapters, factors):
        tape.watch(factors)
        outputs = _outputs(backbone, inputs)
        loss = tf.reduce_sum(outputs * tf.random.stateless_normal(tf.shape(outputs), [1, 2]))
      return outputs, tape.gradient(loss, factors)

    return run(tf.nest.map_structure(tf.constant, factors))

  def test_default_targets_and_paths(self):
    backbone = _build(num_layers=2)
    adapters = injection.inject_lora(backbone, config_lib.LoraConfig(max_rank=3, alpha=6.0))
    self.assertEqual(
      list(adapters),
      [
        'transformer_layer_0/self_attention/query',
        'transformer_layer_0/self_attention/value',
        'transformer_layer_1/self_attention/query',
        'transformer_layer_1/self_attention/value',
      ],
    )
    query = adapters['transformer_layer_0/self_attention/query']
    self.assertIsInstance(query, layers.LoraEinsumDense)
    self.assertEqual((query.d_in, query.d_out, query.scaling), (8, 8, 2.0))
    self.assertEqual(query.lora_a.shape, (3, 8))

  def test_gradients_of_variables_reach_only_the_adapters(self):
    backbone = _build()
    adapters = injection.inject_lora(backbone, _config('query', 'value'))
    for layer in adapters.values():
      layer.lora_b.assign(tf.ones_like(layer.lora_b))
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(_outputs(backbone, _inputs(backbone)) ** 2)
    gradients = tape.gradient(loss, backbone.trainable_variables)
    self.assertLen(gradients, 4)
    for gradient in gradients:
      self.assertGreater(np.abs(gradient).max(), 0.0)

  @parameterized.named_parameters(
    ('short', 'query', 2),
    ('attribute', '_query_dense', 2),
    ('two_segments', 'self_attention/query', 2),
    ('whole_path', 'transformer_layer_1/self_attention/query', 1),
    ('regular_expression', r'transformer_layer_[0-9]+/.*/(query|key)', 4),
    ('feedforward', 'feedforward_.*', 0),
    ('feedforward_anywhere', '.*/feedforward_.*', 4),
  )
  def test_targets(self, target, count):
    backbone = _build(num_layers=2)
    if count:
      self.assertLen(injection.inject_lora(backbone, _config(target)), count)
    else:
      with self.assertRaises(injection.TargetNotFoundError):
        injection.inject_lora(backbone, _config(target))

  def test_self_and_cross_attention_are_told_apart(self):
    adapters = injection.inject_lora(_build('BartBackbone'), _config('cross_attention/query'))
    self.assertEqual(list(adapters), ['transformer_decoder_layer_0/cross_attention/query'])

  def test_a_layer_applied_twice_has_one_adapter(self):
    backbone = _build('AlbertBackbone', num_layers=4)
    self.assertLen(injection.inject_lora(backbone, _config('query')), 1)

  def test_unmatched_target_lists_what_exists(self):
    backbone = _build(num_layers=2)
    weights = len(backbone.trainable_variables)
    with self.assertRaises(injection.TargetNotFoundError) as raised:
      injection.inject_lora(backbone, _config('query', 'q_proj'))
    message = str(raised.exception)
    self.assertIn("'q_proj'", message)
    self.assertEqual(message.count('transformer_layer_*/self_attention/query'), 1)
    self.assertNotIn('\n', message)
    self.assertLen(backbone.trainable_variables, weights)

  def test_layer_of_the_functional_graph_is_refused_by_name(self):
    with self.assertRaisesRegex(injection.TargetNotFoundError, 'pooled_dense.*applies directly'):
      injection.inject_lora(_build('BertBackbone'), _config('pooled_dense'))

  def test_malformed_regular_expression(self):
    with self.assertRaisesRegex(ValueError, r"'\(query' is neither"):
      injection.inject_lora(_build(), _config('(query'))

  def test_second_injection_is_refused(self):
    backbone = _build()
    injection.inject_lora(backbone, _config('query'))
    with self.assertRaisesRegex(ValueError, 'has adapters already'):
      injection.inject_lora(backbone, _config('value'))

  @parameterized.named_parameters(
    ('while_wrapping', layers.LoraLayer, 'create_variables'),
    ('while_replacing', injection._Site, 'put'),
  )
  def test_failure_leaves_the_model_as_it_was(self, owner, method):
    backbone = _build(num_layers=2)
    weights = [weight.name for weight in backbone.trainable_variables]
    original, calls = getattr(owner, method), []

    def fail_once_later(*args, **kwargs):
      calls.append(args)
      if len(calls) == 3:
        raise RuntimeError('planned')
      return original(*args, **kwargs)

    with (
      mock.patch.object(owner, method, fail_once_later),
      self.assertRaisesRegex(RuntimeError, 'planned'),
    ):
      injection.inject_lora(backbone, _config('query', 'value'))
    self.assertCountEqual([weight.name for weight in backbone.trainable_variables], weights)
    self.assertLen(injection.inject_lora(backbone, _config('query', 'value')), 4)

  def test_seeds_differ_between_layers_and_repeat_between_runs(self):
    first = injection.inject_lora(_build(), _config('query', 'value'), seed=7)
    again = injection.inject_lora(_build(), _config('query', 'value'), seed=7)
    other = injection.inject_lora(_build(), _config('query', 'value'))
    query, value = [layer.lora_a.numpy() for layer in first.values()]
    self.assertNotAllClose(query, value)
    self.assertAllEqual(query, next(iter(again.values())).lora_a)
    self.assertNotAllClose(query, next(iter(other.values())).lora_a)

  def test_without_variables_nothing_is_trainable(self):
    backbone = _build('XLNetBackbone')
    before = _outputs(backbone, _inputs(backbone))
    adapters = injection.inject_lora(backbone, _config('query'), create_variables=False)
    self.assertEmpty(backbone.trainable_variables)
    self.assertIsNone(next(iter(adapters.values())).lora_a)
    self.assertAllEqual(_outputs(backbone, _inputs(backbone)), before)

  def test_layers_in_lists(self):
    class Block(tf.keras.layers.Layer):
      def __init__(self):
        super().__init__()
        self.projections = [tf.keras.layers.Dense(4) for _ in range(2)]

      def call(self, inputs):
        return self.projections[1](self.projections[0](inputs))

    inputs = tf.keras.Input((4,))
    model = tf.keras.Model(inputs, Block()(inputs))
    model.layers[1]._name = 'block'
    adapters = injection.inject_lora(model, _config('projections_1'))
    self.assertEqual(list(adapters), ['block/projections_1'])
    self.assertLen(model.trainable_variables, 2)
    self.assertLen(model.weights, 6)
    layer = adapters['block/projections_1']
    x = np.ones((2, 4), np.float32)
    before = model(x)
    layer.lora_b.assign(tf.ones_like(layer.lora_b))
    self.assertNotAllClose(model(x), before)

  def test_in_a_plain_graph(self):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      backbone = _build()
      adapters = injection.inject_lora(backbone, _config('query'), seed=7)
      outputs = backbone(_inputs(backbone))
      session.run(tf.compat.v1.global_variables_initializer())
      in_graph = session.run(next(iter(adapters.values())).lora_a)
      self.assertEqual(session.run(outputs).shape, (2, LENGTH, 8))
    eager = injection.inject_lora(_build(), _config('query'), seed=7)
    self.assertAllEqual(in_graph, next(iter(eager.values())).lora_a)

  def test_in_a_tff_computation(self):
    @tff.tensorflow.computation(
      tff.TensorType(np.float32, [None, 8]), tff.TensorType(np.float32, [8, None])
    )
    def run(a, b):
      backbone = _build()
      adapters = injection.inject_lora(backbone, _config('query'), create_variables=False)
      (path,) = adapters
      with injection.bound(adapters, {path: factors_lib.LoraFactors(a, b)}):
        return _outputs(backbone, _inputs(backbone))

    outputs = run(np.ones((2, 8), np.float32), np.ones((8, 2), np.float32))
    self.assertEqual(outputs.shape, (2, LENGTH, 8))


if __name__ == '__main__':
  tf.test.main()
