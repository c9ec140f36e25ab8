# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.clients.weights import ClientWeighting, client_weight
from tests.hetlora_tff import toy_model

FACTORS = toy_model.random_adapters(1, rank=3)
NORMS = {path: np.linalg.norm(b.astype(np.float64) @ a) for path, (a, b) in FACTORS.items()}


def test_module_weight_is_the_norm_of_each_product():
  weights = client_weight(ClientWeighting.MODULE, FACTORS, tf.constant(2))
  assert list(weights) == list(FACTORS)
  for path, norm in NORMS.items():
    np.testing.assert_allclose(weights[path], norm, rtol=1e-5)


def test_model_weight_is_the_norm_of_all_products():
  weight = client_weight(ClientWeighting.MODEL, FACTORS, tf.constant(2))
  np.testing.assert_allclose(weight, np.hypot(*NORMS.values()), rtol=1e-5)


def test_uniform_and_examples():
  for number in (1, 7):
    assert float(client_weight(ClientWeighting.UNIFORM, FACTORS, tf.constant(number))) == 1.0
    assert float(client_weight(ClientWeighting.EXAMPLES, FACTORS, tf.constant(number))) == number


def test_coverage_is_the_mask_of_held_rows():
  held = tf.constant([1.0, 1.0, 0.0])
  weight = client_weight(ClientWeighting.COVERAGE, FACTORS, tf.constant(5), held)
  np.testing.assert_array_equal(weight, [1, 1, 0])


@pytest.mark.parametrize('weighting', list(ClientWeighting))
def test_a_client_without_examples_weighs_exactly_nothing(weighting):
  weight = client_weight(weighting, FACTORS, tf.constant(0, tf.int64), tf.ones([3]))
  assert all(np.all(w == 0.0) for w in tf.nest.flatten(weight))


@pytest.mark.parametrize('weighting', [ClientWeighting.MODULE, ClientWeighting.MODEL])
def test_zero_factors_weigh_a_little_and_equally(weighting):
  zero = toy_model.random_adapters(1, scale=0.0)
  small = tf.nest.flatten(client_weight(weighting, zero, tf.constant(1)))
  assert all(float(w) == np.float32(1e-12) for w in small)


@pytest.mark.parametrize('weighting', list(ClientWeighting))
def test_dtype_and_structure(weighting):
  weight = client_weight(weighting, FACTORS, tf.constant(2, tf.int64), tf.ones([3]))
  assert isinstance(weight, dict) is weighting.per_module
  shape = [3] if weighting is ClientWeighting.COVERAGE else []
  assert all(w.dtype == tf.float32 and w.shape == shape for w in tf.nest.flatten(weight))
