# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The server of secure aggregation (Bonawitz et al. 2017, figure 4)."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from privacy.secagg import (
  bodies,
  errors,
  graph,
  packing,
  primitives,
  statements,
  unmasking,
  wire,
)
from privacy.secagg.bodies import Direction, ShareKind
from privacy.secagg.parameters import Mode, Phase, ProtocolSpec
from privacy.secagg.primitives import AgreementKey


class SecureSum(NamedTuple):
  """What comes out.

  Attributes:
    total: `[d]`, uint64, sum of the vectors modulo `M`.
    clients: whose vectors are in it, ascending.
  """

  total: np.ndarray
  clients: tuple[int, ...]


class Server:
  """The server of one session: `receive` what comes in, `close_phase` when it is enough.

  A client that sends nothing while a phase is open has dropped out. A message that is refused
  changes nothing. Vectors are added up as they come, so that no two are in memory.
  """

  def __init__(
    self, spec: ProtocolSpec, session: bytes, *, verify_keys: Mapping[int, bytes] | None = None
  ):
    """Draws the graph.

    Args:
      spec: of the session.
      session: 16 bytes, never used before.
      verify_keys: public Ed25519 keys of all clients; in MALICIOUS mode.

    Raises:
      ValueError: if an argument does not go with the spec.
    """
    spec.check_verify_keys(verify_keys)
    self._spec, self._session = spec, session
    self._context = spec.context(session)
    self._verify_keys = verify_keys or {}
    self._phases = [*spec.phases, Phase.DONE]
    # Of the present phase: who may send, and who has.
    self._expected = frozenset(range(spec.num_clients))
    self._heard: dict[Phase, set[int]] = {phase: set() for phase in Phase}
    self._holders = graph.holders(spec.num_clients, spec.neighbours)
    self._keys: dict[int, bodies.PublicKeys] = {}
    self._seed_checks: dict[int, bytes] = {}
    # By recipient, then by sender.
    self._envelopes: dict[int, dict[int, bytes]] = defaultdict(dict)
    self._total = np.zeros(spec.vector_length, spec.word)
    self._signatures: dict[int, bytes] = {}
    # By owner of the secret, then by holder.
    self._shares: dict[int, dict[int, bytes]] = defaultdict(dict)
    self._result: SecureSum | None = None

  @property
  def phase(self) -> Phase:
    """The phase that is open; DONE or ABORTED in the end."""
    return self._phases[0]

  @property
  def missing(self) -> frozenset[int]:
    """Clients that may still send something in this phase."""
    return self._expected - self._heard[self.phase]

  @property
  def result(self) -> SecureSum:
    """The sum.

    Raises:
      OutOfOrderError: if the session is not DONE.
    """
    if self._result is None:
      raise errors.OutOfOrderError(f'There is no result; the session is at: {self.phase}.')
    return self._result

  def receive(self, client_id: int, message: bytes):
    """Takes in a message of the open phase.

    Args:
      client_id: who sent it, as the transport knows it.
      message: as a `Client` made it.

    Raises:
      SecAggError: a named one, if it is not what an honest client sends now.
    """
    front = wire.read(message, self._spec, self._session)
    if front.direction is not Direction.TO_SERVER or front.client != client_id:
      raise errors.AddressError(f'A message does not come from client {client_id}.')
    if client_id in self._heard[front.phase]:
      raise errors.ReplayError(f'Client {client_id} has sent its message for {front.phase} before.')
    if front.phase is not self.phase:
      raise errors.OutOfOrderError(f'A message is for {front.phase}, not for {self.phase}.')
    if client_id not in self._expected:
      raise errors.OutOfOrderError(f'Client {client_id} is not in the session any more.')
    take = {
      Phase.ADVERTISE_KEYS: self._take_keys,
      Phase.SHARE_KEYS: self._take_envelopes,
      Phase.MASKED_INPUT: self._take_vector,
      Phase.CONSISTENCY: self._take_signature,
      Phase.UNMASKING: self._take_shares,
    }
    take[front.phase](client_id, front.body)
    self._heard[front.phase].add(client_id)

  def close_phase(self) -> dict[int, bytes]:
    """Ends the open phase and opens the next.

    Returns:
      By client, the message that it needs for the next phase; empty after the last.

    Raises:
      BelowThresholdError: if too few are left; the session is then ABORTED.
      ReconstructionError: if shares are wrong; likewise.
      OutOfOrderError: if the session ended before.
    """
    phase = self.phase
    if phase in (Phase.DONE, Phase.ABORTED):
      raise errors.OutOfOrderError(f'The session is {phase}.')
    close = {
      Phase.ADVERTISE_KEYS: self._close_keys,
      Phase.SHARE_KEYS: self._close_envelopes,
      Phase.MASKED_INPUT: self._close_vectors,
      Phase.CONSISTENCY: self._ask_for_shares,
      Phase.UNMASKING: self._finish,
    }
    try:
      self._check_enough(self._heard[phase])
      messages = close[phase]()
    except errors.SecAggError:
      self.abort()
      raise
    self._phases.pop(0)
    self._expected = frozenset(messages)
    return {
      client: wire.write(Direction.TO_CLIENT, self.phase, self._session, client, body)
      for client, body in messages.items()
    }

  def abort(self):
    """Ends the session without a result and forgets what came in."""
    self._phases, self._expected, self._result = [Phase.ABORTED], frozenset(), None
    self._total = np.zeros(0, self._spec.word)
    self._envelopes.clear()
    self._shares.clear()

  def _take_keys(self, client: int, body: bytes):
    keys = bodies.read_keys(body)
    for key in (keys.cipher, keys.mask):
      # With a key of low order every honest client would have to give up.
      AgreementKey.generate().agree(key)
    if self._spec.mode is Mode.MALICIOUS:
      statement = statements.keys_signed(self._context, client, keys)
      primitives.verify(self._verify_keys[client], keys.signature, statement)
    taken = {key for others in self._keys.values() for key in others[:2]}
    if keys.cipher == keys.mask or taken & set(keys[:2]):
      raise errors.ContradictionError(f'Client {client} advertises a key twice.')
    self._keys[client] = keys

  def _close_keys(self) -> dict[int, bytes]:
    messages = {}
    for client in self._keys:
      holders = self._holders[client]
      keys = {holder: self._keys[holder] for holder in holders if holder in self._keys}
      messages[client] = bodies.write_peers(bodies.Peers(holders, keys))
    return messages

  def _take_envelopes(self, client: int, body: bytes):
    check, records = body[: primitives.KEY_BYTES], body[primitives.KEY_BYTES :]
    holders = self._holders[client]
    sealed = bodies.read_records(records, holders, holders, bodies.ENVELOPE_BYTES)
    self._seed_checks[client] = check
    for holder in holders:
      if holder != client:
        self._envelopes[holder][client] = sealed[holder]

  def _close_envelopes(self) -> dict[int, bytes]:
    messages = {
      client: bodies.write_envelopes(self._envelopes[client], client, self._holders[client])
      for client in self._seed_checks
    }
    self._envelopes.clear()
    return messages

  def _take_vector(self, client: int, body: bytes):
    spec = self._spec
    self._total += packing.unpack(body, spec.vector_length, spec.modulus_bits, spec.word)

  def _close_vectors(self) -> dict[int, bytes]:
    masked = self._masked()
    masked.check_recoverable(self._spec, masked.survivors)
    if self._spec.neighbours is not None:
      masked.check_connected()
    if self._spec.mode is not Mode.MALICIOUS:
      return self._ask_for_shares()
    holders = range(self._spec.num_clients)
    return dict.fromkeys(masked.survivors, bodies.write_bitmap(masked.survivors, holders))

  def _take_signature(self, client: int, body: bytes):
    survivors = self._heard[Phase.MASKED_INPUT]
    statement = statements.survivors_signed(self._context, survivors, self._keys)
    primitives.verify(self._verify_keys[client], body, statement)
    self._signatures[client] = body

  def _ask_for_shares(self) -> dict[int, bytes]:
    masked = self._masked()
    messages = {}
    for client in self._signatures or masked.survivors:
      survivors, dropped = self._around(client)
      request = bodies.UnmaskRequest(survivors, dropped, self._signatures)
      messages[client] = bodies.write_unmask_request(request, self._spec, self._holders[client])
    return messages

  def _take_shares(self, client: int, body: bytes):
    shares = bodies.read_shares(body, self._holders[client])
    survivors, dropped = self._around(client)
    expected = dict.fromkeys(survivors, ShareKind.SEED)
    expected |= dict.fromkeys(dropped, ShareKind.MASK_KEY)
    if {owner: kind for owner, (kind, _) in shares.items()} != expected:
      raise errors.ContradictionError(f'Client {client} sent other shares than it was asked for.')
    for owner, (_, share) in shares.items():
      self._shares[owner][client] = share

  def _finish(self) -> dict[int, bytes]:
    masked = self._masked()
    masked.check_recoverable(self._spec, self._heard[Phase.UNMASKING])
    total = unmasking.unmask(self._spec, self._session, masked, self._shares)
    self._result = SecureSum(total, tuple(sorted(masked.survivors)))
    self._shares.clear()
    return {}

  def _masked(self) -> unmasking.Masked:
    return unmasking.Masked(
      self._total,
      frozenset(self._heard[Phase.MASKED_INPUT]),
      frozenset(self._heard[Phase.SHARE_KEYS]),
      self._holders,
      self._keys,
      self._seed_checks,
    )

  def _around(self, client: int) -> tuple[frozenset[int], frozenset[int]]:
    """Among the holders of a client's secrets: who is in the sum, and who only sent shares."""
    around = frozenset(self._holders[client])
    survivors = around & self._heard[Phase.MASKED_INPUT]
    return survivors, (around & self._heard[Phase.SHARE_KEYS]) - survivors

  def _check_enough(self, clients: Collection[int]):
    least = self._spec.least_clients
    if self.phase in (Phase.CONSISTENCY, Phase.UNMASKING):
      # The sum has its clients by now; these only help.
      least = self._spec.threshold
    if len(clients) < least:
      raise errors.BelowThresholdError(
        f'{len(clients)} clients are left after {self.phase}; {least} are needed.'
      )
