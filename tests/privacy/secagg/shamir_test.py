# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Secret sharing: any threshold of shares gives the secret, fewer give nothing."""

import contextlib
import itertools
import os

import numpy as np
import pytest
import scipy.stats

from privacy.secagg import errors, shamir


def _recover(threshold, shares, points):
  return shamir.Recovery(threshold)({point: shares[point] for point in points})


def test_field_is_one():
  # Fermat's test to many bases, and nothing smaller above 2^256 passes it.
  def is_prime(number):
    return all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7, 11, 13, 17, 19, 23))

  assert is_prime(shamir.PRIME)
  assert not any(is_prime(number) for number in range(2**256, shamir.PRIME))


@pytest.mark.parametrize('secret', [bytes(32), b'\xff' * 32, bytes(31) + b'\x01', bytes(range(32))])
def test_every_threshold_of_shares_gives_the_secret(secret):
  shares = shamir.split(secret, 3, [1, 2, 5, 9, 1000])
  assert all(len(share) == shamir.SHARE_BYTES for share in shares.values())
  for points in itertools.combinations(shares, 3):
    assert _recover(3, shares, points) == secret
  assert _recover(3, shares, shares) == secret


def test_one_share_less_fits_every_secret():
  shares = shamir.split(os.urandom(32), 3, [1, 2, 3])
  values = [int.from_bytes(shares[point], 'big') for point in (1, 2)]
  # For any secret there is a third share that goes with the two.
  for other in (0, 1, 2**256 - 1):
    # The parabola through (0, other), (1, y1) and (2, y2), at 3.
    third = (3 * values[1] - 3 * values[0] + other) % shamir.PRIME
    forged = {**shares, 3: third.to_bytes(shamir.SHARE_BYTES, 'big')}
    assert _recover(3, forged, (1, 2, 3)) == other.to_bytes(32, 'big')


def test_too_few_shares_are_refused():
  shares = shamir.split(os.urandom(32), 3, range(1, 6))
  with pytest.raises(errors.BelowThresholdError, match='2 shares'):
    _recover(3, shares, (1, 4))


@pytest.mark.parametrize('secret', [bytes(32), b'\xff' * 32])
def test_shares_are_uniform_whatever_the_secret_is(secret):
  lowest = [shamir.split(secret, 2, [7])[7][-1] for _ in range(20_000)]
  # Once in a million.
  assert scipy.stats.chisquare(np.bincount(lowest, minlength=256)).pvalue > 1e-6


def test_changed_share_changes_the_secret():
  secret = os.urandom(32)
  shares = shamir.split(secret, 2, [1, 2])
  shares[1] = (int.from_bytes(shares[1], 'big') ^ 1).to_bytes(shamir.SHARE_BYTES, 'big')
  with contextlib.suppress(errors.ReconstructionError):
    assert _recover(2, shares, (1, 2)) != secret


def test_value_that_is_no_secret_is_refused():
  # The line of slope 1 whose value at zero is the largest element of the field, -1.
  shares = {point: (point - 1).to_bytes(shamir.SHARE_BYTES, 'big') for point in (1, 2)}
  with pytest.raises(errors.ReconstructionError):
    _recover(2, shares, (1, 2))


def test_elements_are_told_from_others():
  assert shamir.is_share((shamir.PRIME - 1).to_bytes(33, 'big'))
  assert not shamir.is_share(shamir.PRIME.to_bytes(33, 'big'))
