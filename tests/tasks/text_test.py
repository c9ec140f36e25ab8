# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import keras_nlp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import bpe, federated_text, text

_CORPUS = ['The quick brown fox jumps over the lazy dog.\nIt does so again and again.'] * 4
_LENGTH = 32


def _byte_pair_tokenizer():
  vocabulary, merges = bpe.train(_CORPUS, 300)
  return keras_nlp.models.GPT2Tokenizer(vocabulary=vocabulary, merges=merges)


@pytest.fixture(scope='module', name='whole')
def whole_fixture():
  return _byte_pair_tokenizer()


@pytest.fixture(scope='module', name='tokenizer')
def tokenizer_fixture(whole):
  return text.Tokenizer(whole)


def _example(source='The fox.', target='A dog.'):
  return federated_text.Example(source, target)


# NUL, U+096C and surrogates are what keras-nlp cannot represent.
_ANY = st.text(
  st.characters(exclude_characters='\x00\u096c', exclude_categories=['Cs']), max_size=40
)
_PROSE = st.text(alphabet="the fox'sdog 1_.\n-", max_size=40)


@given(st.one_of(_ANY, _PROSE))
def test_encoding_by_word_equals_encoding_the_whole(tokenizer, whole, string):
  expected = whole(string).numpy().tolist() if string else []
  assert tokenizer.encode(string) == expected


@given(st.one_of(_ANY, _PROSE))
def test_decoding_inverts_encoding(tokenizer, string):
  assert tokenizer.decode(tokenizer.encode(string)) == string


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
  monkeypatch.setattr(tokenizer, '_tokenizer', None)
  assert tokenizer.encode('The quick quick fox')
  with pytest.raises(TypeError):
    tokenizer.encode('The slow fox')


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
  packed = text.pack([_example('a fox', 'b')], tokenizer, _LENGTH)
  assert packed['token_ids'][0, -1] == 2


def test_a_row_is_source_separator_target_end(tokenizer):
  packed = text.pack([_example()], tokenizer, _LENGTH)
  ids, mask, weights = (packed[key][0] for key in packed)
  source, target = tokenizer.encode('The fox.'), tokenizer.encode(' A dog.')
  row = [*source, *tokenizer.separator_ids, *target, tokenizer.end_token_id]
  assert ids[: len(row)].tolist() == row
  assert mask.tolist() == [1] * len(row) + [0] * (_LENGTH - len(row))
  scored = [ids[place + 1] for place in np.flatnonzero(weights)]
  assert scored == [*target, tokenizer.end_token_id]
  assert tokenizer.decode(row).startswith('The fox.\n=> A dog.')


def test_types_and_shapes(tokenizer):
  packed = text.pack([_example()] * 3, tokenizer, _LENGTH)
  assert list(packed) == ['token_ids', 'padding_mask', 'loss_weights']
  assert [str(packed[key].dtype) for key in packed] == ['int32', 'int32', 'float32']
  assert all(value.shape == (3, _LENGTH) for value in packed.values())
  assert text.pack([], tokenizer, _LENGTH)['loss_weights'].shape == (0, _LENGTH)


def test_a_long_source_leaves_the_room_of_the_target(tokenizer):
  packed = text.pack([_example(source='The fox. ' * 50)], tokenizer, _LENGTH)
  assert packed['loss_weights'].sum() == len(tokenizer.encode(' A dog.')) + 1
  prompt = text.prompts([_example(source='The fox. ' * 50)], tokenizer, _LENGTH)
  assert prompt['padding_mask'].sum() == _LENGTH - text.max_target_tokens(_LENGTH)


def test_a_long_target_is_cut_and_has_no_end(tokenizer):
  packed = text.pack([_example(source='x' * 99, target='dog ' * 99)], tokenizer, _LENGTH)
  assert packed['loss_weights'].sum() == text.max_target_tokens(_LENGTH)
  assert packed['padding_mask'].all()
  assert packed['loss_weights'][0, -1] == 0
  assert tokenizer.end_token_id not in packed['token_ids']


@pytest.mark.parametrize('source', ['', 'The fox.', 'The fox. ' * 50])
def test_prompts_are_how_training_rows_begin(tokenizer, source):
  example = _example(source=source)
  prompt = text.prompts([example], tokenizer, _LENGTH)
  packed = text.pack([example], tokenizer, _LENGTH)
  length = prompt['padding_mask'].sum()
  assert prompt['token_ids'][0, :length].tolist() == packed['token_ids'][0, :length].tolist()
  assert np.flatnonzero(packed['loss_weights'])[0] == length - 1
  assert list(prompt) == ['token_ids', 'padding_mask']


def test_the_end_token_in_a_text_does_not_end_a_row(tokenizer):
  written = _example(source=f'a {bpe.END_OF_TEXT} b', target=f'c{bpe.END_OF_TEXT}')
  ids = text.pack([written], tokenizer, _LENGTH)['token_ids'][0]
  assert (ids == tokenizer.end_token_id).sum() == 1


@pytest.mark.parametrize(('length', 'tokens'), [(32, 10), (64, 21), (96, 32), (128, 32)])
def test_room_of_the_target(length, tokens):
  assert text.max_target_tokens(length) == tokens


def test_bad_arguments_are_named(tokenizer, whole):
  with pytest.raises(ValueError, match='sequence_length 4'):
    text.pack([_example()], tokenizer, 4)
  with pytest.raises(ValueError, match='separator'):
    text.Tokenizer(whole, separator='')
  with pytest.raises(ValueError, match='end_token_id'):
    text.Tokenizer(keras_nlp.tokenizers.UnicodeCodepointTokenizer())
