# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import functools

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.full_fine_tuning import build_full_process
from tests.hetlora_tff import toy_full_model, toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

RATE = 0.01
NUM_WEIGHTS = 3 * 5 + 5 * 2
DATA = [toy_model.examples(seed, number) for seed, number in ((1, 3), (2, 0), (3, 5))]


def client_data(data=DATA):
  return [toy_model.client_data(rank, d) for rank, d in enumerate(data, 1)]


@functools.cache
def build(weights=ClientWeighting.UNIFORM, **kwargs):
  return build_full_process(
    toy_full_model.LinearFullModel(),
    weights=weights,
    client_optimizer=tff.learning.optimizers.build_sgdm(RATE),
    **kwargs,
  )


def expected_round(weights, shares):
  """Weighted mean of what NumPy trains."""
  trained = [toy_full_model.train(weights, toy_model.batches(data), RATE)[0] for data in DATA]
  return {
    path: sum(s * t[path] for s, t in zip(shares, trained, strict=True)) / sum(shares)
    for path in weights
  }


@pytest.mark.parametrize(
  ('weights', 'shares'),
  [(ClientWeighting.UNIFORM, (1, 0, 1)), (ClientWeighting.EXAMPLES, (3, 0, 5))],
)
def test_two_rounds_equal_numpy(weights, shares):
  process = build(weights)
  state = process.initialize()
  expected = toy_model.frozen_weights()
  for path, value in process.get_model_weights(state).items():
    np.testing.assert_array_equal(value, expected[path])
  for _ in range(2):
    expected = expected_round(expected, shares)
    output = process.next(state, client_data())
    state = output.state
    for path, value in process.get_model_weights(state).items():
      np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6)
  assert [device['rank'] for device in output.device_state] == [1, 2, 3]
  work = output.metrics['client_work']
  assert (work['clients'], work['trained_clients']) == (3, 2)
  assert work['trained_parameters'] == 2 * NUM_WEIGHTS


def test_a_broken_client_is_left_out():
  x, y = toy_model.examples(7, 4)
  y[1, 0] = np.nan
  process = build()
  output = process.next(process.initialize(), [*client_data(), toy_model.client_data(1, (x, y))])
  expected = expected_round(toy_model.frozen_weights(), (1, 0, 1))
  for path, value in process.get_model_weights(output.state).items():
    np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6)
  assert output.metrics['client_work']['non_finite_clients'] == 1


def test_nobody_leaves_the_server_as_it_is():
  process = build()
  output = process.next(process.initialize(), client_data([DATA[1]]))
  for path, value in process.get_model_weights(output.state).items():
    np.testing.assert_array_equal(value, toy_model.frozen_weights()[path])


def test_stock_aggregators_and_loops_take_it():
  process = build(aggregator=tff.aggregators.MeanFactory(no_nan_division=True))
  learning = process.as_learning_process()
  output = learning.next(learning.initialize(), client_data())
  expected = expected_round(toy_model.frozen_weights(), (1, 0, 1))
  weights = learning.get_model_weights(output.state).trainable
  for path, value in weights.items():
    np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6)


def test_sizes_are_those_of_the_model_at_every_rank():
  sizes = build().sizes
  for rank in (1, 50):
    assert sizes.download(rank) == sizes.upload(rank) == sizes.slice(rank) == 4 * NUM_WEIGHTS
    assert sizes.trained_parameters(rank) == NUM_WEIGHTS


def test_refuses_a_model_above_the_limit_and_names_its_size():
  build(max_bytes=4 * NUM_WEIGHTS)
  with pytest.raises(ValueError, match=r'100 bytes, more than the 99 of `max_bytes`'):
    build(max_bytes=4 * NUM_WEIGHTS - 1)


def test_refuses_weights_that_the_aggregator_would_drop():
  with pytest.raises(ValueError, match='would drop `examples` weights'):
    build(ClientWeighting.EXAMPLES, aggregator=tff.aggregators.UnweightedMeanFactory())


def test_refuses_weights_of_factors():
  with pytest.raises(ValueError, match='`model` weights'):
    build(ClientWeighting.MODEL)
