# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Factors of Hugging Face's modules as factors of ours: what `peft` writes, the other way round."""

import collections
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from hetlora_tff.adapters import huggingface_names, injection
from hetlora_tff.adapters.backbone import FrozenBackbone, keras_classes_restored
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import LoraFactors


class _Module(NamedTuple):
  path: str
  d_in: int
  place: huggingface_names.Place


def rename(
  modules: Mapping[str, LoraFactors], backbone: FrozenBackbone
) -> collections.OrderedDict[str, LoraFactors]:
  """Gives factors the module paths of a backbone.

  A module that Hugging Face fuses becomes those of its parts whose rows of `b` are not all zero;
  they share `a`.

  Args:
    modules: module name in any Hugging Face class of the architecture to factors.
    backbone: that they are for.

  Returns:
    Module path to factors, in the order of the backbone.

  Raises:
    ValueError: if the names of the architecture are not known, or a module is not one of it, is
      there twice or has another shape.
  """
  names = huggingface_names.find(backbone.class_name)
  if names is None:
    raise ValueError(f'the Hugging Face names of {backbone.class_name} are not known.')
  expected = _modules(names, backbone)
  found, used = {}, {}
  for name, factors in modules.items():
    theirs = next((t for t in expected if huggingface_names.same_module(name, t)), None)
    if theirs is None:
      raise ValueError(
        f'{backbone.class_name} has no counterpart of the module {name!r}; its modules are such as'
        f' {next(iter(expected))!r}.'
      )
    if theirs in used:
      raise ValueError(f'{name!r} and {used[theirs]!r} are the same module of the backbone.')
    used[theirs] = name
    for part in expected[theirs]:
      block = _block(name, factors, part)
      if block.b.any():
        found[part.path] = block
  paths = [part.path for parts in expected.values() for part in parts]
  return collections.OrderedDict((path, found[path]) for path in paths if path in found)


def _modules(
  names: huggingface_names.Architecture, backbone: FrozenBackbone
) -> dict[str, list[_Module]]:
  """Their modules, as the class with the most common head names them, to our parts of each."""
  everything = LoraConfig(max_rank=1, alpha=1.0, targets=('.*',))
  with keras_classes_restored(), tf.Graph().as_default():
    layers = injection.inject_lora(backbone.build(), everything, create_variables=False)
  sizes = {path: (1, layer.d_out) for path, layer in layers.items()}
  parts = collections.defaultdict(list)
  for path, place in huggingface_names.place(names, sizes, backbone.num_heads).items():
    parts[place.module].append(_Module(path, layers[path].d_in, place))
  return parts


def _block(name: str, factors: LoraFactors, module: _Module) -> LoraFactors:
  """The rows of one of our modules."""
  a, b = factors
  _, _, _, groups, start, size, total = module.place
  if (a.shape[1], b.shape[0]) != (module.d_in, groups * total):
    raise ValueError(
      f'{name!r} maps {a.shape[1]} numbers to {b.shape[0]}, and in this backbone'
      f' {module.d_in} to {groups * total}.'
    )
  rows = b.reshape(groups, total, -1)[:, start : start + size]
  return LoraFactors(a, np.ascontiguousarray(rows.reshape(groups * size, -1)))
