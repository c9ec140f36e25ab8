# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Messages that were cut, changed, repeated, mixed up or made up."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from privacy.secagg import bodies, errors, primitives, shamir, wire
from privacy.secagg.bodies import Direction
from privacy.secagg.parameters import Mode, Phase
from tests.privacy.secagg import harness

_MODES = tuple(Mode)
# Fields of the header, and what is said where they are wrong.
_HEADER = {
  'magic': (range(0, 3), errors.MalformedMessageError),
  'version': (range(3, 4), errors.MalformedMessageError),
  'direction': (range(4, 5), errors.SecAggError),
  'phase': (range(5, 6), errors.SecAggError),
  'session': (range(6, 22), errors.ForeignSessionError),
  'client': (range(22, 26), errors.AddressError),
}


def _session(mode, length=4):
  return harness.build_session(harness.build_spec(3, mode, length=length, bits=12))


def _states(session):
  server = session.server
  return (
    server.phase,
    server.missing,
    server._total.tobytes(),
    {c: client.next_phase for c, client in session.clients.items()},
  )


def _refused_by_server(session, client, message, error=errors.SecAggError):
  before = _states(session)
  with pytest.raises(error):
    session.server.receive(client, message)
  assert _states(session) == before


def _refused_by_client(session, client, message, error=errors.SecAggError):
  before = _states(session)
  with pytest.raises(error):
    session.answer(client, message)
  assert _states(session) == before


def _variants(message):
  """Every cut and every changed byte, and what is longer."""
  yield from (message[:size] for size in range(len(message)))
  yield message + b'\x00'
  yield message + message


def _flips(message, places):
  for place in places:
    for flip in (1, 2, 128):
      changed = bytearray(message)
      changed[place] ^= flip
      yield bytes(changed)


@pytest.mark.parametrize('mode', _MODES)
def test_messages_of_another_length_or_header_are_refused_everywhere(mode):
  session = _session(mode)
  for phase in session.spec.phases:
    assert session.server.phase is phase
    if phase is not Phase.ADVERTISE_KEYS:
      for wrong in _variants(session.inbox[1]):
        _refused_by_client(session, 1, wrong, errors.MalformedMessageError)
      for places, error in _HEADER.values():
        for wrong in _flips(session.inbox[1], places):
          _refused_by_client(session, 1, wrong, error)
    message = session.answer(1, session.inbox.pop(1))
    session.sent[phase, 1] = message
    for wrong in _variants(message):
      _refused_by_server(session, 1, wrong, errors.MalformedMessageError)
    for places, error in _HEADER.values():
      for wrong in _flips(message, places):
        _refused_by_server(session, 1, wrong, error)
    session.server.receive(1, message)
    session.step()
  np.testing.assert_array_equal(session.server.result.total, session.expected(range(3)))


def test_every_changed_byte_of_what_the_server_sends_is_found_in_malicious_mode():
  session = _session(Mode.MALICIOUS)
  while session.server.phase is not Phase.DONE:
    for changed in _flips(session.inbox[1], range(wire.HEADER_BYTES, len(session.inbox[1]))):
      _refused_by_client(session, 1, changed)
    session.step()
  np.testing.assert_array_equal(session.server.result.total, session.expected(range(3)))


def test_every_changed_byte_of_an_unmask_request_is_found_in_semi_honest_mode():
  session = _session(Mode.SEMI_HONEST).advance(Phase.UNMASKING)
  for changed in _flips(session.inbox[1], range(wire.HEADER_BYTES, len(session.inbox[1]))):
    _refused_by_client(session, 1, changed)


def test_every_changed_byte_of_a_signed_message_is_found_by_the_server():
  session = _session(Mode.MALICIOUS)
  for phase in (Phase.ADVERTISE_KEYS, Phase.CONSISTENCY):
    session.advance(phase)
    message = session.answer(1, session.inbox.pop(1))
    for changed in _flips(message, range(wire.HEADER_BYTES, len(message))):
      _refused_by_server(session, 1, changed)
    session.server.receive(1, message)
    session.step()


@pytest.mark.parametrize('phase', [Phase.SHARE_KEYS, Phase.UNMASKING])
def test_changed_shares_are_found_in_the_end_or_do_not_matter(phase):
  outcomes = set()
  size = wire.message_bytes(_session(Mode.SEMI_HONEST).spec, phase, Direction.TO_SERVER)
  for place in range(wire.HEADER_BYTES, size, 5):
    session = _session(Mode.SEMI_HONEST).advance(phase)
    message = bytearray(session.answer(1, session.inbox.pop(1)))
    message[place] ^= 1
    try:
      session.server.receive(1, bytes(message))
      session.step()
      result = session.run()
    except errors.SecAggError as error:
      outcomes.add(type(error))
      continue
    outcomes.add(None)
    np.testing.assert_array_equal(result.total, session.expected(result.clients))
  expected = {
    Phase.SHARE_KEYS: {errors.DecryptionError, errors.ReconstructionError, None},
    Phase.UNMASKING: {errors.MalformedMessageError, errors.ReconstructionError},
  }
  assert outcomes == expected[phase]


def test_client_masks_nothing_where_too_few_sent_shares():
  session = harness.build_session(harness.build_spec(5, Mode.SEMI_HONEST))
  session.advance(Phase.MASKED_INPUT)
  body = session.inbox[0][wire.HEADER_BYTES :]
  envelopes = bodies.read_envelopes(body, 0, range(5))
  few = bodies.write_envelopes({1: envelopes[1]}, 0, range(5))
  message = wire.write(Direction.TO_CLIENT, Phase.MASKED_INPUT, session.session, 0, few)
  _refused_by_client(session, 0, message, errors.BelowThresholdError)


@pytest.mark.parametrize('place', [0, 1])
def test_client_passes_on_no_share_that_the_server_would_hold_against_it(monkeypatch, place):
  session = _session(Mode.SEMI_HONEST).advance(Phase.SHARE_KEYS)
  seal, false = primitives.seal, shamir.PRIME.to_bytes(shamir.SHARE_BYTES, 'big')
  start = place * shamir.SHARE_BYTES

  def seal_false(key, plaintext, associated):
    changed = plaintext[:start] + false + plaintext[start + shamir.SHARE_BYTES :]
    return seal(key, changed, associated)

  with monkeypatch.context() as patch:
    patch.setattr(primitives, 'seal', seal_false)
    session.server.receive(1, session.answer(1, session.inbox.pop(1)))
  session.step()
  _refused_by_client(session, 0, session.inbox[0], errors.DecryptionError)


def test_server_tells_what_comes_again_early_and_late():
  session = _session(Mode.SEMI_HONEST).advance(Phase.SHARE_KEYS)
  late = session.answer(2, session.inbox.pop(2))
  size = wire.message_bytes(session.spec, Phase.MASKED_INPUT, Direction.TO_SERVER)
  early = wire.write(
    Direction.TO_SERVER, Phase.MASKED_INPUT, session.session, 0, bytes(size - wire.HEADER_BYTES)
  )
  _refused_by_server(session, 0, early, errors.OutOfOrderError)
  _refused_by_server(session, 0, session.sent[Phase.ADVERTISE_KEYS, 0], errors.ReplayError)
  session.send()
  again = session.sent[Phase.SHARE_KEYS, 0]
  _refused_by_server(session, 0, again, errors.ReplayError)
  _refused_by_server(session, 1, again, errors.AddressError)
  _refused_by_server(session, 0, session.inbox[0], errors.AddressError)
  session.close()
  _refused_by_server(session, 0, again, errors.ReplayError)
  _refused_by_server(session, 2, late, errors.OutOfOrderError)
  # Of the phase that is open, but of somebody who is gone.
  gone = wire.write(
    Direction.TO_SERVER, Phase.MASKED_INPUT, session.session, 2, bytes(size - wire.HEADER_BYTES)
  )
  _refused_by_server(session, 2, gone, errors.OutOfOrderError)
  assert session.run().clients == (0, 1)


def test_client_tells_what_comes_again_early_and_for_others():
  session = _session(Mode.SEMI_HONEST).advance(Phase.MASKED_INPUT)
  client, other = session.clients[0], session.inbox[1]
  with pytest.raises(errors.AddressError):
    client.mask(other, session.vectors[0])
  with pytest.raises(errors.AddressError):
    client.mask(session.sent[Phase.ADVERTISE_KEYS, 0], session.vectors[0])
  with pytest.raises(errors.ReplayError):
    client.mask(session.delivered[Phase.SHARE_KEYS, 0], session.vectors[0])
  with pytest.raises(errors.ReplayError):
    client.share_keys(session.delivered[Phase.SHARE_KEYS, 0])
  with pytest.raises(errors.OutOfOrderError):
    client.unmask(session.inbox[0])
  with pytest.raises(errors.OutOfOrderError):
    client.advertise()
  # A message of a phase that the mode does not have.
  consistency = wire.write(
    Direction.TO_CLIENT, Phase.CONSISTENCY, session.session, 0, bytes([0b111])
  )
  with pytest.raises(errors.MalformedMessageError):
    client.confirm(consistency)
  fresh = session.client(0)
  with pytest.raises(errors.OutOfOrderError):
    fresh.mask(session.inbox[0], session.vectors[0])
  session.run()
  assert client.next_phase is Phase.DONE


def test_message_of_another_session_is_refused():
  session, other = (_session(Mode.MALICIOUS).advance(Phase.UNMASKING) for _ in range(2))
  _refused_by_client(session, 0, other.inbox[0], errors.ForeignSessionError)
  message = other.answer(0, other.inbox[0])
  _refused_by_server(session, 0, message, errors.ForeignSessionError)
  # With the right session in front, the signatures still tell.
  relabelled = wire.write(
    Direction.TO_CLIENT,
    Phase.UNMASKING,
    session.session,
    0,
    other.inbox[0][wire.HEADER_BYTES :],
  )
  _refused_by_client(session, 0, relabelled, errors.SignatureError)


@hypothesis.given(strategies.binary(max_size=300))
def test_bytes_that_mean_nothing_are_refused(data):
  session = _session(Mode.SEMI_HONEST).advance(Phase.SHARE_KEYS)
  _refused_by_server(session, 0, data)
  _refused_by_client(session, 0, data)


@hypothesis.settings(max_examples=100)
@hypothesis.given(strategies.data())
def test_made_up_bodies_end_in_named_errors_or_are_taken(data):
  mode = data.draw(strategies.sampled_from(_MODES))
  session = _session(mode)
  session.advance(data.draw(strategies.sampled_from(session.spec.phases)))
  phase = session.server.phase
  for direction in Direction:
    size = wire.message_bytes(session.spec, phase, direction) - wire.HEADER_BYTES
    if size < 0:
      continue
    # Sparse ones look more like what is sent.
    body = np.frombuffer(data.draw(strategies.binary(min_size=size, max_size=size)), np.uint8)
    body = body * (np.arange(size) % data.draw(strategies.integers(1, 4)) == 0)
    message = wire.write(direction, phase, session.session, 0, body.astype(np.uint8).tobytes())
    try:
      if direction is Direction.TO_SERVER:
        session.server.receive(0, message)
      else:
        session.answer(0, message)
    except errors.SecAggError:
      continue
