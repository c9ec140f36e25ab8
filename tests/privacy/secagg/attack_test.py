# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a server, a client or a wire that lies gets: a named error, and nothing about a vector."""

import os

import numpy as np
import pytest
import scipy.stats

from privacy.secagg import bodies, errors, packing, primitives, shamir, statements, wire
from privacy.secagg.bodies import Direction, ShareKind, UnmaskRequest
from privacy.secagg.parameters import Mode, Phase
from privacy.secagg.server import Server
from tests.privacy.secagg import harness

_MODES = tuple(Mode)


def _session(mode, num_clients=10, **changes):
  return harness.build_session(harness.build_spec(num_clients, mode, **changes))


def _to_client(session, phase, client, body):
  return wire.write(Direction.TO_CLIENT, phase, session.session, client, body)


def _request(session, client, survivors, dropped, signatures=None):
  request = UnmaskRequest(frozenset(survivors), frozenset(dropped), signatures or {})
  body = bodies.write_unmask_request(request, session.spec, range(session.spec.num_clients))
  return _to_client(session, Phase.UNMASKING, client, body)


def _confirmations(session, claims):
  """Signatures that clients give on what each is told of who is in the sum."""
  signatures = {}
  for client, survivors in claims.items():
    body = bodies.write_bitmap(survivors, range(session.spec.num_clients))
    message = _to_client(session, Phase.CONSISTENCY, client, body)
    try:
      signatures[client] = session.clients[client].confirm(message)[wire.HEADER_BYTES :]
    except errors.SecAggError:
      continue
  return signatures


def _shares(session, requests):
  """Kinds of the shares that clients give, by whose secret they are of."""
  given = {}
  for client, message in requests.items():
    try:
      answer = session.clients[client].unmask(message)
    except errors.SecAggError:
      continue
    holders = range(session.spec.num_clients)
    for owner, (kind, _) in bodies.read_shares(answer[wire.HEADER_BYTES :], holders).items():
      given.setdefault((owner, kind), set()).add(client)
  return given


def test_server_that_tells_clients_different_things_gets_nothing_in_malicious_mode():
  session = _session(Mode.MALICIOUS).advance(Phase.CONSISTENCY)
  everybody = set(range(10))
  claims = {c: everybody if c < 5 else everybody - {0} for c in everybody}
  signatures = _confirmations(session, claims)
  assert len(signatures) == 10
  requests = {}
  for client, survivors in claims.items():
    # All that the server has; then those alone that are of this claim.
    signers = {c: signatures[c] for c in survivors}
    with pytest.raises(errors.SignatureError):
      session.clients[client].unmask(
        _request(session, client, survivors, everybody - survivors, signers)
      )
    same = {c: s for c, s in signers.items() if claims[c] == survivors}
    requests[client] = _request(session, client, survivors, everybody - survivors, same)
    with pytest.raises(errors.BelowThresholdError, match='signed'):
      session.clients[client].unmask(requests[client])
  assert _shares(session, requests) == {}


def _attack(spec, split):
  """Which secrets of client 9 a lying server gets with the help of clients 0, 1 and 2.

  Those sign whatever it wants; honest clients below `split` are told that 9 dropped out.
  """
  session = harness.build_session(spec).advance(Phase.CONSISTENCY)
  everybody, corrupted, victim = set(range(10)), {0, 1, 2}, 9
  claims = {
    c: everybody if c >= split or c == victim else everybody - {victim}
    for c in everybody - corrupted
  }
  signatures = _confirmations(session, claims)
  assert signatures.keys() == claims.keys()
  context, requests = spec.context(session.session), {}
  for client, survivors in claims.items():
    statement = statements.survivors_signed(context, survivors, session.server._keys)
    signers = {c: primitives.sign(session.signing_keys[c], statement) for c in corrupted}
    signers |= {c: s for c, s in signatures.items() if claims[c] == survivors}
    requests[client] = _request(session, client, survivors, everybody - survivors, signers)
  given = _shares(session, requests)
  # The corrupted have shares of both.
  return {
    kind
    for kind in (ShareKind.SEED, ShareKind.MASK_KEY)
    if len(given.get((victim, kind), ())) + len(corrupted) >= spec.threshold
  }


def test_less_than_a_third_of_corrupted_clients_do_not_help_such_a_server():
  spec = harness.build_spec(10, Mode.MALICIOUS)
  outcomes = [_attack(spec, split) for split in range(3, 10)]
  assert outcomes[0] == {ShareKind.SEED}
  assert outcomes[-1] == {ShareKind.MASK_KEY}
  assert all(len(secrets) <= 1 for secrets in outcomes)
  # With a threshold that is not allowed they would have helped.
  object.__setattr__(spec, 'threshold', 6)
  assert _attack(spec, 6) == {ShareKind.SEED, ShareKind.MASK_KEY}


@pytest.mark.parametrize('split', range(1, 10))
def test_no_split_of_semi_honest_clients_gives_both_secrets_of_one(split):
  session = _session(Mode.SEMI_HONEST).advance(Phase.UNMASKING)
  everybody, victim = set(range(10)), 9
  requests = {}
  for client in everybody:
    survivors = everybody if client < split or client == victim else everybody - {victim}
    requests[client] = _request(session, client, survivors, everybody - survivors)
  given = _shares(session, requests)
  seed, key = (len(given.get((victim, kind), ())) for kind in (ShareKind.SEED, ShareKind.MASK_KEY))
  assert seed + key == 10
  assert min(seed, key) < session.spec.threshold


@pytest.mark.parametrize('mode', _MODES)
def test_client_gives_one_share_of_a_peer_and_only_once(mode):
  last = Phase.UNMASKING
  session = _session(mode).advance(last, {Phase.MASKED_INPUT: (8, 9)})
  survivors, dropped = set(range(8)), {8, 9}
  signatures = {}
  if mode is Mode.MALICIOUS:
    signatures = {c: session.sent[Phase.CONSISTENCY, c][wire.HEADER_BYTES :] for c in survivors}
  client = session.clients[0]
  for wrong, error in (
    ((survivors, dropped | {7}), 'both in the sum and dropped'),
    ((survivors, {8}), 'not just those that sent shares'),
    ((survivors, ()), 'not just those that sent shares'),
  ):
    with pytest.raises(errors.ContradictionError, match=error):
      client.unmask(_request(session, 0, *wrong, signatures))
  own = {s for s in survivors if s != 0}
  with pytest.raises(errors.ContradictionError):
    client.unmask(_request(session, 0, own, dropped | {0}))
  answer = client.unmask(session.inbox[0])
  shares = bodies.read_shares(answer[wire.HEADER_BYTES :], range(10))
  assert {c for c, (kind, _) in shares.items() if kind is ShareKind.SEED} == survivors
  assert {c for c, (kind, _) in shares.items() if kind is ShareKind.MASK_KEY} == dropped
  # Asked again, the same or the opposite, it says nothing.
  for again in (session.inbox[0], _request(session, 0, survivors - {7}, dropped | {7})):
    with pytest.raises(errors.ReplayError):
      client.unmask(again)


@pytest.mark.parametrize('mode', _MODES)
def test_client_does_not_unmask_a_sum_of_too_few(mode):
  session = _session(mode)
  few = set(range(session.spec.threshold - 1))
  if mode is Mode.SEMI_HONEST:
    session.advance(Phase.UNMASKING)
    requests = {c: _request(session, c, few, set(range(10)) - few) for c in few}
    for client, message in requests.items():
      with pytest.raises(errors.BelowThresholdError):
        session.clients[client].unmask(message)
    return
  session.advance(Phase.CONSISTENCY)
  body = bodies.write_bitmap(few, range(10))
  for client in few:
    with pytest.raises(errors.BelowThresholdError):
      session.clients[client].confirm(_to_client(session, Phase.CONSISTENCY, client, body))


def test_client_signs_one_set_only():
  session = _session(Mode.MALICIOUS).advance(Phase.CONSISTENCY)
  everybody = set(range(10))
  _confirmations(session, dict.fromkeys(everybody, everybody))
  assert _confirmations(session, dict.fromkeys(everybody, everybody - {0})) == {}


def test_client_confirms_no_sum_with_clients_that_sent_no_shares():
  session = _session(Mode.MALICIOUS).advance(Phase.CONSISTENCY, {Phase.SHARE_KEYS: (9,)})
  everybody = set(range(10))
  assert _confirmations(session, dict.fromkeys(range(9), everybody)) == {}
  # Nor one without itself.
  assert _confirmations(session, {0: everybody - {0, 9}}) == {}
  assert len(_confirmations(session, dict.fromkeys(range(9), everybody - {9}))) == 9


def test_signatures_of_clients_that_are_not_in_the_sum_do_not_count():
  session = _session(Mode.MALICIOUS).advance(Phase.CONSISTENCY, {Phase.MASKED_INPUT: (8, 9)})
  survivors = set(range(8))
  signatures = _confirmations(session, dict.fromkeys(survivors, survivors))
  context = session.spec.context(session.session)
  statement = statements.survivors_signed(context, survivors, session.server._keys)
  outsider = {9: primitives.sign(session.signing_keys[9], statement)}
  with pytest.raises(errors.ContradictionError, match='signed that is not in the sum'):
    session.clients[0].unmask(_request(session, 0, survivors, {8, 9}, signatures | outsider))
  session.clients[0].unmask(_request(session, 0, survivors, {8, 9}, signatures))


def test_client_answers_for_no_other_set_than_it_signed():
  session = _session(Mode.MALICIOUS).advance(Phase.CONSISTENCY)
  everybody, others = set(range(10)), set(range(1, 10))
  claims = {c: everybody if c < 2 else others for c in everybody}
  signatures = _confirmations(session, claims)
  enough = {c: s for c, s in signatures.items() if c > 1}
  with pytest.raises(errors.ContradictionError, match='than before'):
    session.clients[1].unmask(_request(session, 1, others, {0}, enough))
  # It is the claim that is wrong, not the rest.
  session.clients[2].unmask(_request(session, 2, others, {0}, enough))


def test_signatures_of_another_session_under_the_same_number_do_not_count():
  session, before = _session(Mode.MALICIOUS), _session(Mode.MALICIOUS)
  before.session = session.session
  before.signing_keys, before.verify_keys = session.signing_keys, session.verify_keys
  before.server = Server(before.spec, before.session, verify_keys=before.verify_keys)
  before.clients = {i: before.client(i) for i in before.clients}
  everybody = set(range(10))
  claims = dict.fromkeys(everybody, everybody)
  old = _confirmations(before.advance(Phase.CONSISTENCY), claims)
  new = _confirmations(session.advance(Phase.CONSISTENCY), claims)
  assert len(old) == len(new) == 10
  # Else a server could tell everybody another set, if only it had each signed once.
  with pytest.raises(errors.SignatureError):
    session.clients[0].unmask(_request(session, 0, everybody, (), old))
  session.clients[0].unmask(_request(session, 0, everybody, (), new))


@pytest.mark.parametrize('mode', _MODES)
def test_keys_that_are_not_those_advertised_are_refused(mode):
  def peers_with(session, change):
    message = session.delivered[Phase.SHARE_KEYS, 0]
    peers = bodies.read_peers(message[wire.HEADER_BYTES :], session.spec)
    change(peers.keys)
    return _to_client(session, Phase.SHARE_KEYS, 0, bodies.write_peers(peers))

  def own(keys):
    keys[0] = keys[0]._replace(mask=primitives.AgreementKey.generate().public)

  def reflected(keys):
    keys[1] = keys[0]

  def twice(keys):
    keys[2] = keys[1]

  def low_order(keys):
    keys[1] = keys[1]._replace(cipher=bytes(32))

  def gone(keys):
    del keys[0]

  def too_few(keys):
    for client in range(1, 10):
      del keys[client]

  def forged(keys):
    keys[1] = keys[1]._replace(mask=primitives.AgreementKey.generate().public)

  session = _session(mode).advance(Phase.SHARE_KEYS)
  for change, error in (
    (own, errors.ContradictionError),
    (gone, errors.ContradictionError),
    (reflected, errors.ContradictionError),
    (twice, errors.ContradictionError),
    (too_few, errors.BelowThresholdError),
    (low_order, errors.SignatureError if mode is Mode.MALICIOUS else errors.KeyAgreementError),
  ):
    with pytest.raises(error):
      session.clients[0].share_keys(peers_with(session, change))
  if mode is Mode.MALICIOUS:
    with pytest.raises(errors.SignatureError):
      session.clients[0].share_keys(peers_with(session, forged))
  session.run()


def test_server_refuses_clients_it_cannot_trust():
  session = _session(Mode.MALICIOUS)
  body = session.clients[0].advertise()[wire.HEADER_BYTES :]
  to_server = (Direction.TO_SERVER, Phase.ADVERTISE_KEYS, session.session)
  with pytest.raises(errors.SignatureError):
    session.server.receive(1, wire.write(*to_server, 1, body))
  session.server.receive(0, wire.write(*to_server, 0, body))
  assert session.server.missing == frozenset(range(1, 10))


def test_server_refuses_keys_that_would_stop_the_others():
  session = _session(Mode.SEMI_HONEST)
  to_server = (Direction.TO_SERVER, Phase.ADVERTISE_KEYS, session.session)
  good = session.clients[0].advertise()
  session.server.receive(0, good)
  cipher, mask = good[wire.HEADER_BYTES :][:32], primitives.AgreementKey.generate().public
  for body, error in (
    (bytes(32) + mask, errors.KeyAgreementError),
    (mask + bytes(32), errors.KeyAgreementError),
    (mask + mask, errors.ContradictionError),
    (mask + cipher, errors.ContradictionError),
  ):
    with pytest.raises(error):
      session.server.receive(1, wire.write(*to_server, 1, body))
  assert 1 in session.server.missing


@pytest.mark.parametrize('mode', _MODES)
@pytest.mark.parametrize('owner', [0, 9])
def test_share_that_was_changed_gives_no_sum(mode, owner):
  session = _session(mode).advance(Phase.UNMASKING, {Phase.MASKED_INPUT: (9,)})
  message = bytearray(session.answer(1, session.inbox[1]))
  session.sent[Phase.UNMASKING, 1] = message
  message[wire.HEADER_BYTES + (1 + shamir.SHARE_BYTES) * owner + shamir.SHARE_BYTES] ^= 1
  session.server.receive(1, bytes(message))
  del session.inbox[1]
  with pytest.raises(errors.ReconstructionError):
    session.step()
  assert session.server.phase is Phase.ABORTED
  with pytest.raises(errors.OutOfOrderError):
    _ = session.server.result


def test_shares_of_another_kind_than_asked_for_are_refused():
  session = _session(Mode.SEMI_HONEST).advance(Phase.UNMASKING, {Phase.MASKED_INPUT: (9,)})
  message = bytearray(session.answer(1, session.inbox[1]))
  for kind in (0, 2, 3):
    message[wire.HEADER_BYTES] = kind
    with pytest.raises((errors.ContradictionError, errors.MalformedMessageError)):
      session.server.receive(1, bytes(message))
  message[wire.HEADER_BYTES] = 1
  session.server.receive(1, bytes(message))


def test_shares_for_somebody_else_are_refused():
  session = _session(Mode.SEMI_HONEST).advance(Phase.MASKED_INPUT)
  bodies_of = {
    c: bodies.read_envelopes(session.inbox[c][wire.HEADER_BYTES :], c, range(10)) for c in (0, 1)
  }
  swapped = {**bodies_of[0], 2: bodies_of[1][2]}
  from_other = {**bodies_of[0], 2: bodies_of[0][3], 3: bodies_of[0][2]}
  for envelopes in (swapped, from_other):
    body = bodies.write_envelopes(envelopes, 0, range(10))
    with pytest.raises(errors.DecryptionError):
      session.clients[0].mask(_to_client(session, Phase.MASKED_INPUT, 0, body), session.vectors[0])


def test_shares_of_somebody_without_keys_are_refused():
  session = _session(Mode.SEMI_HONEST).advance(Phase.MASKED_INPUT, {Phase.ADVERTISE_KEYS: (5,)})
  body = session.inbox[0][wire.HEADER_BYTES :]
  envelopes = bodies.read_envelopes(body, 0, range(10))
  forged = bodies.write_envelopes({**envelopes, 5: os.urandom(82)}, 0, range(10))
  with pytest.raises(errors.ContradictionError, match='no keys'):
    session.clients[0].mask(_to_client(session, Phase.MASKED_INPUT, 0, forged), session.vectors[0])


def test_parties_with_other_parameters_share_no_key():
  session = _session(Mode.SEMI_HONEST)
  other = _session(Mode.SEMI_HONEST, threshold=7)
  other.session = session.session
  session.clients[3] = other.client(3)
  session.advance(Phase.MASKED_INPUT)
  with pytest.raises(errors.DecryptionError):
    session.answer(0, session.inbox[0])


def _is_uniform(numbers, bits):
  counts = np.bincount((numbers >> np.uint64(bits - 8)).astype(np.int64), minlength=256)
  # Keyed noise cannot be derandomised: it may fail once in a million.
  return scipy.stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize('bits', [20, 32, 40])
def test_masked_vectors_and_their_sum_are_uniform_and_know_nothing_of_the_vectors(bits):
  session = _session(Mode.SEMI_HONEST, 5, length=20_000, bits=bits)
  session.vectors = np.random.default_rng(0).integers(0, 1 << (bits - 4), (5, 20_000))
  session.advance(Phase.MASKED_INPUT).send()
  vectors = session.vectors.astype(np.uint64)
  assert not _is_uniform(vectors[0], bits)
  masked = [
    packing.unpack(message[wire.HEADER_BYTES :], 20_000, bits, np.dtype('<u8'))
    for (phase, _), message in session.sent.items()
    if phase is Phase.MASKED_INPUT
  ]
  modulus = np.uint64((1 << bits) - 1)
  # The masks of pairs are gone from the sum, the clients' own are there.
  total = session.server._total.astype(np.uint64) & modulus
  for numbers, plain in zip([*masked, total], [*vectors, vectors.sum(0)], strict=True):
    assert _is_uniform(numbers, bits)
    assert _is_uniform((numbers - plain) & modulus, bits)
    assert scipy.stats.pearsonr(numbers, plain).pvalue > 1e-6
    assert scipy.stats.pearsonr((numbers >> np.uint64(3)) + plain, plain).pvalue < 1e-6
