# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import pathlib
import shutil
import sqlite3
import urllib.error

import pytest
import tensorflow_federated as tff

from tasks import config, errors, federated_text, stackoverflow, task

_SETS = {'1': 'train', '2': 'train', '3': 'heldout', '4': 'heldout', '5': 'heldout', '6': 'test'}


@pytest.fixture(scope='module')
def database(tmp_path_factory):
  """TFF's synthetic part as a file of its format; user 1 is its first one, user 2 its second."""
  synthetic = tff.simulation.datasets.stackoverflow.get_synthetic()
  path = tmp_path_factory.mktemp('tff') / 'stackoverflow.sqlite'
  tff.simulation.datasets.save_to_sql_client_data(
    list(_SETS),
    lambda user: synthetic.create_tf_dataset_for_client(f'synthetic_{(int(user) - 1) % 3 + 1}'),
    str(path),
    split_names_by_client_id=_SETS,
  )
  # Who trains may have written later, too; wherever that is in the file.
  for later in (
    'INSERT INTO examples (rowid, split_name, client_id, serialized_example_proto) '
    "SELECT -rowid, 'test', client_id, serialized_example_proto FROM examples "
    "WHERE client_id = '1'",
    "INSERT INTO client_metadata VALUES ('1', 'test', 3)",
  ):
    _changed(later)(path)
  return path


def load(data_dir, cache, **changes):
  settings = config.RunConfig(
    task='stackoverflow', data_dir=None if data_dir is None else str(data_dir), **changes
  )
  return stackoverflow.load_stackoverflow(task.Request(settings, cache, lambda text: None))


def test_sets_of_tff_become_splits_of_people(database, tmp_path):
  data = load(database.parent, tmp_path)
  assert data.kind is federated_text.Kind.TEXT
  assert [sorted(data.split(name)) for name in ('train', 'validation', 'test')] == [
    ['1', '2'], ['4'], ['3', '5'],
  ]  # fmt: skip
  assert any('wrote later is not used' in said for said in data.left_out)


def test_texts_and_their_number_are_those_of_tff(database, tmp_path):
  data = load(database, tmp_path)
  train, *_ = tff.simulation.datasets.stackoverflow.load_data(str(database.parent))
  for name in train.client_ids:
    rows = train.create_tf_dataset_for_client(name).as_numpy_iterator()
    texts = [row['tokens'].decode() for row in rows]
    assert [example.target for example in data.train[name]] == texts
    assert data.train.sizes[name] == len(texts)
    assert {example.source for example in data.train[name]} == {''}


def test_texts_are_read_when_asked_for_and_capped(database, tmp_path, monkeypatch):
  asked = []
  query = stackoverflow._query
  monkeypatch.setattr(stackoverflow, '_query', lambda *a: asked.append(a[1]) or query(*a))
  data = load(database, tmp_path, max_examples=2)
  assert federated_text.sizes(data.train) == {'1': 2, '2': 2}
  assert data.sha256 != load(database, tmp_path).sha256
  assert not [text for text in asked if 'serialized' in text]
  assert len(data.train['1']) == 2
  assert 'absent' not in data.train
  with pytest.raises(KeyError):
    data.train['absent']
  assert any('--max-examples): 4.' in said for said in data.left_out)


def test_a_download_is_moved_into_the_cache(database, tmp_path, monkeypatch):
  monkeypatch.setattr(
    tff.simulation.datasets.stackoverflow,
    'load_data',
    lambda directory: shutil.copy(database, directory),
  )
  assert load(None, tmp_path).train
  assert [path.name for path in (tmp_path / 'stackoverflow').iterdir()] == ['stackoverflow.sqlite']
  monkeypatch.undo()
  assert load(None, tmp_path).train


@pytest.mark.parametrize(
  ('error', 'said'),
  [
    (urllib.error.URLError(OSError(-2, 'Name or service not known')), 'Name or service not known'),
    (sqlite3.DatabaseError('database disk image is malformed'), 'malformed'),
  ],
)
def test_no_network_is_one_line(error, said, tmp_path, monkeypatch):
  def fail(directory):
    (pathlib.Path(directory) / 'stackoverflow.sqlite').write_bytes(b'half of it')
    raise error

  monkeypatch.setattr(tff.simulation.datasets.stackoverflow, 'load_data', fail)
  with pytest.raises(errors.UserError, match=f'cannot be downloaded .*{said}.*--data-dir') as found:
    load(None, tmp_path)
  assert '\n' not in str(found.value)
  assert not list((tmp_path / 'stackoverflow').iterdir())


def _changed(statement):
  def damage(path):
    with sqlite3.connect(path) as connection:
      connection.execute(statement)

  return damage


@pytest.mark.parametrize(
  ('damage', 'said'),
  [
    (lambda path: path.write_bytes(b'text' * 999), 'not a database'),
    (lambda path: path.write_bytes(path.read_bytes()[:8192]), 'malformed'),
    (_changed('DROP TABLE client_metadata'), 'no such table: client_metadata'),
    (_changed("DELETE FROM client_metadata WHERE split_name = 'heldout'"), "the set 'heldout'"),
  ],
)
def test_another_file_is_named(damage, said, database, tmp_path):
  path = tmp_path / 'stackoverflow.sqlite'
  path.write_bytes(database.read_bytes())
  damage(path)
  with pytest.raises(errors.UserError, match=f'{path} is not the Stack Overflow of TFF .*{said}'):
    load(path, tmp_path)


def test_what_a_file_holds_may_be_wrong_further_in(database, tmp_path):
  path = tmp_path / 'stackoverflow.sqlite'
  path.write_bytes(database.read_bytes())
  _changed("UPDATE examples SET serialized_example_proto = x'00'")(path)
  data = load(path, tmp_path)
  with pytest.raises(errors.UserError, match="'1' has a record without tokens"):
    data.train['1']


def test_data_dir_is_that_file_or_a_directory(tmp_path):
  other = tmp_path / 'other.sqlite'
  other.touch()
  with pytest.raises(errors.UserError, match=r'--data-dir .*other.sqlite: it must be'):
    load(other, tmp_path)
