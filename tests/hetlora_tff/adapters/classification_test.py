# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import dataclasses

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.adapters import peft
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.classification import ClassificationModel, is_causal
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.adapters.model import ModuleShape

LENGTH = 6
CLASSES = 3
CONFIG = LoraConfig(max_rank=2, alpha=6.0, rank_pattern={'classifier': 1})
KINDS = ['GPT2Backbone', 'BertBackbone']
BATCH = collections.OrderedDict(
  token_ids=np.array([[1, 5, 22, 3, 0, 0], [7, 2, 4, 9, 11, 6]], np.int32),
  padding_mask=np.array([[1, 1, 1, 1, 0, 0], [1] * 6], np.int32),
  labels=np.array([2, 0], np.int32),
)
# Which hidden state stands for each text.
READ = {'GPT2Backbone': [3, 5], 'BertBackbone': [0, 0]}


@pytest.fixture(scope='module', params=KINDS)
def frozen(request, tmp_path_factory):
  tf.keras.utils.set_random_seed(1)
  backbone = getattr(keras_nlp.models, request.param)(
    vocabulary_size=23,
    num_layers=1,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=12,
    max_sequence_length=LENGTH,
  )
  rng = np.random.default_rng(1)
  for weight in backbone.weights:
    weight.assign(rng.normal(scale=0.4, size=weight.shape))
  return FrozenBackbone.save(backbone, tmp_path_factory.mktemp('model') / 'backbone')


@pytest.fixture(scope='module')
def model(frozen):
  return ClassificationModel(frozen, LENGTH, CLASSES)


@pytest.fixture(scope='module')
def logits(model):
  return model.build_logits(CONFIG)


@pytest.fixture(scope='module')
def loss_fn(model):
  return model.build(CONFIG)


def _adapters(rank, moved='nothing'):
  """Of query, value and head; `b` of the first two is zero unless `moved` ends their path."""
  rng = np.random.default_rng(2)

  def draw(*shape):
    return tf.constant(rng.normal(scale=0.4, size=shape), tf.float32)

  layer = 'transformer_layer_0/self_attention'
  adapters = collections.OrderedDict(
    (f'{layer}/{target}', LoraFactors(draw(rank, 8), tf.zeros([8, rank])))
    for target in ('query', 'value')
  )
  adapters['classifier'] = LoraFactors(draw(rank, 8), draw(CLASSES, rank))
  for path, pair in adapters.items():
    if path.endswith(moved):
      adapters[path] = pair._replace(b=draw(*pair.b.shape))
  return adapters


def test_head_is_the_last_module_and_has_its_own_rank(model):
  shapes = model.module_shapes(CONFIG)
  assert list(shapes) == list(_adapters(1))
  assert shapes['classifier'] == ModuleShape(8, CLASSES)
  layout = AdapterLayout(shapes, CONFIG)
  assert layout.server_type.trainable['classifier'].b.shape == (CLASSES, 1)


def test_logits_are_a_product_with_the_token_that_holds_the_text(frozen, logits):
  backbone, adapters = frozen.build(), _adapters(2)
  inputs = {k: tf.constant(BATCH[k]) for k in ('token_ids', 'padding_mask')}
  if not is_causal(frozen.class_name):
    inputs['segment_ids'] = tf.zeros_like(inputs['token_ids'])
  hidden = backbone(inputs, training=False)
  hidden = hidden if is_causal(frozen.class_name) else hidden['sequence_output']
  text = np.array(hidden, np.float64)[[0, 1], READ[frozen.class_name]]
  a, b = (np.array(part, np.float64) for part in adapters['classifier'])
  expected = 3.0 * text @ a.T @ b.T
  np.testing.assert_allclose(logits(adapters, BATCH), expected, rtol=1e-4, atol=1e-5)


def test_loss_is_the_summed_cross_entropy_by_example(loss_fn, logits):
  adapters = _adapters(2)
  scores = np.array(logits(adapters, BATCH), np.float64)
  by_hand = np.log(np.exp(scores).sum(axis=1)) - scores[[0, 1], BATCH['labels']]
  loss = loss_fn(adapters, BATCH)
  np.testing.assert_allclose([loss.total, loss.count], [by_hand.sum(), 2.0], rtol=1e-5)


def test_padding_says_nothing(logits):
  other = {**BATCH, 'token_ids': BATCH['token_ids'].copy()}
  other['token_ids'][0, 4:] = [9, 17]
  adapters = _adapters(2, moved='value')
  np.testing.assert_allclose(logits(adapters, other), logits(adapters, BATCH), atol=1e-6)


def test_every_factor_learns(loss_fn):
  adapters = _adapters(2, moved='')
  with tf.GradientTape() as tape:
    tape.watch(adapters)
    total = loss_fn(adapters, BATCH).total
  for path, gradients in tape.gradient(total, adapters).items():
    assert all(np.abs(g).max() > 1e-7 for g in gradients), path


def test_fresh_adapters_know_no_label_and_can_begin_to_learn(model, loss_fn):
  layout = AdapterLayout(model.module_shapes(CONFIG), CONFIG)
  adapters = layout.adapters(layout.initial_weights())
  with tf.GradientTape() as tape:
    tape.watch(adapters)
    loss = loss_fn(adapters, BATCH)
  assert float(loss.total / loss.count) == pytest.approx(np.log(CLASSES))
  assert np.abs(tape.gradient(loss.total, adapters)['classifier'].b).max() > 0


def test_adapters_with_a_head_are_exported_and_read_back(frozen, tmp_path):
  adapters = _adapters(2, moved='')
  naming = peft.save_peft_adapter(tmp_path, adapters, CONFIG, architecture=frozen.class_name)
  assert naming == peft.HUGGING_FACE_NAMES
  back = peft.load_peft_adapter(tmp_path).factors
  assert list(back) == list(adapters)
  for path, pair in adapters.items():
    np.testing.assert_array_equal(back[path].a, pair.a)
    np.testing.assert_array_equal(back[path].b, pair.b)


@pytest.mark.parametrize(
  ('class_name', 'length', 'classes', 'named'),
  [
    (None, LENGTH + 1, CLASSES, 'sequence_length'),
    (None, 1, CLASSES, 'sequence_length'),
    (None, LENGTH, 1, 'num_classes'),
    ('FNetBackbone', LENGTH, CLASSES, 'FNetBackbone'),
    ('BartBackbone', LENGTH, CLASSES, 'BartBackbone'),
    ('Backbone', LENGTH, CLASSES, 'Backbone'),
  ],
)
def test_what_cannot_classify_is_refused(frozen, class_name, length, classes, named):
  other = dataclasses.replace(frozen, class_name=class_name or frozen.class_name)
  with pytest.raises(ValueError, match=named):
    ClassificationModel(other, length, classes)


def test_fast_step_equals_keras(frozen, logits):
  adapters = _adapters(2, moved='query')
  batch = {**BATCH}
  expected = tf.reduce_sum(
    tf.nn.sparse_softmax_cross_entropy_with_logits(batch['labels'], logits(adapters, batch))
  )
  for dtype, close in (('float32', 1e-5), ('bfloat16', 2e-2)):
    loss = ClassificationModel(frozen, LENGTH, CLASSES, dtype).build(CONFIG)(adapters, batch)
    assert float(loss.total) == pytest.approx(float(expected), rel=close)
    # A type that is asked for and not used would be as exact as float32.
    exact = abs(float(loss.total) / float(expected) - 1) < 1e-6
    assert exact == (dtype == 'float32')
