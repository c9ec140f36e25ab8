# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import gzip
import hashlib
import json
import logging

import pytest

from tasks import docstrings, errors, harvest, near_duplicates
from tasks.config import RunConfig
from tasks.federated_text import Example
from tasks.task import Request

_BODY = 'Reads the {0} file number {1} and gives item{1} back to {0} callers who{1} need it{1} now.'


def _entry(module, number, summary='Reads {} number {}.'):
  text = f'{summary.format(module, number)}\n\n{_BODY.format(module, number)}'
  return harvest.Docstring(module, f'read_{module}_{number}', text)


def _installed(modules, each=docstrings.MIN_EXAMPLES):
  return [_entry(f'module{m:03d}', f'n{m}x{n}') for m in range(modules) for n in range(each)]


def _request(cache, seed):
  return Request(RunConfig(seed=seed), cache, print)


@pytest.fixture
def entries(monkeypatch):
  """Stands in for the installed environment; tests put into the list what is installed."""
  found, calls = [], []

  def fake(distribution):
    calls.append(distribution)
    return iter(found if distribution == 'keras' else ())

  monkeypatch.setattr(harvest, 'docstrings', fake)
  monkeypatch.setattr(harvest, 'version', lambda name: '1' if name == 'keras' else None)
  found.extend(_installed(docstrings.MIN_CLIENTS))
  return found, calls


def _texts(split):
  return {text for examples in split.values() for e in examples for text in (e.source, e.target)}


def test_a_docstring_becomes_a_pair():
  entry = harvest.Docstring(
    'm',
    '_to_list',
    'Gives a\nlist.\n\nOne two three four five six.\n\n>>> x\n\nSeven eight nine ten.',
  )
  assert docstrings.to_example(entry) == Example(
    'to list: One two three four five six. Seven eight nine ten.', 'Gives a list.'
  )


@pytest.mark.parametrize(
  'text',
  [
    '',
    'Only a summary of it.',
    'Too short.\n\n' + 'word ' * 10,
    'word ' * 25 + '\n\n' + 'word ' * 10,
    'A short body is left out.\n\n' + 'word ' * 9,
    'The arguments are as follows:\n\n' + 'word ' * 10,
    '1 + 2 == 3 != 4\n\n' + 'word ' * 10,
  ],
)
def test_what_is_no_pair(text):
  assert docstrings.to_example(harvest.Docstring('m', 'f', text)) is None


def test_splits_are_disjoint_and_stable(entries, tmp_path):
  first = docstrings.load_docstring_summarization(_request(tmp_path / 'a', 3))
  again = docstrings.load_docstring_summarization(_request(tmp_path / 'b', 3))
  assert first == again
  assert [len(split) for split in (first.train, first.validation, first.test)] == [80, 10, 10]
  assert list(first.train) == sorted(first.train)
  assert not _texts(first.train) & (_texts(first.validation) | _texts(first.test))


def test_the_seed_changes_the_split_only(entries, tmp_path):
  one = docstrings.load_docstring_summarization(_request(tmp_path, 1))
  two = docstrings.load_docstring_summarization(_request(tmp_path, 2))
  assert set(one.test) != set(two.test)
  merged = [{**data.train, **data.validation, **data.test} for data in (one, two)]
  assert merged[0] == merged[1]


def test_near_copies_stay_with_the_first_holder(entries):
  found, _ = entries
  original = found[0]
  body = original.text.partition('\n\n')[2]
  found[:] = [
    *_installed(2),
    *[_entry('other', n) for n in range(docstrings.MIN_EXAMPLES)],
    harvest.Docstring('other', original.name, f'Another summary here.\n\n{body} Indeed so.'),
    _entry('other', 'fresh', summary='Reads module000 number n0x0!'),
  ]
  clients = docstrings.harvest_clients()
  targets = [example.target for example in clients['other']]
  assert len(targets) == docstrings.MIN_EXAMPLES
  assert 'Another summary here.' not in targets
  assert 'Reads module000 number n0x0!' not in targets


def test_a_short_text_within_a_later_one_is_dropped(entries):
  found, _ = entries
  first, *rest = _installed(1, each=docstrings.MIN_EXAMPLES + 1)
  longer = _entry('other', 'o0', summary='Says it all.')
  body = first.text.partition('\n\n')[2]
  more = ' '.join(f'{longer.name} word{n}' for n in range(40))
  longer = longer._replace(name=first.name, text=f'Says it all.\n\n{body} {more}')
  found[:] = [first, *rest, longer, *[_entry('other', f'p{n}') for n in range(8)]]
  clients = docstrings.harvest_clients()
  summaries = [example.target for examples in clients.values() for example in examples]
  assert 'Says it all.' in summaries
  assert len(summaries) == len(found) - 1


def test_clients_are_neither_small_nor_huge(entries):
  found, _ = entries
  found[:] = [
    *[_entry('small', f's{n}') for n in range(docstrings.MIN_EXAMPLES - 1)],
    *[_entry('huge', f'h{n}') for n in range(docstrings.MAX_EXAMPLES + 5)],
  ]
  clients = docstrings.harvest_clients()
  assert {name: len(examples) for name, examples in clients.items()} == {
    'huge': docstrings.MAX_EXAMPLES
  }


def test_the_harvest_is_cached_with_a_checksum(entries, tmp_path):
  _, calls = entries
  first = docstrings.load_docstring_summarization(_request(tmp_path, 0))
  calls.clear()
  assert docstrings.load_docstring_summarization(_request(tmp_path, 0)) == first
  assert not calls
  (data,) = tmp_path.glob('*.jsonl.gz')
  recorded = (tmp_path / f'{data.name}.sha256').read_text().split()
  assert recorded == [hashlib.sha256(data.read_bytes()).hexdigest(), data.name]
  assert len(list(tmp_path.iterdir())) == 2
  assert data.read_bytes()[4:8] == bytes(4), 'the time stamp of the gzip header'


def _tamper(path):
  rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
  rows[0][2] = 'Something that nobody wrote.'
  path.write_bytes(gzip.compress('\n'.join(map(json.dumps, rows)).encode()))


@pytest.mark.parametrize(
  'damage',
  [
    _tamper,
    lambda path: path.write_bytes(path.read_bytes()[:-20]),
    lambda path: path.with_name(path.name + '.sha256').unlink(),
    lambda path: path.with_name(path.name + '.sha256').write_text(''),
  ],
)
def test_a_damaged_cache_is_harvested_again(entries, tmp_path, caplog, damage):
  first = docstrings.load_docstring_summarization(_request(tmp_path, 0))
  (path,) = tmp_path.glob('*.jsonl.gz')
  intact = path.read_bytes()
  damage(path)
  with caplog.at_level(logging.WARNING):
    assert docstrings.load_docstring_summarization(_request(tmp_path, 0)) == first
  assert 'damaged' in caplog.text
  assert path.read_bytes() == intact


def test_another_environment_has_another_cache(entries, tmp_path, monkeypatch):
  docstrings.load_docstring_summarization(_request(tmp_path, 0))
  monkeypatch.setattr(harvest, 'version', lambda name: '2' if name == 'keras' else None)
  docstrings.load_docstring_summarization(_request(tmp_path, 0))
  assert len(list(tmp_path.glob('*.jsonl.gz'))) == 2


def test_an_environment_with_too_little_text_is_refused(entries, tmp_path):
  found, _ = entries
  found[:] = _installed(docstrings.MIN_CLIENTS - 1)
  with pytest.raises(errors.UserError, match=r'99 modules.*requirements\.txt'):
    docstrings.load_docstring_summarization(_request(tmp_path, 0))


@pytest.mark.slow
def test_the_locked_environment_holds_the_task(tmp_path):
  data = docstrings.load_docstring_summarization(_request(tmp_path, 0))
  splits = data.train, data.validation, data.test
  assert len(data.train) >= 200
  assert min(map(len, splits)) >= 20
  for examples in data.train.values():
    assert docstrings.MIN_EXAMPLES <= len(examples) <= docstrings.MAX_EXAMPLES
  index = near_duplicates.ShingleIndex()
  for split in splits:
    for examples in split.values():
      assert 1 <= len(examples) <= docstrings.MAX_EXAMPLES
      if split is not data.train:
        assert not any(index.repeats(e.source) or index.repeats(e.target) for e in examples)
    index.update(_texts(split))
  assert not any(client.startswith(('tasks', 'hetlora_tff', 'privacy.')) for client in data.train)
