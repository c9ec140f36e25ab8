# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The masks that hide a client's vector, and how they are added.

Client `i` sends `x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)`, modulo a power of
two (Bonawitz et al. 2017, section 4): those of pairs cancel in the sum over all.
"""

import numpy as np

from privacy.secagg import primitives
from privacy.secagg.primitives import AgreementKey, Purpose

# A piece of a mask and of the vector it is added to stay in the cache.
_PIECE_BYTES = 1 << 18


def self_key(context: bytes, client: int, seed: bytes) -> bytes:
  """The key of a client's own mask."""
  return primitives.hkdf(seed, primitives.label(context, Purpose.SELF_MASK, client))


def pair_key(context: bytes, client: int, key: AgreementKey, peer: int, public: bytes) -> bytes:
  """The key of the mask of two clients, the same for both.

  Args:
    context: of the session.
    client: whose key it is.
    key: with which masks are agreed on.
    peer: the other client.
    public: key of the other.

  Raises:
    KeyAgreementError: if the public key is of low order.
  """
  label = primitives.label(context, Purpose.PAIR_MASK, min(client, peer), max(client, peer))
  return primitives.hkdf(key.agree(public), label)


def add_pair(vector: np.ndarray, key: bytes, client: int, peer: int):
  """Adds, in place, what `client` adds for its mask with `peer`."""
  if client < peer:
    add(vector, key)
  else:
    subtract(vector, key)


def add(vector: np.ndarray, key: bytes):
  """Adds a mask in place; it wraps. A key must mask one vector only."""
  for part, mask in _pieces(vector, key):
    part += mask


def subtract(vector: np.ndarray, key: bytes):
  """Takes the same mask off."""
  for part, mask in _pieces(vector, key):
    part -= mask


def _pieces(vector: np.ndarray, key: bytes):
  """Parts of a vector and the numbers for them, uniform over the type and so modulo its parts."""
  step = _PIECE_BYTES // vector.itemsize
  for start in range(0, vector.size, step):
    part = vector[start : start + step]
    block = start * vector.itemsize // primitives.BLOCK_BYTES
    stream = primitives.keystream(key, block, part.nbytes)
    yield part, np.frombuffer(stream, vector.dtype)
