# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which messages and weights an aggregator takes, and which it must be refused with."""

import dataclasses
from typing import Any

import tensorflow_federated as tff

from hetlora_tff.adapters.layout import TrainedFactors
from hetlora_tff.aggregation import (
  ProductAggregationFactory,
  QuantizedSumFactory,
  RankCoverageMeanFactory,
  SparsityWeightedMeanFactory,
  SummedDenominatorFactory,
  WeightInsideFactory,
  ZeroPadMeanFactory,
)
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining
from hetlora_tff.clients.weights import ClientWeighting

_FACTORIES = (
  tff.aggregators.UnweightedAggregationFactory,
  tff.aggregators.WeightedAggregationFactory,
)
_PER_MODULE = (SummedDenominatorFactory, SparsityWeightedMeanFactory, WeightInsideFactory)
_IN_THE_CLEAR = (
  ProductAggregationFactory,
  QuantizedSumFactory,
  RankCoverageMeanFactory,
  SparsityWeightedMeanFactory,
  ZeroPadMeanFactory,
  tff.aggregators.MeanFactory,
  tff.aggregators.SumFactory,
  tff.aggregators.UnweightedMeanFactory,
)


def check_is_factory(aggregator: Any) -> None:
  """Raises a `TypeError` if a thing is not an instance of an aggregation factory."""
  if not isinstance(aggregator, _FACTORIES):
    raise TypeError(
      f'`aggregator` must be a TFF aggregation factory such as ProductSvdFactory(), got '
      f'{aggregator!r}.'
    )


def resolve_training(training: LocalTraining, aggregator: Any) -> LocalTraining:
  """The training with the padding and the weights that an aggregator needs, where left open.

  Raises:
    ValueError: if the aggregator cannot use what was asked for.
  """
  takes_both = isinstance(aggregator, ProductAggregationFactory | RankCoverageMeanFactory)
  if takes_both and training.trained is not TrainedFactors.BOTH:
    raise ValueError(
      f'{type(aggregator).__name__} takes both factors, not TrainedFactors.{training.trained.name}.'
    )
  return dataclasses.replace(
    training,
    padding=resolve_padding(training.padding, aggregator),
    weights=resolve_weighting(training.weights, aggregator),
  )


def resolve_padding(padding: Padding | None, aggregator: Any) -> Padding:
  """The padding of an aggregator's messages; the default where none is asked for.

  Raises:
    ValueError: if the aggregator cannot use it.
  """
  if isinstance(aggregator, ProductAggregationFactory):
    allowed = (Padding.NONE,)
  elif isinstance(aggregator, RankCoverageMeanFactory):
    allowed = (Padding.UPDATE,)
  else:
    allowed = (Padding.STATE, Padding.UPDATE)
  if padding not in (None, *allowed):
    raise ValueError(
      f'{type(aggregator).__name__} needs Padding.{" or Padding.".join(p.name for p in allowed)}, '
      f'not Padding.{padding.name}.'
    )
  return padding or allowed[0]


def resolve_weighting(weighting: ClientWeighting | None, aggregator: Any) -> ClientWeighting:
  """The weights that an aggregator is sent; the default where none is asked for.

  Raises:
    ValueError: if the aggregator cannot use them.
  """
  name = type(aggregator).__name__
  if isinstance(aggregator, tff.aggregators.UnweightedAggregationFactory):
    if weighting not in (None, ClientWeighting.UNIFORM):
      raise ValueError(
        f'{name} is unweighted and would drop `{weighting.value}` weights in silence; use '
        'ClientWeighting.UNIFORM or a weighted aggregator.'
      )
    return ClientWeighting.UNIFORM
  takes_rows = isinstance(aggregator, RankCoverageMeanFactory)
  if takes_rows != (weighting is ClientWeighting.COVERAGE) and weighting is not None:
    raise ValueError(
      f'ClientWeighting.COVERAGE and RankCoverageMeanFactory go together: {name} does not take '
      f'`{weighting.value}` weights.'
    )
  takes_modules = any(isinstance(f, _PER_MODULE) for f in _factories(aggregator))
  if weighting is not None:
    if weighting.per_module and not takes_modules:
      raise ValueError(f'{name} takes one weight per client; use ClientWeighting.MODEL.')
    return weighting
  if takes_rows:
    return ClientWeighting.COVERAGE
  if takes_modules:
    return ClientWeighting.MODULE
  is_plain = isinstance(aggregator, ZeroPadMeanFactory | ProductAggregationFactory)
  return ClientWeighting.UNIFORM if is_plain else ClientWeighting.MODEL


def check_measurable(aggregator: Any) -> None:
  """Refuses to look at single clients beside an aggregator that may be there to hide them.

  Closed by default: an aggregator counts as hiding them unless it, and all that is inside it, is
  known to sum in the clear.

  Raises:
    ValueError: naming the factory that may be private or secure.
  """
  for factory in _factories(aggregator):
    if not isinstance(factory, _IN_THE_CLEAR):
      raise ValueError(
        '`deviation_from_exact` looks at single clients, in simulations without differential '
        f'privacy and secure aggregation only: not beside {type(factory).__name__}.'
      )


def _factories(factory: Any):
  """A factory and those inside it."""
  yield factory
  for inner in vars(factory).values():
    if isinstance(inner, _FACTORIES):
      yield from _factories(inner)
