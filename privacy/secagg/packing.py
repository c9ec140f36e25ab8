# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Vectors of integers in just the bits that they need.

A vector is cut into eight runs; the eight values at one place of each run make `bits` bytes, which
go to `bits` planes of bytes. Runs and planes lie in one piece, so NumPy works on whole rows.
"""

from collections.abc import Iterator

import numpy as np

from privacy.secagg import errors

_RUNS = 8


def packed_bytes(length: int, bits: int) -> int:
  """How many bytes a packed vector has: at most seven values more than there are."""
  return bits * _run_length(length)


def pack(values: np.ndarray, bits: int) -> bytes:
  """Packs a vector.

  Args:
    values: `[d]`, unsigned, below `2^bits`.
    bits: of one value, at most those of its type.
  """
  length = _run_length(values.size)
  runs = np.zeros((_RUNS, length), values.dtype)
  runs.ravel()[: values.size] = values
  planes = np.zeros((bits, length), np.uint8)
  for run, plane, shift in _pieces(bits):
    # A cast to bytes keeps the lowest eight bits.
    piece = runs[run] >> shift if shift >= 0 else runs[run] << -shift
    planes[plane] |= piece.astype(np.uint8)
  return planes.tobytes()


def unpack(data: bytes | memoryview, length: int, bits: int, word: np.dtype) -> np.ndarray:
  """Inverse of `pack`.

  Args:
    data: as many bytes as `packed_bytes` says.
    length: of the vector.
    bits: of one value.
    word: type of the result.

  Raises:
    MalformedMessageError: if a vector was not packed like this.
  """
  planes = np.frombuffer(data, np.uint8).reshape(bits, _run_length(length))
  runs = np.zeros((_RUNS, _run_length(length)), word)
  for run, plane, shift in _pieces(bits):
    piece = planes[plane].astype(word)
    runs[run] |= piece << shift if shift >= 0 else piece >> -shift
  runs &= word.type((1 << bits) - 1)
  if np.any(runs.ravel()[length:]):
    raise errors.MalformedMessageError('A packed vector is longer than it should be.')
  return runs.ravel()[:length]


def _run_length(length: int) -> int:
  return -(-length // _RUNS)


def _pieces(bits: int) -> Iterator[tuple[int, int, int]]:
  """Which run has bits in which plane, and how far above the plane's its lowest bit is."""
  for run in range(_RUNS):
    first, last = run * bits // 8, ((run + 1) * bits - 1) // 8
    yield from ((run, plane, 8 * plane - run * bits) for plane in range(first, last + 1))
