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
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from hetlora_tff.adapters import config as config_lib
from hetlora_tff.adapters import factors as factors_lib
from hetlora_tff.adapters import huggingface_names, own_modules, peft_files
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.classification import CLASSIFIER
from hetlora_tff.adapters.peft_files import CONFIG_FILE, PREFIX, WEIGHTS_FILE

LoraFactors = factors_lib.LoraFactors
Place = huggingface_names.Place

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

  The classifier of a causal model is Hugging Face's `score`: it is written as the matrix
  `scaling * b @ a`, in `modules_to_save`. That of an encoder has no counterpart, for Hugging Face
  puts a dense layer before it. In both cases its factors stay in the file under our name, which
  PEFT passes over.

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
  names, places = _places(arrays, architecture, num_heads)
  tensors, ranks = _assemble(arrays, places)
  layout = [{'path': path, **spot._asdict()} for path, spot in places.items()]
  described = {'targets': list(config.targets), 'modules': layout}
  # One key only: safetensors writes several in an order that differs from save to save.
  metadata = {peft_files.LAYOUT: json.dumps(described, sort_keys=True)}
  adapter_config = {
    **_adapter_config(ranks, config.scaling),
    'base_model_name_or_path': base_model_name_or_path,
    'fan_in_fan_out': bool(names and names.fan_in_fan_out),
    'task_type': names.task_type if names else None,
  }
  if names and CLASSIFIER in arrays:
    adapter_config['target_modules'].remove(CLASSIFIER)
    if names.head:
      a, b = arrays[CLASSIFIER]
      tensors[f'{PREFIX}{names.head}.weight'] = np.float32(config.scaling) * b @ a
      adapter_config.update(task_type='SEQ_CLS', modules_to_save=[names.head])
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  _write(directory / WEIGHTS_FILE, safetensors.numpy.save(tensors, metadata))
  text = json.dumps(adapter_config, indent=2, sort_keys=True) + '\n'
  _write(directory / CONFIG_FILE, text.encode())
  return HUGGING_FACE_NAMES if names else OWN_NAMES


def load_peft_adapter(
  directory: str | os.PathLike, backbone: FrozenBackbone | None = None
) -> LoadedAdapter:
  """Reads an adapter that `save_peft_adapter` or PEFT wrote.

  Our own files give back the module paths and factors that were saved, fused or not. Those of
  others keep their module names, or get ours where a backbone is given; a fused module becomes
  several, which then share `a`. Where their modules differ in scale, the most
  frequent one becomes that of all, and `b` carries the rest.

  Args:
    directory: holds the two files.
    backbone: that the adapter is for.

  Returns:
    The factors and the configuration.

  Raises:
    ValueError: if a file is missing or malformed, the configuration asks for what plain LoRA is
      not, a tensor is missing, of another kind or shape, or not finite, or a module is not one of
      the backbone; one line that names the file and the tensor or the option.
  """
  files = peft_files.read(directory)
  weights_path = pathlib.Path(directory) / WEIGHTS_FILE
  targets = files.config['target_modules']
  factors, scaling = _on_one_scale(files)
  if files.layout is not None:
    try:
      layout = json.loads(files.layout)
      targets = layout['targets']
      factors = _disassemble(factors, layout['modules'])
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f'{weights_path}: its module layout is damaged ({error!r}).') from error
  elif backbone is not None:
    try:
      factors = own_modules.rename(factors, backbone)
    except ValueError as error:
      raise ValueError(f'{weights_path}: {error}') from error
  max_rank = max(pair.a.shape[0] for pair in factors.values())
  return LoadedAdapter(
    factors,
    {
      'max_rank': max_rank,
      'alpha': scaling * max_rank,
      'targets': (targets,) if isinstance(targets, str) else tuple(targets),
      'rank_stabilized': False,
      'scaling': scaling,
      'base_model_name_or_path': files.config.get('base_model_name_or_path') or '',
      'task_type': files.config.get('task_type'),
    },
  )


def _on_one_scale(
  files: peft_files.AdapterFiles,
) -> tuple[collections.OrderedDict[str, LoraFactors], float]:
  """The factors, and the scale of the most of them: another one goes into `b`."""
  scaling = collections.Counter(files.scales.values()).most_common(1)[0][0]
  factors = collections.OrderedDict()
  for module, (a, b) in files.modules.items():
    ratio = files.scales[module] / scaling
    # Scales that were written as the same number may differ in their last bit.
    factors[module] = LoraFactors(a, b if math.isclose(ratio, 1.0) else np.float32(ratio) * b)
  return factors, scaling


def _checked(path: str, factors: LoraFactors) -> LoraFactors:
  a, b = (np.asarray(factor, np.float32) for factor in factors)
  if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
    raise ValueError(
      f'Factors of {path!r} must be a [r, d_in] and b [d_out, r], got {a.shape} and {b.shape}.'
    )
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise ValueError(f'Factors of {path!r} are not finite.')
  return LoraFactors(a, b)


def _places(
  arrays: Mapping[str, LoraFactors], architecture: str | None, num_heads: int | None
) -> tuple[huggingface_names.Architecture | None, dict[str, Place]]:
  """The naming, None for our own, and the place of each module in it."""
  sizes = {path: (pair.a.shape[0], pair.b.shape[0]) for path, pair in arrays.items()}
  own = {path: _own_place(path, *size) for path, size in sizes.items()}
  names = huggingface_names.find(architecture)
  theirs = huggingface_names.place(names, sizes, num_heads) if names else {}
  if not theirs or set(sizes) - set(theirs) - {CLASSIFIER}:
    return None, own
  return names, {**own, **theirs}


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
    key_a, key_b = (f'{PREFIX}{spot.module}.lora_{side}.weight' for side in 'AB')
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
