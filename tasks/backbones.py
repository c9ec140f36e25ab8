# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The base model of a run: a frozen backbone and its tokenizer, from what `--backbone` names."""

import difflib
import errno
import hashlib
import json
import math
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras_nlp
import tensorflow as tf

from hetlora_tff.adapters.backbone import (
  BackboneError,
  FrozenBackbone,
  keras_classes_restored,
)
from hetlora_tff.adapters.classification import ENCODERS, is_causal
from tasks import base_model, harvest, text
from tasks.errors import UserError
from tasks.kept import kept

EMBEDDED = 'embedded'
# Where a backbone directory has its tokenizer.
TOKENIZER = 'tokenizer'
_MANIFEST = 'manifest.json'
# The layout of a keras-nlp tokenizer preset.
_TOKENIZER_CONFIG, _TOKENIZER_ASSETS = 'tokenizer.json', 'assets/tokenizer'
_METADATA = 'metadata.json'
# The layout of a keras-nlp model preset.
_MODEL_CONFIG = 'config.json'
# They refuse to work on Keras 2, which is that of TensorFlow Federated.
_KERAS_3_ONLY = frozenset({'GemmaBackbone', 'PaliGemmaBackbone'})


class BaseModel(NamedTuple):
  """What a task builds on."""

  backbone: FrozenBackbone
  tokenizer: text.Tokenizer


def load_base_model(name: str, cache: pathlib.Path, *, encoder_allowed: bool = False) -> BaseModel:
  """Loads a base model, converting it into a backbone directory the first time.

  Args:
    name: `'embedded'`; a backbone directory; a keras-nlp preset, by name, handle or directory; or a
      `.keras` file of a keras-nlp backbone or task model.
    cache: where conversions are kept.
    encoder_allowed: whether the task can use an encoder; a causal model always will do.

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
      _check_source(name, encoder_allowed)
      model = _from_keras_nlp(name, cache)
    _check(model, encoder_allowed)
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


def _check(model: BaseModel, encoder_allowed: bool) -> None:
  class_name, config = model.backbone.class_name, model.backbone.config
  if not _is_usable(class_name, encoder_allowed):
    raise BackboneError(_misfit(class_name, encoder_allowed))
  # Electra names it otherwise.
  known = config.get('vocabulary_size') or config.get('vocab_size')
  if known and model.tokenizer.vocabulary_size > known:
    raise BackboneError(
      f'the tokenizer has {model.tokenizer.vocabulary_size} tokens and the model only {known}; '
      'they do not belong together.'
    )

  def can_be_built() -> bool:
    with keras_classes_restored(), tf.Graph().as_default():
      model.backbone.build()
    return True

  try:
    kept('backbone', [model.backbone.directory, model.backbone.sha256], can_be_built)
  except BackboneError:
    raise
  except Exception as error:  # Keras raises whatever a wrong configuration leads to
    raise BackboneError(
      f'{class_name} cannot be built from its manifest: {_first_line(error)}'
    ) from error


def _is_usable(class_name: str, encoder_allowed: bool) -> bool:
  if class_name in _KERAS_3_ONLY:
    return False
  return is_causal(class_name) or (encoder_allowed and class_name in ENCODERS)


def _misfit(class_name: str, encoder_allowed: bool) -> str:
  if class_name in _KERAS_3_ONLY:
    return f'{class_name} needs Keras 3, and TensorFlow Federated runs on Keras 2.'
  if encoder_allowed:
    return f'{class_name} is neither a causal language model nor an encoder that can classify.'
  # An encoder would see the token that it is asked for.
  return f'{class_name} is not a causal language model.'


def _check_source(name: str, encoder_allowed: bool) -> None:
  """Refuses a preset that cannot be used before it is downloaded or read.

  Raises:
    BackboneError: which names presets of about its size that can be.
  """
  class_name, size = _described(name)
  if class_name is None or _is_usable(class_name, encoder_allowed):
    return
  usable = _usable_presets(encoder_allowed)
  nearest = sorted(usable, key=lambda preset: abs(math.log(usable[preset] / (size or 1))))[:3]
  kind = 'Presets of about its size' if size else 'Small presets'
  raise BackboneError(
    f'{_misfit(class_name, encoder_allowed)} {kind} that work: {", ".join(nearest)}.'
  )


def _described(name: str) -> tuple[str | None, int]:
  """Class and number of weights of a preset; None and 0 where nothing here tells.

  Raises:
    BackboneError: if it is a preset of keras-nlp's successor.
  """
  directory = pathlib.Path(name)
  if directory.is_dir():
    config, metadata = (_read_json(directory / file) for file in (_MODEL_CONFIG, _METADATA))
    if str(config.get('registered_name')).startswith('keras_hub>'):
      raise BackboneError(
        f'it is a preset of keras-hub, and keras-nlp {keras_nlp.__version__} reads its own only.'
      )
    class_name, size = config.get('class_name'), metadata.get('parameter_count')
    # Files may hold anything; keras-nlp refuses what it cannot read.
    return class_name if isinstance(class_name, str) else None, size if type(size) is int else 0
  # A handle such as kaggle://keras/gemma/keras/gemma_2b_en holds the name.
  for part in name.split('/'):
    if part in keras_nlp.models.Backbone.presets:
      size = keras_nlp.models.Backbone.presets[part]['metadata']['params']
      # Some have a class that keras-nlp does not show.
      owners = (c for c, presets in _presets_by_class().items() if part in presets)
      return next(owners, part), size
  return None, 0


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """An object in a file; an empty one where there is none: keras-nlp will say what is wrong."""
  try:
    value = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}


def _presets_by_class() -> dict[str, dict[str, Any]]:
  classes = {name: getattr(keras_nlp.models, name) for name in dir(keras_nlp.models)}
  return {
    name: cls.presets
    for name, cls in classes.items()
    if name.endswith('Backbone') and cls is not keras_nlp.models.Backbone
  }


def _usable_presets(encoder_allowed: bool) -> dict[str, int]:
  """Number of weights by name."""
  return {
    preset: described['metadata']['params']
    for class_name, presets in _presets_by_class().items()
    if _is_usable(class_name, encoder_allowed)
    for preset, described in presets.items()
  }


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
    raise UserError(f'--backbone {name} {_why_not(name, error)}') from error


def _why_not(name: str, error: Exception) -> str:
  if name in keras_nlp.models.Backbone.presets or name.startswith('kaggle://'):
    if isinstance(error, FileNotFoundError):
      return (
        'is not handed out by Kaggle: it is not there, or its licence must be accepted there and '
        'KAGGLE_USERNAME and KAGGLE_KEY be set.'
      )
    # What `requests` raises has no number; a full disk has one.
    if isinstance(error, OSError) and error.errno is None:
      return (
        'cannot be downloaded, for Kaggle cannot be reached from here; download it elsewhere and '
        'name its directory.'
      )
  close = difflib.get_close_matches(name, [EMBEDDED, *_usable_presets(encoder_allowed=True)])
  return (
    f'is neither `{EMBEDDED}`, a backbone directory, a .keras file nor a keras-nlp preset that can '
    f'be loaded here: {_first_line(error)}'
    + (f' Did you mean {" or ".join(close)}?' if close else '')
  )


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  # keras-nlp goes on with a list, or with how to install another Keras.
  return lines[0].partition(' A preset must be')[0].partition(' Run `pip')[0]


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
    raise UserError(
      f'--backbone {preset} comes without a tokenizer: {_first_line(error)}'
    ) from error
  except Exception as error:
    raise UserError(
      f'--backbone {preset} comes without a tokenizer: {_first_line(error)}'
    ) from error


def _tokenizer(directory: pathlib.Path) -> text.Tokenizer:
  try:
    return text.Tokenizer(keras_nlp.tokenizers.Tokenizer.from_preset(str(directory)))
  except Exception as error:
    raise UserError(
      f'{directory} is not a keras-nlp tokenizer preset, which a backbone directory needs: {error}'
    ) from error
