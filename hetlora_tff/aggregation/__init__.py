# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How clients' padded updates become the server's: one `AggregationFactory` per rule."""

from hetlora_tff.aggregation.padded_mean import SparsityWeightedMeanFactory

__all__ = ['SparsityWeightedMeanFactory']
