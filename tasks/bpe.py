# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Learns and applies the merges of a byte-level byte-pair encoding.

Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, on
bytes as in GPT-2. keras-nlp's tokenizers apply merges too, a TensorFlow operation at a time: for
the text of a round's clients that took as long as to train on it.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import math
import re
from collections.abc import Iterable, Mapping

END_OF_TEXT = '<|endoftext|>'

# GPT-2's split into words, with the standard library's names for letters and digits.
_WORDS = re.compile(
  r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+", re.UNICODE
)

_Pair = tuple[str, str]


def byte_symbols() -> list[str]:
  """Returns the printable character that GPT-2's files use for each of the 256 byte values."""
  printable = {*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  rest = iter(range(256, 512))
  return [chr(byte if byte in printable else next(rest)) for byte in range(256)]


def split_words(text: str) -> list[str]:
  """Returns the words of a text, each with the space before it; merges never leave a word."""
  return _WORDS.findall(text)


class Encoder:
  """Encodes words as keras-nlp does.

  Args:
    vocabulary: token ids.
    merges: pairs of tokens with a space between, the most important first.
  """

  def __init__(self, vocabulary: Mapping[str, int], merges: Iterable[str]):
    self._vocabulary = vocabulary
    self._ranks = {pair: rank for rank, pair in enumerate(merges)}
    self._symbols = byte_symbols()

  def encode(self, word: str) -> list[int]:
    """Returns the token ids of one word of `split_words`; -1 for what is not in the vocabulary.

    The pair of the lowest rank is merged first, of equals the first one, until none is left.
    """
    tokens = [self._symbols[byte] for byte in word.encode('utf-8')]
    ranks = [self._rank(*pair) for pair in itertools.pairwise(tokens)]
    while ranks and (best := min(ranks)) < math.inf:
      place = ranks.index(best)
      tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
      del ranks[place]
      for neighbour in range(max(place - 1, 0), min(place + 1, len(ranks))):
        ranks[neighbour] = self._rank(tokens[neighbour], tokens[neighbour + 1])
    return [self._vocabulary.get(token, -1) for token in tokens]

  def _rank(self, left: str, right: str) -> float:
    return self._ranks.get(f'{left} {right}', math.inf)


def train(texts: Iterable[str], vocabulary_size: int) -> tuple[dict[str, int], list[str]]:
  """Learns a vocabulary and its merges from texts.

  The most frequent pair is merged first; among equals, the lexicographically smallest, so that the
  result depends on the texts alone.

  Args:
    texts: what to learn from.
    vocabulary_size: number of entries: 256 bytes, the merges, and the end-of-text token, which gets
      the last id.

  Returns:
    `(vocabulary, merges)` as keras-nlp's byte-pair tokenizers take them. Both are shorter than
    asked for when the texts run out of pairs.

  Raises:
    ValueError: if `vocabulary_size` leaves no room for the bytes and the end-of-text token.
  """
  if vocabulary_size < 257:
    raise ValueError(f'vocabulary_size must be at least 257, got {vocabulary_size}.')
  symbols = byte_symbols()
  counts = collections.Counter(word for text in texts for word in split_words(text))
  words = [[symbols[byte] for byte in word.encode('utf-8')] for word in counts]
  merges = _merges(words, list(counts.values()), vocabulary_size - 257)
  entries = [*sorted(symbols), *(left + right for left, right in merges)]
  vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys([*entries, END_OF_TEXT]))}
  return vocabulary, [f'{left} {right}' for left, right in merges]


def _merges(words: list[list[str]], counts: list[int], limit: int) -> list[_Pair]:
  totals: collections.Counter[_Pair] = collections.Counter()
  places: dict[_Pair, set[int]] = collections.defaultdict(set)
  for index, word in enumerate(words):
    for pair in itertools.pairwise(word):
      totals[pair] += counts[index]
      places[pair].add(index)
  # Entries go stale when a count changes; a stale one is recognised when it comes up.
  heap = [(-total, pair) for pair, total in totals.items()]
  heapq.heapify(heap)
  merges: list[_Pair] = []
  while heap and len(merges) < limit:
    total, pair = heapq.heappop(heap)
    if totals[pair] != -total or total == 0:
      continue
    merges.append(pair)
    for changed in _apply(pair, words, counts, totals, places):
      if totals[changed] > 0:
        heapq.heappush(heap, (-totals[changed], changed))
  return merges


def _apply(pair, words, counts, totals, places) -> set[_Pair]:
  changed: set[_Pair] = set()
  for index in places.pop(pair):
    word = words[index]
    for old in itertools.pairwise(word):
      totals[old] -= counts[index]
      changed.add(old)
    words[index] = word = _merged(word, pair)
    for new in itertools.pairwise(word):
      totals[new] += counts[index]
      places[new].add(index)
      changed.add(new)
  return changed


def _merged(word: list[str], pair: _Pair) -> list[str]:
  result, position = [], 0
  while position < len(word):
    if tuple(word[position : position + 2]) == pair:
      result.append(pair[0] + pair[1])
      position += 2
    else:
      result.append(word[position])
      position += 1
  return result
