# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`toy_model` with its two matrices trained themselves, and NumPy that follows."""

import collections

import numpy as np
import tensorflow as tf

from hetlora_tff.adapters.model import BatchLoss
from tests.hetlora_tff import toy_model


class LinearFullModel(toy_model.LinearModel):
  """A `FullModel`."""

  def weight_specs(self):
    return collections.OrderedDict(
      (path, tf.TensorSpec([d_out, d_in], tf.float32))
      for path, (d_in, d_out) in toy_model.SHAPES.items()
    )

  def initial_weights(self):
    return collections.OrderedDict(
      (path, tf.constant(weight)) for path, weight in toy_model.frozen_weights().items()
    )

  def build_full(self):
    def loss_fn(weights, batch):
      value = batch['x']
      for path in toy_model.SHAPES:
        value = tf.matmul(value, weights[path], transpose_b=True)
      total = tf.reduce_sum(tf.square(value - batch['y']))
      return BatchLoss(total, tf.cast(tf.shape(value)[0], tf.float32))

    return loss_fn


def train(weights, batches, rate: float):
  """SGD on the mean squared error; returns weights by path, float64, and the summed loss."""
  first, second = (np.asarray(weights[path], np.float64) for path in toy_model.SHAPES)
  total = 0.0
  for x, y in batches:
    hidden = x @ first.T
    error = hidden @ second.T - y
    total += np.sum(error**2)
    slope = 2.0 * error / len(x)
    first, second = first - rate * (slope @ second).T @ x, second - rate * slope.T @ hidden
  return collections.OrderedDict(first=first, second=second), total
