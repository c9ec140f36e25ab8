# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Two linear modules in a row under squared error: local SGD that NumPy can follow exactly."""

import collections

import numpy as np
import tensorflow as tf

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters import model as model_lib
from hetlora_tff.adapters.config import LoraConfig

# `y = W_second W_first x`; the two modules differ in every size.
SHAPES = collections.OrderedDict(first=(3, 5), second=(5, 2))  # path: (d_in, d_out)
MAX_RANK = 4
CONFIG = LoraConfig(max_rank=MAX_RANK, alpha=6.0, targets=('first', 'second'), init_seed=7)


def frozen_weights() -> dict[str, np.ndarray]:
  """`W [d_out, d_in]` by path, float32."""
  rng = np.random.default_rng(11)
  return {
    path: (0.5 * rng.normal(size=(d_out, d_in))).astype(np.float32)
    for path, (d_in, d_out) in SHAPES.items()
  }


class LinearModel:
  """An `AdapterModel`; the loss of a batch is the sum of squared errors, counted by example."""

  def __init__(self):
    self.batch_spec = collections.OrderedDict(
      x=tf.TensorSpec([None, SHAPES['first'][0]], tf.float32),
      y=tf.TensorSpec([None, SHAPES['second'][1]], tf.float32),
    )

  def module_shapes(self, config):
    del config
    return collections.OrderedDict(
      (path, model_lib.ModuleShape(*sizes)) for path, sizes in SHAPES.items()
    )

  def build(self, config):
    weights = {path: tf.constant(w) for path, w in frozen_weights().items()}

    def loss_fn(adapters, batch):
      value = batch['x']
      for path in SHAPES:
        factors = adapters[path]
        update = config.scaling * tf.matmul(factors.b, factors.a)
        update += getattr(factors, 'residual', 0.0)
        value = tf.matmul(value, weights[path] + update, transpose_b=True)
      total = tf.reduce_sum(tf.square(value - batch['y']))
      return model_lib.BatchLoss(total, tf.cast(tf.shape(value)[0], tf.float32))

    return loss_fn


class DiceModel(LinearModel):
  """Loss `u * sum(a of first)`, with a fresh random `u` in [1, 2) for every batch."""

  def build(self, config):
    def loss_fn(adapters, batch):
      del batch
      zero = tf.add_n([tf.reduce_sum(x) for f in adapters.values() for x in f]) * 0.0
      dice = tf.random.uniform([], 1.0, 2.0)
      return model_lib.BatchLoss(dice * tf.reduce_sum(adapters['first'].a) + zero, tf.constant(1.0))

    return loss_fn


def examples(seed: int, number: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
  """Features `[number, 3]` and targets `[number, 2]`."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(number, SHAPES['first'][0])).astype(np.float32)
  y = (scale * rng.normal(size=(number, SHAPES['second'][1]))).astype(np.float32)
  return x, y


def amplifying_examples(seed: int, number: int, adapters, factor: float):
  """Examples whose targets are `factor` times the model's outputs: they make every rank grow."""
  x, _ = examples(seed, number)
  y = x
  for path, weight in frozen_weights().items():
    a, b = adapters[path]
    y = y @ (weight + CONFIG.scaling * b @ a).T
  return x, (factor * y).astype(np.float32)


def batches(data, batch_size: int = 2) -> list[tuple[np.ndarray, np.ndarray]]:
  """The batches that `client_data` makes of the same examples."""
  x, y = data
  return [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, len(x), batch_size)]


def client_data(ranks, data, batch_size: int = 2):
  """What one client feeds the process; `ranks` an int, or a list for what must be refused."""
  x, y = data
  ranks = np.array([ranks] if np.isscalar(ranks) else ranks, np.int32)
  return collections.OrderedDict(
    rank=tf.data.Dataset.from_tensor_slices(ranks),
    examples=tf.data.Dataset.from_tensor_slices(collections.OrderedDict(x=x, y=y)).batch(
      batch_size
    ),
  )


def random_adapters(seed: int, rank: int = MAX_RANK, scale: float = 0.4):
  """Adapters whose `b` is not zero, as after some rounds; float32."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return (scale * rng.normal(size=shape)).astype(np.float32)

  return collections.OrderedDict(
    (path, lora.LoraFactors(draw(rank, d_in), draw(d_out, rank)))
    for path, (d_in, d_out) in SHAPES.items()
  )


def flat(adapters) -> np.ndarray:
  """All numbers of adapters in one vector, to compare."""
  parts = [np.ravel(part) for path in SHAPES for part in (adapters[path][0], adapters[path][1])]
  return np.concatenate(parts).astype(np.float64)
