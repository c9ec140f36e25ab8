# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters written into the weights of their backbone."""

import collections
from collections.abc import Mapping

import numpy as np

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters import injection
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig


def merged_kernels(
  backbone: FrozenBackbone, config: LoraConfig, adapters: Mapping[str, lora.Factors]
) -> collections.OrderedDict[str, np.ndarray]:
  """The kernels `W + residual + scaling * b @ a` of the adapted modules.

  Args:
    backbone: where `W` is.
    config: the adapters.
    adapters: factors of any rank by module path, with a residual or without.

  Returns:
    Float32 arrays in the layout of the kernels, by their names in `backbone.weight_names`: what
    `FrozenBackbone.merged` takes.

  Raises:
    ValueError: if the adapters are not those of the modules.
  """
  model, variables = backbone.build_with_variables()
  names = {id(variable): name for name, variable in variables.items()}
  adapted = injection.inject_lora(model, config, create_variables=False)
  kernels = collections.OrderedDict()
  with injection.bound(adapted, adapters):
    for path, layer in adapted.items():
      kernel = layer.kernel + layer.kernel_update(adapters[path])
      kernels[names[id(layer.kernel)]] = kernel.numpy()
  return kernels
