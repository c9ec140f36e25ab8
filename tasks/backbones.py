# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The base model of a run: a frozen backbone and its tokenizer, from whatever `--backbone` names."""

import hashlib
import os
import pathlib
import shutil
from typing import NamedTuple

import keras_nlp
import tensorflow as tf

from hetlora_tff.adapters.backbone import BackboneError, FrozenBackbone
from tasks import base_model, text
from tasks.errors import UserError

EMBEDDED = 'embedded'
_MANIFEST = 'manifest.json'
_TOKENIZER = 'tokenizer'


class BaseModel(NamedTuple):
  """What a causal task builds on."""

  backbone: FrozenBackbone
  tokenizer: text.Tokenizer


def cache_directory() -> pathlib.Path:
  """Where converted backbones and harvested data are kept: `$HETLORA_CACHE`, or the user's cache."""
  default = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(os.environ.get('HETLORA_CACHE') or pathlib.Path(default) / 'hetlora_tff')


def load_base_model(name: str, cache: pathlib.Path) -> BaseModel:
  """Loads a base model, converting it into a backbone directory the first time.

  Args:
    name: `'embedded'`; a backbone directory; a keras-nlp preset, by name or directory; or a
      `.keras` file of a keras-nlp backbone or task model.
    cache: where conversions are kept.

  Raises:
    UserError: if there is no such model, or it cannot be used.
  """
  path = pathlib.Path(name)
  try:
    if name == EMBEDDED:
      directory = cache / 'backbones' / f'embedded-{base_model.base_model_checksum()[:16]}'
      backbone = _converted(directory, base_model.embedded_backbone)
      return BaseModel(backbone, text.Tokenizer(base_model.embedded_tokenizer()))
    if (path / _MANIFEST).is_file():
      return BaseModel(FrozenBackbone.load(path), _tokenizer(path / _TOKENIZER))
    return _from_keras_nlp(name, cache)
  except BackboneError as error:
    raise UserError(f'--backbone {name}: {error}') from error


def _converted(directory: pathlib.Path, build) -> FrozenBackbone:
  if not directory.is_dir():
    FrozenBackbone.save(build(), directory)
  return FrozenBackbone.load(directory)


def _from_keras_nlp(name: str, cache: pathlib.Path) -> BaseModel:
  directory = cache / 'backbones' / _conversion_key(name)
  backbone = _converted(directory, lambda: _load_keras_nlp(name))
  tokenizer = directory / _TOKENIZER
  if not tokenizer.is_dir():
    source = pathlib.Path(name)
    _save_tokenizer(str(source.parent) if source.suffix == '.keras' else name, tokenizer)
  return BaseModel(backbone, _tokenizer(tokenizer))


def _load_keras_nlp(name: str) -> tf.keras.Model:
  try:
    if name.endswith('.keras'):
      model = tf.keras.models.load_model(name)
      return getattr(model, 'backbone', model)
    return keras_nlp.models.Backbone.from_preset(name)
  except Exception as error:  # keras-nlp and its hubs raise whatever comes
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise UserError(
      f'--backbone {name} is neither `{EMBEDDED}`, a backbone directory, a .keras file nor a '
      f'keras-nlp preset that can be loaded here: {reason[0]}'
    ) from error


def _conversion_key(name: str) -> str:
  """Names a conversion by its source and the source's files, so that a changed one is new."""
  digest = hashlib.sha256(name.encode())
  source = pathlib.Path(name)
  files = sorted(source.rglob('*')) if source.is_dir() else [source]
  for file in files:
    if file.is_file():
      status = file.stat()
      digest.update(f'{file.name} {status.st_size} {status.st_mtime_ns}'.encode())
  return f'{source.stem}-{digest.hexdigest()[:16]}'


def _save_tokenizer(preset: str, directory: pathlib.Path) -> None:
  """Keeps a copy, so that a converted backbone needs its source no more."""
  staging = directory.with_name(f'.{directory.name}.{os.getpid()}')
  try:
    keras_nlp.tokenizers.Tokenizer.from_preset(preset).save_to_preset(str(staging))
    os.replace(staging, directory)
  except Exception as error:
    raise UserError(f'--backbone {preset} comes without a tokenizer: {error}') from error
  finally:
    shutil.rmtree(staging, ignore_errors=True)


def _tokenizer(directory: pathlib.Path) -> text.Tokenizer:
  try:
    return text.Tokenizer(keras_nlp.tokenizers.Tokenizer.from_preset(str(directory)))
  except Exception as error:
    raise UserError(
      f'{directory} is not a keras-nlp tokenizer preset, which a backbone directory needs: {error}'
    ) from error
