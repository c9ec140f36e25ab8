# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import errno
import os

import pytest

from tasks.errors import UserError
from tasks.run_directory import METRIC_COLUMNS, RunDirectory

_COLUMNS = ('round', 'loss')


@pytest.fixture(name='directory')
def directory_fixture(tmp_path):
  with RunDirectory(tmp_path / 'run', resume=False) as directory:
    directory.write_json('config.json', {})
    yield directory


def test_columns_are_those_of_the_contract():
  assert METRIC_COLUMNS[0] == 'round'
  promised = 'train_loss eval_loss eval_perplexity upload_bytes download_bytes round_seconds'
  assert set(promised.split()) | {'eval_rouge_l'} <= set(METRIC_COLUMNS)


def test_second_run_in_the_same_directory_is_refused(directory):
  for resume in (False, True):
    with pytest.raises(UserError, match='is in use'):
      RunDirectory(directory.root, resume=resume)
  with pytest.raises(UserError, match='in use by another run'):
    RunDirectory(directory.root, resume=True)


def test_lock_alone_keeps_others_out(tmp_path):
  with (
    RunDirectory(tmp_path / 'run', resume=False),
    pytest.raises(UserError, match='in use by another run'),
  ):
    RunDirectory(tmp_path / 'run', resume=False)


def test_closed_run_can_be_resumed_but_not_started_over(directory):
  directory.close()
  with pytest.raises(UserError, match=r'run is in use; add --resume'):
    RunDirectory(directory.root, resume=False)
  RunDirectory(directory.root, resume=True).close()
  assert (directory.root / 'config.json').exists()


@pytest.mark.parametrize('name', ['thesis.tex', '.hidden', 'metrics.csv'])
def test_directory_with_other_files_is_refused_and_left_alone(tmp_path, name):
  (tmp_path / name).write_text('mine')
  with pytest.raises(UserError, match='choose an empty or new one'):
    RunDirectory(tmp_path, resume=False)
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_resume_needs_a_run(tmp_path):
  for path in (tmp_path, tmp_path / 'nothing'):
    with pytest.raises(UserError, match='holds no run'):
      RunDirectory(path, resume=True)
  assert not (tmp_path / 'nothing').exists()


def test_path_that_cannot_be_a_directory_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'below', tmp_path / ('x' * 300)):
    with pytest.raises(UserError, match=r'(file|x).* (is not a directory|cannot be opened)'):
      RunDirectory(path, resume=False)


def test_run_that_failed_before_its_first_record_leaves_no_trace(tmp_path):
  def fail(path):
    with RunDirectory(path, resume=False) as directory:
      (directory.root / 'worker.log').write_text('...')
      (directory.root / 'checkpoints').mkdir()
      raise UserError('--targets nosuch')

  (tmp_path / 'empty').mkdir()
  for name in ('new', 'empty', 'new'):
    with pytest.raises(UserError, match='nosuch'):
      fail(tmp_path / name)
  assert not (tmp_path / 'new').exists()
  assert list((tmp_path / 'empty').iterdir()) == []


def test_leftovers_of_a_kill_before_the_first_record_do_not_block(tmp_path):
  (tmp_path / '.lock').write_text('')
  (tmp_path / 'worker.log').write_text('...')
  RunDirectory(tmp_path, resume=False).close()


def test_nothing_is_removed_that_others_put_there(tmp_path):
  with RunDirectory(tmp_path / 'run', resume=False) as directory:
    (directory.root / 'notes.txt').write_text('mine')
    (directory.root / 'checkpoints' / 'round_0').mkdir(parents=True)
  assert sorted(p.name for p in directory.root.iterdir()) == ['checkpoints', 'notes.txt']


def test_json_is_replaced_whole_or_not_at_all(directory, monkeypatch):
  directory.write_json('a.json', {'x': 1})

  def full(unused_descriptor):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    directory.write_json('a.json', {'x': 2})
  assert directory.read_json('a.json') == {'x': 1}
  assert not list(directory.root.glob('.*.tmp'))


def test_wrong_json_is_named(directory):
  with pytest.raises(UserError, match=r'Cannot read .*gone\.json'):
    directory.read_json('gone.json')
  (directory.root / 'bad.json').write_text('{')
  with pytest.raises(UserError, match=r'bad\.json is not JSON'):
    directory.read_json('bad.json')


def test_header_comes_once_and_missing_values_are_empty(directory):
  directory.append_rows('m.csv', _COLUMNS, [{'round': 0}])
  directory.append_rows('m.csv', _COLUMNS, [{'round': 1, 'loss': 2.5}, {'round': 2, 'loss': 2}])
  assert (directory.root / 'm.csv').read_text() == 'round,loss\n0,\n1,2.5\n2,2\n'


def test_rounds_to_be_done_again_are_dropped(directory):
  directory.append_rows('m.csv', _COLUMNS, [{'round': n, 'loss': n} for n in (0, 1, 1, 2, 10)])
  assert directory.last_round('m.csv') == 10
  directory.drop_rounds_after('m.csv', 1)
  assert (directory.root / 'm.csv').read_text() == 'round,loss\n0,0\n1,1\n1,1\n'


@pytest.mark.parametrize('torn', ['2', '2,', '1', '', '\n', 'garbage'])
def test_torn_last_line_goes_and_the_next_row_stands_alone(directory, torn):
  directory.append_rows('m.csv', _COLUMNS, [{'round': 0, 'loss': 1}, {'round': 1, 'loss': 1}])
  with open(directory.root / 'm.csv', 'a') as file:
    file.write(torn)
  directory.drop_rounds_after('m.csv', 1)
  directory.append_rows('m.csv', _COLUMNS, [{'round': 2, 'loss': 3}])
  assert (directory.root / 'm.csv').read_text() == 'round,loss\n0,1\n1,1\n2,3\n'


def test_missing_and_empty_tables_have_no_rounds(directory):
  (directory.root / 'empty.csv').write_text('')
  for name in ('gone.csv', 'empty.csv'):
    directory.drop_rounds_after(name, 3)
    assert directory.last_round(name) is None
  assert not (directory.root / 'gone.csv').exists()
