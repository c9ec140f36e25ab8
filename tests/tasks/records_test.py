# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import gzip
import itertools
import os
import re
import tracemalloc

import pytest

from tasks import records
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.records import BadRecord

_GOOD = b'{"user": "ann", "text": "caf\xc3\xa9"}\n'


def _config(path):
  return RunConfig(task='text_jsonl', data_dir=str(path), client_field=('u',), text_field='t')


def _read(tmp_path, content, name='data.jsonl'):
  path = tmp_path / name
  path.write_bytes(content)
  return path, list(records.json_lines(path))


@pytest.mark.parametrize('name', ['data.jsonl', 'data.txt.gz'])
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_lines_are_read_whatever_the_name_and_the_packing(tmp_path, name, pack):
  path, found = _read(tmp_path, pack(b'\xef\xbb\xbf' + _GOOD + b'\n  \r\n{"user": "bob"}'), name)
  assert found == [
    (f'{path}, line 1', {'user': 'ann', 'text': 'café'}),
    (f'{path}, line 4', {'user': 'bob'}),
  ]


@pytest.mark.parametrize(
  ('line', 'problem'),
  [
    (b'{"user": "ann",}', 'is not JSON: .* at column 16'),
    (b'{"user": "ann"', 'is not JSON: .* at column 16'),
    (b'{"user": "a\xffn"}', 'is not UTF-8: byte 0xff at column 12'),
    (b'{"user": "\\ud83d"}', 'has half a character'),
    (b'{"\\uDE00": "ann"}', 'has half a character'),
    (b'["ann"]', 'is not a JSON object'),
    (b'null', 'is not a JSON object'),
    (b'""', 'is not a JSON object'),
    pytest.param(b'{"n": ' + b'1' * 5000 + b'}', 'is not JSON: .*digits', id='long'),
    pytest.param(b'[' * 100_000, 'is not JSON: .*recursion', id='deep'),
  ],
)
def test_a_bad_line_is_named_and_the_next_one_read(tmp_path, line, problem):
  path, (first, bad, last) = _read(tmp_path, _GOOD + line + b'\n' + _GOOD)
  assert (first[0], last[0]) == (f'{path}, line 1', f'{path}, line 3')
  assert isinstance(bad, BadRecord)
  assert bad.where == f'{path}, line 2'
  assert re.match(problem, bad.problem), bad.problem


def test_a_line_that_is_too_long_is_not_held(tmp_path, monkeypatch):
  monkeypatch.setattr(records, '_MOST_BYTES', len(_GOOD))
  long = b'{"user": "' + b'a' * 200
  path, found = _read(tmp_path, _GOOD + long + b'\n' + _GOOD + long)
  wheres = [f'{path}, line {number}' for number in (1, 2, 3, 4)]
  assert [where for where, *_ in found] == wheres
  problem = f'is longer than {len(_GOOD)} bytes'
  assert found[1::2] == [BadRecord(where, problem) for where in wheres[1::2]]


def test_a_file_whose_name_is_not_utf_8_is_named_in_text_that_is(tmp_path):
  _, ((where, _), _) = _read(tmp_path, _GOOD + b'?', os.fsdecode(b'caf\xe9'))
  assert where.endswith(r'caf\xe9, line 1')


def test_whole_characters_beyond_the_first_plane_are_no_halves(tmp_path):
  _, found = _read(tmp_path, b'{"text": "\\ud83d\\ude00"}')
  assert found[0][1] == {'text': '\N{GRINNING FACE}'}


def test_files_that_cannot_be_read_to_their_end_are_named(tmp_path):
  lines = b''.join(b'{"number": %d}\n' % n for n in range(1000))
  packed = gzip.compress(lines)
  with pytest.raises(UserError, match=r'data.jsonl is damaged after line \d+: .*fetch it again'):
    _read(tmp_path, packed[: len(packed) // 2])
  broken = bytearray(packed)
  broken[-6] ^= 1
  with pytest.raises(UserError, match=r'is damaged after line \d+: CRC'):
    _read(tmp_path, bytes(broken))
  with pytest.raises(UserError, match='is packed with zip; unpack it'):
    _read(tmp_path, b'PK\x03\x04' + lines)
  with pytest.raises(UserError, match=r'Cannot read .*absent: No such file'):
    list(records.json_lines(tmp_path / 'absent'))


def test_no_more_than_a_line_is_held(tmp_path):
  path = tmp_path / 'long.jsonl.gz'
  with gzip.open(path, 'wb', compresslevel=1) as file:
    for _ in range(200):
      file.write(b'{"text": "' + b'word ' * 20_000 + b'"}\n')
  tracemalloc.start()
  assert sum(len(value['text']) for _, value in records.json_lines(path)) == 20_000_000
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 6_000_000


def test_a_field_is_its_text_or_what_is_wrong_with_it():
  value = {'text': ' hello ', 'none': None, 'empty': '', 'blank': ' \n', 'list': ['x' * 99]}
  assert records.field(value, 'text', 'here') == ' hello '
  problems = {
    'none': "has no text in 'none': null",
    'empty': "has an empty 'empty'",
    'blank': "has an empty 'blank'",
    'list': "has no text in 'list': " + ('["' + 'x' * 99)[:37] + '...',
    'txt': "has no field 'txt': it has text, none, empty, blank, list",
  }
  for name, problem in problems.items():
    assert records.field(value, name, 'here') == BadRecord('here', problem)
  assert 'it has none' in records.field({}, 'text', 'here').problem


def test_an_identity_is_text_or_a_number():
  assert records.identity({'id': 17}, ['id'], 'here') == '17'
  assert records.identity({'play': 'lear', 'who': 'FOOL'}, ['play', 'who'], '') == 'lear/FOOL'
  for wrong, problem in (
    (True, 'neither text nor a whole number'),
    (1.5, 'whole'),
    (' ', 'an empty'),
  ):
    assert problem in records.identity({'id': wrong}, ['id'], '').problem
  assert "no field 'who'" in records.identity({'play': 'lear'}, ['play', 'who'], '').problem


def test_different_fields_are_different_identities():
  texts = ['a', '/', '\\', 'a/', '/a', '\\/', '\\\\']
  pairs = list(itertools.product(texts, repeat=2))
  found = {records.identity({'a': a, 'b': b}, ['a', 'b'], '') for a, b in pairs}
  assert len(found) == len(pairs)


def test_files_are_found(tmp_path):
  for name in ('b.jsonl', 'a.jsonl.gz', '.hidden.jsonl', 'note.md', 'inner/c.jsonl'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  patterns = ['*.jsonl', '*.jsonl.gz', 'inner/*', '*.jsonl']
  found = records.data_files(_config(tmp_path), patterns)
  assert [str(path.relative_to(tmp_path)) for path in found] == [
    'a.jsonl.gz',
    'b.jsonl',
    'inner/c.jsonl',
  ]
  assert records.data_files(_config(tmp_path / 'note.md'), patterns) == [tmp_path / 'note.md']


def test_no_file_and_a_file_twice_are_refused(tmp_path):
  with pytest.raises(UserError, match=r'--data-dir .*absent: there is no such file or directory'):
    records.data_files(_config(tmp_path / 'absent'), ['*.jsonl'])
  with pytest.raises(UserError, match=r'--data-dir .*: there is no \*.jsonl or \*.json in it'):
    records.data_files(_config(tmp_path), ['*.jsonl', '*.json'])
  with pytest.raises(UserError, match='--data-dir is missing: --task mine:OWN'):
    records.data_files(RunConfig(task='mine:OWN'), ['*.jsonl'])
  for name in ('a.jsonl', 'a.jsonl.gz'):
    (tmp_path / name).touch()
  with pytest.raises(UserError, match=r'a.jsonl and a.jsonl.gz are the same; keep one'):
    records.data_files(_config(tmp_path), ['*.jsonl', '*.jsonl.gz'])


def test_what_cannot_be_looked_at_is_named(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(UserError, match=r'--data-dir .*pipe: it is neither a file nor a directory'):
    records.data_files(_config(tmp_path / 'pipe'), ['*.jsonl'])
  with pytest.raises(UserError, match=r'--data-dir .*xxx: File name too long\.'):
    records.data_files(_config(tmp_path / ('x' * 300)), ['*.jsonl'])
  with pytest.raises(UserError, match=r'--data-dir .*: embedded null byte\.'):
    records.data_files(_config(tmp_path / 'a\0b'), ['*.jsonl'])

  def forbidden(path):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr(records.os, 'scandir', forbidden)
  with pytest.raises(UserError, match=r'--data-dir .*: Permission denied\.'):
    records.data_files(_config(tmp_path), ['*.jsonl'])
