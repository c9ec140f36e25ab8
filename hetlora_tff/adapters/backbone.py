# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The frozen backbone: a keras-nlp model on disk, mapped into memory instead of copied.

A backbone directory holds `manifest.json` and one raw little-endian file per tensor. `build`
creates the Keras model with every variable initialised by a memory-mapped constant, in eager mode
or inside any graph: a graph then carries file names, not weights, and all clients and workers of a
machine share one copy in the page cache. `merged` writes what training made of a backbone as a
directory of its own.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras_nlp
import numpy as np
import tensorflow as tf

from hetlora_tff import staging

_MANIFEST = 'manifest.json'
_FORMAT = 1
_DTYPES = ('float32', 'bfloat16', 'float16')


class BackboneError(ValueError):
  """A backbone directory that is missing, unreadable, incomplete or altered."""


@dataclasses.dataclass(frozen=True)
class _TensorRecord:
  """One stored tensor; `name` is that of the variable, in creation order."""

  name: str
  file: str
  shape: tuple[int, ...]
  dtype: str
  sha256: str


@dataclasses.dataclass(frozen=True)
class FrozenBackbone:
  """A verified backbone directory; make one with `save`, `merged` or `load`.

  Attributes:
    directory: absolute path of the directory; graphs built from it name files in it.
    class_name: the keras-nlp class, for example `'GPT2Backbone'`.
    config: the arguments of that class.
    dtype: how `save` stored the tensors; what `merged` has replaced is float32. The model computes
      in float32 whatever it is; a tensor stored in another type is widened when it is built, which
      costs a copy.
    tensors: the stored tensors in creation order.
  """

  directory: str
  class_name: str
  config: dict[str, Any]
  dtype: str
  tensors: tuple[_TensorRecord, ...]

  @classmethod
  def save(
    cls, backbone: tf.keras.Model, directory: str | os.PathLike, dtype: str = 'float32'
  ) -> 'FrozenBackbone':
    """Writes a keras-nlp backbone as a backbone directory, all of it or nothing.

    Args:
      backbone: a keras-nlp backbone without adapters.
      directory: where to; must not exist or be empty.
      dtype: `'float32'`, `'bfloat16'` or `'float16'`.

    Raises:
      BackboneError: if the directory is in use or cannot be written.
      ValueError: for another dtype.
    """
    if dtype not in _DTYPES:
      raise ValueError(f'`dtype` must be one of {", ".join(_DTYPES)}, got {dtype!r}.')
    with staging.staged(directory, 'a backbone', BackboneError) as draft:
      _write(backbone, draft, dtype)
    return cls.load(directory)

  def merged(
    self, directory: str | os.PathLike, changes: Mapping[str, np.ndarray]
  ) -> 'FrozenBackbone':
    """Writes a copy in which some tensors are replaced, all of it or nothing.

    The replaced tensors are stored in float32 whatever `dtype` is: rounding them would lose what
    training has changed. The others are copied as they are.

    Args:
      directory: where to; must not exist or be empty.
      changes: the new value of each replaced tensor by the name that `weight_names` gives it.

    Raises:
      BackboneError: if the directory is in use or cannot be written.
      ValueError: if there is no such tensor, or a value has another shape or is not finite.
    """
    values = {name: np.asarray(value, np.float32) for name, value in changes.items()}
    self._check(values)
    with staging.staged(directory, 'a backbone', BackboneError) as draft:
      (draft / 'tensors').mkdir()
      written = []
      for place, (name, old) in enumerate(zip(self.weight_names, self.tensors, strict=True)):
        if name in values:
          record = _write_tensor(draft, place, old.name, values[name], 'float32')
        else:
          record = dataclasses.replace(old, file=_tensor_file(place))
          data = pathlib.Path(self.directory, old.file).read_bytes()
          _write_synced(draft / record.file, data)
        written.append(record)
      _write_manifest(draft, self.class_name, self.config, self.dtype, written)
    return self.load(directory)

  @classmethod
  def load(cls, directory: str | os.PathLike) -> 'FrozenBackbone':
    """Reads a backbone directory and verifies every tensor against its sha256, once.

    Raises:
      BackboneError: naming the file that is missing, malformed or altered.
    """
    root = pathlib.Path(directory).absolute()
    manifest = _read_manifest(root / _MANIFEST)
    try:
      records = tuple(_record(stored) for stored in manifest['tensors'])
      name, config, dtype = manifest['class'], manifest['config'], manifest['dtype']
      if not isinstance(name, str) or not isinstance(config, dict):
        raise TypeError('the class or its configuration')
      loaded = cls(str(root), name, config, dtype, records)
    except (KeyError, TypeError) as error:
      raise BackboneError(f'{root / _MANIFEST} lacks or misnames {error}.') from error
    for record in records:
      _verify(root, record)
    return loaded

  def build(self) -> tf.keras.Model:
    """Creates the keras-nlp backbone on the mapped tensors, in the current graph or eagerly.

    Returns:
      The backbone, not trainable.

    Raises:
      BackboneError: if this keras-nlp creates other variables than those stored.
    """
    return self.build_with_variables()[0]

  def build_with_variables(
    self,
  ) -> tuple[tf.keras.Model, collections.OrderedDict[str, tf.Variable]]:
    """As `build`, and the model's variables under `weight_names`."""
    records, variables = iter(self.tensors), []
    misfit = BackboneError(f'{self.directory} does not fit {self.class_name} of this keras-nlp.')

    def creator(next_creator, **kwargs):
      if not _is_weight(kwargs):
        return next_creator(**kwargs)
      record = next(records, None)
      if record is None or kwargs.get('shape', record.shape) not in (None, record.shape):
        raise misfit
      kwargs.update(initial_value=self._constant(record), trainable=False, shape=None)
      variables.append(next_creator(**kwargs))
      return variables[-1]

    with tf.variable_creator_scope(creator):
      backbone = _create(self.class_name, self.config)
    backbone.trainable = False
    built = sorted(tuple(w.shape) for w in backbone.weights)
    if built != sorted(r.shape for r in self.tensors) or next(records, None) is not None:
      raise misfit
    return backbone, collections.OrderedDict(zip(self.weight_names, variables, strict=True))

  def weights(self) -> collections.OrderedDict[str, tf.Tensor]:
    """The mapped tensors as float32 under `weight_names`, in the current graph or eagerly."""
    return collections.OrderedDict(
      (name, self._constant(record))
      for name, record in zip(self.weight_names, self.tensors, strict=True)
    )

  @property
  def weight_names(self) -> tuple[str, ...]:
    """A name for each of `tensors`, the same in every copy that `merged` makes.

    Keras gives several variables of a decoder layer one name; the place in front tells them apart.
    """
    return tuple(
      f'{place:04d}/{record.name.partition(":")[0]}' for place, record in enumerate(self.tensors)
    )

  @property
  def num_heads(self) -> int | None:
    """Attention heads, or None if the configuration does not tell; Falcon names them otherwise."""
    return self.config.get('num_heads') or self.config.get('num_attention_heads')

  @property
  def num_parameters(self) -> int:
    """Number of stored weights."""
    return sum(int(np.prod(r.shape)) for r in self.tensors)

  @property
  def sha256(self) -> str:
    """One digest of class, configuration and all tensors."""
    # Keras counts models up: the same one has another name when it is converted second.
    config = {key: value for key, value in self.config.items() if key != 'name'}
    tensors = [(r.shape, r.dtype, r.sha256) for r in self.tensors]
    described = [self.class_name, config, tensors]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

  def _constant(self, record: _TensorRecord) -> tf.Tensor:
    path = os.path.join(self.directory, record.file)
    mapped = tf.raw_ops.ImmutableConst(
      dtype=tf.as_dtype(record.dtype), shape=record.shape, memory_region_name=path
    )
    return tf.cast(mapped, tf.float32)

  def _check(self, values: Mapping[str, np.ndarray]) -> None:
    shapes = {n: r.shape for n, r in zip(self.weight_names, self.tensors, strict=True)}
    for name, value in values.items():
      if name not in shapes:
        raise ValueError(f'{self.directory} has no tensor {name!r}.')
      if value.shape != shapes[name]:
        raise ValueError(f'{name} must have shape {shapes[name]}, got {value.shape}.')
      if not np.isfinite(value).all():
        raise ValueError(f'{name} has a value that is not finite.')


@contextlib.contextmanager
def keras_classes_restored() -> Iterator[None]:
  """Undoes what building Keras models in a TFF computation does to Keras models outside of it.

  In a plain graph, which TFF traces in, Keras puts other base classes under every class that it
  instantiates, for good: a model of the same class that lives outside could not be called again.
  """
  before = {cls: cls.__bases__ for cls in _subclasses(tf.keras.layers.Layer)}
  try:
    yield
  finally:
    for cls, bases in before.items():
      if cls.__bases__ != bases:
        cls.__bases__ = bases


def _subclasses(cls: type) -> Iterator[type]:
  for subclass in cls.__subclasses__():
    yield subclass
    yield from _subclasses(subclass)


def _create(class_name: str, config: dict[str, Any]) -> tf.keras.Model:
  backbone_class = getattr(keras_nlp.models, class_name, None)
  if backbone_class is None:
    raise BackboneError(f'keras-nlp {keras_nlp.__version__} has no `{class_name}`.')
  return backbone_class.from_config(config)


def _is_weight(creation: dict[str, Any]) -> bool:
  # Keras models also create nameless step counters, in eager mode only.
  return creation.get('name') is not None


def _write(backbone: tf.keras.Model, directory: pathlib.Path, dtype: str) -> None:
  """Stores the weights in the order in which their class creates them."""
  class_name, config = type(backbone).__name__, backbone.get_config()
  created = []

  def recorder(next_creator, **kwargs):
    variable = next_creator(**kwargs)
    if _is_weight(kwargs):
      created.append(variable)
    return variable

  # `model.weights` is not in creation order: a throw-away twin gives the one for the other.
  with keras_classes_restored(), tf.Graph().as_default(), tf.variable_creator_scope(recorder):
    twin = _create(class_name, config)
  position = {id(variable): i for i, variable in enumerate(twin.weights)}
  if len(created) != len(backbone.weights):
    raise BackboneError(f'{class_name} has {len(backbone.weights)} weights, not {len(created)}.')
  (directory / 'tensors').mkdir()
  records = []
  for number, variable in enumerate(created):
    weight = backbone.weights[position[id(variable)]]
    records.append(_write_tensor(directory, number, weight.name, weight, dtype))
  _write_manifest(directory, class_name, config, dtype, records)


def _tensor_file(place: int) -> str:
  return f'tensors/{place:04d}.bin'


def _write_tensor(
  directory: pathlib.Path, place: int, name: str, value: Any, dtype: str
) -> _TensorRecord:
  file = _tensor_file(place)
  data = tf.cast(value, dtype).numpy().tobytes()
  _write_synced(directory / file, data)
  return _TensorRecord(name, file, tuple(value.shape), dtype, hashlib.sha256(data).hexdigest())


def _write_manifest(
  directory: pathlib.Path,
  class_name: str,
  config: dict[str, Any],
  dtype: str,
  records: list[_TensorRecord],
) -> None:
  manifest = {
    'format': _FORMAT,
    'class': class_name,
    'config': config,
    'dtype': dtype,
    'tensors': [dataclasses.asdict(record) for record in records],
  }
  _write_synced(directory / _MANIFEST, json.dumps(manifest, indent=1).encode())


def _write_synced(path: pathlib.Path, data: bytes) -> None:
  with open(path, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _record(stored: dict[str, Any]) -> _TensorRecord:
  record = _TensorRecord(**{**stored, 'shape': tuple(stored['shape'])})
  texts = (record.name, record.file, record.sha256)
  if (
    record.dtype not in _DTYPES
    or not all(isinstance(text, str) for text in texts)
    or not all(isinstance(size, int) for size in record.shape)
  ):
    raise TypeError(f'the tensor {record.name!r}')
  return record


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
  try:
    manifest = json.loads(path.read_text('utf-8'))
  except OSError as error:
    raise BackboneError(f'Cannot read {path}: {error.strerror}.') from error
  except ValueError as error:
    raise BackboneError(f'{path} is not a backbone manifest: {error}.') from error
  if not isinstance(manifest, dict) or manifest.get('format') != _FORMAT:
    raise BackboneError(f'{path} is not a backbone manifest of format {_FORMAT}.')
  return manifest


def _verify(root: pathlib.Path, record: _TensorRecord) -> None:
  path = root / record.file
  if root not in path.resolve().parents and root.resolve() not in path.resolve().parents:
    raise BackboneError(f'{root / _MANIFEST} names a file outside its directory: {record.file}.')
  try:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
      size = file.tell()
  except OSError as error:
    raise BackboneError(f'Cannot read {path}: {error.strerror}.') from error
  expected = int(np.prod(record.shape)) * tf.as_dtype(record.dtype).size
  if digest != record.sha256 or size != expected:
    raise BackboneError(f'{path} is not the tensor in {_MANIFEST}: it was altered or cut.')
