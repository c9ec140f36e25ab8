# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Preset directories of tiny random models of every family, with a tokenizer of the family's kind.

As files they are what keras-nlp's `save_to_preset` writes, which refuses to work on Keras 2.
"""

import json
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras_nlp
import tensorflow as tf

from tasks import backbones, bpe

LENGTH = 32
WIDTH = 16
TEXTS = ('the cat sat on a mat', 'a dog ran to the cat', 'the mat is red', 'dogs and cats ran')

_LAYERS = {'num_layers': 1, 'hidden_dim': WIDTH, 'intermediate_dim': 2 * WIDTH}
_HEADS = {**_LAYERS, 'num_heads': 2}
_POSITIONS = {**_HEADS, 'max_sequence_length': LENGTH}
# The query has twice the heads of key and value.
_GROUPED = {**_LAYERS, 'num_query_heads': 4, 'num_key_value_heads': 2}


class Family(NamedTuple):
  """A family of models.

  Attributes:
    name: of its keras-nlp classes, before `Backbone` and `Tokenizer`.
    arguments: of a tiny backbone, without the size of the vocabulary.
    vocabulary: makes the arguments of the tokenizer of the special tokens.
    special: tokens that the tokenizer must have.
  """

  name: str
  arguments: Mapping[str, Any]
  vocabulary: Callable[..., dict[str, Any]]
  special: tuple[str, ...] = ()


def build(family: str, seed: int = 0) -> tuple[tf.keras.Model, Any]:
  """Makes the backbone and the tokenizer of a key of `CAUSAL`, `ENCODERS` or `OTHERS`."""
  name, arguments, vocabulary, special = {**CAUSAL, **ENCODERS, **OTHERS}[family]
  tokenizer = getattr(keras_nlp.models, f'{name}Tokenizer')(**vocabulary(*special))
  size = {'vocab_size' if name == 'Electra' else 'vocabulary_size': tokenizer.vocabulary_size()}
  tf.keras.utils.set_random_seed(seed)
  return getattr(keras_nlp.models, f'{name}Backbone')(**size, **arguments), tokenizer


def save(directory: pathlib.Path, backbone: tf.keras.Model, tokenizer: Any) -> pathlib.Path:
  """Writes a preset directory, which must not exist."""
  backbones.save_tokenizer(tokenizer, directory)
  serialized = tf.keras.saving.serialize_keras_object(backbone)
  serialized.pop('build_config', None)
  (directory / 'config.json').write_text(json.dumps(serialized))
  backbone.save_weights(str(directory / 'model.weights.h5'))
  return directory


def _byte_pairs(*special: str) -> dict[str, Any]:
  vocabulary, merges = bpe.train(TEXTS, 300)
  for token in special:
    vocabulary.setdefault(token, len(vocabulary))
  return {'vocabulary': vocabulary, 'merges': merges}


def _word_pieces() -> dict[str, Any]:
  letters, words = _letters_and_words()
  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  return {'vocabulary': [*special, *letters, *(f'##{letter}' for letter in letters), *words]}


def _sentence_pieces(*special: str) -> dict[str, Any]:
  """A unigram model, written by hand: the package that trains them is not in the lock."""
  letters, words = _letters_and_words()
  unknown, control, normal = 2, 3, 1
  pieces = [(token, 0.0, unknown if token == '<unk>' else control) for token in special]
  pieces += [(letter, -9.0, normal) for letter in letters]
  pieces += [(piece, -1.0, normal) for piece in ('\u2581', *(f'\u2581{word}' for word in words))]
  # Of `ModelProto`, field 1 is a piece; field 2 tells what was trained: of which kind (3), and the
  # ids of special tokens, where minus one, for none, is a varint of 64 bits.
  ids = {40: '<unk>', 41: '<s>', 42: '</s>', 43: '<pad>'}
  trained = _number_field(3, 1) + b''.join(
    _number_field(field, special.index(token) if token in special else (1 << 64) - 1)
    for field, token in ids.items()
  )
  proto = b''.join(_bytes_field(1, _piece(*piece)) for piece in pieces)
  return {'proto': proto + _bytes_field(2, trained)}


def _letters_and_words() -> tuple[list[str], list[str]]:
  letters = set(''.join(TEXTS)) - {' '}
  return sorted(letters), sorted(set(' '.join(TEXTS).split()) - letters)


def _piece(text: str, score: float, kind: int) -> bytes:
  return (
    _bytes_field(1, text.encode()) + b'\x15' + struct.pack('<f', score) + _number_field(3, kind)
  )


def _bytes_field(number: int, value: bytes) -> bytes:
  return _varint(number << 3 | 2) + _varint(len(value)) + value


def _number_field(number: int, value: int) -> bytes:
  return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
  high, low = value >> 7, value & 0x7F
  return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


_LLAMA = ('<unk>', '<s>', '</s>')
_ROBERTA = ('<s>', '<pad>', '</s>', '<mask>')
_ALBERT = ('<pad>', '<unk>', '[CLS]', '[SEP]', '[MASK]')
_DEBERTA = ('[PAD]', '[CLS]', '[SEP]', '<unk>', '[MASK]')

CAUSAL = {
  'gpt2': Family('GPT2', _POSITIONS, _byte_pairs),
  'opt': Family('OPT', _POSITIONS, _byte_pairs, ('<pad>', '</s>')),
  'bloom': Family('Bloom', _HEADS, _byte_pairs, ('<s>', '</s>', '<pad>')),
  'falcon': Family('Falcon', {**_LAYERS, 'num_attention_heads': 2}, _byte_pairs),
  'llama': Family('Llama', _GROUPED, _sentence_pieces, _LLAMA),
  'llama3': Family('Llama3', _GROUPED, _byte_pairs, ('<|begin_of_text|>', '<|end_of_text|>')),
  'mistral': Family('Mistral', _GROUPED, _sentence_pieces, _LLAMA),
  'phi3': Family('Phi3', _GROUPED, _sentence_pieces, (*_LLAMA, '<|endoftext|>')),
}
ENCODERS = {
  'bert': Family('Bert', _POSITIONS, _word_pieces),
  'distil_bert': Family('DistilBert', _POSITIONS, _word_pieces),
  'electra': Family('Electra', {**_POSITIONS, 'embedding_dim': 8}, _word_pieces),
  'roberta': Family('Roberta', _POSITIONS, _byte_pairs, _ROBERTA),
  'xlm_roberta': Family('XLMRoberta', _POSITIONS, _sentence_pieces, _LLAMA),
  'albert': Family('Albert', {**_POSITIONS, 'embedding_dim': 8}, _sentence_pieces, _ALBERT),
  'deberta_v3': Family('DebertaV3', _POSITIONS, _sentence_pieces, _DEBERTA),
}
# What is neither causal nor an encoder that can classify.
OTHERS = {
  'f_net': Family('FNet', {**_LAYERS, 'max_sequence_length': LENGTH}, _sentence_pieces, _ALBERT),
  'bart': Family('Bart', _POSITIONS, _byte_pairs, _ROBERTA),
}
