# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Noise that the clients add before a secure sum, so that no server ever has the sum without it.

Sums of Skellam noise are Skellam noise (arXiv:2110.04995): the clients that it is accounted for
make up all of it, and each one more only adds.
"""

import collections
import math
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from privacy.noise import FreshSeeds, skellam, split_seed
from privacy.quantization import decode, encode, wrap
from privacy.secure_aggregators import modular_sum_process
from privacy.secure_sum import SecureSumSpec
from privacy.spec import DpSpec


class SkellamSumFactory(tff.aggregators.UnweightedAggregationFactory):
  """The sum, over a public number, of values that each client clips, rounds and noises itself.

  `create(V)` has the type `(<()@SERVER, {V}@CLIENTS> -> <state=()@SERVER, result=V@SERVER,
  measurements=<released=bool>@SERVER>)`, `V` a structure of float32 tensors of known shapes.

  A client adds noise of variance `spec.local_variance`, in squared steps, from the randomness of
  its own device. With `spec.noise_shares` of them the sum has a standard deviation of
  `spec.noise_stddev`, with more clients a larger one. Where the noise reaches beyond the modulus, a
  coordinate is off by a multiple of `modulus * step`: in a round with a probability of at most
  `spec.wrap_probability`.

  Edge cases:
    fewer clients than `spec.smallest_cohort`, whose noise would not do, or more than the grid is
    made for: zeros, and `released` is false, as of a protocol that stops below its threshold;
    a value with a NaN or an infinity: noise alone.
  """

  def __init__(self, spec: DpSpec, denominator: float = 1.0):
    """Initializes the factory.

    Args:
      spec: of SKELLAM noise.
      denominator: what the sum is divided by, public.

    Raises:
      ValueError: if the noise is seeded.
    """
    if spec.secure_sum is None or spec.smallest_cohort is None:
      raise ValueError('SKELLAM noise needs a `secure_sum` and a `smallest_cohort`.')
    if spec.insecure_seed is not None:
      raise ValueError(
        'SKELLAM noise is drawn by the clients: an `insecure_seed` cannot repeat it.'
      )
    self._grid, self._variance = spec.secure_sum, spec.local_variance
    self._smallest_cohort = spec.smallest_cohort
    self._denominator = denominator

  def create(self, value_type: tff.Type) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: of float32 tensors of known shapes.

    Raises:
      ValueError: if they have more entries than the spec has coordinates: all of them get noise.
    """
    like = tff.types.type_to_tf_tensor_specs(value_type)
    _check_coordinates(like, self._grid)
    seeds = FreshSeeds()

    def to_residues(value):
      encoded = encode(value, self._grid, seeds)
      noised = add_skellam(encoded, self._variance, seeds.next(())[0])
      return wrap(noised, self._grid), tf.constant(1, tf.int64)

    def to_output(sums):
      total, clients = sums
      # More than the grid is made for could wrap.
      enough, most = clients >= self._smallest_cohort, self._grid.largest_cohort
      released = tf.logical_and(enough, clients <= most)
      result = tf.nest.map_structure(
        lambda t: tf.where(released, t / self._denominator, tf.zeros_like(t)),
        decode(total, self._grid, like),
      )
      return result, collections.OrderedDict(released=released)

    return modular_sum_process(value_type, to_residues, to_output, self._grid.modulus)


def add_skellam(encoded: Any, variance: float, seed: tf.Tensor) -> Any:
  """Adds independent noise to every entry of a structure of int64 tensors."""
  if variance == 0:
    return encoded
  tensors = tf.nest.flatten(encoded)
  # Seeds of their own: equal shapes would get equal noise from one.
  seeds = tf.unstack(split_seed(seed, len(tensors)))
  noised = [t + skellam(t.shape, variance, s) for t, s in zip(tensors, seeds, strict=True)]
  return tf.nest.pack_sequence_as(encoded, noised)


def _check_coordinates(like: Any, grid: SecureSumSpec) -> None:
  entries = sum(math.prod(tensor.shape) for tensor in tf.nest.flatten(like))
  if entries > (grid.coordinates or 0):
    raise ValueError(
      f'The noise is on all {entries} entries of a value: `coordinates` of the secure sum must be '
      f'as many, got {grid.coordinates}.'
    )
