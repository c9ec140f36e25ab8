# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the rounds of a private run begin, through kills and resumes; no training."""

import json

import numpy as np
import pytest

import privacy
from privacy import accounting, events
from tasks import dp_settings, privacy_guard
from tasks.checkpoints import RunState
from tasks.config import RunConfig
from tasks.errors import UserError

_CLIENTS, _COORDINATES = 40, 1000


@pytest.fixture(name='open_guard')
def open_guard_fixture(tmp_path):
  """Opens the guard of a run, as each process of it does."""

  def open_guard(state=None, **changes):
    settings = {'privacy': 'tree', 'min_separation': 4, 'noise_multiplier': 1.0, **changes}
    config = RunConfig(clients_per_round=5, rounds=8, **settings)
    config = dp_settings.settle(config, _CLIENTS, _COORDINATES)
    guard = privacy_guard.build_guard(config, _CLIENTS, tmp_path)
    guard.open(state)
    return guard

  return open_guard


@pytest.fixture(name='places')
def places_fixture(tmp_path):
  """Round, tree and leaf of every start in the ledger."""
  return lambda: [tuple(start) for start in privacy.Ledger(tmp_path / 'ledger.jsonl').starts]


def _state(guard, number):
  return RunState(number, None, np.zeros(_CLIENTS, np.int32), **guard.anchor())


def test_rounds_of_a_tree_are_its_leaves(open_guard, places):
  guard = open_guard()
  starts = [guard.start_round(number) for number in range(1, 6)]
  assert places() == [(n, 0, n - 1) for n in range(1, 6)]
  assert not any(start.fresh_noise for start in starts)
  # Nobody twice within four rounds, everybody of the first again in the fifth.
  assert len(set().union(*(start.cohort for start in starts[:4]))) == 20
  assert all(len(start.cohort) == 5 for start in starts)


def test_round_that_was_never_released_is_the_same_leaf_again(open_guard, places):
  guard = open_guard()
  first, state = guard.start_round(1), _state(guard, 1)
  guard.release(1)
  second = guard.start_round(2)
  again = open_guard(state)
  assert again.start_round(2) == second
  assert places() == [(1, 0, 0), (2, 0, 1), (2, 0, 1)]
  third = again.start_round(3)
  assert places()[-1] == (3, 0, 2)
  assert not set(third.cohort) & {*first.cohort, *second.cohort}


def test_first_round_may_be_done_again_too(open_guard, places):
  guard = open_guard()
  first = guard.start_round(1)
  assert open_guard().start_round(1) == first
  assert places() == [(1, 0, 0), (1, 0, 0)]


def test_released_round_that_is_done_again_starts_another_tree(open_guard, places):
  guard = open_guard()
  guard.start_round(1)
  state = _state(guard, 1)
  for number in (2, 3):
    guard.start_round(number)
    guard.release(number)
  open_guard(state)  # Killed again, before it starts anything.
  again = open_guard(state)
  restarted = again.start_round(2)
  assert restarted.fresh_noise
  assert places()[-1] == (2, 1, 0)
  following = again.start_round(3)
  assert not following.fresh_noise
  assert places()[-1] == (3, 1, 1)
  assert not set(restarted.cohort) & set(following.cohort)


def test_the_last_round_counts_as_released_when_it_was(open_guard, places):
  """Its checkpoint was lost after its results were told."""
  guard = open_guard()
  guard.start_round(1)
  state = _state(guard, 1)
  guard.start_round(2)
  guard.release(2)
  assert open_guard(state).start_round(2).fresh_noise
  assert places()[-1] == (2, 1, 0)


def test_first_leaf_of_a_later_tree_is_never_repeated(open_guard, places):
  guard = open_guard()
  guard.start_round(1)
  state = _state(guard, 1)
  guard.start_round(2)
  guard.release(2)
  open_guard(state).start_round(2)
  assert open_guard(state).start_round(2).fresh_noise
  assert places() == [(1, 0, 0), (2, 0, 1), (2, 1, 0), (2, 2, 0)]


def test_trees_restart_as_planned(open_guard, places):
  guard = open_guard(tree_restart_every=3)
  fresh = [guard.start_round(number).fresh_noise for number in range(1, 8)]
  assert places() == [(n, *divmod(n - 1, 3)) for n in range(1, 8)]
  assert fresh == [False, False, False, True, False, False, True]
  spec = dp_settings.spec_of(guard._config)
  assert places() == [(s.round + 1, s.tree, s.leaf) for s in events.planned(spec, 7)]


def test_independent_noise_is_drawn_with_other_clients(open_guard, places):
  changes = {'privacy': 'central', 'min_separation': None}
  guard = open_guard(**changes)
  first = guard.start_round(1)
  again = open_guard(**changes).start_round(1)
  assert first.cohort != again.cohort
  assert places() == [(1, None, None), (1, None, None)]


def test_draw_that_was_not_started_is_drawn_again_as_it_was(open_guard, tmp_path):
  changes = {'privacy': 'central', 'min_separation': None}
  guard = open_guard(**changes)
  begun = (tmp_path / 'ledger.jsonl').read_bytes()
  first = guard.start_round(1)
  # A kill between the two files.
  (tmp_path / 'ledger.jsonl').write_bytes(begun)
  assert open_guard(**changes).start_round(1).cohort == first.cohort
  assert len((tmp_path / 'secrets' / 'draws.jsonl').read_text().splitlines()) == 1


def test_torn_line_counts_and_the_run_goes_on(open_guard, tmp_path):
  guard = open_guard()
  guard.start_round(1)
  state = _state(guard, 1)
  with open(tmp_path / 'ledger.jsonl', 'a') as file:
    file.write('{"config_sha')
  again = open_guard(state)
  again.start_round(2)
  ledger = privacy.Ledger(tmp_path / 'ledger.jsonl')
  assert [entry['kind'] for entry in ledger.rounds] == ['round', 'torn', 'round']
  assert ledger.rounds[-1]['leaf'] == 1


@pytest.mark.parametrize('kind', ['central', 'tree'])
def test_budget_stops_before_the_round_that_would_pass_it(tmp_path, kind):
  separation = 4 if kind == 'tree' else None
  config = RunConfig(
    privacy=kind, min_separation=separation, noise_multiplier=1.0, clients_per_round=5, rounds=8,
    delta=0.001,
  )  # fmt: skip
  spec = dp_settings.spec_of(dp_settings.settle(config, _CLIENTS, _COORDINATES))
  # In a fifth round clients of the first come again: up to it a tree's cost only grows by nodes.
  cost = [
    accounting.claimed_epsilon(spec, events.planned(spec, number), 0.001) for number in range(1, 9)
  ]
  last = max(number for number in range(1, 9) if cost[number - 1] <= cost[3])
  settings = {**config.to_json(), 'target_epsilon': cost[3] * 1.0001}
  config = dp_settings.settle(RunConfig(**settings), _CLIENTS, _COORDINATES)
  guard = privacy_guard.build_guard(config, _CLIENTS, tmp_path)
  guard.open(None)
  number = 1
  while not guard.reason_to_stop(number):
    guard.start_round(number)
    number += 1
  assert number - 1 == last
  assert '--target-epsilon' in guard.reason_to_stop(number)


def test_seeded_runs_have_the_same_cohorts(open_guard, tmp_path):
  changes = {'privacy': 'central', 'min_separation': None, 'insecure_seeded_noise': True}
  first = open_guard(**changes).start_round(1)
  for path in (tmp_path / 'ledger.jsonl', tmp_path / 'secrets' / 'draws.jsonl'):
    path.unlink()
  assert open_guard(**changes).start_round(1) == first
  assert not (tmp_path / 'secrets' / 'sampling').exists()


def test_errors_of_a_round_go_to_a_secret_file(open_guard, tmp_path):
  guard = open_guard()
  with pytest.raises(UserError, match=r'error\.log') as caught, guard.silence():
    raise RuntimeError('loss 8.125 of client 7')
  assert '8.125' not in str(caught.value)
  log = tmp_path / 'secrets' / 'error.log'
  assert log.stat().st_mode & 0o777 == 0o600
  assert '8.125' in json.loads(log.read_text())


def test_without_privacy_cohorts_follow_the_seed(tmp_path):
  config = RunConfig(clients_per_round=5)
  guard = privacy_guard.build_guard(config, _CLIENTS, tmp_path)
  guard.open(None)
  assert guard.start_round(3) == guard.start_round(3)
  assert guard.start_round(3) != guard.start_round(4)
  assert not list(tmp_path.iterdir())
