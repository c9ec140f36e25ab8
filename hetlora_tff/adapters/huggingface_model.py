# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A backbone as a directory that Hugging Face transformers loads: configuration and weights.

The linear layers are where `huggingface_names` says; here are the embeddings, the norms and the
arguments of each class. The numbers stay float32.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
import tensorflow as tf

from hetlora_tff.adapters import huggingface_names, injection
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig

WEIGHTS_FILE, CONFIG_FILE = 'model.safetensors', 'config.json'
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Family:
  """An architecture of transformers.

  Attributes:
    model_type: its name there.
    model_class: start of the names of its classes there.
    layers: path of a layer, `{}` for the number.
    norms: our attribute of a layer to their name in it.
    outer: embeddings and final norms: our path of attributes to their module.
    arguments: our configuration to theirs.
    unused_positions: rows at the start of their position embeddings that no token has.
  """

  model_type: str
  model_class: str
  layers: str
  norms: Mapping[str, str]
  outer: Mapping[str, str]
  arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
  unused_positions: int = 0


def _gpt2(ours: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'n_layer': ours['num_layers'],
    'n_head': ours['num_heads'],
    'n_embd': ours['hidden_dim'],
    'n_inner': ours['intermediate_dim'],
    'n_positions': ours['max_sequence_length'],
  }


def _opt(ours: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'num_hidden_layers': ours['num_layers'],
    'num_attention_heads': ours['num_heads'],
    'hidden_size': ours['hidden_dim'],
    'word_embed_proj_dim': ours['hidden_dim'],
    'ffn_dim': ours['intermediate_dim'],
    'max_position_embeddings': ours['max_sequence_length'],
  }


def _llama(ours: Mapping[str, Any]) -> dict[str, Any]:
  scale = ours['rope_scaling_factor']
  return {
    'num_hidden_layers': ours['num_layers'],
    'num_attention_heads': ours['num_query_heads'],
    'num_key_value_heads': ours['num_key_value_heads'],
    'hidden_size': ours['hidden_dim'],
    'intermediate_size': ours['intermediate_dim'],
    'rms_norm_eps': ours['layer_norm_epsilon'],
    'rope_theta': float(ours['rope_max_wavelength']),
    'rope_scaling': None if scale == 1.0 else {'rope_type': 'linear', 'factor': float(scale)},
    'tie_word_embeddings': False,
    # keras-nlp's configuration has no such length; rotary embeddings go on for ever.
    'max_position_embeddings': 32768,
  }


def _mistral(ours: Mapping[str, Any]) -> dict[str, Any]:
  return {**_llama(ours), 'sliding_window': ours['sliding_window']}


def _bert(ours: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'num_hidden_layers': ours['num_layers'],
    'num_attention_heads': ours['num_heads'],
    'hidden_size': ours['hidden_dim'],
    'intermediate_size': ours['intermediate_dim'],
    'max_position_embeddings': ours['max_sequence_length'],
    'type_vocab_size': ours['num_segments'],
    # Hugging Face's own BERT takes the exact function, keras-nlp's this approximation.
    'hidden_act': 'gelu_pytorch_tanh',
  }


def _roberta(ours: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'num_hidden_layers': ours['num_layers'],
    'num_attention_heads': ours['num_heads'],
    'hidden_size': ours['hidden_dim'],
    'intermediate_size': ours['intermediate_dim'],
    'max_position_embeddings': ours['max_sequence_length'] + 2,
    'type_vocab_size': 1,
    'layer_norm_eps': 1e-5,
    # It decides where the positions begin.
    'pad_token_id': 1,
  }


_PRE_NORMS = {
  '_self_attention_layernorm': 'input_layernorm',
  '_feedforward_layernorm': 'post_attention_layernorm',
}
_POST_NORMS = {
  '_self_attention_layer_norm': 'attention.output.LayerNorm',
  '_feedforward_layer_norm': 'output.LayerNorm',
}
_LLAMA_OUTER = {'token_embedding': 'model.embed_tokens', 'layer_norm': 'model.norm'}

_FAMILIES = {
  'GPT2Backbone': _Family(
    'gpt2',
    'GPT2',
    'transformer.h.{}.',
    {'_self_attention_layer_norm': 'ln_1', '_feedforward_layer_norm': 'ln_2'},
    {
      'token_embedding': 'transformer.wte',
      'position_embedding': 'transformer.wpe',
      'layer_norm': 'transformer.ln_f',
    },
    _gpt2,
  ),
  'OPTBackbone': _Family(
    'opt',
    'OPT',
    'model.decoder.layers.{}.',
    {
      '_self_attention_layer_norm': 'self_attn_layer_norm',
      '_feedforward_layer_norm': 'final_layer_norm',
    },
    {
      'token_embedding': 'model.decoder.embed_tokens',
      'embeddings.position_embedding': 'model.decoder.embed_positions',
      'layer_norm': 'model.decoder.final_layer_norm',
    },
    _opt,
    unused_positions=2,
  ),
  'LlamaBackbone': _Family('llama', 'Llama', 'model.layers.{}.', _PRE_NORMS, _LLAMA_OUTER, _llama),
  'Llama3Backbone': _Family('llama', 'Llama', 'model.layers.{}.', _PRE_NORMS, _LLAMA_OUTER, _llama),
  'MistralBackbone': _Family(
    'mistral', 'Mistral', 'model.layers.{}.', _PRE_NORMS, _LLAMA_OUTER, _mistral
  ),
  'BertBackbone': _Family(
    'bert',
    'Bert',
    'encoder.layer.{}.',
    _POST_NORMS,
    {
      'token_embedding': 'embeddings.word_embeddings',
      'position_embedding': 'embeddings.position_embeddings',
      'segment_embedding': 'embeddings.token_type_embeddings',
      'embeddings_layer_norm': 'embeddings.LayerNorm',
      'pooled_dense': 'pooler.dense',
    },
    _bert,
  ),
  'RobertaBackbone': _Family(
    'roberta',
    'Roberta',
    'encoder.layer.{}.',
    _POST_NORMS,
    {
      'token_embedding': 'embeddings.word_embeddings',
      'embeddings.position_embedding': 'embeddings.position_embeddings',
      'embeddings_layer_norm': 'embeddings.LayerNorm',
    },
    _roberta,
    unused_positions=2,
  ),
}


def is_known(class_name: str) -> bool:
  """Whether `save_huggingface_model` knows a keras-nlp class such as `'GPT2Backbone'`."""
  return class_name in _FAMILIES


def save_huggingface_model(
  directory: str | os.PathLike,
  backbone: FrozenBackbone,
  *,
  special_tokens: Mapping[str, int | None],
  labels: Sequence[str] = (),
) -> None:
  """Writes what `transformers.AutoModel...from_pretrained(directory)` loads.

  A causal backbone becomes a language model, whose head is the token embedding or Llama's own
  matrix, or with labels a classifier that lacks its head: that is the adapter's. An encoder becomes
  the bare model.

  Args:
    directory: exists.
    backbone: of a family that `is_known`.
    special_tokens: `bos_token_id`, `eos_token_id` and `pad_token_id`, as far as there are any.
    labels: of a classification, in the order of their numbers.

  Raises:
    ValueError: if the family is not known.
    OSError: if a file cannot be written.
  """
  family = _FAMILIES.get(backbone.class_name)
  names = huggingface_names.find(backbone.class_name)
  if family is None or names is None:
    raise ValueError(f'{backbone.class_name} is none of {", ".join(_FAMILIES)}.')
  config = _config(family, backbone, bool(names.head), special_tokens, labels)
  directory = pathlib.Path(directory)
  (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False), 'utf-8')
  arrays = _arrays(family, names, backbone, with_vocabulary=bool(names.head) and not labels)
  safetensors.numpy.save_file(arrays, directory / WEIGHTS_FILE, {'format': 'pt'})


def _config(
  family: _Family,
  backbone: FrozenBackbone,
  causal: bool,
  special_tokens: Mapping[str, int | None],
  labels: Sequence[str],
) -> dict[str, Any]:
  kind = 'Model'
  if causal:
    kind = 'ForSequenceClassification' if labels else 'ForCausalLM'
  if kind == 'ForCausalLM' and family.model_type == 'gpt2':
    kind = 'LMHeadModel'
  config = {
    'model_type': family.model_type,
    'architectures': [family.model_class + kind],
    'dtype': 'float32',
    'vocab_size': backbone.config['vocabulary_size'],
    # Hugging Face would put in those of the published models, whatever the vocabulary is.
    **dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id')),
    **special_tokens,
    **family.arguments(backbone.config),
  }
  if labels:
    config['id2label'] = {str(number): label for number, label in enumerate(labels)}
    config['label2id'] = {label: number for number, label in enumerate(labels)}
  return config


def _arrays(
  family: _Family,
  names: huggingface_names.Architecture,
  backbone: FrozenBackbone,
  *,
  with_vocabulary: bool,
) -> Arrays:
  """All tensors by their names."""
  model = backbone.build()
  arrays: Arrays = {}
  for ours, theirs in family.outer.items():
    layer = model
    for attribute in ours.split('.'):
      layer = getattr(layer, attribute)
    unused = family.unused_positions if ours.endswith('position_embedding') else 0
    arrays.update(_small_layer(theirs, layer, unused))
  if family.model_type == 'roberta':
    arrays['embeddings.token_type_embeddings.weight'] = np.zeros(
      [1, backbone.config['hidden_dim']], np.float32
    )
  embedding = model.token_embedding
  if with_vocabulary and not embedding.tie_weights:
    arrays['lm_head.weight'] = np.ascontiguousarray(embedding.reverse_embeddings.numpy().T)
  for number, layer in enumerate(model.transformer_layers):
    for ours, theirs in family.norms.items():
      prefix = family.layers.format(number)
      arrays.update(_small_layer(prefix + theirs, getattr(layer, ours)))
  return arrays | _linear_layers(names, backbone.num_heads, model)


def _small_layer(theirs: str, layer: tf.keras.layers.Layer, unused_rows: int = 0) -> Arrays:
  """An embedding, a norm or a dense layer that carries no adapters."""
  endings = {
    'kernel': 'weight',
    'embeddings': 'weight',
    'position_embeddings': 'weight',
    'gamma': 'weight',
    'scale': 'weight',
    'beta': 'bias',
    'bias': 'bias',
  }
  arrays = {}
  for ours, ending in endings.items():
    variable = getattr(layer, ours, None)
    # `scale` is a variable in Llama's norms and an option in those of Keras.
    if variable is None or isinstance(variable, bool):
      continue
    values = np.transpose(variable) if ours == 'kernel' else np.array(variable)
    values = np.pad(values, [(unused_rows, 0)] + [(0, 0)] * (values.ndim - 1))
    arrays[f'{theirs}.{ending}'] = np.ascontiguousarray(values)
  return arrays


def _linear_layers(
  names: huggingface_names.Architecture, num_heads: int | None, model: tf.keras.Model
) -> Arrays:
  """The layers that can carry adapters, with those that Hugging Face fuses put together."""
  everything = LoraConfig(max_rank=1, alpha=1.0, targets=('.*',))
  layers = injection.inject_lora(model, everything, create_variables=False)
  sizes = {path: (1, layer.d_out) for path, layer in layers.items()}
  arrays: Arrays = {}
  for path, place in huggingface_names.place(names, sizes, num_heads).items():
    layer, key = layers[path], f'{place.module}.weight'
    rows = place.groups * place.total
    weight = arrays.setdefault(key, np.zeros([rows, layer.d_in], np.float32))
    # The contracted axes are first in the kernels of keras-nlp.
    matrix = np.reshape(layer.kernel, [layer.d_in, layer.d_out]).T
    _put(weight, matrix, place)
    if layer.bias is not None:
      bias = arrays.setdefault(f'{place.module}.bias', np.zeros([rows], np.float32))
      _put(bias, np.reshape(layer.bias, [-1]), place)
  if names.fan_in_fan_out:
    for key, value in arrays.items():
      arrays[key] = np.ascontiguousarray(value.T)
  return arrays


def _put(target: np.ndarray, values: np.ndarray, place: huggingface_names.Place) -> None:
  """Writes the rows of one of our modules into those of theirs."""
  rest = target.shape[1:]
  rows = slice(place.start, place.start + place.size)
  target.reshape(place.groups, place.total, *rest)[:, rows] = values.reshape(
    place.groups, place.size, *rest
  )
