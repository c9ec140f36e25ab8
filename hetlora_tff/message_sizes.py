# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a round's messages weigh, counted from their types."""

import dataclasses
import math

import numpy as np
import tensorflow_federated as tff

from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors

_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class MessageSizes:
  """Bytes of tensors per client; weights and counts beside them are not in.

  Attributes:
    layout: of the adapters; None where the whole model is trained.
    weights_type: what a broadcast sends.
    message_type: what a client sends.
    selects_rank: whether a client is sent its slice only.
    upload_bits: of a number on its way up; those of the modulus where a protocol masks it.
    upload_scales: float32 numbers beside those, for what they count in.
  """

  layout: AdapterLayout | None
  weights_type: tff.Type
  message_type: tff.Type
  selects_rank: bool = False
  upload_bits: int = 8 * _FLOAT_BYTES
  upload_scales: int = 0

  def download(self, rank: int) -> int:
    """Bytes that one client of `rank` downloads."""
    return self.slice(rank) if self.selects_rank else num_bytes(self.weights_type)

  def upload(self, rank: int) -> int:
    """Bytes that one client uploads: the same for every rank, since padding hides it."""
    del rank
    numbers = num_bytes(self.message_type) // _FLOAT_BYTES
    return -(-numbers * self.upload_bits // 8) + _FLOAT_BYTES * self.upload_scales

  def slice(self, rank: int) -> int:
    """Bytes of what a client of `rank` trains, whoever moves it."""
    return _FLOAT_BYTES * self.trained_parameters(rank)

  def trained_parameters(self, rank: int) -> int:
    """Numbers that a client of `rank` trains; of alternating factors the mean of two rounds."""
    held, layout = self.held_parameters(rank), self.layout
    if layout is None or layout.trained is TrainedFactors.BOTH:
      return held
    if layout.trained is TrainedFactors.ALTERNATING:
      return held // 2
    return sum(
      min(rank, layout.config.module_rank(path)) * shape.d_out
      for path, shape in layout.shapes.items()
    )

  def largest_update(self, rank: int) -> int:
    """Numbers of its message that a client of `rank` changes in one round, at most."""
    held, layout = self.held_parameters(rank), self.layout
    alternates = layout is not None and layout.trained is TrainedFactors.ALTERNATING
    return held if alternates else self.trained_parameters(rank)

  def held_parameters(self, rank: int) -> int:
    """Numbers of the adapters that a client of `rank` computes with; all of a whole model."""
    layout = self.layout
    if layout is None:
      return num_bytes(self.message_type) // _FLOAT_BYTES
    return sum(
      shape.num_trained(min(rank, layout.config.module_rank(path)))
      for path, shape in layout.shapes.items()
    )


def num_bytes(type_: tff.Type) -> int:
  """Bytes of all tensors of a TFF type with fully defined shapes."""
  if isinstance(type_, tff.TensorType):
    return math.prod(type_.shape) * np.dtype(type_.dtype).itemsize
  return sum(num_bytes(element) for _, element in tff.structure.iter_elements(type_))
