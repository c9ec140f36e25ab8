# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import keras_nlp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import bpe
from tasks.federated_text import Example, Kind
from tasks.packing import Packer, Side
from tasks.text import Tokenizer

_CORPUS = ['The quick brown fox jumps over the lazy dog.\nIt does so again and again.'] * 4
_LENGTH = 32
_ROOM = 10  # Of the target, in such a row.
_START = 3  # '$', as it happens.


@pytest.fixture(scope='module', name='tokenizer')
def tokenizer_fixture():
  vocabulary, merges = bpe.train(_CORPUS, 300)
  return Tokenizer(keras_nlp.models.GPT2Tokenizer(vocabulary=vocabulary, merges=merges))


@pytest.fixture(scope='module', name='with_start')
def with_start_fixture(tokenizer):
  """A tokenizer whose model starts every text with a token."""
  other = Tokenizer(tokenizer.keras_tokenizer)
  other.start_ids = [_START]
  return other


def _packer(tokenizer, kind=Kind.PAIR, **changes):
  return Packer(tokenizer, kind=kind, **{'sequence_length': _LENGTH, **changes})


def _example(source='The fox.', target='A dog.', head=''):
  return Example(source, target, head)


def _tokens(packed, row=0):
  return packed['token_ids'][row, packed['padding_mask'][row] == 1].tolist()


def _source(packer, tokenizer, example):
  """The tokens of a prompt before its separator."""
  ids = _tokens(packer.prompts([example]))
  separator = tokenizer.separator_ids
  assert ids[-len(separator) :] == separator
  return ids[: -len(separator)]


def _scored(packed):
  """The tokens that are predicted with loss, row by row."""
  return [
    [int(ids[place + 1]) for place in np.flatnonzero(weights)]
    for ids, weights in zip(packed['token_ids'], packed['loss_weights'], strict=True)
  ]


def test_a_row_is_source_separator_target_end(tokenizer):
  packed = _packer(tokenizer).rows([_example()])
  ids, mask = packed['token_ids'][0], packed['padding_mask'][0]
  source, target = tokenizer.encode('The fox.'), tokenizer.encode(' A dog.')
  row = [*source, *tokenizer.separator_ids, *target, tokenizer.end_token_id]
  assert ids[: len(row)].tolist() == row
  assert mask.tolist() == [1] * len(row) + [0] * (_LENGTH - len(row))
  assert set(ids[len(row) :]) == {tokenizer.pad_token_id}
  assert _scored(packed) == [[*target, tokenizer.end_token_id]]
  assert tokenizer.decode(row).startswith('The fox.\n=> A dog.')


@pytest.mark.parametrize('kind', [Kind.PAIR, Kind.TEXT])
def test_types_and_shapes(tokenizer, kind):
  packer = _packer(tokenizer, kind)
  packed = packer.rows([_example(target='The quick brown fox. ' * 20)] * 3)
  assert list(packed) == ['token_ids', 'padding_mask', 'loss_weights']
  assert [str(packed[key].dtype) for key in packed] == ['int32', 'int32', 'float32']
  rows = len(packed['token_ids'])
  assert rows == 3 if kind is Kind.PAIR else rows > 3
  assert all(value.shape == (rows, _LENGTH) for value in packed.values())
  assert packer.rows([])['loss_weights'].shape == (0, _LENGTH)


def test_a_long_source_leaves_the_room_of_the_target(tokenizer):
  packer, long = _packer(tokenizer), _example(source='The fox. ' * 50)
  assert _scored(packer.rows([long])) == _scored(packer.rows([_example()]))
  assert packer.prompts([long])['padding_mask'].sum() == _LENGTH - _ROOM


def test_a_long_target_is_cut_and_has_no_end(tokenizer):
  packed = _packer(tokenizer).rows([_example(source='x' * 99, target='dog ' * 99)])
  assert packed['loss_weights'].sum() == _ROOM
  assert packed['padding_mask'].all()
  assert packed['loss_weights'][0, -1] == 0
  assert tokenizer.end_token_id not in packed['token_ids']


@pytest.mark.parametrize('truncate', ['start', 'end'])
@pytest.mark.parametrize('source', ['', 'The fox.', 'The fox. ' * 50])
@pytest.mark.parametrize('head', ['', 'I am a fox.'])
def test_prompts_are_how_training_rows_begin(with_start, head, source, truncate):
  packer, example = _packer(with_start, truncate_source=truncate), _example(source, head=head)
  prompt, packed = packer.prompts([example]), packer.rows([example])
  length = prompt['padding_mask'].sum()
  assert prompt['token_ids'][0, :length].tolist() == packed['token_ids'][0, :length].tolist()
  assert prompt['token_ids'][0, 0] == _START
  assert np.flatnonzero(packed['loss_weights'])[0] == length - 1
  assert list(prompt) == ['token_ids', 'padding_mask']
  assert length <= _LENGTH - _ROOM


def test_sources_are_cut_on_the_side_that_is_asked_for(tokenizer):
  source = 'The quick brown fox jumps over the lazy dog. ' * 2
  ids = tokenizer.encode(source)
  room = _LENGTH - _ROOM - len(tokenizer.separator_ids)
  for side, kept in ((Side.START, ids[-room:]), (Side.END, ids[:room])):
    packer = _packer(tokenizer, truncate_source=side)
    assert _source(packer, tokenizer, _example(source)) == kept


def test_a_head_stays_where_the_source_is_cut(tokenizer):
  packer = _packer(tokenizer, truncate_source='start')
  source = 'The quick brown fox jumps over the lazy dog. ' * 2
  room = _LENGTH - _ROOM - len(tokenizer.separator_ids)
  head, long = tokenizer.encode('It does.\n'), tokenizer.encode('It does so again. ' * 9)
  kept = _source(packer, tokenizer, _example(source, head='It does.'))
  assert kept == head + tokenizer.encode(source)[len(head) - room :]
  kept = _source(packer, tokenizer, _example(source, head='It does so again. ' * 9))
  newline = tokenizer.encode('\n')
  half = room // 2
  assert kept == long[: half - 1] + newline + tokenizer.encode(source)[half - room :]
  # What the source leaves free is the head's.
  kept = _source(packer, tokenizer, _example('The fox.', head='It does so again. ' * 9))
  assert (len(kept), kept[-len(tokenizer.encode('The fox.')) :]) == (
    room,
    tokenizer.encode('The fox.'),
  )


@given(texts=st.lists(st.text(alphabet='the fox.', max_size=60), max_size=5))
def test_running_text_predicts_every_token_once_in_full_rows(tokenizer, texts):
  packed = _packer(tokenizer, Kind.TEXT).rows([Example('', text) for text in texts])
  end = tokenizer.end_token_id
  stream = [token for text in texts for token in [*tokenizer.encode(text), end]]
  assert [token for row in _scored(packed) for token in row] == stream
  assert packed['padding_mask'][:-1].all()
  if texts:
    assert packed['token_ids'][0, 0] == end
    assert packed['padding_mask'].sum(axis=1)[-1] > 1


def test_running_text_begins_with_the_start_token(with_start):
  packed = _packer(with_start, Kind.TEXT).rows([Example('', 'The fox.')] * 9)
  rows = len(packed['token_ids'])
  assert packed['token_ids'][0, 0] == _START
  assert [packed['token_ids'][row, 0] for row in range(1, rows)] == [
    packed['token_ids'][row, -1] for row in range(rows - 1)
  ]
  assert (packed['token_ids'] == _START).sum() == 1


def test_a_labelled_row_is_start_text_end_and_the_number(with_start):
  packer = _packer(with_start, Kind.LABEL, labels=('no', 'yes'), truncate_source='start')
  packed = packer.rows([_example('The fox.', 'yes'), _example('again ' * 99, 'no')])
  assert list(packed) == ['token_ids', 'padding_mask', 'labels']
  assert packed['labels'].tolist() == [1, 0]
  assert packed['labels'].dtype == np.int32
  end = with_start.end_token_id
  assert _tokens(packed) == [_START, *with_start.encode('The fox.'), end]
  long = with_start.encode('again ' * 99)
  assert _tokens(packed, 1) == [_START, *long[2 - _LENGTH :], end]
  assert packer.rows([])['labels'].shape == (0,)


def test_special_tokens_in_a_text_are_none(with_start):
  written = _example(f'a {bpe.END_OF_TEXT} $ b', f'c{bpe.END_OF_TEXT}', f'{bpe.END_OF_TEXT} d')
  assert _START in with_start.encode('$')
  ids = _packer(with_start).rows([written])['token_ids'][0]
  assert (ids == with_start.end_token_id).sum() == 1
  assert (ids == _START).sum() == 1


@pytest.mark.parametrize(('length', 'tokens'), [(32, 10), (64, 21), (96, 32), (128, 32)])
def test_room_of_the_target(tokenizer, length, tokens):
  assert _packer(tokenizer, sequence_length=length).max_target_tokens == tokens


def test_the_room_of_the_target_can_be_chosen(tokenizer):
  packer = _packer(tokenizer, max_target_tokens=4)
  packed = packer.rows([_example('The fox. ' * 50, 'dog ' * 99)])
  assert packer.max_target_tokens == packed['loss_weights'].sum() == 4
  assert packed['padding_mask'].all()


def test_bad_arguments_are_named(tokenizer):
  with pytest.raises(ValueError, match='4 tokens are too few'):
    _packer(tokenizer, sequence_length=4)
  with pytest.raises(ValueError, match='1 tokens are too few for a target'):
    _packer(tokenizer, max_target_tokens=1)
  with pytest.raises(ValueError, match='32 tokens are too few for a source and the'):
    _packer(tokenizer, max_target_tokens=32)
  with pytest.raises(ValueError, match='middle'):
    _packer(tokenizer, truncate_source='middle')
  with pytest.raises(ValueError, match="'maybe' is none of the labels no, yes"):
    _packer(tokenizer, Kind.LABEL, labels=('no', 'yes')).rows([_example(target='maybe')])
