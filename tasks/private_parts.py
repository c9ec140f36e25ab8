# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the algorithm meets clips, noise and secure sums: aggregators that hide clients."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow_federated as tff

import privacy
from hetlora_tff import aggregation
from hetlora_tff.clients.canaries import plant_canaries
from hetlora_tff.clients.work import SUMMED
from privacy.clipping import clip_to_norm
from tasks import dp_settings, secure_settings
from tasks.config import RunConfig

# What canaries try to send: in every module far above the clip, with far more than full weight.
_CANARY_EXCESS = 100.0
# Of a noised denominator: how much of the clip the weights may take, and how far below what is
# expected it may fall before it no longer divides.
_DENOMINATOR_SCALE, _LEAST_SHARE = 0.5, 0.25
# Below the sum of weights of any clients that learned something, in float32.
_LEAST_DENOMINATOR = 1e-30


# More than a token costs any model that is worth measuring, in nats.
_MOST_LOSS = 50.0


def open_sum(config: RunConfig) -> tff.aggregators.UnweightedAggregationFactory:
  """The sum of updates that nothing hides: of float32, or of fewer bits."""
  if config.upload_bits is None:
    return tff.aggregators.SumFactory()
  return aggregation.QuantizedSumFactory(config.upload_bits)


def mean(config: RunConfig) -> Any:
  """The mean of clipped updates, or of those weighed after the clip; noised in private runs."""
  if not dp_settings.is_private(config):
    return _clipped_mean(config)
  spec = dp_settings.spec_of(config)
  if config.weights == 'uniform':
    return privacy.build_dp_aggregator(spec)
  clip = clip_to_norm(spec.l2_clip_norm)
  if config.denominator == 'public':
    return aggregation.WeightInsideFactory(
      privacy.build_dp_aggregator(spec), config.weight_reference, clip, config.mean_weight
    )
  secure_sum = spec.secure_sum
  if secure_sum:
    secure_sum = dataclasses.replace(secure_sum, l2_clip_norm=1.0, value_range=1.0)
  return aggregation.SummedDenominatorFactory(
    privacy.build_dp_sum(dataclasses.replace(spec, l2_clip_norm=1.0, secure_sum=secure_sum)),
    config.weight_reference,
    clip,
    l2_clip_norm=spec.l2_clip_norm,
    denominator_scale=_DENOMINATOR_SCALE,
    floor=_LEAST_SHARE * config.clients_per_round * config.mean_weight,
  )


def _clipped_mean(config: RunConfig) -> Any:
  """Numerator and denominator of the weighted mean in one sum, secure where that is asked for."""
  normaliser = {
    'uniform': 1.0,
    'examples': float(config.local_steps * config.batch_size),
  }.get(config.weights, config.weight_reference)
  spec = secure_settings.update_sum(config)
  return aggregation.SummedDenominatorFactory(
    privacy.build_secure_aggregator(spec) if spec else open_sum(config),
    normaliser,
    clip_to_norm(config.l2_clip_norm),
    l2_clip_norm=config.l2_clip_norm,
    denominator_scale=1.0,
    # Below a step of the grid there is nothing but rounding.
    floor=spec.step if spec else _LEAST_DENOMINATOR,
  )


def coverage_sums(
  config: RunConfig,
) -> dict[str, tff.aggregators.UnweightedAggregationFactory]:
  """The sums inside `RankCoverageMeanFactory`; those that are not named are plain."""
  if config.l2_clip_norm is None:
    return {'value_sum_factory': open_sum(config)}
  if dp_settings.is_private(config):
    return {
      'value_sum_factory': privacy.build_dp_sum(dp_settings.spec_of(config)),
      'count_sum_factory': aggregation.WithheldSumFactory(),
    }
  # A clip is a mechanism without noise.
  clip = privacy.DpSpec(0.0, config.l2_clip_norm, config.clients_per_round)
  if not config.secure_aggregation:
    return {'value_sum_factory': privacy.build_dp_sum(clip, open_sum(config))}
  value = secure_settings.real_sum(config, config.l2_clip_norm, config.secure_bits)
  # A weight is 1 for every row that a client holds.
  count = privacy.build_secure_aggregator(secure_settings.count_sum(config, 1))
  sums = {
    'value_sum_factory': privacy.build_dp_sum(clip, privacy.build_secure_aggregator(value)),
    'count_sum_factory': count,
  }
  if config.rank_dynamics != 'tier':
    sums['weight_sum_factory'] = count
  return sums


def client_sums(
  config: RunConfig, most_trained: int
) -> dict[str, tff.aggregators.UnweightedAggregationFactory] | None:
  """What is measured on clients, and how it is summed: nothing in private runs; None for all.

  Args:
    config: of the run.
    most_trained: numbers that one client trains at most.
  """
  if dp_settings.is_private(config):
    return {}
  if not config.secure_aggregation:
    return None
  examples = config.local_steps * config.batch_size
  most = {
    'predictions': examples * config.sequence_length,
    'examples': examples,
    'steps': config.local_steps,
    'trained_parameters': most_trained,
  }
  specs = {name: secure_settings.count_sum(config, most.get(name, 1)) for name in SUMMED}
  specs['loss'] = secure_settings.real_sum(config, _MOST_LOSS * most['predictions'])
  return {name: privacy.build_secure_aggregator(spec) for name, spec in specs.items()}


def canaries(config: RunConfig) -> Callable[[tff.Computation], tff.Computation] | None:
  """What plants canaries among the clients of a run; None without any."""
  if not config.audit_canaries:
    return None
  return functools.partial(
    plant_canaries,
    norm=_CANARY_EXCESS * config.l2_clip_norm,
    weight=_CANARY_EXCESS * (config.weight_reference or 1.0),
  )
