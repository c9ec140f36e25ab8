# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Full fine-tuning on a client, run alone and several at a time."""

import collections
import functools

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.model import CausalLanguageModel, causal_loss
from hetlora_tff.clients.full_training import (
  build_train_full_on_client,
  full_weights_type,
  num_weights,
)
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.clients.work import HetLoraClientWork
from tests.hetlora_tff import toy_full_model, toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

RATE = 0.01
DATA = toy_model.examples(3, 5)
SERVER = collections.OrderedDict(
  (path, 1.5 * weight) for path, weight in toy_model.frozen_weights().items()
)


@functools.cache
def build(weights=ClientWeighting.UNIFORM):
  optimizer = tff.learning.optimizers.build_sgdm(RATE)
  return build_train_full_on_client(toy_full_model.LinearFullModel(), weights, optimizer)


def model_weights(weights=SERVER):
  return tff.learning.models.ModelWeights(weights, ())


def test_trains_as_numpy_does():
  output = build()(model_weights(), toy_model.client_data(1, DATA))
  after, loss = toy_full_model.train(SERVER, toy_model.batches(DATA), RATE)
  assert list(output.update) == list(SERVER)
  for path, weight in SERVER.items():
    np.testing.assert_allclose(weight - output.update[path], after[path], rtol=1e-5, atol=1e-6)
    assert np.abs(output.update[path]).max() > 1e-3
  np.testing.assert_allclose(output.stats['loss'], loss, rtol=1e-5)


@pytest.mark.parametrize(
  ('weights', 'expected'), [(ClientWeighting.UNIFORM, 1.0), (ClientWeighting.EXAMPLES, 5.0)]
)
def test_weight(weights, expected):
  output = build(weights)(model_weights(), toy_model.client_data(1, DATA))
  assert (output.update_weight, output.update_weight.dtype) == (expected, np.float32)


def test_stats():
  stats = build()(model_weights(), toy_model.client_data(9, DATA)).stats
  assert (stats['examples'], stats['steps'], stats['predictions']) == (5, 3, 5.0)
  assert (stats['clients'], stats['trained_clients'], stats['pruned_clients']) == (1, 1, 0)
  assert (
    stats['trained_parameters'] == num_weights(toy_full_model.LinearFullModel()) == 3 * 5 + 5 * 2
  )
  assert stats['non_finite_clients'] == 0
  assert len(stats['rank_histogram']) == 0


@pytest.mark.parametrize('weights', [ClientWeighting.UNIFORM, ClientWeighting.EXAMPLES])
def test_an_empty_client_sends_zeros(weights):
  output = build(weights)(model_weights(), toy_model.client_data(3, toy_model.examples(0, 0)))
  assert not any(np.any(u) for u in output.update.values())
  assert (output.update_weight, output.rank) == (0.0, 3)
  stats = output.stats
  assert (stats['clients'], stats['trained_clients'], stats['non_finite_clients']) == (1, 0, 0)
  assert (stats['trained_parameters'], stats['examples'], stats['loss']) == (0, 0, 0.0)


def _broken(value, where):
  x, y = toy_model.examples(3, 5)
  (x if where == 'x' else y)[2, 0] = value
  return x, y


NON_FINITE = {
  'nan target': _broken(np.nan, 'y'),
  'inf feature': _broken(-np.inf, 'x'),
  # The squared error overflows, its gradient does not.
  'loss': (np.zeros([1, 3], np.float32), np.full([1, 2], 1e20, np.float32)),
}


@pytest.mark.parametrize('case', NON_FINITE)
@pytest.mark.parametrize('weights', [ClientWeighting.UNIFORM, ClientWeighting.EXAMPLES])
def test_a_non_finite_client_sends_zeros(case, weights):
  output = build(weights)(model_weights(), toy_model.client_data(3, NON_FINITE[case]))
  assert not any(np.any(u) for u in output.update.values())
  assert (output.update_weight, output.rank) == (0.0, 3)
  stats = output.stats
  assert (stats['trained_clients'], stats['non_finite_clients'], stats['loss']) == (1, 1, 0.0)


@pytest.mark.parametrize('rank', [1, 7, 1000])
def test_a_rank_is_handed_back_and_changes_nothing(rank):
  output = build()(model_weights(), toy_model.client_data(rank, DATA))
  reference = build()(model_weights(), toy_model.client_data(1, DATA))
  assert output.rank == rank
  for path in SERVER:
    np.testing.assert_array_equal(output.update[path], reference.update[path])


@pytest.mark.parametrize('ranks', [[0], [-3], [], [2, 2]], ids=str)
def test_refuses_a_rank_that_cannot_be(ranks):
  with pytest.raises(Exception, match='exactly one rank'):
    build()(model_weights(), toy_model.client_data(ranks, DATA))


@pytest.mark.parametrize('weights', [ClientWeighting.MODULE, ClientWeighting.MODEL])
def test_refuses_weights_of_factors(weights):
  with pytest.raises(ValueError, match=f'`{weights.value}`.*UNIFORM'):
    build_train_full_on_client(
      toy_full_model.LinearFullModel(), weights, tff.learning.optimizers.build_sgdm(RATE)
    )


def test_types():
  train = build()
  received, _ = train.type_signature.parameter
  expected = full_weights_type(toy_full_model.LinearFullModel())
  assert received == expected
  assert train.type_signature.result.update == expected.trainable
  assert expected.trainable['first'] == tff.TensorType(np.float32, [5, 3])


LENGTH = 5


@pytest.fixture(scope='module')
def language_model(tmp_path_factory):
  tf.keras.utils.set_random_seed(1)
  backbone = keras_nlp.models.GPT2Backbone(
    vocabulary_size=23,
    num_layers=1,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=12,
    max_sequence_length=LENGTH,
  )
  frozen = FrozenBackbone.save(backbone, tmp_path_factory.mktemp('full') / 'backbone')
  return CausalLanguageModel(frozen, LENGTH)


def _batch(seed, rows=2):
  rng = np.random.default_rng(seed)
  return collections.OrderedDict(
    token_ids=rng.integers(0, 23, [rows, LENGTH]).astype(np.int32),
    padding_mask=np.ones([rows, LENGTH], np.int32),
    loss_weights=np.ones([rows, LENGTH], np.float32),
  )


def _keras_train(model, weights, batches, rate):
  """SGD on a Keras model of its own."""
  keras_model = keras_nlp.models.GPT2Backbone.from_config(model.backbone.config)
  plain, named = model.backbone.build_with_variables()
  place = {id(v): i for i, v in enumerate(plain.weights)}
  mine = {name: keras_model.weights[place[id(v)]] for name, v in named.items()}
  for name, variable in mine.items():
    variable.assign(weights[name])
  for batch in batches:
    with tf.GradientTape() as tape:
      loss = causal_loss(keras_model, batch)
      mean = loss.total / loss.count
    for name, gradient in tape.gradient(mean, mine).items():
      mine[name].assign_sub(rate * tf.convert_to_tensor(gradient))
  return {name: variable.numpy() for name, variable in mine.items()}


def test_clients_that_train_at_once_do_not_share_weights(language_model):
  rate, rng = 0.2, np.random.default_rng(2)
  weights = collections.OrderedDict(
    (name, (w.numpy() + 0.3 * rng.normal(size=w.shape)).astype(np.float32))
    for name, w in language_model.initial_weights().items()
  )
  # Before TFF builds the model in a graph: see `keras_classes_restored`.
  batches = [[_batch(10 * client + step) for step in range(3)] for client in range(4)]
  expected = [_keras_train(language_model, weights, b, rate) for b in batches]
  work = HetLoraClientWork(
    build_train_full_on_client(
      language_model, ClientWeighting.UNIFORM, tff.learning.optimizers.build_sgdm(rate)
    )
  )
  data = [
    collections.OrderedDict(
      rank=tf.data.Dataset.from_tensor_slices(np.array([1], np.int32)),
      examples=tf.data.Dataset.from_tensor_slices(
        collections.OrderedDict((k, np.concatenate([b[k] for b in client])) for k in client[0])
      ).batch(2),
    )
    for client in batches
  ]
  output = work.next((), [model_weights(weights)] * 4, data)
  for result, after in zip(output['result'], expected, strict=True):
    for name, weight in weights.items():
      trained = weight - result.update[name]
      np.testing.assert_allclose(trained, after[name], rtol=1e-3, atol=1e-5)
  assert output['measurements']['trained_clients'] == 4
  moved = [result.update['0000/token_embedding/embeddings'] for result in output['result']]
  assert all(np.abs(moved[0] - other).max() > 1e-2 for other in moved[1:])
