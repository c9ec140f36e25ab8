# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What all parties of a session agree on before it starts."""

import dataclasses
import enum
import hashlib
from collections.abc import Mapping

import numpy as np

MOST_CLIENTS = 1 << 20
_MOST_BITS = 62
SESSION_BYTES = 16
VERIFY_KEY_BYTES = 32
# By the value of the phase.
_IN_WORDS = (
  'advertising keys',
  'sharing keys',
  'sending masked vectors',
  'confirming who is in the sum',
  'unmasking',
  'done',
  'aborted',
)


class Mode(enum.Enum):
  """What the server may do.

  SEMI_HONEST follows the protocol and looks at all it receives. MALICIOUS may send anything to
  anybody: then keys are signed by parties that know each other, and a round is added in which
  clients agree on who is in the sum (Bonawitz et al. 2017, section 6.2).
  """

  SEMI_HONEST = 'semi_honest'
  MALICIOUS = 'malicious'


class Phase(enum.Enum):
  """Where a session is; the value stands in messages."""

  ADVERTISE_KEYS = 0
  SHARE_KEYS = 1
  MASKED_INPUT = 2
  CONSISTENCY = 3
  UNMASKING = 4
  DONE = 5
  ABORTED = 6

  def __str__(self) -> str:
    """What goes on, as errors say it."""
    return _IN_WORDS[self.value]


@dataclasses.dataclass(frozen=True)
class ProtocolSpec:
  """The public parameters of a session.

  A client is a number in `[0, num_clients)`. Those that hold the shares of one client's secrets,
  itself included, are its holders: everybody, or itself and its `neighbours`.

  Attributes:
    num_clients: `n`, who is asked to join.
    threshold: `t`, how many shares recover a secret: more than half of the holders, in MALICIOUS
      mode more than two thirds. Without `neighbours`, vectors stay secret while fewer than `t`
      clients, in MALICIOUS mode fewer than `2 t - n`, tell the server all that they know.
    vector_length: `d`, coordinates of one client's vector.
    modulus_bits: sums are modulo `M = 2^modulus_bits`, 1 to 62.
    mode: see `Mode`.
    neighbours: `k`, with how many others a client shares masks and secrets, an even number (Bell
      et al. 2020; `graph.degree` finds it); None for all. Only SEMI_HONEST: a server that lies
      about the graph could pick a client's neighbours.
    smallest_cohort: least clients in a sum that is released; None for the threshold. With
      `neighbours`, the server alone sees to it.

  Raises:
    ValueError: if a number does not go with the others; it says which would.
  """

  num_clients: int
  threshold: int
  vector_length: int
  modulus_bits: int
  mode: Mode
  neighbours: int | None = None
  smallest_cohort: int | None = None

  def __post_init__(self):
    _check_within('num_clients', self.num_clients, 2, MOST_CLIENTS)
    _check_within('vector_length', self.vector_length, 1, None)
    _check_within('modulus_bits', self.modulus_bits, 1, _MOST_BITS)
    _check_within('threshold', self.threshold, 1, None)
    if self.neighbours is not None:
      self._check_neighbours(self.neighbours)
    if self.mode is Mode.MALICIOUS:
      share, least = 'two thirds', 2 * self.num_holders // 3 + 1
    else:
      share, least = 'half', self.num_holders // 2 + 1
    if not least <= self.threshold <= self.num_holders:
      raise ValueError(
        f'`threshold` {self.threshold} is not more than {share} of the {self.num_holders} holders '
        f'of a secret, and at most all; needs {least} to {self.num_holders}.'
      )
    if self.smallest_cohort is not None:
      _check_within('smallest_cohort', self.smallest_cohort, self.threshold, self.num_clients)

  def _check_neighbours(self, neighbours: int):
    if self.mode is Mode.MALICIOUS:
      raise ValueError('`neighbours` is for SEMI_HONEST mode; leave it out in MALICIOUS mode.')
    _check_within('neighbours', neighbours, 0, None)
    if neighbours % 2 or not 2 <= neighbours <= self.num_clients - 2:
      raise ValueError(
        f'`neighbours` {neighbours} is not an even number from 2 to {self.num_clients - 2}; leave '
        'it out for the complete graph.'
      )

  @property
  def num_holders(self) -> int:
    """How many clients hold shares of one client's secrets, itself included."""
    return self.num_clients if self.neighbours is None else self.neighbours + 1

  @property
  def least_clients(self) -> int:
    """How many clients a sum has at least."""
    return self.smallest_cohort or self.threshold

  @property
  def phases(self) -> tuple[Phase, ...]:
    """The phases in which clients send something."""
    if self.mode is Mode.MALICIOUS:
      return tuple(Phase)[:5]
    return (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.UNMASKING)

  @property
  def word(self) -> np.dtype:
    """Of the integers that vectors are masked in, which wrap at a multiple of the modulus."""
    return np.dtype('<u4' if self.modulus_bits <= 32 else '<u8')

  def context(self, session: bytes) -> bytes:
    """Digest of the session and of all its parameters, which goes into every key and signature.

    Parties that do not agree on the parameters so do not agree on any key either.

    Args:
      session: 16 bytes, never used before.

    Raises:
      ValueError: if they are not 16 bytes.
    """
    if len(session) != SESSION_BYTES:
      raise ValueError(f'`session` has {len(session)} bytes; needs {SESSION_BYTES}.')
    numbers = (
      self.num_clients,
      self.threshold,
      self.vector_length,
      self.modulus_bits,
      self.neighbours or 0,
      self.least_clients,
    )
    text = f'hetlora secagg 1 {self.mode.value} {" ".join(map(str, numbers))} '
    return hashlib.sha256(text.encode('ascii') + session).digest()

  def check_verify_keys(self, verify_keys: Mapping[int, bytes] | None):
    """Checks that there are keys to verify signatures with just where they are needed.

    Args:
      verify_keys: public Ed25519 keys of all clients, 32 bytes each; None in SEMI_HONEST mode.

    Raises:
      ValueError: if there are too many or too few, or two are the same.
    """
    if self.mode is not Mode.MALICIOUS:
      if verify_keys is not None:
        raise ValueError('`verify_keys` are for MALICIOUS mode; leave them out.')
      return
    if verify_keys is None:
      raise ValueError('`verify_keys` are needed in MALICIOUS mode; they are missing.')
    keys = verify_keys
    missing = [c for c in range(self.num_clients) if len(keys.get(c, b'')) != VERIFY_KEY_BYTES]
    if missing:
      raise ValueError(
        f'`verify_keys` has no key of {VERIFY_KEY_BYTES} bytes for client {missing[0]}.'
      )
    if len(set(keys.values())) < len(keys):
      raise ValueError('`verify_keys` has the same key for two clients.')


def _check_within(name: str, value: int | None, least: int, most: int | None):
  if not isinstance(value, int) or value < least or (most is not None and value > most):
    bound = f'at least {least}' if most is None else f'from {least} to {most}'
    raise ValueError(f'`{name}` must be an integer {bound}; got {value!r}.')
