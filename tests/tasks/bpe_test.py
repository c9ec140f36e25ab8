# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import bpe


def _naive_merges(text, limit):
  """The definition, recounted from scratch after every merge."""
  symbols = bpe.byte_symbols()
  words = [[symbols[byte] for byte in word.encode()] for word in bpe.split_words(text)]
  merges = []
  for _ in range(limit):
    pairs = collections.Counter(pair for word in words for pair in itertools.pairwise(word))
    if not pairs:
      break
    best = min(pairs, key=lambda pair: (-pairs[pair], pair))
    merges.append(best)
    for word in words:
      place = 0
      while place < len(word) - 1:
        if (word[place], word[place + 1]) == best:
          word[place : place + 2] = [best[0] + best[1]]
        place += 1
  return [f'{left} {right}' for left, right in merges]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.text(alphabet="ab c\né'1_", max_size=60), st.integers(0, 12))
def test_merges_are_those_of_the_definition(text, limit):
  _, merges = bpe.train([text], 257 + limit)
  assert merges == _naive_merges(text, limit)


def test_most_frequent_pair_first_and_smallest_among_equals():
  _, merges = bpe.train(['xyz xyz ab'], 257 + 2)
  assert merges == ['x y', 'xy z']


def test_vocabulary_is_bytes_then_merges_then_the_end():
  vocabulary, merges = bpe.train(['low lower lowest'] * 3, 260)
  assert sorted(vocabulary.values()) == list(range(260))
  assert vocabulary[merges[0].replace(' ', '')] == 256
  assert vocabulary[bpe.END_OF_TEXT] == 259


def test_a_short_text_gives_a_short_vocabulary():
  vocabulary, merges = bpe.train(['ab'], 1000)
  assert merges == ['a b']
  assert len(vocabulary) == 258


def test_bytes_look_as_in_the_files_of_gpt2():
  symbols = bpe.byte_symbols()
  assert len(set(symbols)) == 256
  assert (symbols[ord('a')], symbols[ord(' ')], symbols[ord('\n')]) == ('a', 'Ġ', 'Ċ')


def test_words_add_up_to_the_text():
  text = "It's  1 naïve_test, isn't it?\n\n end "
  assert ''.join(bpe.split_words(text)) == text


def test_merges_go_by_rank_and_from_the_left():
  vocabulary = {token: place for place, token in enumerate(['a', 'b', 'aa', 'ab', 'aab', 'ba'])}
  encode = bpe.Encoder(vocabulary, ['a a', 'aa b', 'a b', 'b a']).encode
  assert encode('aaab') == [vocabulary['aa'], vocabulary['ab']]
  assert encode('aabab') == [vocabulary['aab'], vocabulary['ab']]
  assert encode('bac') == [vocabulary['ba'], -1]
  assert encode('') == []


def test_too_small_a_vocabulary_is_refused():
  with pytest.raises(ValueError, match='vocabulary_size'):
    bpe.train(['a'], 256)
