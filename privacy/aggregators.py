# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Aggregators that clip every client, sum, and add the noise of a `DpSpec`."""

from typing import Any

import numpy as np
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from privacy.banded import banded_coefficients
from privacy.distributed import SkellamSumFactory
from privacy.noise import FreshSeeds, SeedChain, Seeds
from privacy.quantization import decode, encode, wrap
from privacy.queries import AdaptiveClipQuery, BandedQuery, GaussianQuery, build_tree_query
from privacy.secure_aggregators import build_secure_aggregator, modular_sum_process
from privacy.secure_sum import SecureSumSpec
from privacy.spec import Clipping, DpSpec, Mechanism


def build_dp_aggregator(
  spec: DpSpec, inner: tff.aggregators.UnweightedAggregationFactory | None = None
) -> tff.aggregators.UnweightedAggregationFactory:
  """The mean of clipped values under noise: `build_dp_sum` divided by `spec.clients_per_round`.

  The denominator is public: never the number of clients that came.

  Args:
    spec: the mechanism.
    inner: see `build_dp_sum`.

  Raises:
    TypeError: see `build_dp_sum`.
    ValueError: likewise.
  """
  return _DpFactory(spec, inner, spec.clients_per_round)


def build_dp_sum(
  spec: DpSpec, inner: tff.aggregators.UnweightedAggregationFactory | None = None
) -> tff.aggregators.UnweightedAggregationFactory:
  """The sum of values, each clipped to the joint norm `spec.l2_clip_norm`, plus noise.

  `create(V)` has the type `(<S@SERVER, {V}@CLIENTS> -> <state=S@SERVER, result=V@SERVER,
  measurements=...>)`, `V` a structure of float32 tensors of known shapes.

  The standard deviation of the noise is `spec.noise_stddev` (relative to the clip of the round,
  where it adapts; then the noise on the sum is higher, and that on the count of unclipped clients
  makes the two together as private as `spec.noise_multiplier` alone). No computation holds what
  the noise is drawn from, unless `spec.insecure_seed` does, see `privacy.noise`.

  With `spec.secure_sum` the clipped values go through a secure sum, whose rounding `spec.inflation`
  accounts for. The noise is the server's all the same, but SKELLAM's: see `SkellamSumFactory`.

  Edge cases:
    a value with a NaN or an infinity contributes zeros;
    no client at all: pure noise; zeros where it would be the clients' noise.

  Args:
    spec: the mechanism.
    inner: sums the clipped values (where the clip adapts: those divided by the clip, beside counts
      of +-0.5); a plain sum by default, or that of `spec.secure_sum`. It must not make the sum more
      sensitive.

  Raises:
    TypeError: if `inner` is weighted; at `create`, if `V` is of another kind.
    ValueError: if the clip adapts, with too few clients a round for that; if the noise is SKELLAM's
      and there is an `inner`, a seed, or too much of it (see `SkellamSumFactory`).
  """
  return _DpFactory(spec, inner, None)


class _DpFactory(tff.aggregators.UnweightedAggregationFactory):
  """TFF's `DifferentiallyPrivateFactory` for a query that depends on the type of the values."""

  def __init__(self, spec: DpSpec, inner: Any, denominator: float | None):
    if inner is not None and not isinstance(inner, tff.aggregators.UnweightedAggregationFactory):
      raise TypeError(
        '`inner` must be an unweighted aggregation factory: TFF would drop the weights of the '
        f'clients without a word. Weigh inside the clip instead (WeightInsideFactory). Got {inner}.'
      )
    if spec.clipping is Clipping.ADAPTIVE:
      spec.adaptive_noise()
    self._distributed = None
    if spec.mechanism is Mechanism.SKELLAM:
      if inner is not None:
        raise ValueError('SKELLAM noise is added inside its own secure sum: it takes no `inner`.')
      self._distributed = SkellamSumFactory(spec, 1.0 if denominator is None else denominator)
    self._spec = spec
    self._inner = _secure_sum(spec) if inner is None else inner
    self._denominator = denominator

  def create(self, value_type: tff.Type) -> tff.templates.AggregationProcess:
    _check_type(value_type)
    if self._distributed is not None:
      return self._distributed.create(value_type)
    query = _build_query(self._spec, tff.types.type_to_tf_tensor_specs(value_type))
    if self._denominator is not None:
      query = tfp.NormalizedQuery(query, float(self._denominator))
    return tff.aggregators.DifferentiallyPrivateFactory(query, self._inner).create(value_type)


def _build_query(spec: DpSpec, specs: Any) -> tfp.SumAggregationDPQuery:
  clip, stddev = spec.l2_clip_norm, spec.noise_stddev
  if spec.mechanism is Mechanism.TREE:
    return build_tree_query(specs, clip, stddev, spec.restart_every, _seeds_of_state(spec))
  if spec.mechanism is Mechanism.BANDED:
    # As many bands as keep the columns of a client's rounds apart.
    coefficients = banded_coefficients(spec.min_separation or 1)
    return BandedQuery(specs, clip, stddev, coefficients, _seeds_of_state(spec))
  if spec.clipping is Clipping.FIXED:
    return GaussianQuery(specs, clip, stddev, _seeds(spec), spec.inflation)
  noise_multiplier, count_stddev = spec.adaptive_noise()
  return AdaptiveClipQuery(
    specs,
    clip,
    noise_multiplier,
    spec.clip_quantile,
    spec.clip_learning_rate,
    count_stddev,
    spec.clients_per_round,
    (_seeds(spec), _seeds(spec, stream=1)),
    spec.inflation,
  )


def _secure_sum(spec: DpSpec) -> tff.aggregators.UnweightedAggregationFactory | None:
  """What sums the records of the query; None for a plain sum."""
  if spec.secure_sum is None:
    return None
  if spec.clipping is Clipping.ADAPTIVE:
    return _SecureRecordFactory(spec.secure_sum)
  return build_secure_aggregator(spec.secure_sum)


class _SecureRecordFactory(tff.aggregators.UnweightedAggregationFactory):
  """The records of `AdaptiveClipQuery`, values and count, through one secure sum.

  The count has a grid of its own, whose ends are +-0.5: so it is encoded without error, and its sum
  is no more sensitive than it is. Accounted is the inflation of both, values and count.
  """

  def __init__(self, grid: SecureSumSpec):
    count_grid = SecureSumSpec(
      grid.bits, grid.largest_cohort, value_range=0.5, modulus_bits=grid.sum_bits
    )
    self._grids = (grid, count_grid)

  def create(self, value_type: tff.Type) -> tff.templates.AggregationProcess:
    like, seeds = tff.types.type_to_tf_tensor_specs(value_type), FreshSeeds()

    def to_residues(record):
      parts = zip(record, self._grids, strict=True)
      return record._make(wrap(encode(part, grid, seeds), grid) for part, grid in parts)

    def to_output(total):
      parts = zip(total, self._grids, like, strict=True)
      return total._make(decode(part, grid, specs) for part, grid, specs in parts), ()

    return modular_sum_process(value_type, to_residues, to_output, self._grids[0].modulus)


def _seeds(spec: DpSpec, stream: int = 0) -> Seeds:
  """Seeds of independent noise; a seeded run has one stream of them for each query."""
  if spec.insecure_seed is None:
    return FreshSeeds()
  return SeedChain((spec.insecure_seed, stream))


def _seeds_of_state(spec: DpSpec) -> Seeds:
  """Seeds of noise that is correlated over rounds."""
  return SeedChain(None if spec.insecure_seed is None else (spec.insecure_seed, 0))


def _check_type(value_type: tff.Type) -> None:
  def is_float32(member: tff.Type) -> bool:
    if not isinstance(member, tff.TensorType):
      return isinstance(member, tff.StructType)
    return member.dtype == np.float32 and tff.types.is_shape_fully_defined(member.shape)

  num_tensors = tff.types.count(value_type, lambda member: isinstance(member, tff.TensorType))
  if not num_tensors or not tff.types.contains_only(value_type, is_float32):
    raise TypeError(f'Values must be float32 tensors of known shapes, got {value_type}.')
