# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`model/` of a run: the backbone with what a method has trained of its own weights.

It is a backbone directory with its tokenizer, so `--backbone RUN/model` goes on from there. Full
fine-tuning leaves all weights in it. Methods with a residual leave `W + residual`; their factors
stay in `adapter/`, which is an adapter of this model.
"""

import collections
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping

import numpy as np

from hetlora_tff.adapters.backbone import BackboneError, FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import CorrectedFactors
from hetlora_tff.adapters.merge import merged_kernels
from tasks import backbones
from tasks.errors import UserError


def save_merged_model(
  directory: pathlib.Path, base: backbones.BaseModel, changes: Mapping[str, np.ndarray]
) -> FrozenBackbone:
  """Writes the base model with some tensors replaced, in the place of an earlier one.

  Args:
    directory: where to; what is there is replaced once the new one is complete.
    base: backbone and tokenizer.
    changes: new values of the backbone's tensors by name; see `FrozenBackbone.merged`.

  Raises:
    UserError: if it cannot be written.
    ValueError: if the changes do not fit the backbone or are not finite.
  """
  staging = directory.with_name(f'.{directory.name}.{os.getpid()}')
  earlier = staging.with_suffix('.earlier')
  for leftover in (staging, earlier):  # Of a killed run whose process id came again.
    shutil.rmtree(leftover, ignore_errors=True)
  try:
    merged = base.backbone.merged(staging, changes)
    backbones.save_tokenizer(base.tokenizer.keras_tokenizer, staging / backbones.TOKENIZER)
    if directory.exists():
      directory.rename(earlier)
    os.replace(staging, directory)
  except BackboneError as error:
    raise UserError(str(error)) from error
  except OSError as error:
    raise UserError(f'Cannot write {directory}: {error.strerror}.') from error
  finally:
    for leftover in (staging, earlier):
      shutil.rmtree(leftover, ignore_errors=True)
  return dataclasses.replace(merged, directory=str(directory.absolute()))


def load_merged_model(directory: pathlib.Path, base: backbones.BaseModel) -> FrozenBackbone:
  """Loads what `save_merged_model` wrote.

  Raises:
    UserError: if it is altered, or made of another base model.
  """
  try:
    merged = FrozenBackbone.load(directory)
  except BackboneError as error:
    raise UserError(str(error)) from error
  described = [
    (backbone.class_name, backbone.weight_names, [record.shape for record in backbone.tensors])
    for backbone in (merged, base.backbone)
  ]
  if described[0] != described[1]:
    raise UserError(f'{directory} was not made of the backbone of this run.')
  return merged


def residual_changes(
  backbone: FrozenBackbone, config: LoraConfig, adapters: Mapping[str, CorrectedFactors]
) -> collections.OrderedDict[str, np.ndarray]:
  """The kernels `W + residual` by name, without the factors.

  Args:
    backbone: where `W` is.
    config: the adapters.
    adapters: by module path.
  """
  return merged_kernels(
    backbone,
    config,
    {path: f._replace(b=np.zeros_like(f.b)) for path, f in adapters.items()},
  )
