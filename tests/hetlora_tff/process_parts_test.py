# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts beside TFF's own, and the process inside TFF's own loops and forms."""

import collections
import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff import compatibility
from hetlora_tff import process as process_lib
from hetlora_tff.adapters import layout
from hetlora_tff.aggregation import (
  RankCoverageMeanFactory,
  SparsityWeightedMeanFactory,
  StackingFactory,
)
from hetlora_tff.clients import training as training_lib
from hetlora_tff.clients.data import with_ranks
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.clients.work import HetLoraClientWork
from hetlora_tff.distribution.broadcast import build_truncating_broadcast
from hetlora_tff.distribution.select import RankSelect
from tests.hetlora_tff import paper_oracle, toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

templates = tff.learning.templates
SERVER = toy_model.random_adapters(5)
RANKS = [1, 2, toy_model.MAX_RANK]
DATA = [toy_model.examples(seed, 4) for seed in (1, 2, 3)]
METHOD = paper_oracle.Method(scope='model', client_rate=0.01)


def clients(ranks=tuple(RANKS), data=tuple(DATA)):
  return [toy_model.client_data(r, d) for r, d in zip(ranks, data, strict=True)]


def adapters_type(rank=toy_model.MAX_RANK):
  shapes = toy_model.LinearModel().module_shapes(toy_model.CONFIG)
  return layout.adapters_type(shapes, rank)


def build(aggregator=None, *, weights=None, **kwargs):
  return process_lib.build_hetlora_process(
    toy_model.LinearModel(),
    toy_model.CONFIG,
    training=LocalTraining(prune_decay=1.0, weights=weights),
    client_optimizer=tff.learning.optimizers.build_sgdm(METHOD.client_rate),
    aggregator=aggregator,
    **kwargs,
  )


@functools.cache
def default_process():
  return build(weights=ClientWeighting.MODEL)


def start(learning_process):
  weights = tff.learning.models.ModelWeights(SERVER, ())
  return learning_process.set_model_weights(learning_process.initialize(), weights)


def assert_equals_oracle(adapters, method=METHOD):
  batches = [(r, toy_model.batches(d)) for r, d in zip(RANKS, DATA, strict=True)]
  expected, _ = paper_oracle.round_(method, SERVER, batches)
  np.testing.assert_allclose(
    toy_model.flat(adapters), toy_model.flat(expected), rtol=1e-5, atol=1e-5
  )


def compose(name):
  """A composition of stock parts, with our own only where `name` says so."""
  type_ = layout.model_weights_type(adapters_type())
  toy_layout = layout.AdapterLayout(
    toy_model.LinearModel().module_shapes(toy_model.CONFIG), toy_model.CONFIG
  )
  train = training_lib.build_train_on_client(
    toy_model.LinearModel(),
    toy_layout,
    LocalTraining(prune_decay=1.0, padding=Padding.STATE, weights=ClientWeighting.MODEL),
    tff.learning.optimizers.build_sgdm(METHOD.client_rate),
  )
  # The client work is the one part that reads ranks, so it is ours in every composition.
  work = HetLoraClientWork(train).process
  distributor = templates.build_broadcast_process(type_)
  if name == 'distributor':
    distributor = build_truncating_broadcast(type_)
  factory = tff.aggregators.MeanFactory()
  if name == 'aggregator':
    factory = SparsityWeightedMeanFactory()
  result_type = work.next.type_signature.result.result.member
  finalizer = templates.build_apply_optimizer_finalizer(
    tff.learning.optimizers.build_sgdm(1.0), type_
  )
  return templates.compose_learning_process(
    tff.tensorflow.computation(toy_layout.initial_weights),
    distributor,
    work,
    factory.create(result_type.update, result_type.update_weight),
    finalizer,
  )


@pytest.mark.parametrize('name', ['distributor', 'client_work', 'aggregator'])
def test_each_part_passes_through_compose_learning_process(name):
  composed = compose(name)
  output = composed.next(start(composed), clients())
  assert_equals_oracle(composed.get_model_weights(output.state).trainable)
  assert output.metrics['client_work']['clients'] == 3


def test_the_aggregator_serves_a_stock_process():
  factory = SparsityWeightedMeanFactory()
  stock = tff.learning.algorithms.build_weighted_fed_avg(
    lambda: _stock_model(),
    tff.learning.optimizers.build_sgdm(0.1),
    model_aggregator=factory,
  )
  plain = tff.learning.algorithms.build_weighted_fed_avg(
    lambda: _stock_model(), tff.learning.optimizers.build_sgdm(0.1)
  )
  data = [client['examples'] for client in clients()]
  trained = [p.next(p.initialize(), data).state.global_model_weights for p in (stock, plain)]
  for mine, theirs in zip(trained[0].trainable, trained[1].trainable, strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def _stock_model():
  keras_model = tf.keras.Sequential(
    [tf.keras.layers.Dense(2, kernel_initializer='ones', input_shape=(3,))]
  )
  return tff.learning.models.from_keras_model(
    keras_model,
    loss=tf.keras.losses.MeanSquaredError(),
    input_spec=toy_model.LinearModel().batch_spec,
  )


def test_stock_mean_equals_ours_with_one_weight_per_client():
  process = build(tff.aggregators.MeanFactory())
  state, _, _ = process.next(start(process.as_learning_process()), clients())
  assert_equals_oracle(process.get_model_weights(state))


def test_stock_finalizer_steps_from_the_server():
  type_ = layout.model_weights_type(adapters_type())
  process = build(
    weights=ClientWeighting.MODEL,
    finalizer=templates.build_apply_optimizer_finalizer(
      tff.learning.optimizers.build_sgdm(0.25), type_
    ),
  )
  state, _, _ = process.next(start(process.as_learning_process()), clients())
  adapters = process.get_model_weights(state)
  assert_equals_oracle(
    adapters, paper_oracle.Method(scope='model', client_rate=0.01, server_rate=0.25)
  )


def test_robust_aggregator_drops_in_and_clips():
  aggregator = tff.learning.robust_aggregator(zeroing=False, clipping=True)
  process = build(aggregator, weights=ClientWeighting.MODEL)
  state, metrics, device_state = process.next(start(process.as_learning_process()), clients())
  moved = toy_model.flat(process.get_model_weights(state)) - toy_model.flat(SERVER)
  # TFF's clip starts at a norm of 1; the unclipped step is longer.
  assert 0.5 < np.linalg.norm(moved) <= 1.0
  assert [int(d['rank']) for d in device_state] == RANKS
  assert 'clipping_norm' in str(metrics['aggregator'])


def test_secure_aggregator_drops_in():
  # No local runtime executes secure sums, so types must do.
  process = build(tff.learning.secure_aggregator())
  state_type, _ = process.next.type_signature.parameter
  assert process.next.type_signature.result.state == state_type


@pytest.mark.parametrize(
  'weights', [ClientWeighting.MODULE, ClientWeighting.MODEL, ClientWeighting.EXAMPLES]
)
def test_an_unweighted_aggregator_refuses_weights_by_name(weights):
  with pytest.raises(ValueError, match=f'UnweightedMeanFactory is unweighted.*`{weights.value}`'):
    build(tff.aggregators.UnweightedMeanFactory(), weights=weights)


def test_a_stock_weighted_aggregator_refuses_a_weight_per_module():
  with pytest.raises(ValueError, match=r'MeanFactory takes one weight per client'):
    build(tff.aggregators.MeanFactory(), weights=ClientWeighting.MODULE)


def test_default_weights_follow_the_aggregator():
  resolve = compatibility.resolve_weighting
  assert resolve(None, SparsityWeightedMeanFactory()) is ClientWeighting.MODULE
  assert resolve(None, tff.aggregators.MeanFactory()) is ClientWeighting.MODEL
  assert resolve(None, tff.aggregators.UnweightedMeanFactory()) is ClientWeighting.UNIFORM
  assert resolve(None, RankCoverageMeanFactory()) is ClientWeighting.COVERAGE
  assert resolve(None, StackingFactory()) is ClientWeighting.UNIFORM
  for weighting in set(ClientWeighting) - {ClientWeighting.COVERAGE}:
    assert resolve(weighting, SparsityWeightedMeanFactory()) is weighting


def test_select_with_state_padding_refuses_what_is_not_a_weighted_mean():
  distributor = RankSelect(adapters_type(), toy_model.CONFIG)
  with pytest.raises(ValueError, match=r'UnweightedMeanFactory.*Padding\.UPDATE'):
    build(tff.aggregators.UnweightedMeanFactory(), distributor=distributor)


def test_an_unweighted_mean_is_uniform_and_counts_an_empty_client_as_no_change():
  process = build(tff.aggregators.UnweightedMeanFactory())
  cohort = [*clients(), toy_model.client_data(1, toy_model.examples(0, 0))]
  state, _, _ = process.next(start(process.as_learning_process()), cohort)
  # Three clients of four: the uniform mean of the three, three quarters of the way.
  assert_equals_oracle(
    process.get_model_weights(state),
    paper_oracle.Method(scope='uniform', client_rate=0.01, server_rate=0.75),
  )


def test_as_learning_process_drops_the_device_state_alone():
  process = default_process()
  learning = process.as_learning_process()
  assert isinstance(learning, templates.LearningProcess)
  assert learning.initialize.type_signature == process.initialize.type_signature
  output = learning.next(start(learning), clients())
  whole = process.next(start(learning), clients())
  assert output._fields == ('state', 'metrics')
  assert_equals_oracle(learning.get_model_weights(output.state).trainable)
  np.testing.assert_equal(
    toy_model.flat(process.get_model_weights(whole.state)),
    toy_model.flat(learning.get_model_weights(output.state).trainable),
  )
  assert output.metrics['client_work']['loss'] == whole.metrics['client_work']['loss']


def test_model_weights_round_trip_and_leave_the_rest_of_the_state():
  type_ = layout.model_weights_type(adapters_type())
  process = build(
    finalizer=templates.build_apply_optimizer_finalizer(
      tff.learning.optimizers.build_adam(0.1), type_
    )
  )
  learning = process.as_learning_process()
  state = learning.next(learning.initialize(), clients()).state
  weights = tff.learning.models.ModelWeights(SERVER, ())
  changed = learning.set_model_weights(state, weights)
  got = learning.get_model_weights(changed)
  np.testing.assert_array_equal(toy_model.flat(got.trainable), toy_model.flat(SERVER))
  before, after = tf.nest.flatten(state.finalizer), tf.nest.flatten(changed.finalizer)
  assert any(np.any(x) for x in before)
  np.testing.assert_equal(after, before)


def ranked_data():
  dataset = tff.simulation.datasets.TestClientData(
    {str(i): collections.OrderedDict(x=x, y=y) for i, (x, y) in enumerate(DATA)}
  ).preprocess(lambda dataset: dataset.batch(2))
  return with_ranks(dataset, {str(i): rank for i, rank in enumerate(RANKS)}, max_rank=4)


def test_runs_under_tffs_training_loop_on_client_data():
  data = ranked_data()
  learning = default_process().as_learning_process()
  metrics = []

  class Recorder(tff.program.ReleaseManager):
    async def release(self, value, key):
      metrics.append((key, value))

  state = tff.simulation.run_training_process(
    training_process=learning,
    training_selection_fn=lambda round_num: data.select(data.client_ids),
    total_rounds=2,
    metrics_managers=[Recorder()],
  )
  assert [key for key, _ in metrics if key] == [1, 2]
  server, ranks = default_process().get_model_weights(learning.initialize()), RANKS
  for _ in range(2):
    batches = [(r, toy_model.batches(d)) for r, d in zip(ranks, DATA, strict=True)]
    server, ranks = paper_oracle.round_(METHOD, server, batches)
  trained = learning.get_model_weights(state).trainable
  np.testing.assert_allclose(toy_model.flat(trained), toy_model.flat(server), rtol=1e-5, atol=1e-5)


def test_client_data_gives_device_state_back():
  data = ranked_data()
  moved = data.with_device_state(['2', '0'], [{'rank': 3}, {'rank': 1}])
  assert moved.ranks == {'0': 1, '1': 2, '2': 3}
  assert data.ranks['2'] == 4
  state, _, _ = default_process().next(
    start(default_process().as_learning_process()), data.select(['0', '1', '2'])
  )
  assert_equals_oracle(default_process().get_model_weights(state))


def test_lowers_to_distribute_aggregate_form_without_secure_parts():
  learning = default_process().as_learning_process()
  form = tff.backends.mapreduce.get_distribute_aggregate_form_for_computation(learning.next)
  assert isinstance(form, tff.backends.mapreduce.DistributeAggregateForm)
  # What a client sends has one shape, whatever its rank.
  assert '?' not in form.client_work.type_signature.result.compact_representation()


def test_lowers_with_secure_sums():
  secure = tff.aggregators.SecureSumFactory
  factory = SparsityWeightedMeanFactory(secure(1.0), secure(1.0), secure(1))
  learning = build(factory).as_learning_process()
  tff.backends.mapreduce.get_distribute_aggregate_form_for_computation(learning.next)
