# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A merged model as one `.keras` file that tf-keras loads without code of anybody else.

A model of keras-nlp on Keras 2.14 is of classes that later releases do not have. Here it is rebuilt
from tf-keras layers and TensorFlow ops, which are the same in tf-keras 2.16 and later.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from hetlora_tff.adapters.classification import ENCODERS
from hetlora_tff.export import keras_layers as layers
from hetlora_tff.export.merged import ExportError, MergedModel

MODEL_FILE = 'model.keras'

# (keras-nlp backbone, token embeddings [n, L, d], padding mask [n, L]) -> hidden states [n, L, d].
_Family = Callable[[Any, Any, Any], Any]
_Activation = Callable[[Any], Any]


def save_keras_file(directory: pathlib.Path, model: MergedModel) -> None:
  """Writes `model.keras`.

  Args:
    directory: an empty one; `staging.staged` gives one that is not left half full.
    model: of one of `families()`.

  Raises:
    ExportError: for another family.
    OSError: if it cannot be written.
  """
  build_keras_model(model).save(directory / MODEL_FILE)


def build_keras_model(model: MergedModel) -> tf_keras.Model:
  """Rebuilds a model from tf-keras layers.

  Args:
    model: of one of `families()`.

  Returns:
    A functional model of `token_ids` and `padding_mask`, int32 `[n, L]`, that gives the logits of
    `ServableModel`.

  Raises:
    ExportError: for another family.
  """
  class_name = model.backbone.class_name
  if class_name not in _FAMILIES:
    raise ExportError(
      f'A {class_name} cannot be rebuilt from tf-keras layers; {", ".join(families())} can.'
    )
  backbone = model.build()
  token_ids, padding_mask = (
    tf_keras.Input([None], dtype='int32', name=name) for name in ('token_ids', 'padding_mask')
  )
  tokens = layers.embedding(backbone.token_embedding.embeddings, 'token_embedding')
  hidden = _FAMILIES[class_name](backbone, tokens(token_ids), padding_mask)
  if model.classifier is not None:
    read = _first_token if class_name in ENCODERS else _last_token
    states = read(hidden, padding_mask)
    logits = layers.project(states, model.classifier.T, 'classifier')
  elif backbone.token_embedding.tie_weights:
    # All rows of the same layer: one copy in the file, and one that further training changes.
    start = tf.minimum(tf.shape(token_ids)[0], 0)
    logits = tf.matmul(hidden, tokens(tf.range(start, tokens.input_dim)), transpose_b=True)
  else:
    kernel = backbone.token_embedding.reverse_embeddings.numpy()
    logits = layers.project(hidden, kernel, 'logits')
  inputs = {'token_ids': token_ids, 'padding_mask': padding_mask}
  return tf_keras.Model(inputs, logits, name=class_name.removesuffix('Backbone').lower())


def families() -> tuple[str, ...]:
  """The keras-nlp classes that can be rebuilt."""
  return tuple(_FAMILIES)


def _gelu_approximate(x: Any) -> Any:
  return tf.nn.gelu(x, approximate=True)


def _gpt2(backbone: Any, x: Any, mask: Any) -> Any:
  x = tf.add(x, _position_rows(backbone.position_embedding, mask))
  return _decoded(backbone, x, mask, _gelu_approximate)


def _opt(backbone: Any, x: Any, mask: Any) -> Any:
  x = tf.add(x, _position_rows(backbone.embeddings.position_embedding, mask))
  return _decoded(backbone, x, mask, tf.nn.relu)


def _decoded(backbone: Any, x: Any, mask: Any, activation: _Activation) -> Any:
  seen = layers.causal_mask(mask)
  for source in backbone.transformer_layers:
    x = layers.transformer_layer(x, seen, source, activation)
  return layers.normalize(x, backbone.layer_norm, 'layer_norm')


def _bloom(backbone: Any, x: Any, mask: Any) -> Any:
  x = layers.normalize(x, backbone.embeddings_layer_norm, 'embeddings_layer_norm')
  seen = layers.causal_mask(mask)
  for source in backbone.transformer_layers:
    x = layers.bloom_layer(x, seen, source)
  return layers.normalize(x, backbone.layer_norm, 'layer_norm')


def _llama(backbone: Any, x: Any, mask: Any) -> Any:
  # Only Mistral has one.
  seen = layers.causal_mask(mask, getattr(backbone, 'sliding_window', None))
  for source in backbone.transformer_layers:
    x = layers.llama_layer(x, seen, source)
  return layers.rms_normalize(x, backbone.layer_norm, 'layer_norm')


def _bert(backbone: Any, x: Any, mask: Any) -> Any:
  x = tf.add(x, _position_rows(backbone.position_embedding, mask))
  # A text is all one segment.
  segments = layers.embedding(backbone.segment_embedding.embeddings, 'segment_embedding')
  x = tf.add(x, segments(tf.zeros_like(mask)))
  return _encoded(backbone, x, mask, _gelu_approximate)


def _roberta(backbone: Any, x: Any, mask: Any) -> Any:
  x = tf.add(x, _position_rows(backbone.embeddings.position_embedding, mask))
  return _encoded(backbone, x, mask, tf.nn.gelu)


def _encoded(backbone: Any, x: Any, mask: Any, activation: _Activation) -> Any:
  x = layers.normalize(x, backbone.embeddings_layer_norm, 'embeddings_layer_norm')
  seen = layers.padding_mask(mask)
  for source in backbone.transformer_layers:
    x = layers.transformer_layer(x, seen, source, activation)
  return x


def _position_rows(source: Any, mask: Any) -> Any:
  """Embeddings `[L, d]` of the places of `[n, L]`."""
  rows = layers.embedding(source.position_embeddings, 'position_embedding')
  return rows(layers.positions(mask))


def _first_token(hidden: Any, mask: Any) -> Any:
  del mask
  return hidden[:, 0]


def _last_token(hidden: Any, mask: Any) -> Any:
  last = tf.maximum(tf.subtract(tf.reduce_sum(mask, axis=1), 1), 0)
  return tf.gather(hidden, last, axis=1, batch_dims=1)


_FAMILIES: Mapping[str, _Family] = {
  'GPT2Backbone': _gpt2,
  'OPTBackbone': _opt,
  'BloomBackbone': _bloom,
  'LlamaBackbone': _llama,
  'Llama3Backbone': _llama,
  'MistralBackbone': _llama,
  'BertBackbone': _bert,
  'RobertaBackbone': _roberta,
  'XLMRobertaBackbone': _roberta,
  'DistilBertBackbone': _roberta,
}
