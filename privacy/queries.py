# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The mechanisms, as TFP queries: a joint clip per record and keyed noise on the sum.

| query                | noise of a round                                              |
| -------------------- | ------------------------------------------------------------- |
| fixed, adaptive clip | independent; another one where a round is run again           |
| tree                 | residual of a tree's (DP-FTRL, arXiv:2103.00039)              |
| banded               | `C^-1` times independent noise (arXiv:2306.08153), `C` banded |

The noise of the latter two follows from their state: a round that is run again from a checkpoint
gets the same, and the state is as secret as the noise.
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import dp_accounting
import numpy as np
import tensorflow as tf
import tensorflow_privacy as tfp

from privacy.clipping import clip_by_joint_norm
from privacy.noise import GaussianNoise, Seeds

_COUNT_CLIP = 0.5


class GaussianQuery(tfp.GaussianSumQuery):
  """TFP's sum with Gaussian noise, with the clip and the noise of this package."""

  class State(NamedTuple):
    """`l2_norm_clip` and `stddev` (float32 scalars), and the state of the seeds."""

    l2_norm_clip: Any
    stddev: Any
    seeds: Any

  def __init__(
    self, specs: Any, l2_clip_norm: float, stddev: float, seeds: Seeds, inflation: float = 1.0
  ):
    """Initializes the query.

    Args:
      specs: structure of `tf.TensorSpec`s of a record.
      l2_clip_norm: bound on the norm of a record.
      stddev: of the noise on the sum.
      seeds: where it comes from.
      inflation: how many times as far as the clip a record can move the sum, for the event.
    """
    super().__init__(l2_clip_norm, stddev)
    self._inflation = inflation
    # Of deviation 1: an adaptive clip changes it from round to round.
    self._noise = GaussianNoise(specs, 1.0, seeds)

  def make_global_state(self, l2_norm_clip, stddev):
    """See `tfp.GaussianSumQuery`."""
    clip, stddev = tf.cast(l2_norm_clip, tf.float32), tf.cast(stddev, tf.float32)
    return self.State(clip, stddev, self._noise.initialize())

  def preprocess_record_impl(self, params, record):
    """See `tfp.GaussianSumQuery`; a record without a finite norm becomes zeros, of norm 0."""
    return clip_by_joint_norm(record, params)

  def get_noised_result(self, sample_state, global_state):
    """See `tfp.GaussianSumQuery`."""
    noise, seeds = self._noise.next(global_state.seeds)
    result = tf.nest.map_structure(lambda s, n: s + global_state.stddev * n, sample_state, noise)
    sensitivity = global_state.l2_norm_clip * self._inflation
    event = dp_accounting.GaussianDpEvent(global_state.stddev / sensitivity)
    return result, global_state._replace(seeds=seeds), event


class _UnitQuery(GaussianQuery):
  """Sums records in units of the clip: what is sent has one range, however the clip moves."""

  def preprocess_record_impl(self, params, record):
    """See `GaussianQuery`; of a norm of at most 1, beside the norm before the clip."""
    clipped, norm = super().preprocess_record_impl(params, record)
    return tf.nest.map_structure(lambda tensor: tensor / params, clipped), norm

  def get_noised_result(self, sample_state, global_state):
    """See `GaussianQuery`; the result is in the units of the values."""
    clip = global_state.l2_norm_clip
    total = tf.nest.map_structure(lambda tensor: tensor * clip, sample_state)
    return super().get_noised_result(total, global_state)


class AdaptiveClipQuery(tfp.QuantileAdaptiveClipSumQuery):
  """TFP's adaptive clip (arXiv:1905.03871) on `GaussianQuery`, for the sum and for the count.

  A record is sent divided by the clip, with a joint norm of at most 1, and beside it its count.
  """

  def __init__(
    self,
    specs: Any,
    initial_l2_clip_norm: float,
    noise_multiplier: float,
    quantile: float,
    learning_rate: float,
    count_stddev: float,
    clients_per_round: float,
    seeds: tuple[Seeds, Seeds],
    inflation: float = 1.0,
  ):
    """Initializes the query.

    Args:
      specs: structure of `tf.TensorSpec`s of a record.
      initial_l2_clip_norm: the first clip.
      noise_multiplier: of the noise on the sum, relative to the clip of the round.
      quantile: share of the records that the clip aims to leave as they are.
      learning_rate: the clip changes by a factor of at most `exp(learning_rate)` a round.
      count_stddev: of the noise on the count of unclipped records, each counted as +-0.5.
      clients_per_round: the expected number of records.
      seeds: of the sum's noise and of the count's.
      inflation: of both, see `GaussianQuery`.
    """
    super().__init__(
      initial_l2_clip_norm,
      noise_multiplier,
      quantile,
      learning_rate,
      count_stddev,
      clients_per_round,
    )
    # Where the parent class keeps its two queries, which it has no other way to exchange.
    stddev = noise_multiplier * initial_l2_clip_norm
    self._sum_query = _UnitQuery(specs, initial_l2_clip_norm, stddev, seeds[0], inflation)
    self._quantile_estimator_query = _QuantileQuery(
      (seeds[1], inflation),
      initial_l2_clip_norm,
      quantile,
      learning_rate,
      count_stddev,
      clients_per_round,
      True,
    )

  def get_noised_result(self, sample_state, global_state):
    """See `tfp.QuantileAdaptiveClipSumQuery`, which would forget the state of the seeds."""
    result, sum_state, sum_event = self._sum_query.get_noised_result(
      sample_state.sum_state, global_state.sum_state
    )
    clip, quantile_state, count_event = self._quantile_estimator_query.get_noised_result(
      sample_state.quantile_estimator_state, global_state.quantile_estimator_state
    )
    sum_state = sum_state._replace(l2_norm_clip=clip, stddev=clip * global_state.noise_multiplier)
    new_state = global_state._replace(sum_state=sum_state, quantile_estimator_state=quantile_state)
    return result, new_state, dp_accounting.ComposedDpEvent([sum_event, count_event])


class _QuantileQuery(tfp.QuantileEstimatorQuery):
  """TFP's estimate of a quantile with a noised count, on `GaussianQuery`."""

  def __init__(self, noise: tuple[Seeds, float], *args):
    self._noise = noise
    super().__init__(*args)

  def preprocess_record(self, params, record):
    """See `tfp.QuantileEstimatorQuery`; a client that sends zeros counts as one that is not there.

    Otherwise it would count as unclipped, and zeroing a clipped client would move the count by 1.
    """
    below = super().preprocess_record(params, record)
    return tf.where(record > 0, below, tf.zeros_like(below))

  def _construct_below_estimate_query(self, below_estimate_stddev, expected_num_records):
    count = GaussianQuery(tf.TensorSpec([]), _COUNT_CLIP, below_estimate_stddev, *self._noise)
    return tfp.NormalizedQuery(count, expected_num_records)


def build_tree_query(
  specs: Any, l2_clip_norm: float, stddev: float, restart_every: int | None, seeds: Seeds
) -> tfp.SumAggregationDPQuery:
  """TFP's residual sums under tree noise, by Honaker's estimate from all nodes.

  Args:
    specs: structure of `tf.TensorSpec`s of a record, float32.
    l2_clip_norm: bound on the norm of a record.
    stddev: of the noise on a node.
    restart_every: leaves of a tree; None for one tree that never ends.
    seeds: where the noise comes from.
  """
  query = tfp.TreeResidualSumQuery(
    record_specs=specs,
    noise_generator=GaussianNoise(specs, stddev, seeds),
    clip_fn=lambda tensors, norm: clip_by_joint_norm(tensors, norm)[0],
    clip_value=l2_clip_norm,
  )
  if restart_every is None:
    return query
  indicator = tfp.restart_query.PeriodicRoundRestartIndicator(restart_every)
  return tfp.RestartQuery(query, indicator)


class BandedQuery(tfp.SumAggregationDPQuery):
  """Sums whose noise is correlated over rounds by a banded Toeplitz matrix (arXiv:2306.08153).

  With `C` lower triangular of first column `c`, `c_0 = 1`, the noise of all rounds is
  `stddev ||c||_2 C^-1 z`: in round `t`, `n_t = stddev ||c||_2 z_t - sum_j c_j n_{t-j}`. A column of
  `C / ||c||_2` has norm 1, so a client that takes part once has sensitivity `l2_clip_norm`; the
  columns of participations at least as many rounds apart as `c` has entries are orthogonal.
  """

  class State(NamedTuple):
    """The clip, the state of the seeds and the past noises, `[bands - 1, ...]`, newest first."""

    l2_norm_clip: Any
    seeds: Any
    past: Any

  def __init__(
    self,
    specs: Any,
    l2_clip_norm: float,
    stddev: float,
    coefficients: Sequence[float] | np.ndarray,
    seeds: Seeds,
  ):
    """Initializes the query.

    Args:
      specs: structure of `tf.TensorSpec`s of a record, float32.
      l2_clip_norm: bound on the norm of a record.
      stddev: of the noise relative to a column of norm 1.
      coefficients: `c`; the first is 1.
      seeds: where the noise comes from.

    Raises:
      ValueError: if the first coefficient is not 1.
    """
    if not len(coefficients) or coefficients[0] != 1:
      raise ValueError(f'`coefficients` must begin with 1, got {coefficients}.')
    self._specs = specs
    self._l2_clip_norm = l2_clip_norm
    self._later = np.asarray(coefficients[1:], np.float32)
    self._noise = GaussianNoise(specs, stddev * float(np.linalg.norm(coefficients)), seeds)

  def initial_global_state(self):
    """See `tfp.DPQuery`."""
    past = tf.nest.map_structure(lambda s: tf.zeros([len(self._later), *s.shape]), self._specs)
    return self.State(tf.constant(self._l2_clip_norm, tf.float32), self._noise.initialize(), past)

  def derive_sample_params(self, global_state):
    """See `tfp.DPQuery`."""
    return global_state.l2_norm_clip

  def preprocess_record(self, params, record):
    """See `tfp.DPQuery`."""
    return clip_by_joint_norm(record, params)[0]

  def get_noised_result(self, sample_state, global_state):
    """See `tfp.DPQuery`; the event is of no use, since rounds are not independent."""
    fresh, seeds = self._noise.next(global_state.seeds)
    noise = tf.nest.map_structure(
      lambda z, past: z - tf.tensordot(self._later, past, 1), fresh, global_state.past
    )
    past = tf.nest.map_structure(
      lambda n, past: tf.concat([n[tf.newaxis], past], 0)[: len(self._later)],
      noise,
      global_state.past,
    )
    result = tf.nest.map_structure(tf.add, sample_state, noise)
    new_state = global_state._replace(seeds=seeds, past=past)
    return result, new_state, dp_accounting.UnsupportedDpEvent()

  def derive_metrics(self, global_state):
    """See `tfp.DPQuery`."""
    return collections.OrderedDict()
