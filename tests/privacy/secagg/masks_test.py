# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Masks cancel, and no two of them have a key in common."""

import numpy as np
import pytest

from privacy.secagg import masks, primitives

_CONTEXT = b'c' * 32


def _zeros(word='<u4', length=1000):
  return np.zeros(length, word)


@pytest.mark.parametrize('word', ['<u4', '<u8'])
def test_masks_of_a_pair_cancel(word):
  one, other = (primitives.AgreementKey.generate() for _ in range(2))
  keys = [
    masks.pair_key(_CONTEXT, 3, one, 8, other.public),
    masks.pair_key(_CONTEXT, 8, other, 3, one.public),
  ]
  assert keys[0] == keys[1]
  vector = _zeros(word)
  masks.add_pair(vector, keys[0], 3, 8)
  assert np.unique(vector).size > 990
  masks.add_pair(vector, keys[1], 8, 3)
  assert not vector.any()


def test_mask_comes_off_again():
  vector = np.arange(1000, dtype='<u8')
  masks.add(vector, b'k' * 32)
  masks.subtract(vector, b'k' * 32)
  np.testing.assert_array_equal(vector, np.arange(1000))


def test_keys_differ_in_the_session_and_in_who_they_are_of():
  one, other = (primitives.AgreementKey.generate() for _ in range(2))
  keys = [
    masks.pair_key(context, *ids)
    for context in (_CONTEXT, b'd' * 32)
    for ids in ((0, one, 1, other.public), (0, one, 2, other.public), (1, one, 2, other.public))
  ]
  keys += [masks.self_key(c, i, one.private) for c in (_CONTEXT, b'd' * 32) for i in (0, 1)]
  assert len(set(keys)) == len(keys)


def test_pieces_of_a_mask_are_one_stream():
  length = masks._PIECE_BYTES // 4 + 100
  vector = _zeros(length=length)
  masks.add(vector, b'k' * 32)
  assert vector.tobytes() == primitives.keystream(b'k' * 32, 0, 4 * length)
