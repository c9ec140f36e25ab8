# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The base model of a run: a frozen backbone and its tokenizer, from what `--backbone` names."""

import errno
import hashlib
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras_nlp
import tensorflow as tf

from hetlora_tff.adapters.backbone import BackboneError, FrozenBackbone
from tasks import base_model, harvest, text
from tasks.errors import UserError

EMBEDDED = 'embedded'
# Where a backbone directory has its tokenizer.
TOKENIZER = 'tokenizer'
_MANIFEST = 'manifest.json'
# The layout of a keras-nlp tokenizer preset.
_TOKENIZER_CONFIG, _TOKENIZER_ASSETS = 'tokenizer.json', 'assets/tokenizer'
_METADATA = 'metadata.json'
# keras-nlp's message goes on with a list that we do not show.
_LIST_FOLLOWS = ' A preset must be a one of:'


class BaseModel(NamedTuple):
  """What a causal task builds on."""

  backbone: FrozenBackbone
  tokenizer: text.Tokenizer


def cache_directory() -> pathlib.Path:
  """Where converted backbones and harvested data are: `$HETLORA_CACHE`, or the user's cache."""
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
      model = BaseModel(backbone, text.Tokenizer(base_model.embedded_tokenizer()))
    elif (path / _MANIFEST).is_file():
      model = BaseModel(FrozenBackbone.load(path), _tokenizer(path / TOKENIZER))
    else:
      model = _from_keras_nlp(name, cache)
    _check(model)
    return model
  except BackboneError as error:
    raise UserError(f'--backbone {name}: {error}') from error


def save_tokenizer(tokenizer: Any, directory: pathlib.Path) -> None:
  """Writes a keras-nlp tokenizer as a preset directory, all of it or nothing.

  keras-nlp's own `save_to_preset` refuses to work on Keras 2, although its `from_preset` does.

  Args:
    tokenizer: a `keras_nlp.tokenizers.Tokenizer` whose vocabulary is in files.
    directory: where to; must not exist.
  """
  staging = directory.with_name(f'.{directory.name}.{os.getpid()}')
  try:
    (staging / _TOKENIZER_ASSETS).mkdir(parents=True)
    tokenizer.save_assets(str(staging / _TOKENIZER_ASSETS))
    config = tf.keras.saving.serialize_keras_object(tokenizer)
    (staging / _TOKENIZER_CONFIG).write_text(json.dumps(config, indent=1), 'utf-8')
    versions = {
      'keras_version': harvest.version('keras'),
      'keras_nlp_version': keras_nlp.__version__,
    }
    (staging / _METADATA).write_text(json.dumps(versions), 'utf-8')
    os.replace(staging, directory)
  finally:
    shutil.rmtree(staging, ignore_errors=True)


def _check(model: BaseModel) -> None:
  class_name = model.backbone.class_name
  # An encoder would see the token that it is asked for.
  if not hasattr(keras_nlp.models, class_name.replace('Backbone', 'CausalLM')):
    raise BackboneError(f'{class_name} is not a causal language model.')
  known = model.backbone.config.get('vocabulary_size')
  if known and model.tokenizer.vocabulary_size > known:
    raise BackboneError(
      f'the tokenizer has {model.tokenizer.vocabulary_size} tokens and the model only {known}; '
      'they do not belong together.'
    )
  try:
    with tf.Graph().as_default():
      model.backbone.build()
  except BackboneError:
    raise
  except Exception as error:  # Keras raises whatever a wrong configuration leads to
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise BackboneError(f'{class_name} cannot be built from its manifest: {reason[0]}') from error


def _converted(directory: pathlib.Path, build: Callable[[], tf.keras.Model]) -> FrozenBackbone:
  if not directory.is_dir():
    try:
      FrozenBackbone.save(build(), directory)
    except BackboneError:
      if not directory.is_dir():  # Otherwise another run was faster.
        raise
  try:
    return FrozenBackbone.load(directory)
  except BackboneError as error:
    raise BackboneError(f'{error} Remove {directory} to convert it anew.') from error


def _from_keras_nlp(name: str, cache: pathlib.Path) -> BaseModel:
  directory = cache / 'backbones' / _conversion_key(name)
  backbone = _converted(directory, lambda: _load_keras_nlp(name))
  tokenizer = directory / TOKENIZER
  if not tokenizer.is_dir():
    source = pathlib.Path(name)
    _save_tokenizer(str(source.parent) if source.suffix == '.keras' else name, tokenizer)
  return BaseModel(backbone, _tokenizer(tokenizer))


def _load_keras_nlp(name: str) -> tf.keras.Model:
  try:
    with warnings.catch_warnings():
      # Of keras-nlp about Keras 2, for every layer that is loaded.
      warnings.simplefilter('ignore')
      if name.endswith('.keras'):
        model = tf.keras.models.load_model(name, compile=False)
        return getattr(model, 'backbone', model)
      return keras_nlp.models.Backbone.from_preset(name)
  except Exception as error:  # keras-nlp and its hubs raise whatever comes
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise UserError(
      f'--backbone {name} is neither `{EMBEDDED}`, a backbone directory, a .keras file nor a '
      f'keras-nlp preset that can be loaded here: {reason[0].removesuffix(_LIST_FOLLOWS)}'
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
  try:
    save_tokenizer(keras_nlp.tokenizers.Tokenizer.from_preset(preset), directory)
  except OSError as error:
    if error.errno == errno.ENOSPC:
      raise
    raise UserError(f'--backbone {preset} comes without a tokenizer: {error}') from error
  except Exception as error:
    raise UserError(f'--backbone {preset} comes without a tokenizer: {error}') from error


def _tokenizer(directory: pathlib.Path) -> text.Tokenizer:
  try:
    return text.Tokenizer(keras_nlp.tokenizers.Tokenizer.from_preset(str(directory)))
  except Exception as error:
    raise UserError(
      f'{directory} is not a keras-nlp tokenizer preset, which a backbone directory needs: {error}'
    ) from error
