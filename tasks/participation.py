# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Who trains in a round, and on what."""

import collections
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tasks.config import RunConfig

# Independent streams of one seed.
_COHORT, _ORDER = 1, 2


def cohort(num_clients: int, clients_per_round: int, seed: int, round_number: int) -> list[int]:
  """Draws the clients of a round, uniformly and without replacement.

  The draw depends on seed and round alone, so a resumed run meets the same clients.

  Args:
    num_clients: size of the population.
    clients_per_round: size of the cohort, at most the population.
    seed: of the run.
    round_number: from 1.

  Returns:
    Indices into the population.
  """
  generator = np.random.default_rng([seed, _COHORT, round_number])
  return generator.choice(num_clients, size=clients_per_round, replace=False).tolist()


def most_clients(config: RunConfig, num_clients: int) -> int:
  """The size of the largest cohort; of Poisson sampling, one that is rarely exceeded.

  Args:
    config: of the run.
    num_clients: that train, without canaries, which are drawn like them.
  """
  most = config.clients_per_round * (2 if config.sampling == 'poisson' else 1)
  return min(most, num_clients + (config.audit_canaries or 0))


def local_batches(
  packed: collections.OrderedDict[str, np.ndarray],
  *,
  batch_size: int,
  local_steps: int,
  seed: Sequence[int],
) -> tf.data.Dataset:
  """The batches of one client in one round: whole passes in fresh orders, cut to `local_steps`.

  Args:
    packed: the client's examples as arrays of equal first dimension `n >= 1`.
    batch_size: examples per step; a client with fewer has that many in a batch.
    local_steps: number of batches.
    seed: of the order, for example (run seed, client, round).

  Returns:
    A dataset of `local_steps` batches `[min(batch_size, n), ...]`.
  """
  num_examples = len(next(iter(packed.values())))
  size = min(batch_size, num_examples)
  generator = np.random.default_rng([_ORDER, *seed])
  needed = size * local_steps
  passes = [generator.permutation(num_examples) for _ in range(-(-needed // num_examples))]
  order = np.concatenate(passes)[:needed].reshape(local_steps, size)
  return tf.data.Dataset.from_tensor_slices(
    collections.OrderedDict((name, values[order]) for name, values in packed.items())
  )


def in_order(packed: collections.OrderedDict[str, np.ndarray], batch_size: int) -> tf.data.Dataset:
  """All examples of a client once, for evaluation."""
  return tf.data.Dataset.from_tensor_slices(packed).batch(batch_size)
