# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Gaussian and Skellam noise that nobody can draw again.

The noise of `tf.random.normal` comes from a process-wide generator that TensorFlow seeds with 32
bits, and that of TFP's trees from the clock or a constant: both can be found by trying all seeds,
and then subtracted. Here every seed is 122 bits of the operating system, read when it is drawn:
the server's, and that of a client, whose noise is to hide it from the server. A graph holds no
secret, so that whoever has a serialised computation knows nothing of its noise, and never yields
the same noise twice.

TensorFlow's Gaussians never exceed 5.68 standard deviations (its uniform numbers end at 1e-7, and
Box and Muller's formula takes their logarithm). Noise beyond that minus the clip would tell that a
client is there, at a noise multiplier of 1 with probability 1e-6 in every round: so each number is
the sum of four, which reaches twice as far, where that is less than 1e-20.

What is left: the generator is Philox, which is not cryptographically secure, and the numbers of
Gaussian noise are floats, whose gaps can be told from those of an ideal Gaussian
(arXiv:2112.05307). Skellam noise is of integers, drawn in float64.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf
import tensorflow_privacy as tfp

_DRAWS = 4
# A line of 122 random bits from the kernel, another at every reading.
_KERNEL_RANDOMNESS = '/proc/sys/kernel/random/uuid'


class Seeds(Protocol):
  """A stream of seeds, int64 `[2]`, with its state outside."""

  def initialize(self) -> Any:
    """The state before the first seed."""
    ...

  def next(self, state: Any) -> tuple[tf.Tensor, Any]:
    """A seed and the next state."""
    ...


class FreshSeeds:
  """Seeds that no state and no graph determines: a round that is run again gets other noise.

  They come from the operating system when they are drawn, through the one file that a graph can
  read them from; on Linux and Android. Elsewhere the computation fails.
  """

  def initialize(self) -> tuple[()]:
    """Nothing to remember."""
    return ()

  def next(self, state: tuple[()]) -> tuple[tf.Tensor, tuple[()]]:
    """A seed of its own at every call."""
    line = tf.data.TextLineDataset(_KERNEL_RANDOMNESS).take(1).get_single_element()
    # Two hashes of 63 bits keep what the line has.
    seed = [tf.strings.to_hash_bucket_strong(line, 2**63 - 1, key) for key in ([0, 1], [2, 3])]
    return tf.stack(seed), state


class SeedChain:
  """Seeds that follow from the state: a round that is run again from it gets the same noise.

  The state is a seed and as secret as the noise.
  """

  def __init__(self, insecure_seed: tuple[int, int] | None):
    """Initializes the chain.

    Args:
      insecure_seed: where the chain starts; None for a secret seed, another at every
        `initialize`.
    """
    self._insecure_seed = insecure_seed

  def initialize(self) -> tf.Tensor:
    """The first seed."""
    if self._insecure_seed is not None:
      return tf.constant(self._insecure_seed, tf.int64)
    return FreshSeeds().next(())[0]

  def next(self, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits the state in two."""
    seed, new_state = tf.unstack(split_seed(state, 2))
    return seed, new_state


class GaussianNoise(tfp.tree_aggregation.ValueGenerator):
  """Independent Gaussian noise in every entry of a structure, by TFP's interface."""

  def __init__(self, specs: Any, stddev: float, seeds: Seeds):
    """Initializes the generator.

    Args:
      specs: structure of `tf.TensorSpec`s of known shapes; the noise is float32.
      stddev: its standard deviation, `>= 0`.
      seeds: where it comes from.
    """
    self._specs = specs
    self._stddev = stddev
    self._seeds = seeds

  def initialize(self) -> Any:
    """The state of the seeds."""
    return self._seeds.initialize()

  def next(self, state: Any) -> tuple[Any, Any]:
    """The noise and the next state."""
    seed, state = self._seeds.next(state)
    specs = tf.nest.flatten(self._specs)
    # Seeds of their own: equal shapes would get equal noise from one.
    seeds = iter(tf.unstack(split_seed(seed, _DRAWS * len(specs))))
    noise = []
    for spec in specs:
      draws = [
        tf.random.stateless_normal(spec.shape, next(seeds), alg='philox') for _ in range(_DRAWS)
      ]
      noise.append(tf.add_n(draws) * (self._stddev / math.sqrt(_DRAWS)))
    return tf.nest.pack_sequence_as(self._specs, noise), state


def skellam(shape: Sequence[int], variance: float, seed: tf.Tensor) -> tf.Tensor:
  """Independent Skellam noise, the difference of two Poisson numbers of mean `variance / 2`.

  Sums of it are Skellam again, with the sum of the variances.

  Args:
    shape: of the noise.
    variance: 0 to `skellam.MOST_VARIANCE`.
    seed: int64 `[2]`.

  Returns:
    The noise, int64.
  """
  mean = tf.constant(variance / 2, tf.float64)
  up, down = (
    tf.random.stateless_poisson(shape, part, mean, tf.int64)
    for part in tf.unstack(split_seed(seed, 2))
  )
  return up - down


def split_seed(seed: tf.Tensor, num: int) -> tf.Tensor:
  """So many seeds from one, int64 `[num, 2]`."""
  return tf.random.experimental.stateless_split(seed, num, alg='philox')
