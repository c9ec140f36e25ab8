# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which masks are left in a sum, and how the server takes them off."""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from privacy.secagg import errors, masks, shamir, statements
from privacy.secagg.bodies import PublicKeys
from privacy.secagg.parameters import ProtocolSpec
from privacy.secagg.primitives import AgreementKey


class Masked(NamedTuple):
  """A sum of masked vectors, and what is known of who is in it.

  Attributes:
    total: `[d]`, of the spec's words.
    survivors: whose vectors are in it.
    sharers: who sent shares, in the sum or not.
    holders: by client, who holds shares of its secrets.
    keys: by client, what it advertised.
    seed_checks: by client, what its seed must go with.
  """

  total: np.ndarray
  survivors: frozenset[int]
  sharers: frozenset[int]
  holders: Mapping[int, tuple[int, ...]]
  keys: Mapping[int, PublicKeys]
  seed_checks: Mapping[int, bytes]

  def left_in(self, client: int) -> list[int]:
    """Those in the sum that added a mask for a pair with this client."""
    return [c for c in self.holders[client] if c in self.survivors and c != client]

  def exposed(self) -> Iterator[int]:
    """Clients one of whose secrets it takes: all in the sum, and others that left masks there."""
    yield from sorted(self.survivors)
    yield from sorted(c for c in self.sharers - self.survivors if self.left_in(c))

  def check_connected(self):
    """Checks that masks connect all in the sum: else each piece's own sum would come out as well.

    Raises:
      BelowThresholdError: if they do not.
    """
    reached, border = frozenset(), frozenset([min(self.survivors)])
    while border:
      reached |= border
      border = frozenset(c for client in border for c in self.left_in(client)) - reached
    if reached != self.survivors:
      raise errors.BelowThresholdError(
        f'The {len(self.survivors)} clients that are left fall into pieces without common masks.'
      )

  def check_recoverable(self, spec: ProtocolSpec, present: Collection[int]):
    """Checks that those present can recover all that it takes.

    Raises:
      BelowThresholdError: if they cannot.
    """
    for client in self.exposed():
      there = sum(holder in present for holder in self.holders[client])
      if there < spec.threshold:
        raise errors.BelowThresholdError(
          f'{there} holders of the secrets of client {client} are left; '
          f'{spec.threshold} are needed.'
        )


def unmask(
  spec: ProtocolSpec,
  session: bytes,
  masked: Masked,
  shares: Mapping[int, Mapping[int, bytes]],
) -> np.ndarray:
  """The sum without masks, `[d]`, uint64, below the modulus.

  Args:
    spec: of the session.
    session: 16 bytes.
    masked: the sum.
    shares: by client and holder: of the seed of a client in the sum, of the mask key of another.

  Raises:
    BelowThresholdError: if there are too few shares.
    ReconstructionError: if a secret is not the one that its owner committed to.
  """
  context = spec.context(session)
  recover = shamir.Recovery(spec.threshold)
  total = masked.total.copy()
  for client in masked.exposed():
    of_client = shares.get(client, {})
    secret = recover({holder + 1: share for holder, share in of_client.items()})
    if client in masked.survivors:
      check = statements.seed_check(context, client, secret)
      _check_secret(client, check == masked.seed_checks[client])
      masks.subtract(total, masks.self_key(context, client, secret))
      continue
    own = AgreementKey(secret)
    _check_secret(client, own.public == masked.keys[client].mask)
    for peer in masked.left_in(client):
      key = masks.pair_key(context, client, own, peer, masked.keys[peer].mask)
      # What the absent client would have added is what cancels the peer's part.
      masks.add_pair(total, key, client, peer)
  total &= spec.word.type((1 << spec.modulus_bits) - 1)
  return total.astype(np.uint64)


def _check_secret(client: int, is_right: bool):
  if not is_right:
    raise errors.ReconstructionError(f'The shares of client {client} give another secret.')
