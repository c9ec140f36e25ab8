# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shamir's secret sharing of 32 bytes over a prime field.

A secret is the value at 0 of a random polynomial of degree `threshold - 1`, a share its value at
another point: fewer than `threshold` of them say nothing. The time it takes depends on the numbers,
which a party on the same machine may see.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence

from privacy.secagg import errors

# The smallest one above 2^256, so that every secret of 32 bytes is an element.
PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, points: Iterable[int]) -> dict[int, bytes]:
  """The shares of a secret.

  Args:
    secret: 32 bytes.
    threshold: how many shares it takes.
    points: distinct, from 1 on; one share each.
  """
  constant = int.from_bytes(secret, 'big')
  coefficients = [*(secrets.randbelow(PRIME) for _ in range(threshold - 1)), constant]
  shares = {}
  for point in points:
    value = 0
    for coefficient in coefficients:
      value = (value * point + coefficient) % PRIME
    shares[point] = value.to_bytes(SHARE_BYTES, 'big')
  return shares


def is_share(share: bytes) -> bool:
  """Whether 33 bytes are an element of the field."""
  return int.from_bytes(share, 'big') < PRIME


class Recovery:
  """Recovers secrets from shares; shares at the same points cost less after the first time."""

  def __init__(self, threshold: int):
    self._threshold = threshold
    self._weights: dict[tuple[int, ...], list[int]] = {}

  def __call__(self, shares: Mapping[int, bytes]) -> bytes:
    """The secret.

    Args:
      shares: by their points; those at the lowest `threshold` points are taken.

    Raises:
      BelowThresholdError: if there are too few.
      ReconstructionError: if they are not of one secret of 32 bytes.
    """
    points = tuple(sorted(shares))[: self._threshold]
    if len(points) < self._threshold:
      raise errors.BelowThresholdError(
        f'{len(points)} shares of a secret are there, {self._threshold} are needed.'
      )
    if points not in self._weights:
      self._weights[points] = _weights_at_zero(points)
    values = (int.from_bytes(shares[point], 'big') for point in points)
    secret = sum(w * v for w, v in zip(self._weights[points], values, strict=True)) % PRIME
    if secret >> (8 * SECRET_BYTES):
      raise errors.ReconstructionError('Shares do not belong to one secret.')
    return secret.to_bytes(SECRET_BYTES, 'big')


def _weights_at_zero(points: Sequence[int]) -> list[int]:
  """Lagrange's weights: with them, the values at these points sum to that at 0."""
  weights = []
  for point in points:
    above = below = 1
    for other in points:
      if other != point:
        above = above * other % PRIME
        below = below * (other - point) % PRIME
    weights.append(above * pow(below, -1, PRIME) % PRIME)
  return weights
