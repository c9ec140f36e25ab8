# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A client of secure aggregation (Bonawitz et al. 2017, figure 4)."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from privacy.secagg import bodies, errors, masks, packing, primitives, shamir, statements, wire
from privacy.secagg.bodies import Direction, ShareKind
from privacy.secagg.parameters import Mode, Phase, ProtocolSpec
from privacy.secagg.primitives import AgreementKey, Purpose


class _Shares(NamedTuple):
  """Of one client's secrets."""

  mask_key: bytes
  seed: bytes


class Client:
  """One client in one session; each step is taken once, in order.

  A step that raises has sent nothing and changed nothing. What a client reveals in the end is, for
  each peer, a share of one of its two secrets, never of both, and only once.
  """

  def __init__(
    self,
    spec: ProtocolSpec,
    client_id: int,
    session: bytes,
    *,
    signing_key: bytes | None = None,
    verify_keys: Mapping[int, bytes] | None = None,
  ):
    """Makes fresh keys.

    Args:
      spec: of the session.
      client_id: from 0 to `num_clients - 1`.
      session: 16 bytes; a client must not take part in a session twice.
      signing_key: private Ed25519 key, 32 bytes; in MALICIOUS mode.
      verify_keys: public Ed25519 keys of all clients, known from elsewhere; in MALICIOUS mode.

    Raises:
      ValueError: if an argument does not go with the spec.
    """
    if not 0 <= client_id < spec.num_clients:
      raise ValueError(f'`client_id` {client_id} is not from 0 to {spec.num_clients - 1}.')
    spec.check_verify_keys(verify_keys)
    if spec.mode is Mode.MALICIOUS and signing_key is None:
      raise ValueError('`signing_key` is needed in MALICIOUS mode; it is missing.')
    if spec.mode is not Mode.MALICIOUS and signing_key is not None:
      raise ValueError('`signing_key` is for MALICIOUS mode; leave it out.')
    trusted = verify_keys or {}
    if signing_key is not None and primitives.verify_key(signing_key) != trusted[client_id]:
      raise ValueError(f'`signing_key` is not that of client {client_id} in `verify_keys`.')
    self._spec, self._id, self._session = spec, client_id, session
    self._context = spec.context(session)
    self._signing_key, self._verify_keys = signing_key or b'', trusted
    self._phases = [*spec.phases, Phase.DONE]
    self._cipher_key, self._mask_key = AgreementKey.generate(), AgreementKey.generate()
    self._seed = os.urandom(shamir.SECRET_BYTES)
    self._keys = bodies.PublicKeys(self._cipher_key.public, self._mask_key.public, b'')
    if signing_key:
      signature = primitives.sign(
        signing_key, statements.keys_signed(self._context, client_id, self._keys)
      )
      self._keys = self._keys._replace(signature=signature)
    # Filled in by the steps.
    self._holders: tuple[int, ...] = ()
    self._peers: dict[int, bodies.PublicKeys] = {}
    self._agreed: dict[int, bytes] = {}
    self._held: dict[int, _Shares] = {}
    self._confirmed: frozenset[int] | None = None

  @property
  def next_phase(self) -> Phase:
    """The step that comes next; DONE after the last."""
    return self._phases[0]

  def advertise(self) -> bytes:
    """The first step: public keys.

    Raises:
      OutOfOrderError: if it is not the next step.
    """
    self._expect(Phase.ADVERTISE_KEYS)
    return self._send(b''.join(self._keys))

  def share_keys(self, message: bytes) -> bytes:
    """The second step: shares of the own secrets, encrypted for each holder.

    Args:
      message: from the server, the keys of the others.

    Raises:
      SecAggError: a named one, if the message is not what an honest server sends now.
    """
    peers = bodies.read_peers(self._open(Phase.SHARE_KEYS, message), self._spec)
    self._check_peers(peers)
    agreed = {
      peer: self._cipher_key.agree(public.cipher)
      for peer, public in peers.keys.items()
      if peer != self._id
    }
    points = [holder + 1 for holder in peers.keys]
    of_key = shamir.split(self._mask_key.private, self._spec.threshold, points)
    of_seed = shamir.split(self._seed, self._spec.threshold, points)
    shares = {h: _Shares(of_key[h + 1], of_seed[h + 1]) for h in peers.keys}
    envelopes = {}
    for holder in peers.holders:
      # To somebody who is absent goes what looks alike.
      envelopes[holder] = os.urandom(bodies.ENVELOPE_BYTES)
      if holder in agreed:
        label = primitives.label(self._context, Purpose.SHARES, self._id, holder)
        key = primitives.hkdf(agreed[holder], label)
        envelopes[holder] = primitives.seal(key, b''.join(shares[holder]), label)
    self._holders, self._peers, self._agreed = peers.holders, peers.keys, agreed
    self._held = {self._id: shares[self._id]}
    check = statements.seed_check(self._context, self._id, self._seed)
    records = bodies.write_records(envelopes, peers.holders, bodies.ENVELOPE_BYTES)
    return self._send(check + records)

  def mask(self, message: bytes, vector: np.ndarray) -> bytes:
    """The third step: the masked vector.

    Args:
      message: from the server, what others encrypted for this client.
      vector: `[d]`, integers; what counts is their value modulo `M`.

    Raises:
      ValueError: if the vector has another shape or type.
      SecAggError: a named one, if the message is not what an honest server sends now.
    """
    if vector.shape != (self._spec.vector_length,) or vector.dtype.kind not in 'iu':
      raise ValueError(
        f'`vector` is {vector.dtype} of shape {vector.shape}; needs integers of shape '
        f'({self._spec.vector_length},).'
      )
    body = self._open(Phase.MASKED_INPUT, message)
    envelopes = bodies.read_envelopes(body, self._id, self._holders)
    if not envelopes.keys() <= self._peers.keys():
      raise errors.ContradictionError('Shares come from a client that advertised no keys.')
    self._check_enough(len(envelopes) + 1, 'sent shares')
    held = {peer: self._unseal(peer, sealed) for peer, sealed in envelopes.items()}
    # A cast to another width, and a sign, change nothing modulo a power of two.
    masked = vector.astype(self._spec.word)
    masks.add(masked, masks.self_key(self._context, self._id, self._seed))
    for peer in held:
      public = self._peers[peer].mask
      key = masks.pair_key(self._context, self._id, self._mask_key, peer, public)
      masks.add_pair(masked, key, self._id, peer)
    masked &= self._spec.word.type((1 << self._spec.modulus_bits) - 1)
    self._held.update(held)
    # What is of no more use cannot be stolen.
    del self._mask_key, self._seed, self._cipher_key, self._agreed
    return self._send(packing.pack(masked, self._spec.modulus_bits))

  def confirm(self, message: bytes) -> bytes:
    """The fourth step, in MALICIOUS mode: a signature of who is in the sum.

    Args:
      message: from the server, who is.

    Raises:
      SecAggError: a named one, if the message is not what an honest server sends now.
    """
    survivors = bodies.read_bitmap(self._open(Phase.CONSISTENCY, message), self._holders)
    self._check_survivors(survivors)
    statement = statements.survivors_signed(self._context, survivors, self._peers)
    signature = primitives.sign(self._signing_key, statement)
    self._confirmed = survivors
    return self._send(signature)

  def unmask(self, message: bytes) -> bytes:
    """The last step: for each peer, the share of the one secret that the sum needs.

    Args:
      message: from the server, who is in the sum and who is not.

    Raises:
      SecAggError: a named one, if the message is not what an honest server sends now.
    """
    body = self._open(Phase.UNMASKING, message)
    request = bodies.read_unmask_request(body, self._spec, self._holders)
    self._check_survivors(request.survivors)
    if request.survivors & request.dropped:
      raise errors.ContradictionError('A client is said to be both in the sum and dropped.')
    if request.survivors | request.dropped != self._held.keys():
      raise errors.ContradictionError(
        'Those in the sum and those dropped are not just those that sent shares.'
      )
    if self._spec.mode is Mode.MALICIOUS:
      self._check_signatures(request)
    shares = {peer: (ShareKind.SEED, self._held[peer].seed) for peer in request.survivors}
    for peer in request.dropped:
      shares[peer] = (ShareKind.MASK_KEY, self._held[peer].mask_key)
    self._held = {}
    return self._send(bodies.write_shares(shares, self._holders))

  def _expect(self, phase: Phase):
    if self._phases[0] is not phase:
      raise errors.OutOfOrderError(
        f'Client {self._id} is not at {phase} now; next is: {self._phases[0]}.'
      )

  def _open(self, phase: Phase, message: bytes) -> bytes:
    """The body of the server's message of a phase that must be the next one."""
    front = wire.read(message, self._spec, self._session)
    if front.direction is not Direction.TO_CLIENT or front.client != self._id:
      raise errors.AddressError(f'A message is not for client {self._id}.')
    if front.phase not in self._phases:
      raise errors.ReplayError(f'For client {self._id}, {front.phase} is over.')
    if front.phase is not phase:
      raise errors.OutOfOrderError(f'A message is for {front.phase}, not for {phase}.')
    self._expect(phase)
    return front.body

  def _send(self, body: bytes) -> bytes:
    """A message of the next phase, which is then over."""
    phase = self._phases.pop(0)
    return wire.write(Direction.TO_SERVER, phase, self._session, self._id, body)

  def _check_peers(self, peers: bodies.Peers):
    if peers.keys.get(self._id) != self._keys:
      raise errors.ContradictionError(f'The keys of client {self._id} are not what it advertised.')
    self._check_enough(len(peers.keys), 'advertised keys')
    public = [key for keys in peers.keys.values() for key in keys[:2]]
    if len(set(public)) < len(public):
      raise errors.ContradictionError('Two public keys are the same.')
    if self._spec.mode is Mode.MALICIOUS:
      for peer, keys in peers.keys.items():
        statement = statements.keys_signed(self._context, peer, keys)
        primitives.verify(self._verify_keys[peer], keys.signature, statement)

  def _unseal(self, peer: int, sealed: bytes) -> _Shares:
    label = primitives.label(self._context, Purpose.SHARES, peer, self._id)
    plaintext = primitives.unseal(primitives.hkdf(self._agreed[peer], label), sealed, label)
    shares = _Shares(plaintext[: shamir.SHARE_BYTES], plaintext[shamir.SHARE_BYTES :])
    if not all(map(shamir.is_share, shares)):
      raise errors.DecryptionError(f'Client {peer} encrypted something that is no share.')
    return shares

  def _check_survivors(self, survivors: frozenset[int]):
    if not survivors <= self._held.keys():
      raise errors.ContradictionError('A client is said to be in the sum that sent no shares.')
    if self._id not in survivors:
      raise errors.ContradictionError(f'Client {self._id} is said not to be in the sum.')
    self._check_enough(len(survivors), 'are in the sum')
    if self._confirmed is not None and survivors != self._confirmed:
      raise errors.ContradictionError('Others are said to be in the sum than before.')

  def _check_signatures(self, request: bodies.UnmaskRequest):
    if not request.signatures.keys() <= request.survivors:
      raise errors.ContradictionError('A client signed that is not in the sum.')
    if len(request.signatures) < self._spec.threshold:
      raise errors.BelowThresholdError(
        f'{len(request.signatures)} clients signed who is in the sum; '
        f'{self._spec.threshold} are needed.'
      )
    statement = statements.survivors_signed(self._context, request.survivors, self._peers)
    for peer, signature in request.signatures.items():
      primitives.verify(self._verify_keys[peer], signature, statement)

  def _check_enough(self, clients: int, what: str):
    # With neighbours, a client does not see how many there are in all.
    spec = self._spec
    least = spec.least_clients if spec.neighbours is None else spec.threshold
    if clients < least:
      raise errors.BelowThresholdError(f'{clients} clients {what}; {least} are needed.')
