# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import concurrent.futures
import sys

import keras_nlp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import bpe, text

_CORPUS = ['The quick brown fox jumps over the lazy dog.\nIt does so again and again.'] * 4


def _byte_pair_tokenizer():
  vocabulary, merges = bpe.train(_CORPUS, 300)
  return keras_nlp.models.GPT2Tokenizer(vocabulary=vocabulary, merges=merges)


@pytest.fixture(scope='module', name='whole')
def whole_fixture():
  return _byte_pair_tokenizer()


@pytest.fixture(scope='module', name='tokenizer')
def tokenizer_fixture(whole):
  return text.Tokenizer(whole)


# NUL, U+096C and surrogates are what keras-nlp cannot represent.
_ANY = st.text(
  st.characters(exclude_characters='\x00\u096c', exclude_categories=['Cs']), max_size=40
)
_PROSE = st.text(alphabet="the fox'sdog 1_.\n-", max_size=40)
_SPACES = st.text(alphabet="a'1.\n\t\r\f\x0b\x1c\x85\u00a0\u2009\u3000é ", max_size=30)


@given(st.one_of(_ANY, _PROSE, _SPACES))
def test_encoding_by_word_equals_encoding_the_whole(tokenizer, whole, string):
  expected = whole(string).numpy().tolist() if string else []
  assert tokenizer.encode(string) == expected


@given(st.one_of(_ANY, _PROSE, _SPACES))
def test_decoding_inverts_encoding(tokenizer, string):
  assert tokenizer.decode(tokenizer.encode(string)) == string


def test_threads_share_it(whole, monkeypatch):
  monkeypatch.setattr(text, '_MAX_KNOWN', 20)
  shared = text.Tokenizer(whole)
  texts = [f'{word} {number}' for number in range(60) for word in _CORPUS[0].split()]
  expected = [shared.encode(string) for string in texts]
  interval = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)
  try:
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
      for encoded in threads.map(lambda _: [shared.encode(string) for string in texts], range(4)):
        assert encoded == expected
  finally:
    sys.setswitchinterval(interval)


def test_digits_of_any_kind_are_one_word():
  # keras-nlp reads '1²' as one number; the standard library would split it before the square.
  vocabulary = {symbol: place for place, symbol in enumerate(bpe.byte_symbols())}
  vocabulary |= {'1Â': 256, bpe.END_OF_TEXT: 257}
  whole = keras_nlp.models.GPT2Tokenizer(vocabulary=vocabulary, merges=['1 Â'])
  assert text.Tokenizer(whole).encode('a 1² b') == whole('a 1² b').numpy().tolist()
  assert 256 in text.Tokenizer(whole).encode('a 1² b')


@pytest.mark.parametrize(
  'string',
  [
    'a\nb\n\n c  d\t\te \n',
    'naïve — ∑ 中文 😀',
    'a\u00a0b \u3000 c',
    '  lead',
    "isn't\r\n ok",
    ' x',
  ],
)
def test_white_space_and_other_scripts_survive(tokenizer, whole, string):
  assert tokenizer.encode(string) == whole(string).numpy().tolist()
  assert tokenizer.decode(tokenizer.encode(string)) == string


def test_batches_are_the_single_texts(tokenizer):
  strings = ['The fox.', '', 'again\nand', 'The fox.']
  batch = tokenizer.encode_batch(strings)
  assert batch == [tokenizer.encode(string) for string in strings]
  assert tokenizer.decode_batch(batch) == strings
  assert tokenizer.encode_batch([]) == []
  assert tokenizer.decode_batch([]) == []


def test_known_words_are_not_asked_for_again(whole, monkeypatch):
  tokenizer = text.Tokenizer(whole)
  tokenizer.encode('The quick fox')
  monkeypatch.setattr(tokenizer, '_words', bpe.Encoder({}, []))
  assert -1 not in tokenizer.encode('The quick quick fox')
  assert -1 in tokenizer.encode('The slow fox')


@pytest.mark.parametrize('string', ['Hi,  you\n\nthere\t', 'naïve 中文', '— 😀 ½²', 'a\x0b\x1cb'])
def test_keras_nlp_is_not_asked_for_ordinary_text(whole, monkeypatch, string):
  tokenizer = text.Tokenizer(whole)
  expected = whole(string).numpy().tolist()
  monkeypatch.setattr(tokenizer, '_tokenizer', None)
  assert tokenizer.encode(string) == expected


def test_half_a_character_becomes_a_replacement(tokenizer):
  assert tokenizer.decode(tokenizer.encode('é')[:1]) == '\ufffd'


def test_a_tokenizer_that_is_not_byte_pair_is_asked_for_whole_texts():
  class Characters:
    end_token_id = 1
    pad_token_id = 2

    def __call__(self, strings):
      assert all('fox' not in string or string == 'a fox' for string in strings)
      return keras_nlp.tokenizers.UnicodeCodepointTokenizer()(strings)

    def vocabulary_size(self):
      return 1000

  tokenizer = text.Tokenizer(Characters())
  assert tokenizer.encode('a fox') == [ord(character) for character in 'a fox']
  assert tokenizer.vocabulary_size == 1000
  assert tokenizer.pad_token_id == 2


def test_words_are_forgotten_when_there_are_too_many(whole, monkeypatch):
  monkeypatch.setattr(text, '_MAX_KNOWN', 3)
  tokenizer = text.Tokenizer(whole)
  strings = ['The quick brown fox', 'jumps over the dog.', 'The fox']
  assert [tokenizer.encode(string) for string in strings] == [
    whole(string).numpy().tolist() for string in strings
  ]
  assert len(tokenizer._known) == 2


@pytest.mark.parametrize(
  ('attributes', 'start_ids', 'end'),
  [
    ({'end_token_id': 5, 'start_token_id': 5, 'start_token': bpe.END_OF_TEXT}, [], 5),  # GPT-2
    ({'end_token_id': 5, 'start_token_id': 5, 'start_token': '</s>'}, [5], 5),  # OPT
    ({'end_token_id': 5, 'start_token_id': 0}, [0], 5),  # XLM-R
    ({'sep_token_id': 5, 'cls_token_id': 3}, [3], 5),  # BERT
    ({'end_token_id': 5}, [], 5),
  ],
)
def test_what_surrounds_a_text_is_that_of_the_model(attributes, start_ids, end):
  class Characters(keras_nlp.tokenizers.UnicodeCodepointTokenizer):
    pass

  characters = Characters()
  for name, value in attributes.items():
    setattr(characters, name, value)
  tokenizer = text.Tokenizer(characters)
  assert (tokenizer.start_ids, tokenizer.end_token_id) == (start_ids, end)


def test_bad_arguments_are_named(whole):
  with pytest.raises(ValueError, match='separator'):
    text.Tokenizer(whole, separator='')
  with pytest.raises(ValueError, match='end_token_id'):
    text.Tokenizer(keras_nlp.tokenizers.UnicodeCodepointTokenizer())
