# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How clients' padded messages become the server's: one `AggregationFactory` per rule."""

from hetlora_tff.aggregation.coverage_mean import RankCoverageMeanFactory
from hetlora_tff.aggregation.exactness import build_deviation_from_exact
from hetlora_tff.aggregation.held_rows import keep_held_rows
from hetlora_tff.aggregation.padded_mean import SparsityWeightedMeanFactory
from hetlora_tff.aggregation.product_svd import ProductSvdFactory
from hetlora_tff.aggregation.products import ProductAggregationFactory
from hetlora_tff.aggregation.quantized_sum import QuantizedSumFactory, num_scales
from hetlora_tff.aggregation.residual_mean import ResidualCorrectedMeanFactory
from hetlora_tff.aggregation.stacking import StackingFactory
from hetlora_tff.aggregation.weights_inside import SummedDenominatorFactory, WeightInsideFactory
from hetlora_tff.aggregation.withheld import WithheldSumFactory
from hetlora_tff.aggregation.zero_pad_mean import ZeroPadMeanFactory

__all__ = [
  'ProductAggregationFactory',
  'ProductSvdFactory',
  'QuantizedSumFactory',
  'RankCoverageMeanFactory',
  'ResidualCorrectedMeanFactory',
  'SparsityWeightedMeanFactory',
  'StackingFactory',
  'SummedDenominatorFactory',
  'WeightInsideFactory',
  'WithheldSumFactory',
  'ZeroPadMeanFactory',
  'build_deviation_from_exact',
  'keep_held_rows',
  'num_scales',
]
