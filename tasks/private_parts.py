# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the algorithm and the privacy mechanism meet: aggregators of private runs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow_federated as tff

import privacy
from hetlora_tff import aggregation
from hetlora_tff.clients.canaries import plant_canaries
from privacy.clipping import clip_to_norm
from tasks import dp_settings
from tasks.config import RunConfig

# What canaries try to send: in every module far above the clip, with far more than full weight.
_CANARY_EXCESS = 100.0
# Of a noised denominator: how much of the clip the weights may take, and how far below what is
# expected it may fall before it no longer divides.
_DENOMINATOR_SCALE, _LEAST_SHARE = 0.5, 0.25


def mean(config: RunConfig) -> Any:
  """The noised mean of clipped updates, or of those weighed after the clip."""
  spec = dp_settings.spec_of(config)
  if config.weights == 'uniform':
    return privacy.build_dp_aggregator(spec)
  clip = clip_to_norm(spec.l2_clip_norm)
  if config.denominator == 'public':
    return aggregation.WeightInsideFactory(
      privacy.build_dp_aggregator(spec), config.weight_reference, clip, config.mean_weight
    )
  return aggregation.NoisedDenominatorFactory(
    privacy.build_dp_sum(dataclasses.replace(spec, l2_clip_norm=1.0)),
    config.weight_reference,
    clip,
    l2_clip_norm=spec.l2_clip_norm,
    denominator_scale=_DENOMINATOR_SCALE,
    floor=_LEAST_SHARE * config.clients_per_round * config.mean_weight,
  )


def sums(config: RunConfig) -> dict[str, tff.aggregators.UnweightedAggregationFactory]:
  """The sums inside an aggregator with public denominators."""
  return {
    'value_sum_factory': privacy.build_dp_sum(dp_settings.spec_of(config)),
    'count_sum_factory': aggregation.WithheldSumFactory(),
  }


def canaries(config: RunConfig) -> Callable[[tff.Computation], tff.Computation] | None:
  """What plants canaries among the clients of a run; None without any."""
  if not config.audit_canaries:
    return None
  return functools.partial(
    plant_canaries,
    norm=_CANARY_EXCESS * config.l2_clip_norm,
    weight=_CANARY_EXCESS * (config.weight_reference or 1.0),
  )
