# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Events of planned and of started rounds."""

import json

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import events
from privacy.events import Start
from privacy.secure_sum import SecureSumSpec
from privacy.spec import Clipping, DpSpec, Mechanism, Relation, Sampling


def _spec(**changes):
  return DpSpec(
    **{'noise_multiplier': 2.0, 'l2_clip_norm': 0.5, 'clients_per_round': 10, **changes}
  )


def _separated(separation, most=None, **changes):
  bounds = {'min_separation': separation, 'max_participations': most}
  return _spec(sampling=Sampling.MIN_SEPARATION, **bounds, **changes)


def _poisson(**changes):
  return _spec(**{'sampling': Sampling.POISSON, 'population_size': 100, **changes})


_GAUSSIAN = dp_accounting.GaussianDpEvent(2.0)
_SAMPLED = dp_accounting.PoissonSampledDpEvent(0.1, _GAUSSIAN)


def _times(event, count):
  return dp_accounting.SelfComposedDpEvent(event, count)


def test_round_of_independent_noise():
  assert events.round_event(_spec(), amplified=False) == _GAUSSIAN
  assert events.round_event(_spec(clipping=Clipping.ADAPTIVE), amplified=False) == _GAUSSIAN
  assert events.round_event(_poisson(), amplified=True) == _SAMPLED
  assert events.round_event(_poisson(), amplified=False) == _GAUSSIAN
  with pytest.raises(ValueError, match='other rounds'):
    events.round_event(_separated(1, mechanism=Mechanism.TREE), amplified=False)


def test_replaced_client_moves_a_sum_twice_as_far():
  for replaced in (_spec(relation=Relation.REPLACE_ONE), _poisson(relation=Relation.REPLACE_ONE)):
    event = events.run_event(replaced, 3, amplified=False)
    assert event == _times(dp_accounting.GaussianDpEvent(1.0), 3)
  tree = _separated(1, mechanism=Mechanism.TREE, relation=Relation.REPLACE_ONE)
  assert events.run_event(tree, 1, amplified=False) == dp_accounting.GaussianDpEvent(1.0)


def _skellam(**changes):
  # S = 0.5 and s = 0.01; d = 25, so that S' = 0.525.
  sums = SecureSumSpec(8, 10, value_range=1.27, l2_clip_norm=0.5, coordinates=25)
  shares = {'secure_sum': sums, 'smallest_cohort': 5, 'mechanism': Mechanism.SKELLAM}
  return _spec(**{**shares, **changes})


@pytest.mark.parametrize('mechanism', [Mechanism.GAUSSIAN, Mechanism.TREE, Mechanism.BANDED])
def test_rounding_takes_from_every_multiplier(mechanism):
  sums = _skellam().secure_sum
  plain, rounded = (
    events.run_event(_separated(4, mechanism=mechanism, secure_sum=each), 9, amplified=False)
    for each in (None, sums)
  )
  if mechanism is Mechanism.GAUSSIAN:
    plain, rounded = plain.event, rounded.event
  assert rounded.noise_multiplier == pytest.approx(plain.noise_multiplier * 0.5 / 0.525)


def test_rounding_takes_from_amplified_rounds_too():
  sums = SecureSumSpec(8, 100, value_range=1.27, l2_clip_norm=0.5, coordinates=25)
  event = events.round_event(_poisson(secure_sum=sums), amplified=True)
  assert event.event.noise_multiplier == pytest.approx(2 * 0.5 / 0.525)


def test_round_of_client_noise_is_in_steps():
  event = events.round_event(_skellam(), amplified=False)
  # z S = 1 is 100 steps, S' is 52.5.
  assert (event.variance, event.l2) == pytest.approx((1e4, 52.5))
  assert event.l1 == pytest.approx(5 * 52.5)
  replaced = events.round_event(_skellam(relation=Relation.REPLACE_ONE), amplified=False)
  assert (replaced.variance, replaced.l2, replaced.l1) == pytest.approx((1e4, 105, 525))
  # Squares of integers are at least the integers: with S' of three steps, l1 is 9 and not 4 * 3.
  coarse = SecureSumSpec(2, 10, l2_clip_norm=0.5, coordinates=16)
  few = events.round_event(_skellam(secure_sum=coarse), amplified=False)
  assert (few.l2, few.l1) == pytest.approx((3, 9))


def test_rounds_of_client_noise_compose_as_independent_ones():
  event = events.round_event(_skellam(), amplified=False)
  assert events.run_event(_skellam(), 9, amplified=False) == _times(event, 9)
  apart = _skellam(sampling=Sampling.MIN_SEPARATION, min_separation=3)
  assert events.run_event(apart, 10, amplified=False) == _times(event, 4)
  assert events.planned(_skellam(), 2) == [Start(0), Start(1)]
  written = json.loads(json.dumps(events.to_json(_times(event, 9))))
  assert events.from_json(written) == _times(event, 9)


def test_amplification_that_is_not_claimed_is_refused():
  for spec in (_spec(), _poisson(amplified=False), _poisson(relation=Relation.REPLACE_ONE)):
    with pytest.raises(ValueError, match='claims no amplification'):
      events.run_event(spec, 3, amplified=True)


def test_projection_is_the_event_of_the_production_run():
  spec = _poisson(population_size=100_000, noise_cohort_size=2_000)
  sampled = dp_accounting.PoissonSampledDpEvent(0.02, _GAUSSIAN)
  assert events.run_event(spec, 7, amplified=True) == _times(sampled, 7)


def test_runs():
  assert events.run_event(_spec(), 0, amplified=False) == dp_accounting.NoOpDpEvent()
  assert events.run_event(_spec(), 9, amplified=False) == _times(_GAUSSIAN, 9)
  assert events.run_event(_poisson(), 9, amplified=True) == _times(_SAMPLED, 9)
  # 10 rounds, 3 apart: at most 4 of them, and at most `max_participations`.
  assert events.run_event(_separated(3), 10, amplified=False) == _times(_GAUSSIAN, 4)
  assert events.run_event(_separated(3, 2), 10, amplified=False) == _times(_GAUSSIAN, 2)
  banded = _separated(3, mechanism=Mechanism.BANDED)
  assert events.run_event(banded, 10, amplified=False) == dp_accounting.GaussianDpEvent(1.0)
  # One client once in a tree of four leaves: three nodes. In trees of two: two nodes each.
  tree = _separated(4, mechanism=Mechanism.TREE)
  assert _squared(events.run_event(tree, 4, amplified=False)) == pytest.approx(3)
  tree = _separated(4, mechanism=Mechanism.TREE, restart_every=2)
  assert _squared(events.run_event(tree, 8, amplified=False)) == pytest.approx(4)
  tree = _separated(4, 1, mechanism=Mechanism.TREE, restart_every=2)
  assert _squared(events.run_event(tree, 8, amplified=False)) == pytest.approx(2)


def _squared(event):
  return (2.0 / event.noise_multiplier) ** 2


def _started(spec, *starts):
  starts = [Start(*start) if isinstance(start, tuple) else Start(start) for start in starts]
  return events.started_event(spec, starts, amplified=bool(spec.amplified))


def test_every_start_of_independent_noise_counts():
  assert _started(_spec(), 1, 2, 2, None, 3) == _times(_GAUSSIAN, 5)
  assert _started(_poisson(), 1, 2, 2, None, 3) == _times(_SAMPLED, 5)
  # Round 2 three times, and round 5; what is not known on top.
  assert _started(_separated(3), 1, 2, 2, 2, 3, 4, 5) == _times(_GAUSSIAN, 4)
  assert _started(_separated(3), 1, 2, 2, 2, 3, 4, 5, None) == _times(_GAUSSIAN, 5)
  assert _started(_separated(3, 2), 1, 2, 2, 2, 3, 4, 5, None) == _times(_GAUSSIAN, 3)


def test_leaf_counts_once_and_a_new_tree_again():
  for mechanism, one, two in ((Mechanism.TREE, 2, 4), (Mechanism.BANDED, 1, 2)):
    spec = _separated(2, mechanism=mechanism)
    once = _started(spec, (1, 0, 0), (2, 0, 1))
    assert _squared(once) == pytest.approx(one)
    assert _started(spec, (1, 0, 0), (2, 0, 1), (2, 0, 1)) == once
    # Rounds 1 and 2 again, in another tree.
    again = _started(spec, (1, 0, 0), (2, 0, 1), (1, 1, 0), (2, 1, 1))
    assert _squared(again) == pytest.approx(two)
    torn = _started(spec, (1, 0, 0), (2, 0, 1), None)
    assert _squared(torn) == pytest.approx(one + 1)


def test_tree_without_its_leaves_in_order_is_refused():
  tree = _separated(2, mechanism=Mechanism.TREE)
  with pytest.raises(ValueError, match='follows'):
    _started(tree, (1, 0, 0), (3, 0, 1))
  with pytest.raises(ValueError, match='leaf'):
    _started(tree, 1)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
  restarts=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=4),
  separation=st.integers(1, 5),
)
def test_samplers_by_rounds_and_by_starts_are_both_covered(restarts, separation):
  """`restarts`: how far back a resumed run begins, and how many rounds it gets on."""
  starts, number = [], 0
  for back, rounds in restarts:
    number = max(0, number - back)
    starts += range(number, number + rounds)
    number += rounds
  spec = _separated(separation)
  most = events.most_participations(spec, [Start(start) for start in starts])
  for turn in range(separation):
    assert sum(start % separation == turn for start in starts) <= most
    assert len(starts[turn::separation]) <= most
  assert most <= len(starts)


@pytest.mark.parametrize(
  'event',
  [
    dp_accounting.NoOpDpEvent(),
    _times(_SAMPLED, 3),
    dp_accounting.ComposedDpEvent([_GAUSSIAN, _times(_GAUSSIAN, 2)]),
    dp_accounting.UnsupportedDpEvent(),
    dp_accounting.NonPrivateDpEvent(),
  ],
)
def test_json_and_back(event):
  assert events.from_json(events.to_json(event)) == event


def test_json_is_plain():
  assert events.to_json(_times(_SAMPLED, 3)) == {
    'type': 'SelfComposedDpEvent',
    'event': {
      'type': 'PoissonSampledDpEvent',
      'sampling_probability': 0.1,
      'event': {'type': 'GaussianDpEvent', 'noise_multiplier': 2.0},
    },
    'count': 3,
  }


def test_other_json_is_refused():
  for fields in ({}, {'type': 'LaplaceDpEvent'}, {'type': 'GaussianDpEvent', 'sigma': 1.0}):
    with pytest.raises(ValueError, match='Not an event'):
      events.from_json(fields)
  with pytest.raises(ValueError, match='LaplaceDpEvent'):
    events.to_json(dp_accounting.LaplaceDpEvent(1.0))
