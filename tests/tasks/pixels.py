# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What colours an image has."""

import io

import matplotlib.image
import numpy as np


def count(png: bytes, color: str, tolerance: float = 0.02) -> int:
  """Returns how many pixels of an image have a colour `#rrggbb`, nearly."""
  image = matplotlib.image.imread(io.BytesIO(png))[..., :3]
  target = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  return int((np.abs(image - target).max(axis=-1) < tolerance).sum())
