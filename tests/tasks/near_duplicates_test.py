# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import pytest

from tasks import near_duplicates


def test_normalise_keeps_words_only():
  assert near_duplicates.normalise('  Computes `tf.Sum`,\nTWICE!') == 'computes tf sum twice'


def test_shingles_are_the_runs_of_words():
  assert len(near_duplicates.shingles('one two three four five six', 5)) == 2
  assert near_duplicates.shingles('One, two', 5) == near_duplicates.shingles('one two', 5)
  assert near_duplicates.shingles(' -- ', 5) == frozenset()


def test_shingles_do_not_depend_on_the_process():
  assert near_duplicates.shingles('a b c', 3) == {0xC82E0DD0}


def test_coverage_counts_what_any_text_before_had():
  index = near_duplicates.ShingleIndex(width=2, threshold=0.5)
  index.update(['a b c', 'd e f'])
  assert index.coverage('a b c') == 1
  assert index.coverage('a b x e f') == 0.5
  assert index.coverage('x y z') == 0


@pytest.mark.parametrize(
  ('text', 'repeats'), [('a b c d x', True), ('a b c x y', True), ('a b x y z', False)]
)
def test_the_threshold_decides(text, repeats):
  index = near_duplicates.ShingleIndex(width=2, threshold=0.5)
  index.add('a b c d e')
  assert index.repeats(text) is repeats


def test_a_text_without_words_is_a_repeat():
  assert near_duplicates.ShingleIndex().repeats('---')


@pytest.mark.parametrize(
  ('arguments', 'name'), [({'width': 0}, 'width'), ({'threshold': 0.0}, 'threshold')]
)
def test_bad_arguments_are_named(arguments, name):
  with pytest.raises(ValueError, match=name):
    near_duplicates.ShingleIndex(**arguments)
