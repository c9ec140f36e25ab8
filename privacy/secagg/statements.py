# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What clients sign and commit to, and others check."""

import hashlib
from collections.abc import Collection, Mapping

from privacy.secagg import primitives
from privacy.secagg.bodies import PublicKeys
from privacy.secagg.primitives import Purpose


def keys_signed(context: bytes, client: int, keys: PublicKeys) -> bytes:
  """What a client signs of its public keys."""
  return primitives.label(context, Purpose.KEYS, client) + keys.cipher + keys.mask


def survivors_signed(
  context: bytes, survivors: Collection[int], keys: Mapping[int, PublicKeys]
) -> bytes:
  """What a client signs of who is in the sum.

  Their keys are fresh, the verifier's own among them: a signature serves in no other session, even
  where a server gives two of them the same number.

  Args:
    context: of the session.
    survivors: who is in the sum.
    keys: by client, of the survivors at least.
  """
  present = sorted(survivors)
  public = hashlib.sha256(b''.join(keys[c].cipher + keys[c].mask for c in present)).digest()
  return primitives.label(context, Purpose.SURVIVORS, *present) + public


def seed_check(context: bytes, client: int, seed: bytes) -> bytes:
  """What tells a client's seed from a wrong one, and nothing else of it."""
  return primitives.hkdf(seed, primitives.label(context, Purpose.SEED_CHECK, client))
