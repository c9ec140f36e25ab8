# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Client data with ranks: what is refused, and in which order clients come."""

import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from hetlora_tff.clients import data as data_lib

RANKS = {'ann': 1, 'bob': 3, 'cid': 4}


def dataset():
  """Three clients; every example of a client is its index."""
  return tff.simulation.datasets.TestClientData(
    {
      client: collections.OrderedDict(x=np.full([3], index, np.int32))
      for index, client in enumerate(RANKS)
    }
  ).preprocess(lambda examples: examples.batch(2))


def ranked(max_rank=4):
  return data_lib.with_ranks(dataset(), RANKS, max_rank)


def read(packed):
  """The rank and the batches that a process would see."""
  (rank,) = packed['rank'].as_numpy_iterator()
  return rank, [batch['x'].tolist() for batch in packed['examples'].as_numpy_iterator()]


def test_packs_the_rank_as_a_sequence_beside_the_batches():
  packed = ranked().client_data('bob')
  assert list(packed) == ['rank', 'examples']
  rank, batches = read(packed)
  assert (rank, rank.dtype) == (3, np.int32)
  assert batches == [[1, 1], [1]]


def test_selects_in_the_order_asked_for():
  packed = ranked().select(['cid', 'ann'])
  assert [read(client) for client in packed] == [(4, [[2, 2], [2]]), (1, [[0, 0], [0]])]
  assert ranked().client_ids == ['ann', 'bob', 'cid']


def test_client_without_a_rank_is_named():
  ranks = {'ann': 1, 'cid': 4}
  with pytest.raises(ValueError, match="Client 'bob' has no rank"):
    data_lib.with_ranks(dataset(), ranks)


@pytest.mark.parametrize('rank', [0, -1, 5, 2.5, float('nan'), float('inf')])
def test_rank_that_no_device_can_have_is_refused_by_name(rank):
  with pytest.raises(ValueError, match=r"client 'bob' must be an integer in \[1, 4\], got"):
    data_lib.with_ranks(dataset(), {**RANKS, 'bob': rank}, max_rank=4)


def test_without_max_rank_only_the_lower_bound_is_checked():
  assert data_lib.with_ranks(dataset(), {**RANKS, 'bob': 500}).ranks['bob'] == 500
  with pytest.raises(ValueError, match="client 'bob' must be an integer at least 1, got 0"):
    data_lib.with_ranks(dataset(), {**RANKS, 'bob': 0})


def test_ranks_of_other_clients_are_dropped_and_callers_keep_their_mapping():
  given = {**RANKS, 'zoe': 0}
  data = data_lib.with_ranks(dataset(), given)
  assert data.ranks == RANKS
  given['ann'] = 2
  data.ranks['ann'] = 2
  assert data.ranks == RANKS


def test_unknown_client_is_refused():
  with pytest.raises(ValueError, match="no client 'zoe'"):
    ranked().client_data('zoe')
  with pytest.raises(ValueError, match="no client 'zoe'"):
    ranked().select(['ann', 'zoe'])


def test_device_state_changes_the_cohort_in_its_order_and_nothing_else():
  before = ranked()
  after = before.with_device_state(['cid', 'ann'], [{'rank': np.int32(2)}, {'rank': np.int32(3)}])
  assert after.ranks == {'ann': 3, 'bob': 3, 'cid': 2}
  assert before.ranks == RANKS
  assert read(after.client_data('cid')) == (2, [[2, 2], [2]])


def test_device_state_of_an_unknown_client_is_refused():
  with pytest.raises(ValueError, match="no client 'zoe'"):
    ranked().with_device_state(['ann', 'zoe'], [{'rank': 1}, {'rank': 1}])


@pytest.mark.parametrize('rank', [0, 5, 2.5])
def test_device_state_is_checked_against_max_rank_for_ever(rank):
  moved = ranked().with_device_state(['ann'], [{'rank': 2}])
  with pytest.raises(ValueError, match=r"client 'ann' must be an integer in \[1, 4\]"):
    moved.with_device_state(['ann'], [{'rank': rank}])


def test_device_state_for_another_number_of_clients_is_refused():
  with pytest.raises(ValueError, match='got 1 for 2 clients'):
    ranked().with_device_state(['ann', 'bob'], [{'rank': 1}])
