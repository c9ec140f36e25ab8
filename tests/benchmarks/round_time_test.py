# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How `make bench` goes on without a rival that fails."""

import pytest

from benchmarks import load, peers, round_time
from tasks.errors import UserError


def _failing(error: Exception, after: int):
  calls = iter([load.Sample(1.0, 0.0)] * after)

  def measure():
    for sample in calls:
      return sample
    raise error

  return round_time.Kind(1, measure)


def _sound():
  return round_time.Kind(1, lambda: load.Sample(2.0, 0.0))


@pytest.mark.parametrize('after', [0, 1])
def test_a_rival_that_fails_is_recorded_and_the_rest_goes_on(after):
  kinds = {
    'ours': _sound(),
    peers.FLOWER: _failing(UserError('out of actors'), after),
    peers.REFERENCE: _sound(),
  }
  said = []
  measured, failed = round_time.alternate(kinds, 3, said.append)
  assert failed == {peers.FLOWER: 'out of actors'}
  assert {name: len(kind.samples) for name, kind in measured.items()} == {
    'ours': 3,
    peers.REFERENCE: 3,
  }
  assert sum(peers.FLOWER in line for line in said) == after + 1


def test_what_is_ours_must_not_fail():
  with pytest.raises(UserError, match='no worker'):
    round_time.alternate({'ours': _failing(UserError('no worker'), 0)}, 3, print)
