# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`manifest.json` of an export: what a pipeline has to know of a process without running it."""

import collections
import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_federated as tff

from hetlora_tff.adapters.backbone import FrozenBackbone

MANIFEST = 'manifest.json'
_KIND, _FORMAT = 'hetlora_tff.daf', 1
_TFF = 'tensorflow-federated'
_SUM, _MODULAR = 'federated_sum', 'federated_secure_modular_sum'
_DISTRIBUTIONS = ('hetlora-tff', _TFF, 'tensorflow', 'keras-nlp', 'numpy')
# What a reader relies on, and of which kind it is.
_FIELDS = {
  'versions': dict, 'type_signatures': dict, 'client_data': list, 'download': dict, 'upload': dict,
  'secure_sums': list, 'backbone': dict | None, 'map_reduce_form': bool | str,
  'privacy': dict | None, 'requires': dict | None, 'notes': list, 'check': dict | None,
  'files': dict,
}  # fmt: skip


class DeploymentError(ValueError):
  """An export that cannot be made, or that is missing, unreadable, incomplete or altered."""


def describe(
  initialize: tff.Computation,
  form: tff.backends.mapreduce.DistributeAggregateForm,
  parts: Mapping[str, tff.Computation],
  map_reduce_form: tff.backends.mapreduce.MapReduceForm | str,
  backbone: FrozenBackbone | None,
) -> dict[str, Any]:
  """What follows from the computations themselves.

  Args:
    initialize: of the process.
    form: of its round.
    parts: of the form, by their files.
    map_reduce_form: of its round, or why there is none.
    backbone: that its graphs map into memory, or None.
  """
  download = _tensors(form.server_to_client_broadcast.type_signature.result)
  upload = _uploads(form)
  computations = {'initialize': initialize, 'next': form, **parts}
  return {
    'kind': _KIND,
    'format': _FORMAT,
    'versions': _versions(),
    'type_signatures': {
      name: computation.type_signature.compact_representation()
      for name, computation in computations.items()
    },
    'client_data': _tensors(form.type_signature.parameter[1]),
    'download': {'bytes': sum(t['bytes'] for t in download), 'tensors': download},
    'upload': {'bytes': sum(t['bytes'] for t in upload), 'tensors': upload},
    'secure_sums': _secure_sums(upload),
    'backbone': backbone
    and {
      'class': backbone.class_name,
      'sha256': backbone.sha256,
      'directory_name': os.path.basename(backbone.directory),
      'parameters': backbone.num_parameters,
    },
    'map_reduce_form': map_reduce_form if isinstance(map_reduce_form, str) else True,
  }


def write(directory: pathlib.Path, manifest: Mapping[str, Any]) -> None:
  """Writes the manifest of an export."""
  write_synced(directory / MANIFEST, (json.dumps(manifest, indent=1) + '\n').encode())


def read(directory: pathlib.Path) -> dict[str, Any]:
  """Reads the manifest of an export and checks that this program understands it.

  Raises:
    DeploymentError: naming the file, or both versions.
  """
  path = directory / MANIFEST
  try:
    manifest = json.loads(_read(path).decode())
  except ValueError as error:
    if isinstance(error, DeploymentError):
      raise
    raise DeploymentError(f'{path} is not a manifest: {error}.') from error
  if not isinstance(manifest, dict) or manifest.get('kind') != _KIND:
    raise DeploymentError(f'{path} is not the manifest of an exported process.')
  if manifest.get('format') != _FORMAT:
    raise DeploymentError(f'{path} has format {manifest.get("format")}, this reads {_FORMAT}.')
  for name, kind in _FIELDS.items():
    if name not in manifest or not isinstance(manifest[name], kind):
      raise DeploymentError(f'{path} lacks or misnames {name!r}.')
  backbone = manifest['backbone']
  keys = ('class', 'sha256')
  if backbone is not None and not all(isinstance(backbone.get(key), str) for key in keys):
    raise DeploymentError(f'{path} lacks or misnames the class or the sha256 of its backbone.')
  compiled, here = manifest['versions'].get(_TFF), tff.__version__
  if compiled != here:
    raise DeploymentError(
      f'{directory} was made with {_TFF} {compiled}, this is {here}: install that, or export anew.'
    )
  return manifest


def read_file(directory: pathlib.Path, manifest: Mapping[str, Any], name: str) -> bytes:
  """Reads a file of an export and verifies it.

  Raises:
    DeploymentError: naming the file that is missing or altered.
  """
  data = _read(directory / name)
  if digest(data) != manifest['files'].get(name):
    raise DeploymentError(
      f'{directory / name} is not the file in {MANIFEST}: it was altered or cut.'
    )
  return data


def flatten(type_: tff.Type, value: Any) -> collections.OrderedDict[str, np.ndarray]:
  """The tensors of a value by their path, `'trainable/first/a'`.

  Args:
    type_: of the value.
    value: a structure of arrays.

  Raises:
    ValueError: naming the tensor of another shape.
  """
  flat: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()

  def visit(path, member, part):
    if isinstance(member, tff.StructType):
      for place, (name, inner) in enumerate(tff.structure.iter_elements(member)):
        visit([*path, _name(place, name)], inner, element(part, place if name is None else name))
    else:
      # In a layout of its own: what the runtime returns may be strided.
      flat['/'.join(path)] = _fitting('/'.join(path), member, np.array(part, order='C'))

  visit([], type_, value)
  return flat


def unflatten(type_: tff.Type, arrays: Mapping[str, np.ndarray]) -> Any:
  """The inverse of `flatten`.

  Raises:
    ValueError: naming the tensor that is missing, too much or of another shape.
  """
  left = dict(arrays)

  def build(path, member):
    if isinstance(member, tff.StructType):
      parts = [
        (name, build([*path, _name(place, name)], inner))
        for place, (name, inner) in enumerate(tff.structure.iter_elements(member))
      ]
      named = all(name is not None for name, _ in parts)
      return collections.OrderedDict(parts) if named else [part for _, part in parts]
    name = '/'.join(path)
    if name not in left:
      raise ValueError(f'{name} is missing')
    return _fitting(name, member, left.pop(name))

  value = build([], type_)
  if left:
    raise ValueError(f'{next(iter(left))} is no tensor of the model')
  return value


def element(structure: Any, key: str | int) -> Any:
  """A part of a structure, whatever container the runtime returned."""
  if isinstance(structure, Mapping) or isinstance(key, int):
    return structure[key]
  return getattr(structure, key)


def digest(data: bytes) -> str:
  """The sha256 of a file."""
  return hashlib.sha256(data).hexdigest()


def write_synced(path: pathlib.Path, data: bytes) -> None:
  """Writes a file, on disk when this returns."""
  with open(path, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise DeploymentError(f'Cannot read {path}: {error.strerror}.') from error


def _versions() -> dict[str, str]:
  versions = {'python': platform.python_version()}
  for name in _DISTRIBUTIONS:
    # From a source tree, ours is not installed.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return {**versions, _TFF: tff.__version__}


def _tensors(type_: tff.Type) -> list[dict[str, Any]]:
  """What a type consists of; `bytes` where that does not depend on the data."""
  return [_tensor(path, member, repeats) for path, member, repeats in _leaves((), type_, False)]


def _tensor(path: tuple[str, ...], member: tff.TensorType, repeats: bool) -> dict[str, Any]:
  name, dtype = '/'.join(path), np.dtype(member.dtype)
  described: dict[str, Any] = {'name': name, 'dtype': dtype.name, 'shape': list(member.shape)}
  if repeats:
    described['sequence'] = True
  elif None not in member.shape:
    described['bytes'] = math.prod(member.shape) * dtype.itemsize
  return described


def _leaves(path: tuple[str, ...], type_: tff.Type, repeats: bool) -> Iterator[Any]:
  if isinstance(type_, tff.FederatedType):
    yield from _leaves(path, type_.member, repeats)
  elif isinstance(type_, tff.SequenceType):
    yield from _leaves(path, type_.element, True)
  elif isinstance(type_, tff.StructType):
    for place, (name, inner) in enumerate(tff.structure.iter_elements(type_)):
      yield from _leaves((*path, _name(place, name)), inner, repeats)
  else:
    yield path, type_, repeats


def _uploads(form: tff.backends.mapreduce.DistributeAggregateForm) -> list[dict[str, Any]]:
  """What clients send and how it is summed; numbers modulo something count their bits only."""
  sent = form.client_work.type_signature.result
  uploads = []
  for place, operator, moduli in _aggregations(form.client_to_server_aggregation):
    for path, member, _ in _leaves((str(place),), sent[place], False):
      tensor = _tensor(path, member, False) | {'operator': operator}
      modulus = moduli.get(path[1:], moduli.get(()))
      if modulus is not None:
        bits = (modulus - 1).bit_length()
        size = -(-math.prod(member.shape) * bits // 8)
        tensor |= {'modulus': modulus, 'bits': bits, 'bytes': size}
      uploads.append(tensor)
  return uploads


def _aggregations(
  aggregation: tff.Computation,
) -> Iterator[tuple[int, str, dict[tuple[str, ...], int]]]:
  """Of each sum: which part of the client's work it takes, its name, its moduli by path."""
  for _, call in aggregation.to_building_block().result.locals:
    operator, argument = call.function.uri, call.argument
    if not isinstance(argument, tff.framework.Struct):
      yield argument.index, operator, {}
    elif operator == _MODULAR:
      yield argument[0].index, operator, dict(_literals((), argument[1]))
    else:
      yield argument[0].index, operator, {}


def _literals(path: tuple[str, ...], block: Any) -> Iterator[tuple[tuple[str, ...], int]]:
  if isinstance(block, tff.framework.Literal):
    yield path, int(block.value)
  elif isinstance(block, tff.framework.Struct):
    for place, (name, inner) in enumerate(tff.structure.iter_elements(block)):
      yield from _literals((*path, _name(place, name)), inner)


def _secure_sums(uploads: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The sums that the pipeline needs a protocol for, with how many numbers each has."""
  numbers: collections.Counter[tuple[str, int | None]] = collections.Counter()
  for tensor in uploads:
    if tensor['operator'] != _SUM:
      numbers[tensor['operator'], tensor.get('modulus')] += math.prod(tensor['shape'])
  return [
    {'operator': operator, 'modulus': modulus, 'numbers': number}
    for (operator, modulus), number in numbers.items()
  ]


def _name(place: int, name: str | None) -> str:
  return str(place) if name is None else name


def _fitting(name: str, type_: tff.TensorType, array: np.ndarray) -> np.ndarray:
  dtype = np.dtype(type_.dtype)
  fits = len(array.shape) == len(type_.shape) and all(
    size in (None, held) for size, held in zip(type_.shape, array.shape, strict=True)
  )
  # Texts have no one type in NumPy.
  if not fits or (array.dtype != dtype and dtype.kind != 'U'):
    raise ValueError(
      f'{name} must be {dtype.name} of shape {list(type_.shape)}, got {array.dtype} of shape '
      f'{list(array.shape)}'
    )
  return array
