# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import csv
import os

import numpy as np
import pytest
import tensorflow as tf

from tasks import console, privacy_facts, releases
from tasks.errors import UserError
from tasks.releases import Releases
from tasks.run_directory import METRIC_COLUMNS, RunDirectory

_ROW = {
  'train_loss': 2.5, 'round_seconds': 1.26, 'cohort_clients': 2, 'pruned_clients': 0,
  'non_finite_clients': 0, 'mean_rank': 6.5,
}  # fmt: skip
_EVALUATED = {'eval_loss': 1.5, 'eval_perplexity': 4.5, 'eval_client_perplexity_worst_decile': 9.0}
_RANKS = np.array([9, 4, 4], np.int32)


@pytest.fixture(name='directory')
def directory_fixture(tmp_path):
  with RunDirectory(tmp_path / 'run', resume=False) as directory:
    directory.write_json('config.json', {})
    yield directory


@pytest.fixture(name='open_releases')
def open_releases_fixture(directory):
  """How releases of this directory are opened."""

  def open_releases(may_leave=releases.everything, *, tensorboard=False):
    progress = console.Progress()
    return Releases(directory, progress, may_leave=may_leave, tensorboard=tensorboard)

  return open_releases


def _rows(directory, name='metrics.csv'):
  with open(directory.root / name, newline='') as file:
    return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_rounds_become_rows_and_lines(directory, open_releases, capsys):
  told = open_releases()
  assert told.start(None) is False
  told.release(0, _EVALUATED, _RANKS)
  told.release(1, _ROW, np.array([4, 4, 4]), np.array([9, 4]))
  assert [row['round'] for row in _rows(directory)] == ['0', '1']
  assert (_rows(directory)[0]['eval_loss'], _rows(directory)[1]['train_loss']) == ('1.5', '2.5')
  assert _rows(directory, 'ranks.csv') == [
    {'round': '0', 'rank': '4', 'clients': '2'},
    {'round': '0', 'rank': '9', 'clients': '1'},
    {'round': '1', 'rank': '4', 'clients': '3'},
  ]
  base, trained = capsys.readouterr().err.splitlines()
  assert base.startswith('untuned base: held-out perplexity 4.5')
  assert trained == 'round 1: loss 2.500 | 2 clients of rank 4 to 9 | 1.3 s'


@pytest.mark.parametrize('public', [False, True])
def test_private_run_tells_what_is_public_and_nothing_else(
  directory, open_releases, capsys, public
):
  told = open_releases(releases.privacy_boundary(public_held_out=public))
  told.start(None)
  row = dict.fromkeys(METRIC_COLUMNS, 7.5) | {'round': 1, 'column_of_tomorrow': 7.5}
  told.release(1, row, _RANKS, np.array([9, 4]))
  # Those of which the report gives a reason.
  withheld = set(privacy_facts._WITHHELD)
  if public:
    withheld.remove('eval_client_perplexity_worst_decile')
  assert set(_rows(directory)[0]) == set(METRIC_COLUMNS) - withheld
  assert len(_rows(directory, 'ranks.csv')) == 2
  noised, held_out = capsys.readouterr().err.splitlines()
  assert noised == 'round 1: noised'
  assert held_out.startswith('round 1: held-out perplexity 7.5')


def test_round_of_which_nothing_may_leave_has_a_row(directory, open_releases):
  told = open_releases(releases.privacy_boundary(public_held_out=False))
  told.start(None)
  told.release(1, _ROW)
  assert _rows(directory) == [{'round': '1'}]
  assert _rows(directory, 'ranks.csv') == []


def test_a_round_is_whole_with_its_row_of_metrics(directory, open_releases):
  told = open_releases()
  told.start(None)
  for number in range(3):
    told.release(number, _ROW, _RANKS)
  metrics = directory.root / 'metrics.csv'
  metrics.write_text(metrics.read_text()[:-4])  # A kill came in between.
  assert open_releases().start(2) is False
  for name in ('metrics.csv', 'ranks.csv'):
    assert {row['round'] for row in _rows(directory, name)} == {'0', '1'}
  assert open_releases().start(1) is True
  assert open_releases().start(0) is True
  assert [row['round'] for row in _rows(directory)] == ['0']
  open_releases().start(None)
  assert not metrics.exists()


def test_row_of_metrics_comes_last(directory, open_releases, monkeypatch):
  def killed(unused_descriptor):
    raise KeyboardInterrupt

  told = open_releases()
  told.start(None)
  monkeypatch.setattr(os, 'fsync', killed)
  with pytest.raises(KeyboardInterrupt):
    told.release(0, _EVALUATED, _RANKS)
  assert (directory.root / 'ranks.csv').exists()
  assert not (directory.root / 'metrics.csv').exists()


def _points(directory):
  """Values in TensorBoard's files, by name and round."""
  points = collections.defaultdict(list)
  for path in (directory.root / 'tensorboard').iterdir():
    for event in tf.compat.v1.train.summary_iterator(str(path)):
      for value in event.summary.value:
        points[value.tag, event.step].append(tf.make_ndarray(value.tensor))
  return points


def test_tensorboard_has_every_round_once_whoever_wrote_it(directory, open_releases):
  told = open_releases()
  told.start(None)
  for number in range(3):
    told.release(number, {**_ROW, 'train_loss': float(number)}, _RANKS)
  for first in (1, 2):  # Twice resumed, and once more from where it was.
    told = open_releases(tensorboard=True)
    told.start(first)
    told.release(first + 1, {**_ROW, 'train_loss': first + 1.0}, _RANKS)
  del told  # TensorFlow's writer flushes when it goes.
  points = _points(directory)
  losses = {step: values for (name, step), values in points.items() if name == 'metrics/train_loss'}
  assert losses == {0: [0.0], 1: [1.0], 2: [2.0], 3: [3.0]}
  histogram = points['ranks', 3][0]
  assert histogram[:, 2].sum() == len(_RANKS)


def test_tensorboard_of_a_private_run_is_behind_the_same_filter(directory, open_releases):
  told = open_releases(releases.privacy_boundary(public_held_out=False), tensorboard=True)
  told.start(None)
  told.release(1, {**_ROW, **_EVALUATED}, _RANKS, _RANKS)
  del told
  assert {name for name, _ in _points(directory)} == {
    'metrics/round', 'metrics/eval_loss', 'metrics/eval_perplexity', 'ranks',
  }  # fmt: skip


def test_altered_table_is_one_line(directory, open_releases):
  told = open_releases()
  told.start(None)
  told.release(0, _EVALUATED, _RANKS)
  (directory.root / 'metrics.csv').write_text('round,train_loss\n0,much\n')
  with pytest.raises(UserError, match=r'metrics\.csv: line 2'):
    open_releases(tensorboard=True).start(0)


def test_nothing_is_told_before_the_start(open_releases):
  with pytest.raises(ValueError, match='start'):
    open_releases().release(0, {})
