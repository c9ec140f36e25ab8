# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest

from benchmarks import device_plan
from benchmarks.device_plan import Assumptions, Device, Server

# Numbers to follow by hand: a device computes 1 GFLOP/s and moves 1 MB/s down and 0.5 MB/s up.
ASSUMED = Assumptions(
  devices=100,
  rounds=50,
  clients_per_round=10,
  asked_per_update=2.0,
  lost_share=0.0,
  device_gflops=1.0,
  download_mbits=8.0,
  upload_mbits=4.0,
  spread=0.0,
  updates_in_memory=4,
)
DEVICE = Device(*(device_plan.by_rank(lambda rank, c=c: c * rank, 2) for c in (1e9, 2e6, 3e6)))
RANKS = np.repeat([1, 2], 50)


def test_a_device_downloads_trains_and_uploads():
  seconds = device_plan.update_seconds(ASSUMED, DEVICE, RANKS, np.random.default_rng(0))
  np.testing.assert_allclose(seconds, RANKS * (2 + 1 + 6))


def test_a_round_ends_with_the_last_answer_it_waits_for():
  answers = np.arange(20.0)[::-1]
  assert device_plan.round_seconds(ASSUMED, answers, np.random.default_rng(0)) == 9
  assert device_plan.round_seconds(ASSUMED, answers[:9], np.random.default_rng(0)) == np.inf


def test_who_is_lost_is_not_waited_for():
  assumed = Assumptions(clients_per_round=10, asked_per_update=4.0, lost_share=0.5)
  generator = np.random.default_rng(0)
  lengths = [device_plan.round_seconds(assumed, np.arange(40.0), generator) for _ in range(200)]
  # Every second one answers.
  assert np.mean(lengths) == pytest.approx(19.5, rel=0.1)


def test_the_plan_adds_up():
  rounds = np.array([80.0, 100.0, 120.0, np.inf])
  plan = device_plan.plan(ASSUMED, Server(0.5, 30.0, 200.0), DEVICE, RANKS, rounds)
  assert plan['round_download_bytes'] == 20 * 3e6
  assert plan['round_upload_bytes'] == 10 * 4.5e6
  assert plan['total_bytes'] == 50 * (60e6 + 45e6)
  assert plan['turns_of_a_device'] == 50 * 20 / 100
  assert (plan['waiting_seconds'], plan['rounds_given_up']) == (100, 0.25)
  assert (plan['server_seconds'], plan['round_seconds']) == (5, 105)
  assert plan['server_mbits'] == pytest.approx(8 * 105 / 100)
  assert (plan['server_mb'], plan['server_mb_all_at_once']) == (320, 500)
  assert plan['total_hours'] == pytest.approx(50 * 105 / 3600)


@pytest.mark.parametrize(
  ('values', 'flag'),
  [
    ({'lost_share': 1.0}, '--lost-share'),
    ({'asked_per_update': 1.05}, '--asked-per-update'),
    ({'devices': 1000}, '--devices'),
    ({'upload_bits': 12}, '--upload-bits'),
  ],
)
def test_a_plan_that_cannot_be_is_refused_by_its_flag(values, flag):
  with pytest.raises(ValueError, match=flag):
    Assumptions(**values)
