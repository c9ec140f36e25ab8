# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts that a method is composed of."""

import dataclasses
from typing import Any, cast

import numpy as np
import tensorflow_federated as tff

import hetlora_tff
from hetlora_tff import aggregation
from hetlora_tff.adapters.layout import AdapterLayout, ModuleShapes, TrainedFactors
from hetlora_tff.adapters.model import AdapterModel, FullModel
from hetlora_tff.clients.full_training import num_weights
from hetlora_tff.distribution import RankSelect
from hetlora_tff.full_fine_tuning import build_full_process
from tasks import dp_settings, private_parts
from tasks.config import RunConfig

_MEANS = {
  'hetlora': aggregation.SparsityWeightedMeanFactory,
  'homlora': aggregation.ZeroPadMeanFactory,
  'naive': aggregation.ZeroPadMeanFactory,
  'ffa': aggregation.ZeroPadMeanFactory,
  'rolora': aggregation.ZeroPadMeanFactory,
  'full': aggregation.ZeroPadMeanFactory,
}
_PRODUCTS = {
  'svd': aggregation.ProductSvdFactory,
  'stacking': aggregation.StackingFactory,
  'fedex': aggregation.ResidualCorrectedMeanFactory,
}
_TRAINED = {'ffa': TrainedFactors.B, 'rolora': TrainedFactors.ALTERNATING}


def lora_config(config: RunConfig) -> hetlora_tff.LoraConfig | None:
  """The adapters of a run; None where all weights are trained."""
  return None if config.method == 'full' else _adapters(config)


def _adapters(config: RunConfig) -> hetlora_tff.LoraConfig:
  return hetlora_tff.LoraConfig(
    max_rank=config.max_rank,
    alpha=config.alpha,
    targets=config.targets,
    init_seed=config.seed,
    rank_pattern=config.rank_pattern,
  )


def build_process(
  config: RunConfig,
  model: AdapterModel,
  shapes: ModuleShapes,
  ranks: np.ndarray,
) -> hetlora_tff.HetLoraProcess:
  """The learning process of a run's method.

  Args:
    config: of the run.
    model: that clients train.
    shapes: of its adapted modules by path; none where all weights are trained.
    ranks: int32 `[clients]`, of all devices before the first round.

  Raises:
    ValueError: if the model is too large for the method.
  """
  process = _compose(config, model, shapes, ranks)
  secure_sum = dp_settings.secure_sum(config)
  sizes = process.sizes
  if secure_sum:
    process.sizes = dataclasses.replace(sizes, upload_bits=secure_sum.sum_bits)
  if config.upload_bits:
    process.sizes = dataclasses.replace(
      sizes,
      upload_bits=config.upload_bits,
      upload_scales=aggregation.num_scales(sizes.message_type),
    )
  return process


def _compose(
  config: RunConfig,
  model: AdapterModel,
  shapes: ModuleShapes,
  ranks: np.ndarray,
) -> hetlora_tff.HetLoraProcess:
  client_sums = private_parts.client_sums(config, coordinates(config, model, shapes, ranks))
  client_optimizer = _optimizer(config.client_optimizer, config.client_learning_rate)
  server_optimizer = _optimizer(config.server_optimizer, config.server_learning_rate)
  if config.method == 'full':
    return build_full_process(
      cast(FullModel, model),
      weights=hetlora_tff.ClientWeighting(config.weights),
      client_optimizer=client_optimizer,
      aggregator=_mean(config),
      server_optimizer=server_optimizer,
      client_sums=client_sums,
      wrap_client=private_parts.canaries(config),
    )
  lora = _adapters(config)
  distributor = None
  if config.distribution == 'select':
    layout = AdapterLayout(shapes, lora)
    distributor = RankSelect(layout.adapters_type(lora.max_rank), lora)
  aggregator = _aggregator(config, ranks)
  trained = _TRAINED.get(config.method, TrainedFactors.BOTH)
  replaces = isinstance(aggregator, aggregation.ProductAggregationFactory)
  return hetlora_tff.build_hetlora_process(
    model,
    lora,
    training=_training(config),
    client_optimizer=client_optimizer,
    distributor=distributor,
    aggregator=aggregator,
    server_optimizer=(
      None if replaces or trained is TrainedFactors.ALTERNATING else server_optimizer
    ),
    client_sums=client_sums,
    measures_deviation=config.deviation_from_exact,
    wrap_client=private_parts.canaries(config),
  )


def build_personalization(
  config: RunConfig,
  model: AdapterModel,
  *,
  carries_residual: bool,
) -> tff.Computation:
  """The check of what clients gain by local steps of their own; see there.

  Args:
    config: of the run; its method has adapters.
    model: that clients train.
    carries_residual: whether the process that trained carries one.
  """
  return hetlora_tff.build_hetlora_personalization_eval(
    model,
    _adapters(config),
    _training(config),
    _optimizer(config.client_optimizer, config.client_learning_rate),
    carries_residual=carries_residual,
  )


def _training(config: RunConfig) -> hetlora_tff.LocalTraining:
  return hetlora_tff.LocalTraining(
    prune_decay=config.prune_decay,
    prune_weight=config.prune_weight,
    min_rank=config.min_rank,
    padding=hetlora_tff.Padding(config.padding),
    weights=_weighting(config),
    trained=_TRAINED.get(config.method, TrainedFactors.BOTH),
  )


def coordinates(
  config: RunConfig,
  model: AdapterModel,
  shapes: ModuleShapes,
  ranks: np.ndarray,
) -> int:
  """The most numbers that one client can change in a sum, noised weights included.

  Args:
    config: of the run.
    model: that clients train.
    shapes: of its adapted modules by path; none where all weights are trained.
    ranks: int32 `[clients]`, of all devices.
  """
  if config.method == 'full':
    return num_weights(cast(FullModel, model))
  lora = _adapters(config)
  layout = AdapterLayout(shapes, lora, _TRAINED.get(config.method, TrainedFactors.BOTH))
  # With `state` padding a client asks for zeros in the rows that it lacks; noise of its own it adds
  # to all rows.
  changes_all = config.padding == 'state' or config.privacy == 'distributed'
  rank = config.max_rank if changes_all else int(ranks.max())
  sizes = hetlora_tff.MessageSizes(layout, layout.server_type, layout.server_type)
  num_modules = len(shapes) if config.weights == 'module' else 1
  return sizes.largest_update(rank) + (num_modules if config.denominator == 'noised' else 0)


def _aggregator(config: RunConfig, ranks: np.ndarray) -> Any:
  if config.method == 'coverage':
    sums = private_parts.coverage_sums(config)
    return aggregation.RankCoverageMeanFactory(_expected_clients(config, ranks), **sums)
  if config.method in _PRODUCTS:
    return _PRODUCTS[config.method]()
  if not dp_settings.is_private(config):
    return _mean(config)
  # Noise in rows that no device holds would be noise alone.
  trained = _TRAINED.get(config.method, TrainedFactors.BOTH)
  return aggregation.keep_held_rows(private_parts.mean(config), trained, int(ranks.max()))


def _mean(config: RunConfig) -> Any:
  if config.l2_clip_norm is None:
    return _MEANS[config.method](private_parts.open_sum(config))
  return private_parts.mean(config)


def _expected_clients(config: RunConfig, ranks: np.ndarray) -> list[float] | None:
  """How many clients of a round hold each row; None where tiers do not tell it beforehand."""
  if config.rank_dynamics != 'tier':
    return None
  expected = [
    config.clients_per_round * float(np.mean(ranks > row)) for row in range(config.max_rank)
  ]
  # Below one, the few that come would count as more than they are; a row without holders stays.
  return [max(1.0, number) if number else 0.0 for number in expected]


def _weighting(config: RunConfig) -> hetlora_tff.ClientWeighting:
  if config.method == 'coverage':  # Uniform, for every row by itself.
    return hetlora_tff.ClientWeighting.COVERAGE
  return hetlora_tff.ClientWeighting(config.weights)


def _optimizer(name: str, learning_rate: float) -> tff.learning.optimizers.Optimizer:
  build = {
    'adam': tff.learning.optimizers.build_adam,
    'sgd': tff.learning.optimizers.build_sgdm,
  }
  return build[name](learning_rate)
