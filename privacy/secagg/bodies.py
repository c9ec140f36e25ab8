# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What messages say, as bytes.

The length of a body follows from the parameters, the phase and the direction alone: not from who
dropped out, and not from what is inside. Bodies are, in order of the phases, with holders in
ascending order of their numbers and sets of them as bitmaps:

  ADVERTISE_KEYS  to the server: two public keys [signature]
  SHARE_KEYS      to the client: holders, who advertised, keys of each [and signatures]
                  to the server: check of the own seed, encrypted shares for each
  MASKED_INPUT    to the client: who sent shares, encrypted shares of each
                  to the server: the packed vector
  CONSISTENCY     to the client: who is in the sum; to the server: signature of that
  UNMASKING       to the client: who is in the sum, who is not [who signed, signatures of each]
                  to the server: a kind and a share for each

What stands in [] is there in MALICIOUS mode. Records of absent clients are zeros towards a client
and random bytes, or kind NONE and zeros, towards the server.
"""

import enum
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from privacy.secagg import errors, packing, shamir
from privacy.secagg.parameters import Mode, Phase, ProtocolSpec
from privacy.secagg.primitives import KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES

ENVELOPE_BYTES = 2 * shamir.SHARE_BYTES + TAG_BYTES
_CLIENT = struct.Struct('>I')


class Direction(enum.Enum):
  """Where a message goes; the value stands in it."""

  TO_SERVER = 0
  TO_CLIENT = 1


class ShareKind(enum.Enum):
  """Which secret of a client a share is of; the value stands in messages."""

  NONE = 0
  SEED = 1
  MASK_KEY = 2


class PublicKeys(NamedTuple):
  """What a client advertises.

  Attributes:
    cipher: X25519 key under which shares are encrypted.
    mask: X25519 key under which masks are agreed on.
    signature: of both; empty in SEMI_HONEST mode.
  """

  cipher: bytes
  mask: bytes
  signature: bytes


class Peers(NamedTuple):
  """What a client learns of the others.

  Attributes:
    holders: who is to hold shares of its secrets, itself included, ascending.
    keys: by client, of those that advertised.
  """

  holders: tuple[int, ...]
  keys: dict[int, PublicKeys]


class UnmaskRequest(NamedTuple):
  """What a client is asked for in the end.

  Attributes:
    survivors: holders whose vectors are in the sum.
    dropped: holders that sent shares and no vector.
    signatures: by client, of the survivors; empty in SEMI_HONEST mode.
  """

  survivors: frozenset[int]
  dropped: frozenset[int]
  signatures: dict[int, bytes]


def body_bytes(spec: ProtocolSpec, phase: Phase, direction: Direction) -> int:
  """How long a body is; 0 where a phase has none in this direction."""
  holders, bitmap = spec.num_holders, bitmap_bytes(spec.num_holders)
  malicious = spec.mode is Mode.MALICIOUS
  signature = SIGNATURE_BYTES if malicious else 0
  keys = 2 * KEY_BYTES + signature
  vector = packing.packed_bytes(spec.vector_length, spec.modulus_bits)
  signatures = bitmap + holders * SIGNATURE_BYTES if malicious else 0
  sizes = {
    (Phase.ADVERTISE_KEYS, Direction.TO_SERVER): keys,
    (Phase.SHARE_KEYS, Direction.TO_CLIENT): bitmap + holders * (_CLIENT.size + keys),
    (Phase.SHARE_KEYS, Direction.TO_SERVER): KEY_BYTES + holders * ENVELOPE_BYTES,
    (Phase.MASKED_INPUT, Direction.TO_CLIENT): bitmap + holders * ENVELOPE_BYTES,
    (Phase.MASKED_INPUT, Direction.TO_SERVER): vector,
    (Phase.CONSISTENCY, Direction.TO_CLIENT): bitmap if malicious else 0,
    (Phase.CONSISTENCY, Direction.TO_SERVER): signature,
    (Phase.UNMASKING, Direction.TO_CLIENT): 2 * bitmap + signatures,
    (Phase.UNMASKING, Direction.TO_SERVER): holders * (1 + shamir.SHARE_BYTES),
  }
  return sizes.get((phase, direction), 0)


def bitmap_bytes(size: int) -> int:
  """Length of a bitmap over so many clients."""
  return -(-size // 8)


def write_bitmap(members: Collection[int], holders: Sequence[int]) -> bytes:
  """The set of members among the holders, which must all be among them."""
  bits = sum(1 << place for place, holder in enumerate(holders) if holder in members)
  return bits.to_bytes(bitmap_bytes(len(holders)), 'little')


def read_bitmap(data: bytes, holders: Sequence[int]) -> frozenset[int]:
  """Inverse of `write_bitmap`.

  Raises:
    MalformedMessageError: if bits behind the last holder are set.
  """
  bits = int.from_bytes(data, 'little')
  if bits >> len(holders):
    raise errors.MalformedMessageError('A set has members that do not exist.')
  return frozenset(holder for place, holder in enumerate(holders) if bits >> place & 1)


def write_records(records: Mapping[int, bytes], holders: Sequence[int], size: int) -> bytes:
  """The records of all holders, zeros where there is none."""
  return b''.join(records.get(holder, bytes(size)) for holder in holders)


def read_records(
  data: bytes, members: Collection[int], holders: Sequence[int], size: int
) -> dict[int, bytes]:
  """Inverse of `write_records`, where `members` have one.

  Raises:
    MalformedMessageError: if others have one too.
  """
  records = {h: data[i * size : (i + 1) * size] for i, h in enumerate(holders)}
  if any(any(record) for holder, record in records.items() if holder not in members):
    raise errors.MalformedMessageError('A record is of a client that is absent.')
  return {holder: record for holder, record in records.items() if holder in members}


def write_peers(peers: Peers) -> bytes:
  """The body to clients of SHARE_KEYS."""
  holders = peers.holders
  records = {client: b''.join(keys) for client, keys in peers.keys.items()}
  size = len(next(iter(records.values())))
  ids = b''.join(_CLIENT.pack(holder) for holder in holders)
  return ids + write_bitmap(records, holders) + write_records(records, holders, size)


def read_peers(data: bytes, spec: ProtocolSpec) -> Peers:
  """Inverse of `write_peers`.

  Raises:
    MalformedMessageError: if it is not one that `write_peers` makes.
  """
  ids = data[: spec.num_holders * _CLIENT.size]
  holders = tuple(client for (client,) in _CLIENT.iter_unpack(ids))
  if sorted(set(holders)) != list(holders) or holders[-1] >= spec.num_clients:
    raise errors.MalformedMessageError('The holders are not distinct clients in order.')
  data = data[len(ids) :]
  members, data = _split_bitmap(data, holders)
  records = read_records(data, members, holders, len(data) // len(holders))
  return Peers(holders, {client: read_keys(record) for client, record in records.items()})


def read_keys(record: bytes) -> PublicKeys:
  """The keys of one client."""
  return PublicKeys(record[:KEY_BYTES], record[KEY_BYTES : 2 * KEY_BYTES], record[2 * KEY_BYTES :])


def write_envelopes(envelopes: Mapping[int, bytes], own: int, holders: Sequence[int]) -> bytes:
  """The body to a client of MASKED_INPUT: what others encrypted for it; it counts as present."""
  members = {own, *envelopes}
  return write_bitmap(members, holders) + write_records(envelopes, holders, ENVELOPE_BYTES)


def read_envelopes(data: bytes, own: int, holders: Sequence[int]) -> dict[int, bytes]:
  """Inverse of `write_envelopes`.

  Raises:
    MalformedMessageError: if a record does not go with the set, or the client is not in it.
  """
  members, data = _split_bitmap(data, holders)
  if own not in members:
    raise errors.MalformedMessageError(f'Client {own} is not among those that sent shares.')
  return read_records(data, members - {own}, holders, ENVELOPE_BYTES)


def write_unmask_request(request: UnmaskRequest, spec: ProtocolSpec, holders: Sequence[int]):
  """The body to clients of UNMASKING."""
  sets = write_bitmap(request.survivors, holders) + write_bitmap(request.dropped, holders)
  if spec.mode is not Mode.MALICIOUS:
    return sets
  signers = write_bitmap(request.signatures, holders)
  return sets + signers + write_records(request.signatures, holders, SIGNATURE_BYTES)


def read_unmask_request(data: bytes, spec: ProtocolSpec, holders: Sequence[int]) -> UnmaskRequest:
  """Inverse of `write_unmask_request`.

  Raises:
    MalformedMessageError: if it is not one that `write_unmask_request` makes.
  """
  survivors, data = _split_bitmap(data, holders)
  dropped, data = _split_bitmap(data, holders)
  signatures = {}
  if spec.mode is Mode.MALICIOUS:
    signers, data = _split_bitmap(data, holders)
    signatures = read_records(data, signers, holders, SIGNATURE_BYTES)
  return UnmaskRequest(survivors, dropped, signatures)


def write_shares(shares: Mapping[int, tuple[ShareKind, bytes]], holders: Sequence[int]) -> bytes:
  """The body to the server of UNMASKING."""
  records = {client: bytes([kind.value]) + share for client, (kind, share) in shares.items()}
  return write_records(records, holders, 1 + shamir.SHARE_BYTES)


def read_shares(data: bytes, holders: Sequence[int]) -> dict[int, tuple[ShareKind, bytes]]:
  """Inverse of `write_shares`, without those of kind NONE.

  Raises:
    MalformedMessageError: if it is not one that `write_shares` makes.
  """
  records = read_records(data, holders, holders, 1 + shamir.SHARE_BYTES)
  shares = {}
  for client, record in records.items():
    share = record[1:]
    if record[0] > ShareKind.MASK_KEY.value or not shamir.is_share(share):
      raise errors.MalformedMessageError(f'The share of client {client} is no share.')
    if record[0]:
      shares[client] = (ShareKind(record[0]), share)
    elif any(share):
      raise errors.MalformedMessageError(f'A share of client {client} has no kind.')
  return shares


def _split_bitmap(data: bytes, holders: Sequence[int]) -> tuple[frozenset[int], bytes]:
  size = bitmap_bytes(len(holders))
  return read_bitmap(data[:size], holders), data[size:]
