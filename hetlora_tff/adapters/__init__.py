# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA factors, layers, injection, the frozen backbone and the models built on it."""

from hetlora_tff.adapters.factors import LoraFactors, pad, product_norm, tail_norm, truncate
from hetlora_tff.adapters.injection import TargetNotFoundError, inject_lora
from hetlora_tff.adapters.layers import LoraLayer

__all__ = [
  'LoraFactors',
  'LoraLayer',
  'TargetNotFoundError',
  'inject_lora',
  'pad',
  'product_norm',
  'tail_norm',
  'truncate',
]
