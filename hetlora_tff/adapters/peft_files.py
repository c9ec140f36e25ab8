# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The two files of a PEFT adapter, read and checked: plain LoRA, whoever wrote them."""

import collections
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import tensorflow as tf

from hetlora_tff.adapters.factors import LoraFactors

WEIGHTS_FILE = 'adapter_model.safetensors'
CONFIG_FILE = 'adapter_config.json'
PREFIX = 'base_model.model.'
# Where our files keep, as JSON, which module of ours is where in them.
LAYOUT = 'hetlora_layout'
_KEY = re.compile(re.escape(PREFIX) + r'(.+)\.lora_([AB])\.weight')
_DTYPES = {'F32': np.float32, 'F16': np.float16, 'BF16': tf.bfloat16.as_numpy_dtype}

# Options of PEFT under which a module is more than `W + scaling * lora_B @ lora_A`.
_NOT_PLAIN = (
  'use_dora',
  'use_qalora',
  'use_bdlora',
  'lora_bias',
  'modules_to_save',
  'layer_replication',
  'trainable_token_indices',
  'target_parameters',
  'alora_invocation_tokens',
  'arrow_config',
  'kasa_config',
  'monteclora_config',
)
# How factors may start without a change of the base weights below them.
_PLAIN_STARTS = ('gaussian', 'orthogonal', 'eva')


class AdapterFiles(NamedTuple):
  """What the two files hold.

  Attributes:
    config: the JSON object.
    modules: their module name to float32 factors.
    scales: their module name to the factor of `b @ a`.
    layout: what we have put beside the tensors; None in the files of others.
  """

  config: dict[str, Any]
  modules: dict[str, LoraFactors]
  scales: dict[str, float]
  layout: str | None


def read(directory: str | os.PathLike) -> AdapterFiles:
  """Reads an adapter.

  Raises:
    ValueError: if a file is missing or malformed, the configuration asks for what plain LoRA is
      not, or a tensor is missing, of another kind or shape, or not finite; one line that names the
      file and the tensor or the option.
  """
  config_path = pathlib.Path(directory) / CONFIG_FILE
  weights_path = pathlib.Path(directory) / WEIGHTS_FILE
  config = _read_config(config_path)
  tensors, layout = _read_tensors(weights_path)
  if layout is not None:
    # Our classifier is there twice: as factors, and multiplied out for PEFT.
    for head in config.pop('modules_to_save', None) or ():
      tensors.pop(f'{PREFIX}{head}.weight', None)
  _check_plain(config_path, config)
  modules = _pair(weights_path, tensors)
  return AdapterFiles(config, modules, _scales(config_path, config, modules), layout)


def for_module(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
  """The value that PEFT takes for a module: that of the first key which matches its end."""
  for key, value in (pattern or {}).items():
    if re.fullmatch(rf'(.*\.)?({key})', module):
      return value
  return default


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise ValueError(f'{path}: no such file; an adapter has one.') from None
  except OSError as error:
    raise ValueError(f'Cannot read {path}: {error.strerror}.') from None
  except ValueError as error:
    raise ValueError(f'{path}: not valid JSON ({error}).') from None
  if not isinstance(config, dict) or config.get('peft_type') != 'LORA':
    raise ValueError(f'{path}: `peft_type` must be "LORA".')
  if not isinstance(config.get('target_modules'), (str, list)):
    raise ValueError(f'{path}: `target_modules` must be a list of names or an expression.')
  for key in ('rank_pattern', 'alpha_pattern'):
    if not isinstance(config.get(key) or {}, dict):
      raise ValueError(f'{path}: `{key}` must map names to numbers.')
  return config


def _check_plain(path: pathlib.Path, config: Mapping[str, Any]) -> None:
  for key in _NOT_PLAIN:
    if config.get(key):
      raise ValueError(f'{path}: `{key}` is {config[key]!r}; only plain LoRA can be loaded.')
  if config.get('bias') not in ('none', None):
    raise ValueError(f'{path}: `bias` is {config["bias"]!r}; only plain LoRA can be loaded.')
  start = config.get('init_lora_weights')
  if isinstance(start, str) and start not in _PLAIN_STARTS:
    raise ValueError(
      f'{path}: `init_lora_weights` is {start!r}, which changes the base weights, too; have PEFT'
      ' save it with `path_initial_model_for_weight_conversion`.'
    )


def _read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str | None]:
  if not path.is_file():
    pickled = path.with_suffix('.bin').is_file()
    mend = 'have PEFT save it with `safe_serialization`' if pickled else 'an adapter has one'
    raise ValueError(f'{path}: no such file; {mend}.')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      metadata = file.metadata() or {}
    # The NumPy reader of safetensors knows no bfloat16.
    stored = safetensors.deserialize(path.read_bytes())
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path}: not a valid safetensors file ({error}).') from None
  except OSError as error:
    raise ValueError(f'Cannot read {path}: {error.strerror}.') from None
  return {key: _tensor(path, key, record) for key, record in stored}, metadata.get(LAYOUT)


def _tensor(path: pathlib.Path, key: str, record: Mapping[str, Any]) -> np.ndarray:
  if record['dtype'] not in _DTYPES:
    raise ValueError(
      f'{path}: tensor {key!r} is {record["dtype"]}, it must be one of {", ".join(_DTYPES)}.'
    )
  values = np.frombuffer(record['data'], _DTYPES[record['dtype']])
  values = values.reshape(record['shape']).astype(np.float32)
  if not np.isfinite(values).all():
    raise ValueError(f'{path}: tensor {key!r} is not finite.')
  return values


def _pair(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> dict[str, LoraFactors]:
  sides = collections.defaultdict(dict)
  for key, tensor in tensors.items():
    match = _KEY.fullmatch(key)
    if not match:
      raise ValueError(
        f'{path}: tensor {key!r} is no LoRA factor of a linear layer, and only those can be loaded.'
      )
    sides[match[1]][match[2]] = tensor
  if not sides:
    raise ValueError(f'{path}: holds no tensors.')
  modules = {}
  for module, pair in sorted(sides.items()):
    for side in 'AB':
      if side not in pair:
        raise ValueError(f'{path}: tensor {PREFIX}{module}.lora_{side}.weight is missing.')
    a, b = pair['A'], pair['B']
    if a.ndim != 2 or b.ndim != 2 or not a.shape[0] or a.shape[0] != b.shape[1]:
      raise ValueError(
        f'{path}: {module!r} must have lora_A [r, d_in] and lora_B [d_out, r], got'
        f' {list(a.shape)} and {list(b.shape)}.'
      )
    modules[module] = LoraFactors(a, b)
  return modules


def _scales(
  path: pathlib.Path, config: Mapping[str, Any], modules: Mapping[str, LoraFactors]
) -> dict[str, float]:
  """The scale of each module, after checking its rank against the configuration."""
  scales = {}
  for module, factors in modules.items():
    try:
      rank = for_module(config.get('rank_pattern'), module, config.get('r'))
      alpha = for_module(config.get('alpha_pattern'), module, config.get('lora_alpha'))
    except re.error as error:
      raise ValueError(f'{path}: a pattern is no regular expression: {error}.') from error
    if rank != factors.a.shape[0]:
      raise ValueError(
        f'{path}: {module!r} has rank {rank} here and {factors.a.shape[0]} in {WEIGHTS_FILE}.'
      )
    if not isinstance(alpha, (int, float)) or not (alpha > 0 and math.isfinite(alpha)):
      raise ValueError(f'{path}: `lora_alpha` of {module!r} must be positive, got {alpha!r}.')
    scales[module] = alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)
  return scales
