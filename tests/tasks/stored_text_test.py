# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import functools
import os
import pathlib
import sqlite3

import pytest

from tasks import federated_text, stored_text
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.federated_text import Example, Kind
from tasks.records import BadRecord, LeftOut, Record
from tasks.task import Request

_BAD = (
  BadRecord('FILE, line 3', 'is not JSON: Expecting value at column 1'),
  BadRecord('FILE, line 4', "has no field 'text': it has none", 'name another'),
  BadRecord('FILE, line 9', 'is not JSON: Extra data at column 7'),
)


def _records(clients, each=2):
  """Turn by turn, so that no client's records are next to each other."""
  return [
    Record(f'client_{client:02d}', Example(f's{turn}', f't{client}.{turn}'))
    for turn in range(each)
    for client in range(clients)
  ]


class _World:
  """A task whose records are in a list and not in its file."""

  def __init__(self, directory: pathlib.Path):
    self.file = directory / 'data.jsonl'
    self.file.write_text('...')
    self.cache = directory / 'cache'
    self.records: list = _records(10)
    self.readings = 0
    self.said: list[str] = []

  def entries(self):
    self.readings += 1
    return iter(self.records)

  def load(self, kind=Kind.PAIR, shares_clients=False, **changes):
    given = {'task': 'mine:OWN', 'data_dir': str(self.file), **changes}
    request = Request(RunConfig(**given), self.cache, self.said.append)
    return stored_text.load(
      request, 'own', self.entries, [self.file], kind=kind, shares_clients=shares_clients
    )


@pytest.fixture
def world(tmp_path):
  return _World(tmp_path)


def test_clients_are_split_and_their_records_in_order(world):
  data = world.load()
  everybody = {**data.train, **data.validation, **data.test}
  assert everybody == {
    f'client_{c:02d}': [Example('s0', f't{c}.0'), Example('s1', f't{c}.1')] for c in range(10)
  }
  names = federated_text.split_clients(sorted(everybody), 0)
  assert [list(part) for part in (data.train, data.validation, data.test)] == [*map(sorted, names)]
  assert federated_text.sizes(data.train) == dict.fromkeys(sorted(names[0]), 2)
  assert data.left_out == ()


def test_the_records_decide_where_they_name_a_split(world):
  world.records = [
    Record('ann', Example('a', 'b'), 'train'),
    Record('ann', Example('c', 'd'), 'test'),
    Record('bob', Example('e', 'f'), 'validation'),
  ]
  data = world.load(shares_clients=True)
  assert data.train == {'ann': [Example('a', 'b')]}
  assert data.validation == {'bob': [Example('e', 'f')]}
  assert data.test == {'ann': [Example('c', 'd')]}


def test_a_second_load_reads_the_cache_whatever_the_seed_and_the_caps(world):
  first = world.load()
  again = world.load()
  other = world.load(seed=1, min_examples=2, max_examples=1)
  assert world.readings == 1
  assert again.sha256 == first.sha256 != other.sha256
  assert {len(examples) for examples in other.train.values()} == {1}


@pytest.mark.parametrize(
  'change', ['size', 'time', 'copy', 'skip', 'labels', 'kind', 'code', 'damage']
)
def test_what_the_records_follow_from_makes_them_read_anew(world, change, monkeypatch):
  world.load()
  keys = {}
  match change:
    case 'size':
      written = world.file.stat().st_mtime_ns
      world.file.write_text('.' * 9)
      os.utime(world.file, ns=(written, written))
    case 'time':
      os.utime(world.file, ns=(1, 1))
    case 'copy':  # Of the same length and time.
      status = world.file.stat()
      world.file.write_text(',,,')
      os.utime(world.file, ns=(status.st_atime_ns, status.st_mtime_ns))
    case 'skip':
      keys['skip_bad_records'] = True
    case 'labels':
      keys['labels'] = ('a', 'b')
    case 'kind':
      keys['kind'] = Kind.TEXT
    case 'code':
      monkeypatch.setattr(stored_text.inspect, 'getsource', lambda module: 'another')
    case 'damage':
      (store,) = world.cache.rglob('*.sqlite')
      os.truncate(store, 4096)
  world.load(**keys)
  assert world.readings == 2
  world.load(**keys)
  assert world.readings == 2


def test_files_that_change_while_they_are_read_are_refused(world, monkeypatch):
  def changing():
    world.file.write_text('changed')
    return iter(_records(10))

  steady = world.entries
  monkeypatch.setattr(world, 'entries', changing)
  with pytest.raises(UserError, match=r'--data-dir .*data.jsonl changed while it was read; start'):
    world.load()
  monkeypatch.setattr(world, 'entries', steady)
  world.load()
  assert world.readings == 1
  world.file.unlink()
  with pytest.raises(UserError, match=r'Cannot read .*data.jsonl: No such file or directory\.'):
    world.load()


def test_changed_files_replace_what_was_stored_of_them(world):
  world.load()
  world.file.write_text('changed')
  world.load()
  assert len(list(world.cache.rglob('*.sqlite'))) == 1


def test_a_generator_with_arguments_is_known_by_its_code(world):
  outer = functools.partial(functools.partial(_World.entries), world)
  assert stored_text._made_of(outer, []) == stored_text._made_of(world.entries, [])


def test_a_bad_record_ends_the_run(world):
  world.records.insert(3, _BAD[0])
  with pytest.raises(UserError) as refusal:
    world.load()
  assert str(refusal.value) == (
    'FILE, line 3: is not JSON: Expecting value at column 1; mend it, or --skip-bad-records counts '
    'and skips such records.'
  )
  world.records[3] = _BAD[1]
  with pytest.raises(UserError, match='it has none; name another, or --skip-bad-records'):
    world.load()


def test_a_message_is_one_short_line(world):
  world.records = [BadRecord('FILE, line 1', "has no field 'a': it has \x1b[31m" + 'k, ' * 10_000)]
  with pytest.raises(UserError) as refusal:
    world.load()
  assert len(str(refusal.value)) < 500
  assert str(refusal.value).isprintable()


def test_bad_records_are_counted_by_problem_and_told_again_from_the_cache(world):
  world.records += _BAD
  expected = ("Bad records skipped: is not JSON (2), has no field 'text' (1).",)
  assert world.load(skip_bad_records=True).left_out == expected
  assert world.load(skip_bad_records=True).left_out == expected
  assert world.readings == 1


def test_a_repeated_id_is_a_bad_record(world):
  world.records += [
    Record('ann', Example('a', 'b'), key=key, where=f'FILE, line {line}')
    for line, key in enumerate(['x', 'y', None, None, 'x'], 1)
  ]
  with pytest.raises(UserError, match=r"FILE, line 5: repeats an id: 'x' is of FILE, line 1; mend"):
    world.load()
  data = world.load(skip_bad_records=True)
  assert data.left_out == ('Bad records skipped: repeats an id (1).',)
  (ann,) = [split['ann'] for split in (data.train, data.validation, data.test) if 'ann' in split]
  assert len(ann) == 4


def test_a_private_run_does_not_skip_a_record_for_another_clients(world):
  world.records += [
    Record(client, Example('a', 'b'), key='x', where=f'FILE, line {line}')
    for line, client in enumerate(['ann', 'ann', 'bob', 'eve'], 1)
  ]
  public = world.load(skip_bad_records=True)
  assert public.left_out == ('Bad records skipped: repeats an id (3).',)
  private = {'privacy': 'central', 'noise_multiplier': 1.0}
  with pytest.raises(UserError) as refusal:
    world.load(skip_bad_records=True, **private)
  assert str(refusal.value) == (
    "FILE, line 3: repeats an id: 'x' is of FILE, line 1, of another client, which no private run "
    'may skip; mend it.'
  )
  del world.records[-2:]
  world.file.write_text('changed')
  assert world.load(skip_bad_records=True, **private)


def test_small_clients_and_what_is_beyond_the_cap_are_counted(world):
  world.records += [Record('chatty', Example('', f't{n}')) for n in range(5)]
  world.records += [Record('shy', Example('', 't')), LeftOut('Bots'), LeftOut('Bots')]
  data = world.load(min_examples=2, max_examples=3)
  everybody = {**data.train, **data.validation, **data.test}
  assert 'shy' not in everybody
  assert [example.target for example in everybody['chatty']] == ['t0', 't1', 't2']
  assert data.left_out == (
    'Bots: 2.',
    'Clients with fewer than 2 examples (--min-examples): 1, with 1 examples.',
    'Examples beyond the first 3 of a client (--max-examples): 2.',
  )


def test_a_client_counts_in_all_its_splits(world):
  world.records = [
    Record('ann', Example('a', 'b'), 'train'),
    Record('ann', Example('c', 'd'), 'test'),
    Record('bob', Example('e', 'f'), 'train'),
  ]
  data = world.load(shares_clients=True, min_examples=2)
  assert [list(data.train), list(data.test)] == [['ann'], ['ann']]


def test_nobody_left_is_refused_with_the_reasons(world):
  with pytest.raises(UserError) as refusal:
    world.load(min_examples=3)
  assert str(refusal.value) == (
    f'--data-dir {world.file}: --task own finds no client to train with --min-examples 3 there. '
    'Clients with fewer than 3 examples (--min-examples): 10, with 20 examples.'
  )
  world.records = [_BAD[1]] * 7
  with pytest.raises(UserError, match=r"skipped: has no field 'text' \(7\)\.$"):
    world.load(skip_bad_records=True)


def test_labels_are_all_targets_or_those_that_are_listed(world):
  world.records = [
    Record(f'c{n}', Example('text', label)) for n, label in enumerate(['no', 'yes', 'no', 'maybe'])
  ]
  assert world.load(kind=Kind.LABEL).labels == ('maybe', 'no', 'yes')
  listed = ('yes', 'no', 'maybe', 'never')
  assert world.load(kind=Kind.LABEL, labels=listed).labels == listed


def test_a_field_that_is_no_label_is_refused(world):
  for label, shown in (('same', "'same'"), ('x' * 999, f"'{'x' * 36}...")):
    world.records = [Record('c', Example('text', label))] * 3
    world.file.write_text(label)
    with pytest.raises(UserError, match=f'finds one label, {shown} there; is --label-field the'):
      world.load(kind=Kind.LABEL)
  world.file.write_text('changed')
  world.records = [Record('c', Example('text', str(n))) for n in range(1500)]
  with pytest.raises(UserError, match='finds more than 1000 labels there'):
    world.load(kind=Kind.LABEL)


def test_reading_for_long_says_how_far_it_is(world, monkeypatch):
  clock = iter(range(0, 1000, 4))
  monkeypatch.setattr(stored_text.time, 'monotonic', lambda: next(clock))
  world.records = _records(1000, each=4)
  world.load()
  assert world.said
  assert world.said[0] == 'Reading mine:OWN: 1,000 records so far ...'


def test_a_cache_that_cannot_be_used_is_named(world, monkeypatch):
  (world.cache).write_text('a file')
  with pytest.raises(UserError, match=r'The cache .*text cannot be used: .*set HETLORA_CACHE'):
    world.load()
  world.cache.unlink()

  def full(*unused):
    raise sqlite3.OperationalError('database or disk is full')

  monkeypatch.setattr(stored_text.text_store, 'write_store', full)
  with pytest.raises(UserError, match=r'disk is full; set HETLORA_CACHE .* SQLITE_TMPDIR'):
    world.load()
