# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections

import numpy as np
import pytest

from tasks import participation
from tests.integration import tiny_world


def test_cohort_depends_on_seed_and_round_alone():
  assert participation.cohort(50, 10, 3, 7) == participation.cohort(50, 10, 3, 7)
  assert participation.cohort(50, 10, 3, 7) != participation.cohort(50, 10, 3, 8)
  assert participation.cohort(50, 10, 3, 7) != participation.cohort(50, 10, 4, 7)


def test_cohort_is_drawn_without_replacement():
  for number in range(1, 30):
    drawn = participation.cohort(12, 8, 0, number)
    assert len(set(drawn)) == 8
    assert set(drawn) <= set(range(12))
  assert sorted(participation.cohort(6, 6, 0, 1)) == list(range(6))


@pytest.mark.parametrize(
  ('changes', 'most'),
  [
    ({}, 3),
    # An expected 2, of 6 clients.
    ({'privacy': 'central', 'clients_per_round': 2, 'noise_multiplier': 1.0}, 4),
    ({'privacy': 'central', 'clients_per_round': 5, 'noise_multiplier': 1.0}, 6),
    (
      {
        'privacy': 'central', 'clients_per_round': 5, 'noise_multiplier': 1.0, 'audit_canaries': 2,
        'insecure_seeded_noise': True,
      },
      8,
    ),
  ],
)  # fmt: skip
def test_largest_cohort(changes, most):
  assert participation.most_clients(tiny_world.run_config('', **changes), 6) == most


def test_everybody_is_drawn_about_as_often():
  counts = np.bincount(
    [client for number in range(1, 2001) for client in participation.cohort(20, 5, 1, number)],
    minlength=20,
  )
  # Binomial(2000, 1/4): mean 500, standard deviation 19.
  assert np.abs(counts - 500).max() < 5 * 19


def _packed(number):
  return collections.OrderedDict(
    token_ids=np.arange(number)[:, np.newaxis] * np.ones([1, 3], np.int32),
    loss_weights=np.arange(number, dtype=np.float32)[:, np.newaxis],
  )


def _rows(number, **arguments):
  values = {'batch_size': 4, 'local_steps': 3, 'seed': [0, 1, 2], **arguments}
  batches = list(participation.local_batches(_packed(number), **values))
  for batch in batches:
    np.testing.assert_array_equal(batch['token_ids'][:, 0], batch['loss_weights'][:, 0])
  return [batch['loss_weights'].numpy()[:, 0].astype(int).tolist() for batch in batches]


@pytest.mark.parametrize('number', [1, 2, 3, 4, 5, 11, 12, 13, 40])
def test_a_client_takes_all_its_steps_in_full_batches(number):
  rows = _rows(number)
  assert [len(batch) for batch in rows] == [min(4, number)] * 3


@pytest.mark.parametrize('number', [1, 3, 5, 12, 40])
def test_no_example_comes_twice_before_all_came_once(number):
  flat = [row for batch in _rows(number, local_steps=7) for row in batch]
  for start in range(0, len(flat), number):
    one_pass = flat[start : start + number]
    assert len(set(one_pass)) == len(one_pass)


def test_order_is_fresh_in_every_pass_and_repeats_with_its_seed():
  flat = [row for batch in _rows(12, local_steps=6) for row in batch]
  assert flat[:12] != flat[12:]
  assert sorted(flat[:12]) == sorted(flat[12:])
  assert _rows(40) == _rows(40)
  assert _rows(40) != _rows(40, seed=[0, 1, 3])
  assert _rows(40) != _rows(40, seed=[0, 2, 2])


def test_evaluation_sees_every_example_once_in_order():
  batches = list(participation.in_order(_packed(5), 2))
  rows = [batch['loss_weights'].numpy()[:, 0].tolist() for batch in batches]
  assert rows == [[0.0, 1.0], [2.0, 3.0], [4.0]]
