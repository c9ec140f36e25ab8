# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters in the file format of Hugging Face PEFT.

A directory holds `adapter_model.safetensors` (`lora_A [r, d_in]`, `lora_B [d_out, r]`, float32) and
`adapter_config.json`. Where the architecture is known, modules carry the names of the Hugging Face
model, so that PEFT loads the directory onto the same base weights and gives the same outputs.
"""

import collections
import json
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from hetlora_tff.adapters import config as config_lib
from hetlora_tff.adapters import factors as factors_lib
from hetlora_tff.adapters import huggingface_names

LoraFactors = factors_lib.LoraFactors
Place = huggingface_names.Place

WEIGHTS_FILE = 'adapter_model.safetensors'
CONFIG_FILE = 'adapter_config.json'
_PREFIX = 'base_model.model.'
_KEY = re.compile(re.escape(_PREFIX) + r'(.+)\.lora_([AB])\.weight')
_LAYOUT = 'hetlora_layout'
HUGGING_FACE_NAMES, OWN_NAMES = 'huggingface', 'own'


class LoadedAdapter(NamedTuple):
  """What `load_peft_adapter` read.

  Attributes:
    factors: module path to float32 NumPy factors, in the order they were saved.
    config: `max_rank`, `alpha`, `targets` and `rank_stabilized` as `LoraConfig` takes them, and
      `scaling`, `base_model_name_or_path` and `task_type`.
  """

  factors: collections.OrderedDict[str, LoraFactors]
  config: dict[str, Any]


def save_peft_adapter(
  directory: str | os.PathLike,
  factors: Mapping[str, LoraFactors],
  config: config_lib.LoraConfig,
  *,
  base_model_name_or_path: str = '',
  architecture: str | None = None,
  num_heads: int | None = None,
) -> str:
  """Writes an adapter that PEFT can load.

  The file's `lora_alpha / r` equals `config.scaling` for every module, whatever ranks the factors
  have. Modules that Hugging Face fuses share one adapter of the sum of their ranks: on GPT-2, query
  and value of rank `R` become `c_attn` with `lora_A [2R, d]` and `lora_B [3d, 2R]`, where `lora_B`
  is zero outside the two blocks and `lora_alpha` is doubled. If the architecture is unknown or any
  module has no counterpart, all modules keep their own path with dots for slashes.

  Each file is replaced atomically. Equal arguments give equal bytes.

  Args:
    directory: made if absent.
    factors: module path to `a [r, d_in]`, `b [d_out, r]`; tensors or arrays.
    config: for scaling and targets.
    base_model_name_or_path: the Hugging Face name of the base model, for the config; empty if it
      has none.
    architecture: class name of the keras-nlp backbone, such as `'GPT2Backbone'`.
    num_heads: attention heads of the backbone; needed for Bloom and Falcon, whose fused matrix
      interleaves the heads, and unused elsewhere.

  Returns:
    `HUGGING_FACE_NAMES`, or `OWN_NAMES` if modules kept their own paths: then `load_peft_adapter`
    reads the directory, but PEFT finds no such modules in the Hugging Face model.

  Raises:
    ValueError: if there are no factors, or one is misshapen or not finite.
  """
  arrays = {path: _checked(path, pair) for path, pair in factors.items()}
  if not arrays:
    raise ValueError('`factors` is empty: there is no adapter to save.')
  names = huggingface_names.find(architecture)
  sizes = {path: (pair.a.shape[0], pair.b.shape[0]) for path, pair in arrays.items()}
  places = names and huggingface_names.place(names, sizes, num_heads)
  if not places:
    names, places = None, {path: _own_place(path, *size) for path, size in sizes.items()}
  tensors, ranks = _assemble(arrays, places)
  layout = [{'path': path, **spot._asdict()} for path, spot in places.items()]
  described = {'targets': list(config.targets), 'modules': layout}
  # One key only: safetensors writes several in an order that differs from save to save.
  metadata = {_LAYOUT: json.dumps(described, sort_keys=True)}
  adapter_config = {
    **_adapter_config(ranks, config.scaling),
    'base_model_name_or_path': base_model_name_or_path,
    'fan_in_fan_out': bool(names and names.fan_in_fan_out),
    'task_type': names.task_type if names else None,
  }
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  _write(directory / WEIGHTS_FILE, safetensors.numpy.save(tensors, metadata))
  text = json.dumps(adapter_config, indent=2, sort_keys=True) + '\n'
  _write(directory / CONFIG_FILE, text.encode())
  return HUGGING_FACE_NAMES if names else OWN_NAMES


def load_peft_adapter(directory: str | os.PathLike) -> LoadedAdapter:
  """Reads an adapter that `save_peft_adapter` or PEFT wrote.

  Our own files give back the module paths and factors that were saved, fused or not; files of
  others keep their module names.

  Args:
    directory: holds the two files.

  Returns:
    The factors and the configuration.

  Raises:
    ValueError: if a file is missing or malformed, the configuration asks for what plain LoRA is
      not, or a tensor is missing, of another dtype or shape, or not finite; one line that names the
      file and the tensor.
  """
  config_path = pathlib.Path(directory) / CONFIG_FILE
  weights_path = pathlib.Path(directory) / WEIGHTS_FILE
  config = _read_config(config_path)
  tensors, metadata = _read_tensors(weights_path)
  modules = _pair(weights_path, tensors)
  scaling = _scaling(config_path, config, modules)
  targets = config['target_modules']
  factors = collections.OrderedDict(modules)
  if _LAYOUT in metadata:
    try:
      layout = json.loads(metadata[_LAYOUT])
      targets = layout['targets']
      factors = _disassemble(modules, layout['modules'])
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f'{weights_path}: its module layout is damaged ({error!r}).') from error
  max_rank = max(pair.a.shape[0] for pair in factors.values())
  return LoadedAdapter(
    factors,
    {
      'max_rank': max_rank,
      'alpha': scaling * max_rank,
      'targets': (targets,) if isinstance(targets, str) else tuple(targets),
      'rank_stabilized': False,
      'scaling': scaling,
      'base_model_name_or_path': config.get('base_model_name_or_path') or '',
      'task_type': config.get('task_type'),
    },
  )


def _checked(path: str, factors: LoraFactors) -> LoraFactors:
  a, b = (np.asarray(factor, np.float32) for factor in factors)
  if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
    raise ValueError(
      f'Factors of {path!r} must be a [r, d_in] and b [d_out, r], got {a.shape} and {b.shape}.'
    )
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise ValueError(f'Factors of {path!r} are not finite.')
  return LoraFactors(a, b)


def _own_place(path: str, rank: int, d_out: int) -> Place:
  return Place(path.replace('/', '.'), 0, rank, 1, 0, d_out, d_out)


def _assemble(arrays: Mapping[str, LoraFactors], places: Mapping[str, Place]):
  """Returns the file's tensors, and its modules with their ranks."""
  ranks = collections.Counter()
  for spot in places.values():
    ranks[spot.module] += spot.rank
  tensors = {}
  for path, spot in places.items():
    a, b = arrays[path]
    key_a, key_b = (f'{_PREFIX}{spot.module}.lora_{side}.weight' for side in 'AB')
    rank = ranks[spot.module]
    tensors.setdefault(key_a, np.zeros([rank, a.shape[1]], np.float32))
    tensors.setdefault(key_b, np.zeros([spot.groups * spot.total, rank], np.float32))
    columns = slice(spot.rank_start, spot.rank_start + spot.rank)
    tensors[key_a][columns] = a
    blocks = tensors[key_b].reshape(spot.groups, spot.total, rank)
    rows = slice(spot.start, spot.start + spot.size)
    blocks[:, rows, columns] = b.reshape(spot.groups, spot.size, spot.rank)
  return tensors, dict(ranks)


def _disassemble(modules: Mapping[str, LoraFactors], layout) -> collections.OrderedDict:
  factors = collections.OrderedDict()
  for entry in layout:
    fields = dict(entry)
    path = fields.pop('path')
    spot = Place(**fields)
    a, b = modules[spot.module]
    columns = slice(spot.rank_start, spot.rank_start + spot.rank)
    blocks = b.reshape(spot.groups, spot.total, b.shape[1])
    block = blocks[:, spot.start : spot.start + spot.size, columns]
    if block.shape != (spot.groups, spot.size, spot.rank):
      raise ValueError(f'{path} lies outside of {spot.module}')
    factors[path] = LoraFactors(
      np.ascontiguousarray(a[columns]), block.reshape(spot.groups * spot.size, spot.rank)
    )
  return factors


def _adapter_config(ranks: Mapping[str, int], scaling: float) -> dict[str, Any]:
  common = collections.Counter(ranks.values()).most_common(1)[0][0]
  other = {module: rank for module, rank in ranks.items() if rank != common}
  return {
    'peft_type': 'LORA',
    'r': common,
    'lora_alpha': _plain_number(scaling * common),
    'lora_dropout': 0.0,
    'target_modules': sorted(ranks),
    'rank_pattern': other,
    'alpha_pattern': {module: _plain_number(scaling * rank) for module, rank in other.items()},
    'use_rslora': False,
    'use_dora': False,
    'bias': 'none',
    'inference_mode': True,
    'init_lora_weights': True,
    'modules_to_save': None,
  }


def _plain_number(value: float) -> int | float:
  return int(value) if float(value).is_integer() else value


def _write(path: pathlib.Path, content: bytes) -> None:
  descriptor, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
  try:
    with os.fdopen(descriptor, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
      # mkstemp makes the file private; an adapter is as readable as any other result.
      umask = os.umask(0)
      os.umask(umask)
      os.fchmod(file.fileno(), 0o666 & ~umask)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise ValueError(f'{path}: no such file; an adapter directory holds one.') from None
  except ValueError as error:
    raise ValueError(f'{path}: not valid JSON ({error}).') from None
  if not isinstance(config, dict) or config.get('peft_type') != 'LORA':
    raise ValueError(f'{path}: `peft_type` must be "LORA".')
  for key, plain in (('use_dora', False), ('bias', 'none'), ('modules_to_save', None)):
    if config.get(key, plain) not in (plain, None):
      raise ValueError(f'{path}: `{key}` is {config[key]!r}; only plain LoRA can be loaded.')
  if not isinstance(config.get('target_modules'), (str, list)):
    raise ValueError(f'{path}: `target_modules` must be a list of names or an expression.')
  return config


def _read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  if not path.is_file():
    raise ValueError(f'{path}: no such file; an adapter directory holds one.')
  tensors = {}
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      for key in file.keys():  # noqa: SIM118  (not a dict)
        dtype = file.get_slice(key).get_dtype()
        if dtype != 'F32':
          raise ValueError(f'{path}: tensor {key!r} is {dtype}, it must be F32.')
        tensors[key] = file.get_tensor(key)
        if not np.isfinite(tensors[key]).all():
          raise ValueError(f'{path}: tensor {key!r} is not finite.')
      return tensors, file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path}: not a valid safetensors file ({error}).') from None


def _pair(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> dict[str, LoraFactors]:
  sides = collections.defaultdict(dict)
  for key, tensor in tensors.items():
    match = _KEY.fullmatch(key)
    if not match:
      raise ValueError(f'{path}: tensor {key!r} is no LoRA factor of PEFT.')
    sides[match[1]][match[2]] = tensor
  if not sides:
    raise ValueError(f'{path}: holds no tensors.')
  modules = {}
  for module, pair in sorted(sides.items()):
    for side in 'AB':
      if side not in pair:
        raise ValueError(f'{path}: tensor {_PREFIX}{module}.lora_{side}.weight is missing.')
    a, b = pair['A'], pair['B']
    if a.ndim != 2 or b.ndim != 2 or not a.shape[0] or a.shape[0] != b.shape[1]:
      raise ValueError(
        f'{path}: {module!r} must have lora_A [r, d_in] and lora_B [d_out, r], got'
        f' {list(a.shape)} and {list(b.shape)}.'
      )
    modules[module] = LoraFactors(a, b)
  return modules


def _scaling(path: pathlib.Path, config, modules: Mapping[str, LoraFactors]) -> float:
  """The one scale of all modules, after checking their ranks against the configuration."""
  scales = set()
  for module, factors in modules.items():
    rank = _for_module(config.get('rank_pattern'), module, config.get('r'))
    alpha = _for_module(config.get('alpha_pattern'), module, config.get('lora_alpha'))
    if rank != factors.a.shape[0]:
      raise ValueError(
        f'{path}: {module!r} has rank {rank} here and {factors.a.shape[0]} in {WEIGHTS_FILE}.'
      )
    if not isinstance(alpha, (int, float)) or not (alpha > 0 and math.isfinite(alpha)):
      raise ValueError(f'{path}: `lora_alpha` of {module!r} must be positive, got {alpha!r}.')
    scales.add(alpha / (math.sqrt(rank) if config.get('use_rslora') else rank))
  scaling = scales.pop()
  if any(not math.isclose(other, scaling, rel_tol=1e-9) for other in scales):
    raise ValueError(f'{path}: `lora_alpha / r` differs between modules; one scale is supported.')
  return scaling


def _for_module(pattern: Mapping[str, Any] | None, module: str, default):
  """The value that PEFT takes for a module: that of the first key which matches its end."""
  for key, value in (pattern or {}).items():
    if re.fullmatch(rf'(.*\.)?({key})', module):
      return value
  return default
