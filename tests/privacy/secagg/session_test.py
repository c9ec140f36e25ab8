# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Honest sessions: whoever drops out, the sum is exact or there is none."""

import dataclasses
import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from privacy.secagg import bodies, errors, graph, masks, primitives, wire
from privacy.secagg.bodies import Direction
from privacy.secagg.parameters import Mode, Phase
from tests.privacy.secagg import harness

_MODES = tuple(Mode)
_CASES = [(mode, phase) for mode in Mode for phase in harness.build_spec(10, mode).phases]


def _check(session, drops):
  result = session.run(drops)
  gone = {
    client
    for phase, dropped in drops.items()
    if phase.value <= Phase.MASKED_INPUT.value
    for client in dropped
  }
  assert result.clients == tuple(sorted(set(session.clients) - gone))
  assert result.total.dtype == np.uint64
  np.testing.assert_array_equal(result.total, session.expected(result.clients))


@pytest.mark.parametrize(('mode', 'phase'), _CASES)
def test_sum_is_exact_when_clients_drop_in_one_phase(mode, phase):
  spec = harness.build_spec(10, mode, length=1000, bits=23)
  _check(harness.build_session(spec), {phase: (0, 4, 9)})


@pytest.mark.slow
@pytest.mark.parametrize(('mode', 'phase'), _CASES)
def test_hundred_clients_of_which_thirty_drop(mode, phase):
  spec = harness.build_spec(100, mode, length=65_536, bits=27)
  dropped = np.random.default_rng(phase.value).choice(100, 30, replace=False)
  _check(harness.build_session(spec), {phase: set(dropped.tolist())})


def test_neighbourhoods_sum_exactly_when_clients_drop_in_every_phase():
  spec = harness.build_spec(40, Mode.SEMI_HONEST, neighbours=20)
  phases = enumerate(spec.phases)
  _check(harness.build_session(spec), {phase: (2 * i, 20 + i) for i, phase in phases})


@pytest.mark.parametrize('bits', [1, 8, 31, 32, 33, 62])
def test_sum_wraps_at_the_modulus(bits):
  spec = harness.build_spec(4, Mode.SEMI_HONEST, bits=bits)
  session = harness.build_session(spec)
  session.vectors[:] = (1 << bits) - 1
  total = session.run({Phase.MASKED_INPUT: (2,)}).total
  assert set(total.tolist()) == {-3 % (1 << bits)}


def test_vector_longer_than_a_piece_of_a_mask():
  length = masks._PIECE_BYTES // 4 * 2 + 5
  spec = harness.build_spec(3, Mode.SEMI_HONEST, length=length, bits=32)
  _check(harness.build_session(spec), {Phase.MASKED_INPUT: (1,)})


def test_signs_and_types_of_a_vector_do_not_matter():
  spec = harness.build_spec(3, Mode.SEMI_HONEST, length=4, bits=16)
  session = harness.build_session(spec).advance(Phase.MASKED_INPUT)
  vectors = (
    np.array([-1, 2, -3, 70_000]),
    np.array([1, 2, 3, 4], np.int8),
    np.array([5, 6, 7, 2**63], np.uint64),
  )
  for client, vector in enumerate(vectors):
    message = session.clients[client].mask(session.inbox[client], vector)
    session.server.receive(client, message)
  session.close()
  session.run()
  assert session.server.result.total.tolist() == [5, 10, 7, 70_004 % 2**16]


@pytest.mark.parametrize(
  'vector', [np.zeros(19, np.int64), np.zeros((20, 1), np.int64), np.zeros(20), np.zeros(20, bool)]
)
def test_vector_of_another_shape_or_type_is_refused_and_the_right_one_taken(vector):
  session = harness.build_session(harness.build_spec(3, Mode.SEMI_HONEST))
  session.advance(Phase.MASKED_INPUT)
  with pytest.raises(ValueError, match='`vector`'):
    session.clients[0].mask(session.inbox[0], vector)
  _check(session, {})


@strategies.composite
def _sessions(draw):
  mode = draw(strategies.sampled_from(_MODES))
  num_clients = draw(strategies.integers(2, 12))
  neighbours = None
  if mode is Mode.SEMI_HONEST and num_clients >= 4 and draw(strategies.booleans()):
    neighbours = 2 * draw(strategies.integers(1, (num_clients - 2) // 2))
  spec = harness.build_spec(
    num_clients,
    mode,
    length=draw(strategies.integers(1, 40)),
    bits=draw(strategies.integers(1, 62)),
    neighbours=neighbours,
  )
  highest = spec.num_holders
  spec = dataclasses.replace(spec, threshold=draw(strategies.integers(spec.threshold, highest)))
  # Most stay: else nearly all sessions end early.
  phases = strategies.sampled_from([*(3 * [Phase.DONE]), *spec.phases])
  leaves = draw(strategies.lists(phases, min_size=num_clients, max_size=num_clients))
  drops = {phase: {c for c, p in enumerate(leaves) if p is phase} for phase in spec.phases}
  return spec, drops


def _is_enough(spec, drops):
  left = spec.num_clients
  for phase in spec.phases:
    left -= len(drops[phase])
    if left < spec.threshold:
      return False
  return True


@hypothesis.settings(max_examples=150)
@hypothesis.given(_sessions())
def test_sum_is_exact_or_there_is_none(case):
  spec, drops = case
  session = harness.build_session(spec)
  try:
    result = session.run(drops)
  except errors.BelowThresholdError:
    assert spec.neighbours is not None or not _is_enough(spec, drops)
    assert session.server.phase is Phase.ABORTED
    with pytest.raises(errors.OutOfOrderError):
      _ = session.server.result
    return
  assert _is_enough(spec, drops) or spec.neighbours is not None
  assert len(result.clients) >= spec.threshold
  np.testing.assert_array_equal(result.total, session.expected(result.clients))


@pytest.mark.parametrize(('mode', 'phase'), _CASES)
def test_one_client_too_few_ends_the_session(mode, phase):
  spec = harness.build_spec(10, mode)
  few = range(10 - spec.threshold + 1)
  session = harness.build_session(spec).advance(phase)
  with pytest.raises(errors.BelowThresholdError, match=f'{spec.threshold - 1} clients'):
    session.step(few)
  assert session.server.phase is Phase.ABORTED
  assert session.server.missing == frozenset()
  with pytest.raises(errors.OutOfOrderError):
    _ = session.server.result
  with pytest.raises(errors.OutOfOrderError):
    session.server.close_phase()
  _check(harness.build_session(spec), {phase: few[1:]})


@pytest.mark.parametrize('mode', _MODES)
def test_cohort_may_need_more_than_the_threshold(mode):
  spec = harness.build_spec(10, mode, smallest_cohort=9)
  _check(harness.build_session(spec), {Phase.MASKED_INPUT: (3,), Phase.UNMASKING: (4,)})
  with pytest.raises(errors.BelowThresholdError, match=r'8 clients .* 9 are needed'):
    harness.build_session(spec).run({Phase.MASKED_INPUT: (3, 4)})


def test_clients_too_see_to_the_smallest_cohort():
  spec = harness.build_spec(10, Mode.SEMI_HONEST, smallest_cohort=9)
  session = harness.build_session(spec).advance(Phase.UNMASKING)
  holders = range(10)
  for size, is_enough in ((8, False), (9, True)):
    request = bodies.UnmaskRequest(frozenset(holders[:size]), frozenset(holders[size:]), {})
    body = bodies.write_unmask_request(request, spec, holders)
    message = wire.write(Direction.TO_CLIENT, Phase.UNMASKING, session.session, 0, body)
    if is_enough:
      session.clients[0].unmask(message)
    else:
      with pytest.raises(errors.BelowThresholdError, match='8 clients are in the sum; 9'):
        session.clients[0].unmask(message)


def test_neighbourhood_that_is_too_small_ends_the_session_before_shares_are_asked_for():
  spec = harness.build_spec(40, Mode.SEMI_HONEST, neighbours=4)
  session = harness.build_session(spec).advance(Phase.MASKED_INPUT)
  neighbours = [holder for holder in session.server._holders[0] if holder != 0]
  with pytest.raises(errors.BelowThresholdError, match='2 holders of the secrets of client 0'):
    session.step(neighbours[:3])
  assert session.server.phase is Phase.ABORTED


@pytest.mark.parametrize(
  ('mode', 'neighbours'),
  [(Mode.SEMI_HONEST, None), (Mode.SEMI_HONEST, 6), (Mode.MALICIOUS, None)],
)
def test_lengths_of_messages_tell_nothing(mode, neighbours):
  spec = harness.build_spec(12, mode, neighbours=neighbours)
  quiet, busy = harness.build_session(spec), harness.build_session(spec)
  quiet.vectors[:] = 0
  quiet.run()
  busy.run({Phase.ADVERTISE_KEYS: (1,), Phase.SHARE_KEYS: (5,), Phase.MASKED_INPUT: (9,)})
  for direction, way in ((Direction.TO_SERVER, 'sent'), (Direction.TO_CLIENT, 'delivered')):
    seen = {
      (phase, len(message))
      for session in (quiet, busy)
      for (phase, _), message in getattr(session, way).items()
      if phase is not Phase.DONE
    }
    expected = {(phase, wire.message_bytes(spec, phase, direction)) for phase, _ in seen}
    assert seen == expected


def test_what_is_sent_for_absent_clients_looks_like_the_rest():
  session = harness.build_session(harness.build_spec(6, Mode.SEMI_HONEST))
  session.advance(Phase.MASKED_INPUT, {Phase.ADVERTISE_KEYS: (5,)})
  sent = [session.sent[Phase.SHARE_KEYS, client] for client in range(5)]
  # The absent client's and the own one are as random as the others.
  size, start = bodies.ENVELOPE_BYTES, wire.HEADER_BYTES + primitives.KEY_BYTES
  records = {m[start + i * size :][:size] for m in sent for i in range(6)}
  assert len(records) == 30
  for place in range(size):
    assert len({record[place] for record in records}) > 15


def test_client_with_too_few_neighbours_shares_nothing():
  spec = harness.build_spec(40, Mode.SEMI_HONEST, neighbours=4)
  session = harness.build_session(spec)
  neighbours = [holder for holder in session.server._holders[0] if holder != 0]
  session.advance(Phase.SHARE_KEYS, {Phase.ADVERTISE_KEYS: neighbours[:3]})
  with pytest.raises(errors.BelowThresholdError, match='2 clients advertised keys; 3'):
    session.answer(0, session.inbox[0])


class _Sorted(random.Random):
  """Leaves a ring in the order of its numbers."""

  def shuffle(self, x):
    del x


@pytest.mark.parametrize('phase', [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT])
def test_neighbourhoods_in_pieces_give_no_sum_of_each(phase):
  spec = harness.build_spec(20, Mode.SEMI_HONEST, neighbours=4)
  for dropped, is_whole in (({0, 1, 10}, True), ({0, 1, 10, 11}, False)):
    session = harness.build_session(spec)
    session.server._holders = graph.holders(20, 4, _Sorted())
    if is_whole:
      _check(session, {phase: dropped})
      continue
    with pytest.raises(errors.BelowThresholdError, match=r'16 clients .* pieces'):
      session.run({phase: dropped})
    assert session.server.phase is Phase.ABORTED
    assert not any(sent is Phase.UNMASKING for sent, _ in session.delivered)


def test_client_keeps_no_secret_that_it_needs_no_more():
  session = harness.build_session(harness.build_spec(3, Mode.SEMI_HONEST))
  client = session.advance(Phase.MASKED_INPUT).clients[0]
  secrets = [client._seed, client._mask_key, client._cipher_key, client._agreed]
  session.step()
  assert client._held
  assert not [kept for kept in vars(client).values() if any(kept is s for s in secrets)]
  session.step()
  assert not client._held


def test_bytes_of_the_vector_are_those_of_its_bits():
  spec = harness.build_spec(100, Mode.SEMI_HONEST, length=65_536, bits=27)
  length = wire.message_bytes(spec, Phase.MASKED_INPUT, Direction.TO_SERVER)
  assert length == wire.HEADER_BYTES + 65_536 * 27 // 8


@pytest.mark.parametrize('mode', _MODES)
def test_no_key_is_used_twice(monkeypatch, mode):
  used = {'mask': [], 'seal': []}
  pieces, seal = masks._pieces, primitives.seal
  monkeypatch.setattr(
    masks, '_pieces', lambda v, key: (used['mask'].append(key), pieces(v, key))[1]
  )
  monkeypatch.setattr(
    primitives, 'seal', lambda k, *rest: (used['seal'].append(k), seal(k, *rest))[1]
  )
  spec = harness.build_spec(6, mode)
  for _ in range(2):
    harness.build_session(spec).advance(
      Phase.CONSISTENCY if mode is Mode.MALICIOUS else Phase.UNMASKING
    )
  # One own mask a client, one for each pair, which both of it add.
  counts = np.unique(used['mask'], return_counts=True)[1].tolist()
  assert sorted(counts) == 2 * 6 * [1] + 2 * 15 * [2]
  assert len(used['seal']) == len(set(used['seal'])) == 2 * 6 * 5
  assert not set(used['seal']) & set(used['mask'])
