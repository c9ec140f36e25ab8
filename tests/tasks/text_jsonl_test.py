# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import gzip
import json

import pytest

from tasks import text_jsonl
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.federated_text import Example, Kind
from tasks.task import Request

_LOAD = {
  'text_jsonl': text_jsonl.load_text_jsonl,
  'text_classification': text_jsonl.load_text_classification,
}
_PAIRS = {'client_field': ('who',), 'source_field': 'post', 'target_field': 'title'}
_TEXT = {'client_field': ('who',), 'text_field': 'post'}
_LABELS = {**_TEXT, 'label_field': 'title', 'task': 'text_classification'}


def _load(path, **changes):
  config = RunConfig(**{'task': 'text_jsonl', 'data_dir': str(path), **changes})
  return _LOAD[config.task](Request(config, path.parent / 'cache', print))


def _write(path, values, pack=bytes):
  lines = ''.join(json.dumps(value, ensure_ascii=False) + '\n' for value in values)
  path.write_bytes(pack(lines.encode()))
  return path


def _values(clients=10, **more):
  return [
    {'who': f'p{c}', 'post': f'post {c}', 'title': f'title {c}', 'extra': [c], **more}
    for c in range(clients)
  ]


def _everybody(data):
  return {**data.train, **data.validation, **data.test}


def test_pairs_are_read(tmp_path):
  data = _load(_write(tmp_path / 'all.txt', _values()), **_PAIRS)
  assert data.kind is Kind.PAIR
  assert _everybody(data) == {f'p{c}': [Example(f'post {c}', f'title {c}')] for c in range(10)}


def test_running_text_of_all_files_in_a_directory_is_read(tmp_path):
  folder = tmp_path / 'data'
  folder.mkdir()
  _write(folder / 'a.jsonl', _values(6))
  _write(folder / 'b.json.gz', _values(8), pack=gzip.compress)
  data = _load(folder, **_TEXT)
  assert data.kind is Kind.TEXT
  assert _everybody(data) == {
    f'p{c}': [Example('', f'post {c}')] * (2 if c < 6 else 1) for c in range(8)
  }


def test_several_fields_name_one_client(tmp_path):
  values = [{**value, 'club': 'chess'} for value in _values(3)] + _values(1, club='go')
  data = _load(_write(tmp_path / 'f', values), **{**_TEXT, 'client_field': ('club', 'who')})
  assert sorted(_everybody(data)) == ['chess/p0', 'chess/p1', 'chess/p2', 'go/p0']


def test_labels_may_be_text_numbers_or_truth_values(tmp_path):
  values = _values(4)
  for value, label in zip(values, ('spam', 3, True, False), strict=True):
    value['title'] = label
  data = _load(_write(tmp_path / 'f', values), **_LABELS)
  assert data.kind is Kind.LABEL
  assert data.labels == ('3', 'false', 'spam', 'true')
  assert _everybody(data)['p2'] == [Example('post 2', 'true')]


@pytest.mark.parametrize(
  ('fields', 'change', 'problem'),
  [
    (_PAIRS, {'who': None}, "has neither text nor a whole number in 'who': null"),
    (_PAIRS, {'post': ' '}, "has an empty 'post'"),
    (_PAIRS, {'title': 7}, "has no text in 'title': 7"),
    (_TEXT, {'post': ''}, "has an empty 'post'"),
    ({**_PAIRS, 'id_field': 'id'}, {}, "has no field 'id': it has who, post, title, extra"),
    ({**_TEXT, 'text_field': 'body'}, {}, "has no field 'body': it has who, post, title, extra"),
    (_LABELS, {'title': 1.5}, "has neither text nor a whole number in 'title': 1.5"),
    (_LABELS, {'title': ''}, "has an empty 'title'"),
    ({**_LABELS, 'labels': ('a', 'b')}, {}, "has a label that --labels does not list: 'title 0'"),
  ],
)
def test_a_bad_line_is_named(tmp_path, fields, change, problem):
  path = _write(tmp_path / 'f', [{**_values(1)[0], **change}])
  with pytest.raises(UserError) as refusal:
    _load(path, **fields)
  mend = 'name another field, mend it' if 'no field' in problem else 'mend it'
  assert str(refusal.value).startswith(f'{path}, line 1: {problem}; {mend}, or --skip-bad')


def test_lines_that_are_no_records_are_named_or_counted(tmp_path):
  path = _write(tmp_path / 'f', _values())
  path.write_bytes(path.read_bytes() + b'{"who": "p0"\n\xff\n')
  with pytest.raises(UserError, match=r'f, line 11: is not JSON: .*; mend it'):
    _load(path, **_TEXT)
  for fields in (_TEXT, _LABELS):
    data = _load(path, skip_bad_records=True, **fields)
    assert len(_everybody(data)) == 10
    assert data.left_out == ('Bad records skipped: is not JSON (1), is not UTF-8 (1).',)


def test_ids_are_unique(tmp_path):
  path = _write(tmp_path / 'f', [{**value, 'id': n % 9} for n, value in enumerate(_values())])
  with pytest.raises(UserError, match=r"f, line 10: repeats an id: '0' is of .*f, line 1; mend"):
    _load(path, id_field='id', **_PAIRS)
  assert len(_everybody(_load(path, **_PAIRS))) == 10


def test_other_fields_of_the_same_file_are_other_data(tmp_path):
  path = _write(tmp_path / 'f', _values())
  one = _load(path, **_TEXT)
  other = _load(path, **{**_TEXT, 'text_field': 'title'})
  assert _everybody(other)['p3'] == [Example('', 'title 3')]
  assert one.sha256 != other.sha256
