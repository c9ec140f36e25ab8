# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of keras-nlp, made fast and alike."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import keras_nlp
import tensorflow as tf

from tasks import bpe

SEPARATOR = '\n=>'

_BATCH = 4096
# Words that are remembered, about 80 MB of them.
_MAX_KNOWN = 300_000
# Merges never cross these borders, so a text is the concatenation of its pieces.
_BORDERS = re.compile(r'(?<=\S)(?=[ \n\t\r\f])')
# What we do not split: characters of `_SHAPES`, and white space at the end, where keras-nlp's rule
# is neither GPT-2's nor simple.
_UNCLEAR = re.compile(r'\x00|\s\s$')


class _Shapes(dict[int, str]):
  """Writes a text in ASCII, such that it has the same words: for `str.translate`.

  Beyond ASCII, RE2 and the standard library do not agree on what is a letter, a digit or white
  space. NUL stands for what we leave to RE2: letters that are younger than Unicode 3.2, since
  RE2 may not know them yet; those that Python does not know yet; white space; and the digit that
  keras-nlp uses as a mark.
  """

  def __missing__(self, code: int) -> str:
    self[code] = self._shape(chr(code))
    return self[code]

  def _shape(self, character: str) -> str:
    if character.isascii():
      return '!' if character in '\x0b\x1c\x1d\x1e\x1f' else character
    kind = unicodedata.category(character)
    if kind in ('Cn', 'Zs') or character == '\u096c':
      return '\x00'
    if kind[0] not in 'LN':
      return '!'
    known = unicodedata.ucd_3_2_0.category(character)[0] == kind[0]
    return ('a' if kind[0] == 'L' else '1') if known else '\x00'


_SHAPES = _Shapes()


class Tokenizer:
  """A keras-nlp tokenizer with the few things that packing needs, made fast.

  keras-nlp applies the merges of a byte-pair tokenizer in a loop of TensorFlow operations. Here it
  is done in Python, once per *distinct word*, and the answers are kept; keras-nlp is asked only
  where its own split into words is unclear. The result equals asking it for the whole text. Two
  things it cannot give back: the NUL character and U+096C, which it uses as a mark. Threads may
  share it.

  Attributes:
    end_token_id: ends a text; the separator token of an encoder.
    pad_token_id: fills rows; 0 where the tokenizer has none.
    start_ids: what the model's own preprocessor puts in front of a text: its start token, or the
      class token of an encoder; nothing for GPT-2 and its like.
    separator_ids: between source and target.

  Args:
    tokenizer: any keras-nlp tokenizer that has an end token.
    separator: text between source and target.

  Raises:
    ValueError: if the tokenizer has no end token, or the separator is empty.
  """

  def __init__(self, tokenizer: Any, separator: str = SEPARATOR):
    end_token_id = _first_id(tokenizer, 'end_token_id', 'sep_token_id')
    if end_token_id is None:
      raise ValueError(
        f'tokenizer {type(tokenizer).__name__} has neither end_token_id nor sep_token_id; use that '
        'of a model.'
      )
    start_token_id = _first_id(tokenizer, 'start_token_id', 'cls_token_id')
    self._tokenizer = tokenizer
    self._words = (
      bpe.Encoder(tokenizer.vocabulary, tokenizer.merges)
      if isinstance(tokenizer, keras_nlp.tokenizers.BytePairTokenizer)
      and not tokenizer.add_prefix_space
      else None
    )
    self._special = tuple(getattr(tokenizer, 'unsplittable_tokens', None) or ())
    self._known: dict[str, list[int]] = {}
    self._lock = threading.Lock()
    self.end_token_id = end_token_id
    # GPT-2 and its like read this token between documents, and none before a prompt.
    between = getattr(tokenizer, 'start_token', None) == bpe.END_OF_TEXT
    self.start_ids = [] if between or start_token_id is None else [start_token_id]
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
    with self._lock:
      return self._ask(texts) if self._words is None else self._by_word(texts)

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

  def _by_word(self, texts: Sequence[str]) -> list[list[int]]:
    if len(self._known) > _MAX_KNOWN:
      self._known.clear()
    pieces = [self._pieces(text) for text in texts]
    unclear = sorted({piece for parts in pieces for piece in parts if piece not in self._known})
    self._known.update(zip(unclear, self._ask(unclear), strict=True))
    return [[index for piece in parts for index in self._known[piece]] for parts in pieces]

  def _ask(self, texts: Sequence[str]) -> list[list[int]]:
    parts = [list(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
    return [ids for part in parts for ids in self._tokenizer(part).to_list()]

  def _pieces(self, text: str) -> list[str]:
    """Splits a text into words, which are known then, and what only keras-nlp can split."""
    if any(special in text for special in self._special):
      return [text]
    words = self._learn(text)
    if words is not None:
      return words
    parts = ((part, self._learn(part)) for part in _BORDERS.split(text))
    return [piece for part, words in parts for piece in ([part] if words is None else words)]

  def _learn(self, text: str) -> list[str] | None:
    shape = text.translate(_SHAPES)
    if self._words is None or _UNCLEAR.search(shape):
      return None
    words, start = [], 0
    for word in bpe.split_words(shape):
      words.append(text[start : start + len(word)])
      start += len(word)
    for word in words:
      if word not in self._known:
        self._known[word] = self._words.encode(word)
    return words


def _first_id(tokenizer: Any, *names: str) -> int | None:
  """The first token id that the tokenizer has of these; encoders have their own names."""
  ids = (getattr(tokenizer, name, None) for name in names)
  return next((int(index) for index in ids if index is not None), None)
