# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""TFF types of the server's adapters."""

import collections
import functools

import numpy as np
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.model import ModuleShape


def adapters_type(
  shapes: collections.OrderedDict[str, ModuleShape], rank: int | None
) -> tff.StructWithPythonType:
  """TFF type of the adapters of all modules; `rank` None for one known at run time only."""
  matrix = functools.partial(tff.TensorType, np.float32)
  return tff.to_type(
    collections.OrderedDict(
      (path, lora.LoraFactors(matrix([rank, s.d_in]), matrix([s.d_out, rank])))
      for path, s in shapes.items()
    )
  )


def model_weights_type(adapters_type: tff.Type) -> tff.StructWithPythonType:
  """TFF's `ModelWeights` with the adapters as the trainable part and nothing else."""
  return tff.to_type(tff.learning.models.ModelWeights(trainable=adapters_type, non_trainable=()))
