# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family with adapters, and what they compute before they are merged."""

import collections
import pathlib
from typing import NamedTuple

import keras_nlp
import numpy as np
import tensorflow as tf

from hetlora_tff.adapters import injection
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.classification import CLASSIFIER, ClassificationModel
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from hetlora_tff.export.merged import MergedModel, merge

VOCABULARY, LENGTH, WIDTH, NUM_CLASSES = 23, 12, 8, 3
CONFIG = LoraConfig(max_rank=3, alpha=6.0, targets=('query', 'value'))

_SIZES = {'vocabulary_size': VOCABULARY, 'hidden_dim': WIDTH, 'intermediate_dim': 12}
_HEADS = {**_SIZES, 'num_layers': 1, 'num_heads': 2}
_POSITIONS = {**_HEADS, 'max_sequence_length': LENGTH}
_GROUPED = {**_SIZES, 'num_layers': 1, 'num_query_heads': 4, 'num_key_value_heads': 2}
_ROTARY = {**_GROUPED, 'rope_max_wavelength': 50, 'rope_scaling_factor': 2.0}
_ELECTRA = {**_POSITIONS, 'embedding_dim': 4}
_ELECTRA['vocab_size'] = _ELECTRA.pop('vocabulary_size')

CAUSAL = {
  'GPT2': {**_POSITIONS, 'num_layers': 2},
  'OPT': _POSITIONS,
  'Bloom': {**_HEADS, 'hidden_dim': 12, 'num_heads': 3},
  'Falcon': {**_SIZES, 'num_layers': 1, 'num_attention_heads': 2},
  'Llama': _ROTARY,
  'Llama3': _GROUPED,
  'Mistral': {**_GROUPED, 'num_layers': 2, 'sliding_window': 3},
  'Phi3': _GROUPED,
}
ENCODERS = {
  'Bert': _POSITIONS,
  'DistilBert': _POSITIONS,
  'Roberta': _POSITIONS,
  'XLMRoberta': _POSITIONS,
  'Electra': _ELECTRA,
  'Albert': {**_POSITIONS, 'embedding_dim': 4},
  'DebertaV3': _POSITIONS,
}


class Batch(NamedTuple):
  """Texts, both int32 `[n, L]`."""

  token_ids: np.ndarray
  padding_mask: np.ndarray


class Case(NamedTuple):
  """A merged model and what it must compute.

  Attributes:
    frozen: its backbone.
    adapters: by module path.
    merged: both together.
    batches: of several shapes; padded at the end.
    logits: those of the backbone with adapters beside its weights, for each batch.
  """

  frozen: FrozenBackbone
  adapters: collections.OrderedDict[str, LoraFactors | CorrectedFactors]
  merged: MergedModel
  batches: list[Batch]
  logits: list[np.ndarray]


def make(
  family: str, directory: pathlib.Path, *, head: bool | None = None, corrected: bool = False
) -> Case:
  """Makes a case of a key of `CAUSAL` or `ENCODERS`.

  Args:
    family: the key.
    directory: where its backbone goes; must not exist.
    head: whether it classifies; by default, whether it is an encoder.
    corrected: whether the factors have residuals.
  """
  head = family in ENCODERS if head is None else head
  frozen = _frozen(family, directory)
  rng = np.random.default_rng(1)
  model = frozen.build()
  adapted = injection.inject_lora(model, CONFIG, create_variables=False)
  shapes = {path: (layer.d_in, layer.d_out) for path, layer in adapted.items()}
  if head:
    shapes[CLASSIFIER] = (frozen.config['hidden_dim'], NUM_CLASSES)
  adapters = collections.OrderedDict()
  for path, (d_in, d_out) in shapes.items():
    sizes = [(2, d_in), (d_out, 2), (d_out, d_in)]
    values = [rng.normal(scale=0.4, size=size).astype(np.float32) for size in sizes]
    adapters[path] = CorrectedFactors(*values) if corrected else LoraFactors(*values[:2])
  batches = [_batch(rng, [7, 5, 2]), _batch(rng, [LENGTH])]
  if head:
    logits_fn = ClassificationModel(frozen, LENGTH, NUM_CLASSES).build_logits(CONFIG)
    logits = [logits_fn(adapters, batch._asdict()).numpy() for batch in batches]
  else:
    with injection.bound(adapted, adapters):
      hidden = [model(batch._asdict()) for batch in batches]
    logits = [model.token_embedding(h, reverse=True).numpy() for h in hidden]
  return Case(frozen, adapters, merge(frozen, CONFIG, adapters), batches, logits)


def _frozen(family: str, directory: pathlib.Path) -> FrozenBackbone:
  tf.keras.utils.set_random_seed(1)
  backbone = getattr(keras_nlp.models, f'{family}Backbone')(**{**CAUSAL, **ENCODERS}[family])
  rng = np.random.default_rng(0)
  for weight in backbone.weights:
    weight.assign(rng.normal(scale=0.5, size=weight.shape))
  return FrozenBackbone.save(backbone, directory)


def _batch(rng: np.random.Generator, lengths: list[int]) -> Batch:
  shape = (len(lengths), max(lengths))
  mask = np.arange(shape[1]) < np.array(lengths)[:, np.newaxis]
  return Batch(rng.integers(1, VOCABULARY, shape).astype(np.int32) * mask, np.int32(mask))
