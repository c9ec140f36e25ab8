# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.adapters.layout import AdapterLayout, adapters_type, model_weights_type
from hetlora_tff.clients import training as training_lib
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.clients.work import HetLoraClientWork
from tests.hetlora_tff import paper_oracle, toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

LAYOUT = AdapterLayout(toy_model.LinearModel().module_shapes(toy_model.CONFIG), toy_model.CONFIG)
SERVER = toy_model.random_adapters(5)
RANKS = [1, 3, 4]
DATA = [toy_model.examples(seed, number) for seed, number in ((1, 3), (2, 0), (3, 5))]


def build(model=None, rate=0.01, client_sums=None):
  return HetLoraClientWork(
    training_lib.build_train_on_client(
      model or toy_model.LinearModel(),
      LAYOUT,
      LocalTraining(
        prune_decay=0.5,
        prune_weight=0.3,
        padding=Padding.UPDATE,
        weights=ClientWeighting.MODULE,
      ),
      tff.learning.optimizers.build_sgdm(rate),
    ),
    client_sums,
  )


@pytest.fixture(scope='module')
def work():
  return build()


def _run(next_fn, data=DATA, ranks=RANKS):
  weights = tff.learning.models.ModelWeights(SERVER, ())
  clients = [toy_model.client_data(r, d) for r, d in zip(ranks, data, strict=True)]
  return next_fn((), [weights] * len(clients), clients)


def test_every_client_trains_as_numpy_does(work):
  output = _run(work.next)
  method = paper_oracle.Method(padding='update', gamma=0.5, lam=0.3, client_rate=0.01)
  for rank, data, result, device in zip(
    RANKS, DATA, output['result'], output['device_state'], strict=True
  ):
    expected = paper_oracle.train(method, SERVER, rank, toy_model.batches(data))
    weights = paper_oracle.weights(method, expected)
    assert device['rank'] == expected.rank
    for path, (a, b) in expected.after.items():
      kept = expected.rank
      before_a, before_b = (x.astype(np.float64) for x in SERVER[path])
      np.testing.assert_allclose(result.update[path].a[:kept], before_a[:kept] - a, atol=1e-5)
      np.testing.assert_allclose(result.update[path].b[:, :kept], before_b[:, :kept] - b, atol=1e-5)
      np.testing.assert_allclose(result.update_weight[path], weights[path], rtol=1e-5)


def test_stock_form_gives_the_same_without_device_state(work):
  assert isinstance(work.process, tff.learning.templates.ClientWorkProcess)
  whole, stock = _run(work.next), _run(work.process.next)
  for mine, theirs in zip(whole['result'], stock.result, strict=True):
    np.testing.assert_array_equal(toy_model.flat(mine.update), toy_model.flat(theirs.update))
  np.testing.assert_equal(dict(whole['measurements']), dict(stock.measurements))
  assert not hasattr(stock, 'device_state')


def test_measurements_are_sums_over_the_clients(work):
  measurements = _run(work.next)['measurements']
  expected = {
    'examples': 8,
    'predictions': 8,
    'steps': 5,
    'clients': 3,
    'trained_clients': 2,
    'non_finite_clients': 0,
    'trained_parameters': (1 + 4) * 15,
  }
  assert {name: measurements[name] for name in expected} == expected
  assert measurements['rank_histogram'].sum() == 3
  alone = [_run(work.next, [d], [r])['measurements'] for r, d in zip(RANKS, DATA, strict=True)]
  for name in ('loss', 'rank_histogram', 'pruned_clients'):
    np.testing.assert_allclose(measurements[name], sum(m[name] for m in alone), rtol=1e-6)


def test_measurements_can_be_summed_otherwise_or_not_at_all():
  secure = tff.aggregators.SecureSumFactory(100)
  some = build(client_sums={'steps': secure, 'rank_histogram': secure})
  tff.test.assert_not_contains_unsecure_aggregation(some.next)
  measured = some.next.type_signature.result['measurements'].member
  assert [name for name, _ in tff.structure.iter_elements(measured)] == ['steps', 'rank_histogram']
  assert _run(build(client_sums={}).next)['measurements'] == ()
  with pytest.raises(AssertionError):
    tff.test.assert_not_contains_unsecure_aggregation(build().next)


def test_a_sum_with_a_state_is_refused():
  bound = tff.aggregators.PrivateQuantileEstimationProcess.no_noise(1.0, 0.5, 0.1)
  adaptive = tff.aggregators.SecureSumFactory(bound)
  with pytest.raises(ValueError, match="sum of 'loss' must have no state"):
    build(client_sums={'loss': adaptive})


def test_types(work):
  shapes = toy_model.LinearModel().module_shapes(toy_model.CONFIG)
  parameter = work.next.type_signature.parameter
  sliced = model_weights_type(adapters_type(shapes, None))
  assert parameter[1] == tff.FederatedType(sliced, tff.CLIENTS)
  assert parameter == work.process.next.type_signature.parameter
  result = work.process.next.type_signature.result
  assert result.result.placement is tff.CLIENTS
  assert result.measurements.placement is tff.SERVER
  names = [name for name, _ in tff.structure.iter_elements(result.measurements.member)]
  sums = 'loss predictions examples steps clients trained_clients pruned_clients'
  assert names == [*sums.split(), 'non_finite_clients', 'trained_parameters', 'rank_histogram']
  assert work.next.type_signature.result['device_state'].placement is tff.CLIENTS
  assert work.message_type == adapters_type(shapes, toy_model.MAX_RANK)


def test_a_client_trains_once_a_round():
  # Trained twice, the loss would tell one roll of the dice and the update another.
  output = _run(build(toy_model.DiceModel(), rate=1.0).next, [toy_model.examples(1, 2)] * 2, [1, 1])
  rolls = [float(result.update['first'].a[0, 0]) for result in output['result']]
  assert rolls[0] != rolls[1]
  total = float(np.sum(SERVER['first'].a[:1]))
  np.testing.assert_allclose(output['measurements']['loss'], sum(rolls) * total, rtol=1e-5)
