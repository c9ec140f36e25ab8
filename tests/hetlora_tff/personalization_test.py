# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Own adapters after local steps, against the oracle of a round."""

import collections
import functools

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff import personalization
from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors
from hetlora_tff.clients.training import LocalTraining
from tests.hetlora_tff import paper_oracle, toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

SERVER = toy_model.random_adapters(5)
RATE = 0.01
PLAIN = LocalTraining(prune_decay=1.0)
EMPTY = toy_model.examples(1, 0)


@functools.cache
def build(training, carries_residual):
  return personalization.build_hetlora_personalization_eval(
    toy_model.LinearModel(),
    toy_model.CONFIG,
    training,
    tff.learning.optimizers.build_sgdm(RATE),
    carries_residual=carries_residual,
  )


def evaluate(clients, training=PLAIN, adapters=SERVER, rounds_done=0):
  """The outputs for clients of (rank, train, test)."""
  carries = isinstance(adapters['first'], CorrectedFactors)
  shapes = toy_model.LinearModel().module_shapes(toy_model.CONFIG)
  layout = AdapterLayout(shapes, toy_model.CONFIG, training.trained, carries_residual=carries)
  data = []
  for rank, train, test in clients:
    packed = toy_model.client_data(rank, train)
    examples = toy_model.client_data(rank, test)['examples']
    data.append(
      collections.OrderedDict(rank=packed['rank'], train=packed['examples'], test=examples)
    )
  return build(training, carries)(layout.weights(adapters, rounds_done), data)


def loss_of(adapters, data, residual=None):
  """Sum of squared errors; float64."""
  x, y = (part.astype(np.float64) for part in data)
  for path, weight in toy_model.frozen_weights().items():
    a, b = adapters[path][:2]
    moved = toy_model.CONFIG.scaling * np.asarray(b, np.float64) @ np.asarray(a, np.float64)
    x = x @ (weight + moved + (residual[path] if residual else 0)).T
  return np.sum(np.square(x - y))


def cut(adapters, rank):
  return {path: (f[0][:rank], f[1][:, :rank]) for path, f in adapters.items()}


def check(output, rank, own_rank, test, received, own, residual=None):
  before, after = loss_of(cut(received, rank), test, residual), loss_of(own, test, residual)
  assert (int(output['rank']), int(output['own_rank'])) == (rank, own_rank)
  np.testing.assert_allclose(output['before']['loss'], before, rtol=1e-5)
  np.testing.assert_allclose(output['after']['loss'], after, rtol=1e-5)
  for when in ('before', 'after'):
    assert output[when]['predictions'] == len(test[0])
  assert abs(before - after) > 1e-3  # Or it would not show which adapter was used.


def test_own_adapter_is_what_a_round_makes_of_the_servers():
  method = paper_oracle.Method(gamma=0.5, lam=0.3, client_rate=RATE)
  trains = [
    toy_model.examples(1, 3),
    toy_model.amplifying_examples(2, 6, SERVER, factor=2.0),
    toy_model.examples(3, 5, scale=0.5),
  ]
  clients = [
    (rank, train, toy_model.examples(seed, 4))
    for seed, (rank, train) in enumerate(zip([1, 2, 4], trains, strict=True), start=7)
  ]
  training = LocalTraining(prune_decay=method.gamma, prune_weight=method.lam)
  outputs = evaluate(clients, training)
  own_ranks = []
  for output, (rank, train, test) in zip(outputs, clients, strict=True):
    sent = paper_oracle.train(method, SERVER, rank, toy_model.batches(train))
    check(output, rank, sent.rank, test, SERVER, sent.after)
    own_ranks.append(sent.rank)
  assert own_ranks == [1, 2, 2]  # One prunes itself, one could have.


@pytest.mark.parametrize(('rounds_done', 'moved'), [(0, 'b'), (1, 'a')])
def test_alternating_factors_train_that_of_the_round(rounds_done, moved):
  train, test = toy_model.examples(1, 5), toy_model.examples(2, 3)
  training = LocalTraining(prune_decay=1.0, trained=TrainedFactors.ALTERNATING)
  (output,) = evaluate([(3, train, test)], training, rounds_done=rounds_done)
  method = paper_oracle.Method(client_rate=RATE)
  sent = paper_oracle.train(method, SERVER, 3, toy_model.batches(train), trained=moved)
  check(output, 3, 3, test, SERVER, sent.after)


def test_factor_from_the_seed_stays_as_it_is():
  train, test = toy_model.examples(1, 5), toy_model.examples(2, 3)
  training = LocalTraining(prune_decay=1.0, trained=TrainedFactors.B)
  layout = AdapterLayout(toy_model.LinearModel().module_shapes(None), toy_model.CONFIG)
  server = collections.OrderedDict(
    (path, LoraFactors(a.numpy(), SERVER[path].b)) for path, a in layout.initial_a().items()
  )
  (output,) = evaluate([(3, train, test)], training, server)
  method = paper_oracle.Method(client_rate=RATE)
  sent = paper_oracle.train(method, server, 3, toy_model.batches(train), trained='b')
  check(output, 3, 3, test, server, sent.after)


def test_residual_stays_beside_the_own_adapter():
  rng = np.random.default_rng(3)
  residual = {
    path: rng.normal(size=(d_out, d_in)).astype(np.float32)
    for path, (d_in, d_out) in toy_model.SHAPES.items()
  }
  server = collections.OrderedDict(
    (path, CorrectedFactors(*factors, residual[path])) for path, factors in SERVER.items()
  )
  train, test = toy_model.examples(1, 5), toy_model.examples(2, 3)
  (output,) = evaluate([(2, train, test)], adapters=server)
  method = paper_oracle.Method(client_rate=RATE)
  sent = paper_oracle.train(method, SERVER, 2, toy_model.batches(train), residual=residual)
  check(output, 2, 2, test, SERVER, sent.after, residual)


def test_client_without_a_usable_update_keeps_what_it_received():
  broken = toy_model.examples(4, 3)
  broken[1][0, 0] = np.nan
  test = toy_model.examples(2, 3)
  for output in evaluate([(2, EMPTY, test), (3, broken, test)]):
    rank = int(output['rank'])
    np.testing.assert_allclose(output['before']['loss'], loss_of(cut(SERVER, rank), test), 1e-5)
    assert output['after']['loss'] == output['before']['loss']
    assert output['own_rank'] == rank


def test_client_with_nothing_to_measure_counts_nothing():
  (output,) = evaluate([(2, toy_model.examples(1, 3), EMPTY)])
  assert output['before'] == output['after'] == {'loss': 0.0, 'predictions': 0.0}


def test_client_without_a_valid_rank_fails():
  test = toy_model.examples(1, 2)
  with pytest.raises(Exception, match=r'exactly one rank, and it must be in \[1, 4\]'):
    evaluate([(5, test, test)])
