# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The embedded base model and its tokenizer, shipped with the package as float16.

`tasks.pretrain` makes the assets; `provenance.json` among them says from what and how.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras_nlp
import numpy as np
import safetensors.numpy

from tasks.files import replace_file

ASSETS = pathlib.Path(__file__).parent / 'assets' / 'base_model'

_CONFIG = 'config.json'
_WEIGHTS = 'model.safetensors'
_VOCABULARY = 'vocabulary.json'
_MERGES = 'merges.txt'
_PROVENANCE = 'provenance.json'


def embedded_backbone(assets: str | os.PathLike[str] = ASSETS) -> Any:
  """Builds the base model in float32.

  Returns:
    A `keras_nlp.models.GPT2Backbone`: 4 layers of width 256, 4 heads, 8192 tokens, 128 positions.

  Raises:
    ValueError: if the weights are not those of the configuration.
  """
  directory = pathlib.Path(assets)
  backbone = build_backbone(json.loads((directory / _CONFIG).read_text()))
  stored = safetensors.numpy.load_file(directory / _WEIGHTS)
  names = _weight_names(backbone)
  if sorted(names) != sorted(stored):
    raise ValueError(f'{directory / _WEIGHTS} does not hold the weights that {_CONFIG} describes.')
  backbone.set_weights([stored[name].astype(np.float32) for name in names])
  return backbone


def embedded_tokenizer(assets: str | os.PathLike[str] = ASSETS) -> Any:
  """Builds the tokenizer of the base model, a `keras_nlp.models.GPT2Tokenizer`."""
  directory = pathlib.Path(assets)
  return keras_nlp.models.GPT2Tokenizer(
    vocabulary=str(directory / _VOCABULARY), merges=str(directory / _MERGES)
  )


def base_model_checksum(assets: str | os.PathLike[str] = ASSETS) -> str:
  """Returns the SHA-256 over the files that decide what the model and the tokenizer compute."""
  digest = hashlib.sha256()
  for name in (_CONFIG, _WEIGHTS, _VOCABULARY, _MERGES):
    digest.update(hashlib.sha256((pathlib.Path(assets) / name).read_bytes()).digest())
  return digest.hexdigest()


def build_backbone(config: Mapping[str, Any]) -> Any:
  """Builds an untrained `keras_nlp.models.GPT2Backbone` from its arguments."""
  return keras_nlp.models.GPT2Backbone(**config)


def save_assets(
  directory: str | os.PathLike[str],
  backbone: Any,
  config: Mapping[str, Any],
  tokenizer: tuple[Mapping[str, int], Sequence[str]],
  provenance: Mapping[str, Any],
) -> None:
  """Writes what the functions above read.

  Args:
    directory: where to; made if missing.
    backbone: the model; its weights are stored as float16.
    config: the arguments it was built from.
    tokenizer: vocabulary and merges of its tokenizer.
    provenance: how it came about, as JSON.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  vocabulary, merges = tokenizer
  values = [value.astype(np.float16) for value in backbone.get_weights()]
  weights = dict(zip(_weight_names(backbone), values, strict=True))
  replace_file(directory / _WEIGHTS, safetensors.numpy.save(weights))
  replace_file(directory / _CONFIG, _json(config))
  replace_file(directory / _VOCABULARY, json.dumps(vocabulary, ensure_ascii=False).encode())
  replace_file(directory / _MERGES, ''.join(f'{merge}\n' for merge in merges).encode())
  replace_file(directory / _PROVENANCE, _json(provenance))


def _weight_names(backbone: Any) -> list[str]:
  # Keras gives several weights of a decoder layer the same name; the place makes them distinct.
  return [f'{place:03d}/{weight.name}' for place, weight in enumerate(backbone.weights)]


def _json(content: Mapping[str, Any]) -> bytes:
  return (json.dumps(content, indent=2) + '\n').encode()
