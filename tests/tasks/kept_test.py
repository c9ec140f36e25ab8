# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is kept is what was made, and nothing else is ever used."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import hetlora_tff
from tasks import cache as cache_lib
from tasks import kept as kept_lib
from tasks.kept import kept
from tests.hetlora_tff import toy_model

KIND = 'word'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A new cache, in which everything is worth a file."""
  monkeypatch.delenv('HETLORA_KEPT', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(kept_lib, '_WORTH_SECONDS', -1.0)
  return tmp_path / 'hetlora_tff' / 'kept'


@pytest.fixture(name='file')
def file_fixture(cache):
  """What is kept for no parts: 1."""
  kept(KIND, [], lambda: 1)
  (file,) = (cache / KIND).iterdir()
  return file


def _never():
  raise AssertionError('It was made again.')


def test_is_made_once_for_the_same_parts():
  assert kept(KIND, [1, 'a'], lambda: {'x': 2}) == {'x': 2}
  assert kept(KIND, [1, 'a'], _never) == {'x': 2}
  assert kept(KIND, [1, 'b'], lambda: 3) == 3
  assert kept('other', [1, 'a'], lambda: 4) == 4


def test_other_software_makes_its_own(monkeypatch):
  kept(KIND, [], lambda: 1)
  monkeypatch.setattr(kept_lib, 'software', lambda: 'newer')
  assert kept(KIND, [], lambda: 2) == 2


def test_what_was_cut_altered_or_can_be_written_by_others_is_made_anew(cache):
  def file_of(value):
    assert kept(KIND, [], lambda: value) == value
    (file,) = (cache / KIND).iterdir()
    return file

  file = file_of(1)
  assert file.stat().st_mode & 0o077 == 0
  os.truncate(file, file.stat().st_size - 1)
  data = bytearray(file_of(2).read_bytes())
  data[-2] ^= 4
  file.write_bytes(data)
  file_of(3).chmod(0o620)
  file_of(4)
  assert kept(KIND, [], _never) == 4


def test_nobody_else_may_look_into_its_directories_or_write_to_them(cache, file):
  for directory in (cache, file.parent):
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o770)
    assert kept(KIND, [], lambda: 2) == 2
    directory.chmod(0o700)
    assert kept(KIND, [], _never) == 1


def test_a_link_to_a_file_is_none(file):
  other = file.with_name('other')
  file.rename(other)
  file.symlink_to(other)
  assert kept(KIND, [], lambda: 2) == 2
  assert kept(KIND, [], _never) == 2


def test_a_file_is_read_that_was_checked(cache, file, monkeypatch, tmp_path):
  """Another one takes its name as soon as it is open."""
  stranger = tmp_path / 'stranger'
  kept('other', [], lambda: 666)
  (others,) = (cache / 'other').iterdir()
  stranger.write_bytes(others.read_bytes())
  stranger.chmod(0o622)
  check = kept_lib._check_ours

  def swap(path):
    check(path)
    if not isinstance(path, pathlib.Path):
      stranger.replace(file)

  monkeypatch.setattr(kept_lib, '_check_ours', swap)
  assert kept(KIND, [], _never) == 1
  assert kept(KIND, [], lambda: 2) == 2


def test_a_cache_that_can_only_be_read_serves(file, monkeypatch):
  def refused(*args):
    raise PermissionError(13, 'Read-only file system')

  monkeypatch.setattr(os, 'utime', refused)
  assert kept(KIND, [], _never) == 1


@pytest.mark.parametrize('broken', ['own_cache_directory', 'replace_file'])
def test_without_a_place_values_are_made(monkeypatch, broken):
  def raises(*args, **kwargs):
    raise RuntimeError('Could not determine home directory.')

  where = cache_lib if broken == 'own_cache_directory' else kept_lib
  monkeypatch.setattr(where, broken, raises)
  assert [kept(KIND, [], lambda value=value: value) for value in (1, 2)] == [1, 2]


def test_errors_are_those_of_making_and_a_cache_that_cannot_be_written_is_none(cache, monkeypatch):
  with pytest.raises(ZeroDivisionError):
    kept(KIND, [], lambda: 1 // 0)
  cache.mkdir(parents=True)
  (cache / KIND).write_text('in the way')
  assert kept(KIND, [], lambda: 1) == 1
  # It cannot be pickled.
  assert kept('other', [], lambda: lambda: 5)() == 5


def test_quick_work_is_not_kept_and_the_oldest_goes(cache, monkeypatch):
  monkeypatch.setattr(kept_lib, '_MOST_FILES', 2)
  for number in range(4):
    kept(KIND, [number], lambda number=number: number)
    for file in (cache / KIND).iterdir():
      os.utime(file, (number, number))
  kept(KIND, [4], lambda: 4)
  assert len(list((cache / KIND).iterdir())) == 2
  monkeypatch.setattr(kept_lib, '_WORTH_SECONDS', 60.0)
  kept('quick', [], lambda: 1)
  assert not (cache / 'quick').exists()


@pytest.mark.usefixtures('tff_runtime')
def test_a_process_from_the_cache_is_the_one_that_was_built():
  def build():
    optimizer = tff.learning.optimizers.build_sgdm(0.1)
    return hetlora_tff.build_hetlora_process(
      toy_model.LinearModel(), toy_model.CONFIG, client_optimizer=optimizer
    )

  built, found = kept(KIND, [], build), kept(KIND, [], _never)
  for one, other in ((built.initialize, found.initialize), (built.next, found.next)):
    assert one.type_signature.is_equivalent_to(other.type_signature)
  assert found.sizes.upload(1) == built.sizes.upload(1)
  clients = [toy_model.client_data(rank, toy_model.examples(rank, 2)) for rank in (1, 3)]
  outputs = [process.next(process.initialize(), clients) for process in (built, found)]
  # The same containers, too: programs take them apart by name.
  tf.nest.assert_same_structure(*outputs, check_types=True)
  for one, other in zip(*map(tf.nest.flatten, outputs), strict=True):
    np.testing.assert_array_equal(one, other)
  weights = [p.get_model_weights(o.state) for p, o in zip((built, found), outputs, strict=True)]
  tf.nest.assert_same_structure(*weights, check_types=True)
