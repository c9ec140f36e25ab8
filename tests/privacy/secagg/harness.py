# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A whole session in one process, step by step, with everything that was sent."""

import dataclasses
import os
from collections.abc import Collection, Mapping

import numpy as np

from privacy.secagg import primitives
from privacy.secagg.client import Client
from privacy.secagg.errors import BelowThresholdError
from privacy.secagg.parameters import Mode, Phase, ProtocolSpec
from privacy.secagg.server import Server


def build_spec(num_clients, mode, *, length=20, bits=20, neighbours=None, **changes):
  """With the smallest threshold that is allowed."""
  holders = num_clients if neighbours is None else neighbours + 1
  least = 2 * holders // 3 + 1 if mode is Mode.MALICIOUS else holders // 2 + 1
  return ProtocolSpec(
    **{
      'num_clients': num_clients,
      'threshold': least,
      'vector_length': length,
      'modulus_bits': bits,
      'mode': mode,
      'neighbours': neighbours,
      **changes,
    }
  )


@dataclasses.dataclass
class Session:
  """Clients and a server that do as they should, unless a test takes over."""

  spec: ProtocolSpec
  vectors: np.ndarray

  def __post_init__(self):
    ids = range(self.spec.num_clients)
    self.session = os.urandom(16)
    self.signing_keys = {i: primitives.new_signing_key() for i in ids}
    self.verify_keys = None
    if self.spec.mode is Mode.MALICIOUS:
      self.verify_keys = {i: primitives.verify_key(k) for i, k in self.signing_keys.items()}
    self.server = Server(self.spec, self.session, verify_keys=self.verify_keys)
    self.clients = {i: self.client(i) for i in ids}
    self.inbox = dict.fromkeys(ids, b'')
    self.sent: dict[tuple[Phase, int], bytes] = {}
    self.delivered: dict[tuple[Phase, int], bytes] = {}

  def client(self, client_id, **changes):
    malicious = self.spec.mode is Mode.MALICIOUS
    keys = {
      'signing_key': self.signing_keys[client_id] if malicious else None,
      'verify_keys': self.verify_keys,
    }
    return Client(self.spec, client_id, self.session, **{**keys, **changes})

  def answer(self, client_id, message, phase=None):
    """What a client sends on a message of the server."""
    client = self.clients[client_id]
    phase = phase or self.server.phase
    if phase is Phase.ADVERTISE_KEYS:
      return client.advertise()
    if phase is Phase.MASKED_INPUT:
      return client.mask(message, self.vectors[client_id])
    step = {
      Phase.SHARE_KEYS: client.share_keys,
      Phase.CONSISTENCY: client.confirm,
      Phase.UNMASKING: client.unmask,
    }
    return step[phase](message)

  def send(self, dropped: Collection[int] = ()):
    """All clients that are there, but for those that drop, send their message."""
    phase = self.server.phase
    for client_id in sorted(set(self.inbox) - set(dropped)):
      try:
        message = self.answer(client_id, self.inbox[client_id])
      except BelowThresholdError:
        # With neighbours, a client may have too few, and leaves.
        assert self.spec.neighbours is not None
        continue
      self.sent[phase, client_id] = message
      self.server.receive(client_id, message)

  def close(self):
    self.inbox = self.server.close_phase()
    self.delivered |= {(self.server.phase, i): m for i, m in self.inbox.items()}

  def step(self, dropped: Collection[int] = ()):
    self.send(dropped)
    self.close()

  def advance(self, phase: Phase, drops: Mapping[Phase, Collection[int]] | None = None):
    """Goes on until a phase is open."""
    while self.server.phase is not phase:
      self.step((drops or {}).get(self.server.phase, ()))
    return self

  def run(self, drops: Mapping[Phase, Collection[int]] | None = None):
    return self.advance(Phase.DONE, drops).server.result

  def expected(self, clients):
    modulus = 1 << self.spec.modulus_bits
    total = [sum(int(v) for v in column) % modulus for column in self.vectors[list(clients)].T]
    return np.array(total, np.uint64)


def build_session(spec, seed=0):
  """With vectors over all that the modulus has, of both signs."""
  half = 1 << (spec.modulus_bits - 1)
  shape = (spec.num_clients, spec.vector_length)
  return Session(spec, np.random.default_rng(seed).integers(-half, half, shape))
