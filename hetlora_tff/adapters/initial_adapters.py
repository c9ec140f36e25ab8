# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training that goes on from an adapter: one of ours, or one that Hugging Face PEFT trained."""

import collections
import os

import numpy as np

from hetlora_tff.adapters import peft
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.adapters.layout import AdapterLayout, ModuleShapes
from hetlora_tff.adapters.model import Adapters


def initial_adapters(
  directory: str | os.PathLike, config: LoraConfig, backbone: FrozenBackbone, shapes: ModuleShapes
) -> Adapters:
  """The server's factors before the first round, from an adapter on disk.

  The products `scaling * b @ a` are those of the adapter, to float32 rounding, whatever its rank
  and scale. They are factored anew by their singular values: a device of rank `r` trains the first
  `r` ranks, and these are then the best that `r` ranks can be (Eckart and Young 1936), where an
  adapter that was trained as a whole has them in no order. Ranks that it leaves unused start as
  without an adapter, `a` Gaussian and `b` zero, for zeros in both would never learn. So do modules
  that it does not have.

  Args:
    directory: of the adapter.
    config: the adapters to train.
    backbone: that both are for.
    shapes: the modules to train.

  Returns:
    Module path to float32 `a [R_l, d_in]`, `b [d_out, R_l]`, in the order of `shapes`.

  Raises:
    ValueError: naming what cannot be read or does not fit, and the mend.
  """
  loaded = peft.load_peft_adapter(directory, backbone)
  left_out = [path for path in loaded.factors if path not in shapes]
  if left_out:
    raise ValueError(
      f'{directory} adapts {left_out[0]}, which `targets` {", ".join(config.targets)} leaves out.'
    )
  ratio = loaded.config['scaling'] / config.scaling
  adapters: Adapters = collections.OrderedDict()
  for path, fresh_a in AdapterLayout(shapes, config).initial_a().items():
    a, b = np.array(fresh_a), np.zeros([shapes[path].d_out, fresh_a.shape[0]], np.float32)
    if path in loaded.factors:
      factors = loaded.factors[path]
      if (factors.a.shape[1], factors.b.shape[0]) != tuple(shapes[path]):
        raise ValueError(f'{directory}: its factors of {path} do not fit this model.')
      learnt = _by_singular_values(factors, ratio)
      rank = len(learnt.a)
      if rank > len(a):
        raise ValueError(
          f'{directory} has rank {rank} in {path}, which holds {len(a)} here; `max_rank` and'
          f' `rank_pattern` must give it {rank} or more.'
        )
      a[:rank], b[:, :rank] = learnt
    adapters[path] = LoraFactors(a, b)
  return adapters


def _by_singular_values(factors: LoraFactors, ratio: float) -> LoraFactors:
  """Factors of `ratio * b @ a` of its own rank, the largest singular values first.

  The product is never formed: `b = Q_b R_b` and `a^T = Q_a R_a` leave the decomposition of the
  small matrix `R_b R_a^T`. Both factors get the square root of each singular value.
  """
  basis_b, rest_b = np.linalg.qr(ratio * factors.b.astype(np.float64))
  basis_a, rest_a = np.linalg.qr(factors.a.astype(np.float64).T)
  left, values, right = np.linalg.svd(rest_b @ rest_a.T, full_matrices=False)
  used = values > np.finfo(np.float32).eps * values[0]
  roots = np.sqrt(values[used])
  return LoraFactors(
    (roots[:, None] * (right[used] @ basis_a.T)).astype(np.float32),
    (basis_b @ left[:, used] * roots).astype(np.float32),
  )
