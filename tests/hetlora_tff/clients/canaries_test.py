# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Canary clients: their directions, and that nobody else is touched."""

import collections
import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from scipy import stats

from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors
from hetlora_tff.clients import canaries
from hetlora_tff.clients.full_training import build_train_full_on_client
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining, build_train_on_client
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.clients.work import HetLoraClientWork
from tests.hetlora_tff import toy_full_model, toy_model

_NORM, _WEIGHT = 50.0, 300.0
_SERVER = toy_model.random_adapters(5)
_DATA = toy_model.examples(3, 5)
_LIKE = collections.OrderedDict(
  second=LoraFactors(np.zeros([2, 3]), np.zeros([5, 2])), first=np.zeros([4, 30])
)


def _flat(entry):
  return np.concatenate([np.ravel(part) for part in tf.nest.flatten(entry)])


@functools.cache
def _layout(trained=TrainedFactors.BOTH):
  shapes = toy_model.LinearModel().module_shapes(toy_model.CONFIG)
  return AdapterLayout(shapes, toy_model.CONFIG, trained)


@functools.cache
def _build(weights=ClientWeighting.MODULE, trained=TrainedFactors.BOTH):
  """The local computation without and with canaries, and what it receives."""
  layout = _layout(trained)
  train = build_train_on_client(
    toy_model.LinearModel(),
    layout,
    LocalTraining(prune_decay=1.0, padding=Padding.UPDATE, weights=weights, trained=trained),
    tff.learning.optimizers.build_sgdm(0.01),
  )
  return train, canaries.plant_canaries(train, _NORM, _WEIGHT), layout.weights(_SERVER)


def _client(numbers, rank=3, data=_DATA):
  numbers = np.atleast_1d(np.asarray(numbers, np.int64))
  client = toy_model.client_data(rank, data)
  return collections.OrderedDict(client.items(), canary=tf.data.Dataset.from_tensor_slices(numbers))


def test_directions_have_norm_one_in_every_module():
  direction = canaries.canary_direction(_LIKE, 7)
  assert list(direction) == ['second', 'first']
  assert direction['second'].a.shape == (2, 3)
  assert direction['second'].b.shape == (5, 2)
  for entry in direction.values():
    assert np.linalg.norm(_flat(entry)) == pytest.approx(1.0, rel=1e-6)


def test_directions_are_uniform_and_of_their_own():
  number = 4000
  drawn = _directions(tf.range(number, dtype=tf.int64)).numpy()
  # A coordinate of a uniform direction in d dimensions: (1 + u) / 2 is Beta((d - 1) / 2, same).
  for column, size in ((0, 16), (15, 16), (16, 120), (135, 120)):
    law = stats.beta((size - 1) / 2, (size - 1) / 2)
    assert stats.kstest((1 + drawn[:, column]) / 2, law.cdf).pvalue > 1e-3
  correlations = np.corrcoef(drawn.T) - np.eye(136)
  assert np.max(np.abs(correlations)) < 5.5 / np.sqrt(number)


@tf.function
def _directions(numbers):
  return tf.map_fn(
    lambda number: tf.concat(
      [_tf_flat(entry) for entry in canaries.canary_direction(_LIKE, number).values()], 0
    ),
    numbers,
    fn_output_signature=tf.float32,
  )


def _tf_flat(entry):
  return tf.concat([tf.reshape(part, [-1]) for part in tf.nest.flatten(entry)], 0)


def test_directions_are_not_where_training_starts():
  layout = _layout()
  direction = canaries.canary_direction(
    tff.types.type_to_tf_tensor_specs(layout.adapters_type(4)), toy_model.CONFIG.init_seed
  )
  for path, a in layout.initial_a().items():
    cosine = np.sum(a * direction[path].a) / np.linalg.norm(a) / np.linalg.norm(direction[path].a)
    assert abs(cosine) < 0.9


@pytest.mark.parametrize('weights', list(ClientWeighting))
@pytest.mark.usefixtures('tff_runtime')
def test_a_canary_sends_its_direction_with_full_weight(weights):
  train, planted, server = _build(weights)
  output = planted(server, _client(11, data=toy_model.examples(0, 0)))
  expected = canaries.canary_direction(_SERVER, 11)
  for path in toy_model.SHAPES:
    np.testing.assert_allclose(
      _flat(output.update[path]), _NORM * _flat(expected[path]), rtol=1e-5, atol=1e-5
    )
  for weight in tf.nest.flatten(output.update_weight):
    np.testing.assert_array_equal(weight, np.full_like(weight, _WEIGHT))
  assert output.rank == 3
  assert not any(np.any(stat) for stat in output.stats.values())
  assert planted.type_signature.result == train.type_signature.result


@pytest.mark.parametrize('trained', list(TrainedFactors))
@pytest.mark.usefixtures('tff_runtime')
def test_messages_of_every_layout_can_be_those_of_canaries(trained):
  train, planted, server = _build(ClientWeighting.UNIFORM, trained)
  like = tff.types.type_to_tf_tensor_specs(train.type_signature.result.update)
  update = planted(server, _client(2)).update
  for path, entry in canaries.canary_direction(like, 2).items():
    np.testing.assert_allclose(_flat(update[path]), _NORM * _flat(entry), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures('tff_runtime')
def test_others_are_as_without_canaries():
  train, planted, server = _build()
  expected = train(server, toy_model.client_data(3, _DATA))
  output = planted(server, _client(-1))
  tf.nest.map_structure(np.testing.assert_array_equal, tuple(output), tuple(expected))
  assert np.any(_flat(output.update['first']))
  assert output.stats['clients'] == 1


@pytest.mark.usefixtures('tff_runtime')
def test_whole_models_have_canaries_too():
  model = toy_full_model.LinearFullModel()
  train = build_train_full_on_client(
    model, ClientWeighting.UNIFORM, tff.learning.optimizers.build_sgdm(0.01)
  )
  planted = canaries.plant_canaries(train, _NORM, _WEIGHT)
  server = tff.learning.models.ModelWeights(model.initial_weights(), ())
  output = planted(server, _client(4))
  for path, entry in canaries.canary_direction(model.weight_specs(), 4).items():
    np.testing.assert_allclose(output.update[path], _NORM * entry, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures('tff_runtime')
def test_canaries_pass_through_the_client_work():
  _, planted, server = _build()
  work = HetLoraClientWork(planted)

  @tff.federated_computation(
    tff.FederatedType(work.next.type_signature.parameter[1].member, tff.SERVER),
    work.next.type_signature.parameter[2],
  )
  def run(weights, data):
    return work.next(tff.federated_value((), tff.SERVER), tff.federated_broadcast(weights), data)

  output = run(server, [_client(-1), _client(3)])
  assert output['measurements']['clients'] == 1
  assert len(output['result']) == 2


@pytest.mark.parametrize('numbers', [[], [1, 2]], ids=str)
@pytest.mark.usefixtures('tff_runtime')
def test_refuses_a_client_of_another_number_of_numbers(numbers):
  _, planted, server = _build()
  with pytest.raises(Exception, match='exactly one canary number'):
    planted(server, _client(numbers))


@pytest.mark.parametrize('bad', [0.0, -1.0, np.inf, np.nan])
def test_refuses_a_norm_or_weight_that_is_not_positive(bad):
  train, _, _ = _build()
  with pytest.raises(ValueError, match='`norm`'):
    canaries.plant_canaries(train, bad, 1.0)
  with pytest.raises(ValueError, match='`weight`'):
    canaries.plant_canaries(train, 1.0, bad)
