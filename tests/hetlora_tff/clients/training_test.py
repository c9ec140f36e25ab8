# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The local computation of one client, run alone."""

import collections
import dataclasses
import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.layout import AdapterLayout, adapters_type, model_weights_type
from hetlora_tff.clients import training as training_lib
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining
from hetlora_tff.clients.weights import ClientWeighting
from tests.hetlora_tff import paper_oracle, toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

SERVER = toy_model.random_adapters(5)
DATA = toy_model.examples(3, 5)
SIZES = [size for d_in, d_out in toy_model.SHAPES.values() for size in (d_in, d_out)]


OPTIMIZERS = {
  'sgd': lambda: tff.learning.optimizers.build_sgdm(0.01),
  'momentum': lambda: tff.learning.optimizers.build_sgdm(0.01, momentum=0.9),
  'adam': lambda: tff.learning.optimizers.build_adam(0.01, 0.9, 0.999, 1e-7),
  'slots': lambda: SlotSizes(),
}


@functools.cache
def build(optimizer='sgd', weights=ClientWeighting.MODEL, **training):
  train = training_lib.build_train_on_client(
    toy_model.LinearModel(),
    AdapterLayout(toy_model.LinearModel().module_shapes(toy_model.CONFIG), toy_model.CONFIG),
    LocalTraining(**{'prune_decay': 1.0, 'padding': Padding.STATE, 'weights': weights, **training}),
    OPTIMIZERS[optimizer](),
  )

  def run(adapters, client_data):
    return train(tff.learning.models.ModelWeights(adapters, ()), client_data)

  run.type_signature = train.type_signature
  return run


@pytest.mark.parametrize(
  'overrides', [{}, {'gamma': 0.5, 'lam': 0.3}, {'gamma': 0.5, 'lam': 0.0}], ids=str
)
@pytest.mark.parametrize('rank', [1, 3, 4])
def test_trains_as_numpy_does(rank, overrides):
  method = paper_oracle.Method(client_rate=0.01, scope='model', **overrides)
  expected = paper_oracle.train(method, SERVER, rank, toy_model.batches(DATA))
  train = build(
    padding=Padding.STATE, prune_decay=method.gamma, prune_weight=method.lam, min_rank=1
  )
  output = train(SERVER, toy_model.client_data(rank, DATA))
  assert output.rank == expected.rank
  for path, (a, b) in SERVER.items():
    after_a, after_b = (a - output.update[path].a, b - output.update[path].b)
    np.testing.assert_allclose(after_a[: expected.rank], expected.after[path][0], atol=1e-5)
    np.testing.assert_allclose(after_b[:, : expected.rank], expected.after[path][1], atol=1e-5)
    # The paper's padding: what a client does not hold is a zero value.
    assert not np.any(after_a[expected.rank :])
    assert not np.any(after_b[:, expected.rank :])
  weight = paper_oracle.weights(method, expected)['first']
  np.testing.assert_allclose(output.update_weight, weight, rtol=1e-5)


@pytest.mark.parametrize('optimizer', ['sgd', 'momentum', 'adam'])
def test_update_padding_touches_the_clients_own_ranks_only(optimizer):
  train = build(optimizer, padding=Padding.UPDATE)
  output = train(SERVER, toy_model.client_data(2, DATA))
  for a, b in output.update.values():
    assert np.all(a[:2] != 0.0)
    assert np.all(b[:, :2] != 0.0)
    assert not np.any(a[2:])
    assert not np.any(b[:, 2:])


@pytest.mark.parametrize('padding', [Padding.STATE, Padding.UPDATE])
def test_a_received_slice_trains_as_the_whole_does(padding):
  train = build(padding=padding, prune_decay=0.5, prune_weight=0.3)
  rank = 3
  cut = collections.OrderedDict(
    (path, type(f)(f.a[:rank], f.b[:, :rank])) for path, f in SERVER.items()
  )
  whole = train(SERVER, toy_model.client_data(rank, DATA))
  part = train(cut, toy_model.client_data(rank, DATA))
  assert part.rank == whole.rank
  assert part.update_weight == whole.update_weight
  for path in SERVER:
    np.testing.assert_array_equal(part.update[path].a[:rank], whole.update[path].a[:rank])
    np.testing.assert_array_equal(part.update[path].b[:, :rank], whole.update[path].b[:, :rank])
    assert not np.any(part.update[path].a[rank:])


def test_adam_equals_numpy():
  rate, beta1, beta2, epsilon = 0.01, 0.9, 0.999, 1e-7
  batches = toy_model.batches(DATA)
  method = paper_oracle.Method()
  current = paper_oracle.float64(toy_model.random_adapters(5))
  current = {path: (a[:2], b[:, :2]) for path, (a, b) in current.items()}
  first = {path: [np.zeros_like(v) for v in f] for path, f in current.items()}
  second = {path: [np.zeros_like(v) for v in f] for path, f in current.items()}
  for step, (x, y) in enumerate(batches, 1):
    gradients = paper_oracle._gradients(method, current, x, y)
    moved = {}
    for path, values in current.items():
      parts = []
      for i, (value, gradient) in enumerate(zip(values, gradients[path], strict=True)):
        first[path][i] = beta1 * first[path][i] + (1 - beta1) * gradient
        second[path][i] = beta2 * second[path][i] + (1 - beta2) * gradient**2
        scale = rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        parts.append(value - scale * first[path][i] / (np.sqrt(second[path][i]) + epsilon))
      moved[path] = tuple(parts)
    current = moved
  train = build('adam')
  output = train(SERVER, toy_model.client_data(2, DATA))
  for path, (a, b) in current.items():
    np.testing.assert_allclose(SERVER[path].a[:2] - output.update[path].a[:2], a, atol=1e-5)
    np.testing.assert_allclose(SERVER[path].b[:, :2] - output.update[path].b[:, :2], b, atol=1e-5)


class SlotSizes(tff.learning.optimizers.Optimizer):
  """Subtracts the size of Adam's slots, of the weight and of the gradient from every weight."""

  def __init__(self):
    self._adam = tff.learning.optimizers.build_adam(0.01)

  def initialize(self, specs):
    return self._adam.initialize(specs)

  def next(self, state, weights, gradients):
    state, _ = self._adam.next(state, weights, gradients)
    sizes = [
      sum(tf.size(part) for part in parts)
      for parts in zip(
        tf.nest.flatten(state['accumulator']),
        tf.nest.flatten(state['preconditioner']),
        tf.nest.flatten(weights),
        tf.nest.flatten(gradients),
        strict=True,
      )
    ]
    moved = [w - tf.cast(n, w.dtype) for w, n in zip(tf.nest.flatten(weights), sizes, strict=True)]
    return state, tf.nest.pack_sequence_as(weights, moved)


@pytest.mark.parametrize('rank', [1, 3])
def test_weights_gradients_and_slots_have_the_clients_rank(rank):
  train = build('slots', padding=Padding.UPDATE)
  output = train(SERVER, toy_model.client_data(rank, toy_model.examples(3, 1)))
  seen = [np.unique(np.round(x[x != 0.0])) for f in output.update.values() for x in f]
  assert [s.tolist() for s in seen] == [[4.0 * rank * size] for size in SIZES]
  assert output.stats['trained_parameters'] == rank * sum(SIZES)


def test_stats_of_one_client():
  output = build()(SERVER, toy_model.client_data(3, DATA))
  method, batches = paper_oracle.Method(client_rate=0.01), toy_model.batches(DATA)
  stats = output.stats
  assert (stats['examples'], stats['steps'], stats['predictions']) == (5, 3, 5.0)
  np.testing.assert_array_equal(stats['rank_histogram'], [0, 0, 1, 0])
  losses = []
  for step, (x, y) in enumerate(batches):
    now = paper_oracle.train(method, SERVER, 3, batches[:step]).after
    value = x.astype(np.float64)
    for path, weight in toy_model.frozen_weights().items():
      value = value @ (weight + toy_model.CONFIG.scaling * now[path][1] @ now[path][0]).T
    losses.append(np.sum((value - y) ** 2))
  np.testing.assert_allclose(stats['loss'], np.sum(losses), rtol=1e-5)


@pytest.mark.parametrize('weights', list(ClientWeighting))
@pytest.mark.parametrize('padding', [Padding.STATE, Padding.UPDATE])
def test_an_empty_client_sends_zeros_and_keeps_its_rank(weights, padding):
  train = build(weights=weights, padding=padding, prune_decay=0.5)
  output = train(SERVER, toy_model.client_data(3, toy_model.examples(0, 0)))
  assert not np.any(toy_model.flat(output.update))
  assert not np.any(tf.nest.flatten(output.update_weight))
  assert output.rank == 3
  stats = output.stats
  assert (stats['clients'], stats['trained_clients'], stats['non_finite_clients']) == (1, 0, 0)
  assert (stats['trained_parameters'], stats['examples'], stats['loss']) == (0, 0, 0.0)


def _broken(value, where):
  x, y = toy_model.examples(3, 5)
  (x if where == 'x' else y)[2, 0] = value
  return x, y


NON_FINITE = {
  'nan target': _broken(np.nan, 'y'),
  'inf target': _broken(np.inf, 'y'),
  'inf feature': _broken(-np.inf, 'x'),
  # The squared error overflows, its gradient does not.
  'loss': (np.zeros([1, 3], np.float32), np.full([1, 2], 1e20, np.float32)),
  # The factors stay finite, the norm of their product does not.
  'weight': (np.ones([1, 3], np.float32), np.full([1, 2], 1e18, np.float32)),
}


@pytest.mark.parametrize('case', NON_FINITE)
@pytest.mark.parametrize('weights', [ClientWeighting.MODULE, ClientWeighting.MODEL])
@pytest.mark.parametrize('padding', [Padding.STATE, Padding.UPDATE])
def test_a_non_finite_client_sends_zeros_and_keeps_its_rank(case, weights, padding):
  train = build(weights=weights, padding=padding, prune_decay=0.5)
  output = train(SERVER, toy_model.client_data(3, NON_FINITE[case]))
  assert not np.any(toy_model.flat(output.update))
  assert not np.any(tf.nest.flatten(output.update_weight))
  assert output.rank == 3
  stats = output.stats
  assert (stats['trained_clients'], stats['non_finite_clients'], stats['loss']) == (1, 1, 0.0)
  assert stats['pruned_clients'] == 0


@pytest.mark.parametrize('ranks', [[0], [-3], [5], [], [2, 2]], ids=str)
def test_refuses_a_rank_that_cannot_be(ranks):
  with pytest.raises(Exception, match=r'exactly one rank, and it must be in \[1, 4\]'):
    build()(SERVER, toy_model.client_data(ranks, DATA))


@pytest.mark.parametrize(
  ('argument', 'value'),
  [
    ('prune_decay', 0.0),
    ('prune_decay', 1.1),
    ('prune_decay', math.nan),
    ('prune_weight', -0.1),
    ('prune_weight', math.inf),
    ('prune_weight', math.nan),
    ('min_rank', 0),
  ],
)
def test_refuses_what_cannot_be_and_names_it(argument, value):
  with pytest.raises(ValueError, match=f'`{argument}`'):
    LocalTraining(**{argument: value})


def test_defaults_are_the_papers():
  training = LocalTraining()
  assert (training.prune_decay, training.padding) == (0.99, None)
  with pytest.raises(dataclasses.FrozenInstanceError):
    training.min_rank = 2


def test_types():
  train = build(weights=ClientWeighting.MODULE)
  received, data = train.type_signature.parameter
  shapes = toy_model.LinearModel().module_shapes(toy_model.CONFIG)
  assert received == model_weights_type(adapters_type(shapes, None))
  assert data == training_lib.client_data_type(toy_model.LinearModel())
  result = train.type_signature.result
  assert result.update == adapters_type(shapes, toy_model.MAX_RANK)
  weights = tff.to_type(collections.OrderedDict(first=np.float32, second=np.float32))
  assert result.update_weight == weights
  assert result.rank == tff.TensorType(np.int32)
