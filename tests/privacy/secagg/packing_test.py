# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Vectors in just their bits."""

import numpy as np
import pytest

from privacy.secagg import errors, packing


def _values(length, bits, word):
  rng = np.random.default_rng(bits)
  return rng.integers(0, 1 << bits, length, dtype=np.uint64).astype(word)


@pytest.mark.parametrize('bits', range(1, 63))
def test_what_is_packed_comes_out(bits):
  for word in ('<u4', '<u8') if bits <= 32 else ('<u8',):
    for length in (1, 7, 8, 9, 100):
      values = _values(length, bits, np.dtype(word))
      data = packing.pack(values, bits)
      assert len(data) == packing.packed_bytes(length, bits) == bits * -(-length // 8)
      back = packing.unpack(data, length, bits, np.dtype(word))
      np.testing.assert_array_equal(back, values)
      assert back.dtype == values.dtype


def test_layout_is_that_of_the_docstring():
  # Eight runs of one value: three bits each, the first in the lowest.
  values = np.arange(8, dtype=np.uint32)
  expected = sum(int(value) << (3 * run) for run, value in enumerate(values))
  assert packing.pack(values, 3) == expected.to_bytes(3, 'little')


def test_every_bit_is_used():
  for bits in (3, 17, 33):
    data = bytearray(packing.packed_bytes(16, bits))
    seen = set()
    for index in range(8 * len(data)):
      data[index // 8] ^= 1 << index % 8
      seen.add(packing.unpack(bytes(data), 16, bits, np.dtype('<u8')).tobytes())
      data[index // 8] ^= 1 << index % 8
    assert len(seen) == 16 * bits


def test_values_behind_the_last_are_refused():
  data = packing.pack(np.full(16, 1, np.uint32), 5)
  with pytest.raises(errors.MalformedMessageError, match='longer'):
    packing.unpack(data, 15, 5, np.dtype('<u4'))
