# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.adapters import injection
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.adapters.model import CausalLanguageModel, ModuleShape, causal_loss

LENGTH = 5
CONFIG = LoraConfig(max_rank=3, alpha=6.0)
PATHS = [
  f'transformer_layer_{layer}/self_attention/{target}'
  for layer in (0, 1)
  for target in ('query', 'value')
]
BATCH = collections.OrderedDict(
  token_ids=np.array([[1, 5, 22, 3, 0], [7, 2, 4, 9, 11]], np.int32),
  padding_mask=np.array([[1, 1, 1, 1, 0], [1] * 5], np.int32),
  # The last position predicts nothing, whatever its weight says.
  loss_weights=np.array([[0, 1, 0.5, 0, 0], [1, 0, 0, 2, 7]], np.float32),
)


@pytest.fixture(scope='module')
def frozen(tmp_path_factory):
  tf.keras.utils.set_random_seed(1)
  backbone = keras_nlp.models.GPT2Backbone(
    vocabulary_size=23,
    num_layers=2,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=12,
    max_sequence_length=LENGTH,
  )
  rng = np.random.default_rng(1)
  for weight in backbone.weights:
    weight.assign(rng.normal(scale=0.4, size=weight.shape))
  return FrozenBackbone.save(backbone, tmp_path_factory.mktemp('model') / 'backbone')


def _numpy_loss(backbone, batch):
  """The full softmax over every position in float64."""
  hidden = backbone(
    {'token_ids': batch['token_ids'], 'padding_mask': batch['padding_mask']}, training=False
  )
  embeddings = np.array(backbone.token_embedding.embeddings, np.float64)
  logits = np.array(hidden, np.float64) @ embeddings.T
  log_total = np.log(np.sum(np.exp(logits), axis=-1))
  total = count = 0.0
  for i in range(len(logits)):
    for t in range(LENGTH - 1):
      weight = batch['loss_weights'][i, t]
      total += weight * (log_total[i, t] - logits[i, t, batch['token_ids'][i, t + 1]])
      count += weight
  return total, count


def _adapters(rank, seed=2):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return rng.normal(scale=0.4, size=shape).astype(np.float32)

  return collections.OrderedDict(
    (path, LoraFactors(draw(rank, 8), draw(8, rank))) for path in PATHS
  )


def test_causal_loss_is_the_full_softmax_of_the_next_token(frozen):
  backbone = frozen.build()
  loss = causal_loss(backbone, BATCH)
  total, count = _numpy_loss(backbone, BATCH)
  assert count == 4.5
  np.testing.assert_allclose(loss.count, count)
  np.testing.assert_allclose(loss.total, total, rtol=1e-5)


def test_causal_loss_sees_no_later_token_and_no_padding(frozen):
  backbone = frozen.build()
  changed = {name: value.copy() for name, value in BATCH.items()}
  changed['loss_weights'][:] = 0.0
  changed['loss_weights'][0, 1] = 1.0
  before = causal_loss(backbone, changed)
  changed['token_ids'][0, 3:] = 17
  changed['token_ids'][1] = 3
  np.testing.assert_allclose(causal_loss(backbone, changed).total, before.total, rtol=1e-6)
  changed['token_ids'][0, 2] = 17
  assert abs(float(causal_loss(backbone, changed).total - before.total)) > 1e-3


def test_causal_loss_of_nothing_is_zero(frozen):
  batch = {**BATCH, 'loss_weights': np.zeros([2, LENGTH], np.float32)}
  loss = causal_loss(frozen.build(), batch)
  assert (float(loss.total), float(loss.count)) == (0.0, 0.0)


def test_module_shapes(frozen):
  shapes = CausalLanguageModel(frozen, LENGTH).module_shapes(CONFIG)
  assert list(shapes.items()) == [(path, ModuleShape(8, 8)) for path in PATHS]
  wide = LoraConfig(max_rank=3, alpha=6.0, targets=('feedforward_intermediate',))
  shapes = CausalLanguageModel(frozen, LENGTH).module_shapes(wide)
  assert set(shapes.values()) == {ModuleShape(d_in=8, d_out=12)}
  assert ModuleShape(d_in=8, d_out=12).num_trained(3) == 60


def test_module_shapes_leaves_living_models_usable(frozen):
  living = frozen.build()
  CausalLanguageModel(frozen, LENGTH).module_shapes(CONFIG)
  causal_loss(living, BATCH)


def test_loss_is_that_of_the_model_with_merged_weights(frozen):
  adapters = _adapters(rank=2)
  with tf.Graph().as_default():
    loss_fn = CausalLanguageModel(frozen, LENGTH).build(CONFIG)
    loss = loss_fn(adapters, {name: tf.constant(value) for name, value in BATCH.items()})
    with tf.compat.v1.Session() as session:
      session.run(tf.compat.v1.global_variables_initializer())
      total, count = session.run(loss)
  merged = frozen.build()
  for path, layer in injection.inject_lora(merged, CONFIG, create_variables=False).items():
    a, b = adapters[path]
    product = (CONFIG.alpha / CONFIG.max_rank) * (b @ a)
    kernel = layer.base.kernel
    kernel.assign_add(product.T.reshape(kernel.shape))
  expected = _numpy_loss(merged, BATCH)
  np.testing.assert_allclose((total, count), expected, rtol=1e-5)
  assert abs(total - _numpy_loss(frozen.build(), BATCH)[0]) > 1e-2


def test_batch_spec(frozen):
  spec = CausalLanguageModel(frozen, LENGTH).batch_spec
  assert list(spec) == list(BATCH)
  for name, value in BATCH.items():
    assert spec[name].is_compatible_with(tf.constant(value))
    assert spec[name].shape.as_list() == [None, LENGTH]


@pytest.mark.parametrize('length', [-1, 0, 1, LENGTH + 1])
def test_refuses_a_sequence_length_that_cannot_be(frozen, length):
  with pytest.raises(ValueError, match=rf'`sequence_length` must be in \[2, {LENGTH}\]'):
    CausalLanguageModel(frozen, length)


def test_bound_factors_are_released(frozen):
  # Left bound, a symbolic tensor would poison the next graph.
  loss_fn = CausalLanguageModel(frozen, LENGTH).build(CONFIG)
  first = loss_fn(_adapters(rank=2), BATCH)
  second = loss_fn(_adapters(rank=1, seed=9), BATCH)
  third = loss_fn(_adapters(rank=2), BATCH)
  assert float(first.total) == float(third.total) != float(second.total)


def _weights(frozen, seed=3):
  """Other weights than those on disk."""
  rng = np.random.default_rng(seed)
  return collections.OrderedDict(
    (name, (value.numpy() + 0.2 * rng.normal(size=value.shape)).astype(np.float32))
    for name, value in frozen.weights().items()
  )


def _loss_and_gradients(loss_fn, weights):
  """Of the mean loss, as clients train on."""
  weights = tf.nest.map_structure(tf.convert_to_tensor, weights)
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(weights)
    loss = loss_fn(weights, {name: tf.constant(value) for name, value in BATCH.items()})
    mean = loss.total / loss.count
  return loss, tape.gradient(mean, weights)


def _keras_loss_and_gradients(frozen, weights):
  """The same by Keras: a trainable model whose variables are the weights."""
  model = keras_nlp.models.GPT2Backbone.from_config(frozen.config)
  plain, variables = frozen.build_with_variables()
  place = {id(v): i for i, v in enumerate(plain.weights)}
  mine = {name: model.weights[place[id(v)]] for name, v in variables.items()}
  for name, variable in mine.items():
    variable.assign(weights[name])
  with tf.GradientTape() as tape:
    loss = causal_loss(model, BATCH)
    mean = loss.total / loss.count
  gradients = tape.gradient(mean, mine)
  return loss, {name: tf.convert_to_tensor(g).numpy() for name, g in gradients.items()}


def test_weight_specs_are_those_of_the_initial_weights(frozen):
  model = CausalLanguageModel(frozen, LENGTH)
  specs, weights = model.weight_specs(), model.initial_weights()
  assert list(specs) == list(weights) == list(frozen.weight_names)
  for name, spec in specs.items():
    assert spec.is_compatible_with(weights[name])
    assert spec.shape.is_fully_defined()
  assert sum(spec.shape.num_elements() for spec in specs.values()) == frozen.num_parameters


@pytest.mark.parametrize('how', ['eager', 'function', 'graph'])
def test_full_loss_and_gradients_are_those_of_keras(frozen, how):
  weights = _weights(frozen)
  model = CausalLanguageModel(frozen, LENGTH)
  expected, expected_gradients = _keras_loss_and_gradients(frozen, weights)
  if how == 'graph':
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      tensors = _loss_and_gradients(model.build_full(), weights)
      session.run(tf.compat.v1.global_variables_initializer())
      loss, gradients = session.run(tensors)
  else:
    loss_fn = model.build_full()
    call = tf.function(_loss_and_gradients) if how == 'function' else _loss_and_gradients
    loss, gradients = call(loss_fn, weights)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert list(gradients) == list(weights)
  for name, gradient in gradients.items():
    np.testing.assert_allclose(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6)
    # Keys' biases cancel in the softmax; everything else moves.
    assert np.abs(gradient).max() > 1e-4 or name.endswith('/key/bias')


def test_full_loss_depends_on_its_arguments_alone(frozen):
  loss_fn = CausalLanguageModel(frozen, LENGTH).build_full()
  first, second = _weights(frozen, 3), _weights(frozen, 4)
  losses = [float(loss_fn(weights, BATCH).total) for weights in (first, second, first)]
  assert losses[0] == losses[2] != losses[1]


def test_full_training_in_a_loop_equals_single_steps(frozen):
  loss_fn = CausalLanguageModel(frozen, LENGTH).build_full()

  def step(weights):
    loss, gradients = _loss_and_gradients(loss_fn, weights)
    return loss.total, collections.OrderedDict(
      (name, w - 0.3 * gradients[name]) for name, w in weights.items()
    )

  @tf.function
  def loop(weights, steps):
    total = tf.constant(0.0)
    for _ in tf.range(steps):
      total, weights = step(weights)
    return total, weights

  weights = _weights(frozen)
  looped = loop(weights, tf.constant(3))
  totals = []
  for _ in range(3):
    total, weights = step(weights)
    totals.append(float(total))
  assert totals[2] < totals[0]
  np.testing.assert_allclose(looped[0], totals[2], rtol=1e-5)
  for name, value in weights.items():
    np.testing.assert_allclose(looped[1][name], value, rtol=1e-4, atol=1e-6)


def test_full_loss_of_nothing_is_zero_and_moves_nothing(frozen):
  loss_fn = CausalLanguageModel(frozen, LENGTH).build_full()
  weights = collections.OrderedDict((n, tf.constant(w)) for n, w in _weights(frozen).items())
  batch = {**BATCH, 'loss_weights': np.zeros([2, LENGTH], np.float32)}
  with tf.GradientTape() as tape:
    tape.watch(weights)
    loss = loss_fn(weights, batch)
  assert (float(loss.total), float(loss.count)) == (0.0, 0.0)
  assert not any(np.any(g) for g in tape.gradient(loss.total, weights).values())


def test_full_loss_refuses_weights_of_another_model(frozen):
  loss_fn = CausalLanguageModel(frozen, LENGTH).build_full()
  weights = _weights(frozen)
  weights['0099/kernel'] = weights.pop('0002/gamma')
  with pytest.raises(ValueError, match=r"\['0002/gamma', '0099/kernel'\]"):
    loss_fn(weights, BATCH)
