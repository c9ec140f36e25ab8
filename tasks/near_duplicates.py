# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds texts that mostly repeat texts seen before."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

_WORD = re.compile(r'[a-z0-9]+')


def normalise(text: str) -> str:
  """Returns the lower-case alphanumeric words of `text`, joined by single spaces."""
  return ' '.join(_WORD.findall(text.lower()))


def shingles(text: str, width: int) -> frozenset[int]:
  """Returns the hashes of all runs of `width` normalised words; a shorter text is one run.

  The hash is CRC-32, not `hash()`: Python salts that one per process, and the data must be the same
  in every run. Two different runs share a hash with probability 2^-32, far below what matters for a
  majority vote over runs.
  """
  words = _WORD.findall(text.lower())
  if not words:
    return frozenset()
  runs = range(max(1, len(words) - width + 1))
  return frozenset(zlib.crc32(' '.join(words[i : i + width]).encode()) for i in runs)


class ShingleIndex:
  """Remembers the word runs of texts and tells what share of a new text they cover.

  Containment in *everything seen so far* is compared, not similarity to one text: a body stitched
  together from three known ones counts as known.

  Args:
    width: words per run.
    threshold: share of a text's runs, in (0, 1], from which it counts as a near duplicate.

  Raises:
    ValueError: if `width` or `threshold` is out of range.
  """

  def __init__(self, width: int = 5, threshold: float = 0.5):
    if width < 1:
      raise ValueError(f'width must be at least 1, got {width}.')
    if not 0 < threshold <= 1:
      raise ValueError(f'threshold must be in (0, 1], got {threshold}.')
    self._width = width
    self._threshold = threshold
    self._seen: set[int] = set()

  def coverage(self, text: str) -> float:
    """Returns the share of the runs of `text` that were seen; 1 for a text without words."""
    runs = shingles(text, self._width)
    return len(runs & self._seen) / len(runs) if runs else 1.0

  def repeats(self, text: str) -> bool:
    """Returns whether the coverage of `text` reaches the threshold."""
    return self.coverage(text) >= self._threshold

  def add(self, text: str) -> None:
    """Remembers the runs of `text`."""
    self._seen |= shingles(text, self._width)

  def update(self, texts: Iterable[str]) -> None:
    """Remembers the runs of all `texts`."""
    for text in texts:
      self.add(text)
