# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
r"""From examples of text to the fixed shapes that models train on and decode from.

A row is `source tokens, separator, target tokens, end token`, then padding. The separator is
ordinary text, `'\n=>'` by default, so that any vocabulary can write it; the target follows with a
leading space and its words are split as they are within a sentence. The room of the target is fixed
by the row's length alone (`max_target_tokens`): a training row and the prompt of the same example
start with the very same tokens, and where a source was cut does not tell how long its target is.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras_nlp
import numpy as np
import tensorflow as tf

from tasks import bpe, federated_text

SEPARATOR = '\n=>'

_MAX_TARGET_TOKENS = 32
_BATCH = 4096
# Byte-pair merges never cross these borders, so a text is the concatenation of its pieces.
_PIECES = re.compile(r'\n| ?[^ \n]+')
# What keras-nlp splits by context: runs of white space, and the digit it uses as a mark.
_CONTEXTUAL = re.compile(r'\s\s|\s$|[^\S \n]|\u096c')


class Tokenizer:
  """A keras-nlp tokenizer with the few things that packing needs, made fast.

  keras-nlp applies merges word by word in a loop of TensorFlow operations. A byte-pair tokenizer
  is therefore asked once per *distinct word*, for all new words of a call together, and the answers
  are kept; the result equals asking it for the whole text. Two things it cannot give back: the NUL
  character and U+096C, which it uses as a mark.

  Args:
    tokenizer: any keras-nlp tokenizer that has an end token.
    separator: text between source and target.

  Raises:
    ValueError: if the tokenizer has no end token, or the separator is empty.
  """

  def __init__(self, tokenizer: Any, separator: str = SEPARATOR):
    end_token_id = getattr(tokenizer, 'end_token_id', None)
    if end_token_id is None:
      raise ValueError(
        f'tokenizer {type(tokenizer).__name__} has no end_token_id; use one for causal models.'
      )
    self._tokenizer = tokenizer
    self._by_word = (
      isinstance(tokenizer, keras_nlp.tokenizers.BytePairTokenizer)
      and not tokenizer.add_prefix_space
    )
    self._special = tuple(getattr(tokenizer, 'unsplittable_tokens', None) or ())
    self._known: dict[str, list[int]] = {}
    self.end_token_id = int(end_token_id)
    self.pad_token_id = int(getattr(tokenizer, 'pad_token_id', None) or 0)
    self.separator_ids = self.encode(separator)
    if not self.separator_ids:
      raise ValueError(f'separator {separator!r} has no tokens; give it some text.')

  @property
  def keras_tokenizer(self) -> Any:
    """The keras-nlp tokenizer itself."""
    return self._tokenizer

  @property
  def vocabulary_size(self) -> int:
    """The number of token ids."""
    return int(self._tokenizer.vocabulary_size())

  def encode(self, text: str) -> list[int]:
    """Returns the token ids of one text."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of each text."""
    if not self._by_word:
      return self._ask(texts)
    pieces = [self._pieces(text) for text in texts]
    new = sorted({piece for parts in pieces for piece in parts} - self._known.keys())
    self._known.update(zip(new, self._ask(new), strict=True))
    return [[index for piece in parts for index in self._known[piece]] for parts in pieces]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of token ids; bytes that are not UTF-8 become the replacement character."""
    return self.decode_batch([ids])[0]

  def decode_batch(self, batch: Sequence[Iterable[int]]) -> list[str]:
    """Returns the text of each sequence of token ids."""
    if not batch:
      return []
    rows = [list(map(int, ids)) for ids in batch]
    ragged = tf.RaggedTensor.from_row_lengths(
      tf.constant([index for row in rows for index in row], tf.int32), [len(row) for row in rows]
    )
    texts = self._tokenizer.detokenize(ragged).numpy()
    return [text.decode('utf-8', errors='replace') for text in texts]

  def _ask(self, texts: Sequence[str]) -> list[list[int]]:
    parts = [list(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
    return [ids for part in parts for ids in self._tokenizer(part).to_list()]

  def _pieces(self, text: str) -> list[str]:
    if _CONTEXTUAL.search(text) or any(special in text for special in self._special):
      return [text]
    pieces = []
    for piece in _PIECES.findall(text):
      # Beyond ASCII, the standard library and RE2 differ in what a letter is.
      pieces.extend(bpe.split_words(piece) if piece.isascii() else (piece,))
    return pieces


def max_target_tokens(sequence_length: int) -> int:
  """Returns the room for a target and its end token: a third of the row, at most 32 tokens."""
  return min(_MAX_TARGET_TOKENS, sequence_length // 3)


def pack(
  examples: Sequence[federated_text.Example], tokenizer: Tokenizer, sequence_length: int
) -> collections.OrderedDict[str, np.ndarray]:
  """Packs each example into one row for training.

  Sources that are too long lose their end, targets too (and then keep no end token: the model must
  not learn to stop there).

  Args:
    examples: n examples.
    tokenizer: how to encode them.
    sequence_length: tokens per row, L.

  Returns:
    `token_ids` int32 [n, L]; `padding_mask` int32 [n, L], 1 where there is a token;
    `loss_weights` float32 [n, L], 1 at t where token t + 1 is of the target or its end: the
    prediction made at t is the one that is scored. The last position is always 0.

  Raises:
    ValueError: if `sequence_length` leaves no room for a source token.
  """
  prompts_ids = _prompt_ids(examples, tokenizer, sequence_length)
  targets = tokenizer.encode_batch([' ' + example.target.strip() for example in examples])
  room = max_target_tokens(sequence_length)
  rows = []
  for prompt, target in zip(prompts_ids, targets, strict=True):
    answer = [*_without(tokenizer.end_token_id, target), tokenizer.end_token_id]
    rows.append(prompt + answer[:room])
  packed = _padded(rows, tokenizer, sequence_length)
  positions = np.arange(sequence_length)[np.newaxis, :]
  first = _column(len(prompt) - 1 for prompt in prompts_ids)
  last = _column(len(row) - 2 for row in rows)
  packed['loss_weights'] = ((positions >= first) & (positions <= last)).astype(np.float32)
  return packed


def prompts(
  examples: Sequence[federated_text.Example], tokenizer: Tokenizer, sequence_length: int
) -> collections.OrderedDict[str, np.ndarray]:
  """Packs source and separator of each example, as in `pack`, for a target to be decoded.

  Args:
    examples: n examples.
    tokenizer: how to encode them.
    sequence_length: tokens per row, L; at least `max_target_tokens(L)` positions of it stay free.

  Returns:
    `token_ids` int32 [n, L] and `padding_mask` int32 [n, L].

  Raises:
    ValueError: if `sequence_length` leaves no room for a source token.
  """
  return _padded(_prompt_ids(examples, tokenizer, sequence_length), tokenizer, sequence_length)


def _prompt_ids(
  examples: Sequence[federated_text.Example], tokenizer: Tokenizer, sequence_length: int
) -> list[list[int]]:
  separator = tokenizer.separator_ids
  room = sequence_length - max_target_tokens(sequence_length) - len(separator)
  if room < 1 or max_target_tokens(sequence_length) < 2:
    raise ValueError(
      f'sequence_length {sequence_length} is too short for a source, a separator of '
      f'{len(separator)} tokens and a target; use 32 or more.'
    )
  sources = tokenizer.encode_batch([example.source for example in examples])
  return [_without(tokenizer.end_token_id, source)[:room] + separator for source in sources]


def _without(token: int, ids: Iterable[int]) -> list[int]:
  """Drops a token: the end token's own text may occur in what people wrote, but must not end it."""
  return [index for index in ids if index != token]


def _column(values: Iterable[int]) -> np.ndarray:
  return np.fromiter(values, np.int64)[:, np.newaxis]


def _padded(
  rows: Sequence[Sequence[int]], tokenizer: Tokenizer, sequence_length: int
) -> collections.OrderedDict[str, np.ndarray]:
  token_ids = np.full([len(rows), sequence_length], tokenizer.pad_token_id, np.int32)
  padding_mask = np.zeros([len(rows), sequence_length], np.int32)
  for index, row in enumerate(rows):
    token_ids[index, : len(row)] = row
    padding_mask[index, : len(row)] = 1
  return collections.OrderedDict(token_ids=token_ids, padding_mask=padding_mask)
