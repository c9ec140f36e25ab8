# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The composed process against the paper's equations in NumPy."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff import process as process_lib
from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.adapters.layout import AdapterLayout, adapters_type, model_weights_type
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.distribution.select import RankSelect
from tests.hetlora_tff import paper_oracle, toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

# The second client's targets ask for more of the server's own model, so its tail grows.
SERVER = toy_model.random_adapters(5)
DATA = [
  toy_model.examples(1, 3),
  toy_model.amplifying_examples(2, 6, SERVER, factor=2.0),
  toy_model.examples(3, 5, scale=0.5),
]
RANKS = [1, 2, toy_model.MAX_RANK]
PRUNING = {'gamma': 0.5, 'lam': 0.3, 'client_rate': 0.01}


@functools.cache
def build(method: paper_oracle.Method, select: bool = False):
  """The package's process for the oracle's constants."""
  training = LocalTraining(
    prune_decay=method.gamma,
    prune_weight=method.lam,
    min_rank=method.min_rank,
    padding=Padding(method.padding),
    weights=ClientWeighting(method.scope),
  )
  model = toy_model.LinearModel()
  type_ = adapters_type(model.module_shapes(toy_model.CONFIG), toy_model.MAX_RANK)
  finalizer = None
  if method.server_rate != 1.0:
    finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
      tff.learning.optimizers.build_sgdm(method.server_rate),
      model_weights_type(type_),
    )
  return process_lib.build_hetlora_process(
    model,
    toy_model.CONFIG,
    training=training,
    client_optimizer=tff.learning.optimizers.build_sgdm(method.client_rate),
    distributor=RankSelect(type_, toy_model.CONFIG) if select else None,
    finalizer=finalizer,
  )


def start(process, adapters=None):
  """The initial state, with these adapters at the server."""
  state = process.initialize()
  if adapters is None:
    return state
  weights = tff.learning.models.ModelWeights(adapters, ())
  return process.as_learning_process().set_model_weights(state, weights)


def run(process, adapters, ranks, data, rounds=1):
  """Adapters and ranks after each round, every device keeping the rank it was given."""
  state = start(process, adapters)
  history = []
  for _ in range(rounds):
    clients = [toy_model.client_data(r, d) for r, d in zip(ranks, data, strict=True)]
    state, _, device_state = process.next(state, clients)
    ranks = [int(device['rank']) for device in device_state]
    history.append((process.get_model_weights(state), ranks))
  return history


def run_oracle(method, adapters, ranks, data, rounds=1):
  history = []
  for _ in range(rounds):
    clients = [(r, toy_model.batches(d)) for r, d in zip(ranks, data, strict=True)]
    adapters, ranks = paper_oracle.round_(method, adapters, clients)
    history.append((adapters, ranks))
  return history


def assert_same(actual, expected, tolerance=1e-5):
  assert len(actual) == len(expected)
  for (adapters, ranks), (wanted_adapters, wanted_ranks) in zip(actual, expected, strict=True):
    assert ranks == wanted_ranks
    np.testing.assert_allclose(
      toy_model.flat(adapters), toy_model.flat(wanted_adapters), rtol=tolerance, atol=tolerance
    )


METHODS = {
  f'{scope}-{padding}': paper_oracle.Method(scope=scope, padding=padding, **PRUNING)
  for scope in ('module', 'model')
  for padding in ('state', 'update')
}
# Whose weights and whose padding meet in what a device downloads: each kind once.
SELECTED = [(name, False) for name in METHODS] + [('module-state', True), ('model-update', True)]
OTHER_METHODS = {
  'examples-state-halved': paper_oracle.Method(scope='examples', server_rate=0.5, client_rate=0.01),
  'uniform-update': paper_oracle.Method(scope='uniform', padding='update', client_rate=0.01),
}


@pytest.mark.parametrize('name', METHODS)
def test_two_rounds_equal_the_paper(name):
  method = METHODS[name]
  expected = run_oracle(method, SERVER, RANKS, DATA, rounds=2)
  # One client may prune and does not, one does, twice: the comparison must see both.
  assert [ranks for _, ranks in expected] == [[1, 2, 2], [1, 2, 1]]
  assert_same(run(build(method), SERVER, RANKS, DATA, rounds=2), expected)


@pytest.mark.parametrize('name', OTHER_METHODS)
def test_two_rounds_without_pruning(name):
  method = OTHER_METHODS[name]
  expected = run_oracle(method, SERVER, RANKS, DATA, rounds=2)
  assert [ranks for _, ranks in expected] == [RANKS, RANKS]
  assert_same(run(build(method), SERVER, RANKS, DATA, rounds=2), expected)


@pytest.mark.parametrize('name', [name for name, select in SELECTED if select])
def test_select_equals_broadcast(name):
  method = METHODS[name]
  expected = run_oracle(method, SERVER, RANKS, DATA, rounds=2)
  assert_same(run(build(method, select=True), SERVER, RANKS, DATA, rounds=2), expected)


def test_min_rank_bounds_pruning():
  method = paper_oracle.Method(min_rank=3, **PRUNING)
  expected = run_oracle(method, SERVER, RANKS, DATA)
  assert expected[0][1] == [1, 2, 3]
  assert_same(run(build(method), SERVER, RANKS, DATA), expected)


@pytest.mark.parametrize('select', [False, True])
def test_first_round_starts_at_zero_b_and_prunes_nobody(select):
  method = METHODS['module-state']
  process = build(method, select)
  adapters = process.get_model_weights(process.initialize())
  for path, (d_in, d_out) in toy_model.SHAPES.items():
    a, b = adapters[path]
    assert a.shape == (toy_model.MAX_RANK, d_in)
    np.testing.assert_array_equal(b, np.zeros((d_out, toy_model.MAX_RANK)))
  first = run(process, None, RANKS, DATA)
  assert first[0][1] == RANKS
  assert_same(first, run_oracle(method, adapters, RANKS, DATA))


@pytest.mark.parametrize('select', [False, True])
def test_a_module_with_a_rank_of_its_own_is_trained_up_to_it(select):
  config = dataclasses.replace(toy_model.CONFIG, rank_pattern={'second': 2})
  layout = AdapterLayout(toy_model.LinearModel().module_shapes(config), config)
  process = process_lib.build_hetlora_process(
    toy_model.LinearModel(),
    config,
    training=LocalTraining(prune_decay=1.0, padding=Padding.UPDATE),
    client_optimizer=tff.learning.optimizers.build_sgdm(0.01),
    distributor=RankSelect(layout.adapters_type(4), config) if select else None,
  )
  cut = {path: (a, b) for path, (a, b) in SERVER.items()}
  cut['second'] = (SERVER['second'].a[:2], SERVER['second'].b[:, :2])
  adapters = {path: LoraFactors(*pair) for path, pair in cut.items()}
  state = process.as_learning_process().set_model_weights(
    process.initialize(), layout.weights(adapters)
  )
  # Ranks that are zero in both factors have no gradient: the oracle's rank 4 computes the same.
  whole = paper_oracle.float64(SERVER)
  whole['second'][0][2:], whole['second'][1][:, 2:] = 0.0, 0.0
  method = paper_oracle.Method(padding='update', client_rate=0.01)
  expected = paper_oracle.train(method, whole, 4, toy_model.batches(DATA[0])).after
  state, metrics, _ = process.next(state, [toy_model.client_data(4, DATA[0])])
  trained = process.get_model_weights(state)
  np.testing.assert_allclose(trained['first'].b, expected['first'][1], atol=1e-5)
  np.testing.assert_allclose(trained['second'].a, expected['second'][0][:2], atol=1e-5)
  assert trained['second'].a.shape == (2, 5)
  numbers = 4 * (3 + 5) + 2 * (5 + 2)
  assert metrics['client_work']['trained_parameters'] == numbers
  assert process.sizes.slice(4) == process.sizes.upload(1) == 4 * numbers
  # Masked numbers of 19 bits fill whole bytes together.
  masked = dataclasses.replace(process.sizes, upload_bits=19)
  assert masked.upload(1) == math.ceil(19 * numbers / 8)
  assert masked.download(1) == process.sizes.download(1)


def test_initial_a_is_gaussian_of_unit_input_scale():
  config = dataclasses.replace(toy_model.CONFIG, max_rank=4000)
  shapes = toy_model.LinearModel().module_shapes(config)
  weights = AdapterLayout(shapes, config).initial_weights().trainable
  for path, (d_in, _) in toy_model.SHAPES.items():
    assert np.mean(weights[path].a) == pytest.approx(0.0, abs=0.02)
    assert np.std(weights[path].a) == pytest.approx(d_in**-0.5, rel=0.03)
  other = (
    AdapterLayout(shapes, dataclasses.replace(config, init_seed=8)).initial_weights().trainable
  )
  assert not np.allclose(other['first'].a, weights['first'].a)


def test_equal_ranks_and_uniform_weights_are_federated_averaging():
  method = paper_oracle.Method(scope='uniform', client_rate=0.01)
  sent = [paper_oracle.train(method, SERVER, 2, toy_model.batches(data)) for data in DATA]
  expected = toy_model.random_adapters(0, scale=0.0)
  for path, (a, b) in expected.items():
    a[:2] = np.mean([s.after[path][0] for s in sent], axis=0)
    b[:, :2] = np.mean([s.after[path][1] for s in sent], axis=0)
  stock = process_lib.build_hetlora_process(
    toy_model.LinearModel(),
    toy_model.CONFIG,
    training=LocalTraining(prune_decay=1.0, weights=ClientWeighting.UNIFORM),
    client_optimizer=tff.learning.optimizers.build_sgdm(0.01),
    aggregator=tff.aggregators.MeanFactory(),
  )
  for process in (build(method), stock):
    assert_same(run(process, SERVER, [2, 2, 2], DATA), [(expected, [2, 2, 2])])


@pytest.mark.parametrize(('name', 'select'), SELECTED)
def test_a_client_without_examples_counts_nothing(name, select):
  process = build(METHODS[name], select)
  data = [*DATA, toy_model.examples(4, 0)]
  actual = run(process, SERVER, [*RANKS, 3], data)
  adapters, ranks = run_oracle(METHODS[name], SERVER, RANKS, DATA)[0]
  assert_same(actual, [(adapters, [*ranks, 3])])


@pytest.mark.parametrize(('name', 'select'), SELECTED)
def test_only_empty_clients_leave_the_server_as_it_was(name, select):
  empty = toy_model.examples(4, 0)
  actual = run(build(METHODS[name], select), SERVER, [1, 4], [empty, empty])
  np.testing.assert_array_equal(toy_model.flat(actual[0][0]), toy_model.flat(SERVER))
  assert actual[0][1] == [1, 4]


def broken_examples(seed, value):
  x, y = toy_model.examples(seed, 3)
  y[1, 0] = value
  return x, y


@pytest.mark.parametrize(('name', 'select'), SELECTED)
def test_non_finite_clients_are_left_out_and_counted(name, select):
  process = build(METHODS[name], select)
  bad = [broken_examples(8, np.inf), broken_examples(9, np.nan)]
  clients = [
    toy_model.client_data(r, d) for r, d in zip([*RANKS, 4, 3], [*DATA, *bad], strict=True)
  ]
  state, metrics, device_state = process.next(start(process, SERVER), clients)
  adapters, ranks = run_oracle(METHODS[name], SERVER, RANKS, DATA)[0]
  new_ranks = [int(device['rank']) for device in device_state]
  assert_same([(process.get_model_weights(state), new_ranks)], [(adapters, [*ranks, 4, 3])])
  work = metrics['client_work']
  assert (work['non_finite_clients'], work['trained_clients'], work['clients']) == (2, 5, 5)
  assert np.isfinite(work['loss'])


@pytest.mark.parametrize('select', [False, True])
def test_a_client_whose_weight_overflows_is_left_out(select):
  # Its factors are finite in float32, the norm of their product is not.
  huge = (np.ones([1, 3], np.float32), np.full([1, 2], 1e18, np.float32))
  method = METHODS['module-state']
  actual = run(build(method, select), SERVER, [1, 4], [DATA[0], huge])
  adapters, _ = run_oracle(method, SERVER, [1], DATA[:1])[0]
  assert_same(actual, [(adapters, [1, 4])])


@pytest.mark.parametrize('select', [False, True])
@pytest.mark.parametrize('ranks', [0, -1, toy_model.MAX_RANK + 1, [], [1, 2]], ids=str)
def test_a_rank_that_cannot_be_is_an_error(ranks, select):
  process = build(METHODS['module-state'], select)
  clients = [toy_model.client_data(2, DATA[0]), toy_model.client_data(ranks, DATA[1])]
  with pytest.raises(Exception, match=r'exactly one rank, and it must be in \[1, 4\]'):
    process.next(process.initialize(), clients)


def test_clients_whose_product_is_zero_count_equally():
  # Without features nothing pulls on `b`, which starts at zero: every weight is the smallest one.
  process = build(METHODS['module-state'])
  nothing = (np.zeros([2, 3], np.float32), np.zeros([2, 2], np.float32))
  adapters = process.get_model_weights(process.initialize())
  after, _ = run(process, None, [1, 4], [nothing, nothing])[0]
  for path in toy_model.SHAPES:
    half = np.array(adapters[path].a)
    half[1:] *= 0.5
    np.testing.assert_allclose(after[path].a, half, rtol=1e-6)
    np.testing.assert_array_equal(after[path].b, np.zeros_like(after[path].b))


def test_same_seed_same_bits():
  method = METHODS['module-state']
  processes = (build(method), build.__wrapped__(method))
  twice = [run(process, None, RANKS, DATA, rounds=2) for process in processes]
  first, second = (toy_model.flat(history[-1][0]).tobytes() for history in twice)
  assert first == second


def test_measurements():
  process = build(METHODS['module-state'])
  clients = [
    toy_model.client_data(r, d)
    for r, d in zip([*RANKS, 3], [*DATA, toy_model.examples(4, 0)], strict=True)
  ]
  _, metrics, _ = process.next(start(process, SERVER), clients)
  work = metrics['client_work']
  assert work['examples'] == 14
  assert work['predictions'] == 14.0
  assert work['steps'] == 2 + 3 + 3
  assert (work['clients'], work['trained_clients'], work['pruned_clients']) == (4, 3, 1)
  assert work['trained_parameters'] == sum(r * (3 + 5 + 5 + 2) for r in RANKS)
  np.testing.assert_array_equal(work['rank_histogram'], [1, 2, 1, 0])
  assert metrics['aggregator']['non_finite_clients'] == 0


def test_sizes():
  per_rank = 3 + 5 + 5 + 2
  for select, downloaded in ((False, 4), (True, 2)):
    process = build(METHODS['module-state'], select)
    assert process.sizes.trained_parameters(2) == 2 * per_rank
    assert process.sizes.download(2) == 4 * downloaded * per_rank
    assert process.sizes.upload(2) == 4 * 4 * per_rank
  assert list(process.layout.shapes) == list(toy_model.SHAPES)


def test_types_are_the_documented_ones():
  process = build(METHODS['module-state'])
  state_type, data_type = process.next.type_signature.parameter
  assert state_type == process.initialize.type_signature.result
  batch = '<x=float32[?,3],y=float32[?,2]>'
  assert data_type.compact_representation() == (f'{{<rank=int32*,examples={batch}*>}}@CLIENTS')
  result = process.next.type_signature.result
  assert [name for name, _ in tff.structure.iter_elements(result)] == [
    'state',
    'metrics',
    'device_state',
  ]
  assert result.state == state_type
  assert result.device_state.compact_representation() == '{<rank=int32>}@CLIENTS'
