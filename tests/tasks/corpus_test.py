# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import pytest

from tasks import corpus, docstrings, errors, federated_text, harvest

_HELD = 'Trains the model on data of the client for one epoch.'
_OWN = 'Draws a line between the two given points of a figure.'


@pytest.fixture
def installed(monkeypatch):
  """Stands in for the installed environment: docstrings, long strings and READMEs."""
  parts = {'docstrings': [], 'long_strings': [], 'read_me': ''}
  monkeypatch.setattr(corpus, 'CORPUS_DISTRIBUTIONS', ('demo',))
  monkeypatch.setattr(harvest, 'version', lambda name: '1' if name == 'demo' else None)
  monkeypatch.setattr(
    harvest,
    'docstrings',
    lambda name: (harvest.Docstring('m', 'f', text) for text in parts['docstrings']),
  )
  monkeypatch.setattr(harvest, 'long_strings', lambda name: iter(parts['long_strings']))
  monkeypatch.setattr(harvest, 'read_me', lambda name: parts['read_me'])
  return parts


def _clients(source='nothing', target='at all'):
  return {'client': [federated_text.Example(source, target)]}


def test_all_kinds_of_text_come_once(installed):
  installed['docstrings'] = [_OWN]
  installed['long_strings'] = [_OWN, 'A second text\nof five words.\n\nAnd a paragraph.']
  installed['read_me'] = 'Read me before you use this.'
  assert corpus.build_corpus(_clients()) == [
    _OWN,
    'A second text of five words.\nAnd a paragraph.',
    'Read me before you use this.',
  ]


@pytest.mark.parametrize('held', [{'source': f'fit: {_HELD}'}, {'target': _HELD}])
def test_what_a_client_holds_is_taken_out(installed, held):
  installed['docstrings'] = [f'{_OWN}\n\n{_HELD} Twice.', _HELD]
  assert corpus.build_corpus(_clients(**held)) == [_OWN]


def test_near_copies_are_taken_out(installed):
  installed['docstrings'] = [_OWN, f'{_OWN} Again.', 'Too short.']
  assert corpus.build_corpus(_clients()) == [_OWN]


def test_the_checksum_sees_text_order_and_borders():
  base = corpus.checksum(['a b', 'c'])
  assert base == corpus.checksum(['a b', 'c'])
  assert len({base, *map(corpus.checksum, (['c', 'a b'], ['a bc'], ['a b', 'd']))}) == 4


def test_a_missing_distribution_is_named(installed, monkeypatch):
  monkeypatch.setattr(corpus, 'CORPUS_DISTRIBUTIONS', ('demo', 'absent'))
  with pytest.raises(errors.UserError, match='absent'):
    corpus.build_corpus(_clients())


def test_no_distribution_is_of_both_sides():
  clients = {*docstrings.CLIENT_DISTRIBUTIONS, 'tf-keras'}
  assert not clients & set(corpus.CORPUS_DISTRIBUTIONS)
  assert len(set(corpus.CORPUS_DISTRIBUTIONS)) == len(corpus.CORPUS_DISTRIBUTIONS)
