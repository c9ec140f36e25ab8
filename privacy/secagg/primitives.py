# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Key agreement, key derivation, key streams, encryption and signatures, as bytes in and out.

All keys are 32 bytes and serve one purpose, one direction and one session: then a counter may start
at zero and a nonce may be constant.
"""

import enum
import os

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.secagg import errors

KEY_BYTES = 32
TAG_BYTES = 16
SIGNATURE_BYTES = 64
BLOCK_BYTES = 16
_NONCE = bytes(12)


class Purpose(enum.Enum):
  """What a derived key, or a signature, is for."""

  SELF_MASK = b'self mask'
  PAIR_MASK = b'pair mask'
  SEED_CHECK = b'seed check'
  SHARES = b'shares'
  KEYS = b'keys'
  SURVIVORS = b'survivors'


class AgreementKey:
  """A private X25519 key (RFC 7748).

  Attributes:
    private: its bytes.
    public: those of the public key that goes with it.
  """

  def __init__(self, private: bytes):
    self._key = x25519.X25519PrivateKey.from_private_bytes(private)
    self.private, self.public = private, self._key.public_key().public_bytes_raw()

  @classmethod
  def generate(cls) -> 'AgreementKey':
    """A fresh one."""
    return cls(os.urandom(KEY_BYTES))

  def agree(self, public: bytes) -> bytes:
    """What the owners of both keys know, and nobody else. Not uniform: derive keys from it.

    Raises:
      KeyAgreementError: if the public key is one with which it is the same for everybody.
    """
    try:
      return self._key.exchange(x25519.X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
      raise errors.KeyAgreementError('A public key is of low order.') from error


def hkdf(secret: bytes, info: bytes) -> bytes:
  """A key of 32 bytes by HKDF-SHA256 without salt (RFC 5869)."""
  return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def label(context: bytes, purpose: Purpose, *clients: int) -> bytes:
  """What sets one use of a key or signature apart from all others.

  Args:
    context: of the session, 32 bytes.
    purpose: of the use.
    *clients: whom it is about; their order counts.
  """
  ids = b''.join(client.to_bytes(4, 'big') for client in clients)
  # The lengths of all parts follow from the first byte after the context.
  return context + bytes([len(purpose.value)]) + purpose.value + ids


def keystream(key: bytes, first_block: int, size: int) -> bytes:
  """Bytes of AES-256 in counter mode (NIST SP 800-38A).

  Args:
    key: 32 bytes.
    first_block: value of the counter at the start, of 128 bits.
    size: how many bytes.
  """
  counter = modes.CTR(first_block.to_bytes(BLOCK_BYTES, 'big'))
  return Cipher(algorithms.AES(key), counter).encryptor().update(bytes(size))


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
  """Encrypts by AES-256-GCM; a key must not seal twice. The result is 16 bytes longer."""
  return AESGCM(key).encrypt(_NONCE, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
  """Inverse of `seal`.

  Raises:
    DecryptionError: if this is not what was sealed with this key and associated data.
  """
  try:
    return AESGCM(key).decrypt(_NONCE, sealed, associated)
  except InvalidTag as error:
    raise errors.DecryptionError('Encrypted shares were changed.') from error


def new_signing_key() -> bytes:
  """A fresh private Ed25519 key (RFC 8032)."""
  return ed25519.Ed25519PrivateKey.generate().private_bytes_raw()


def verify_key(signing_key: bytes) -> bytes:
  """The public part of an Ed25519 key.

  Raises:
    ValueError: if it has not 32 bytes.
  """
  private = ed25519.Ed25519PrivateKey.from_private_bytes(signing_key)
  return private.public_key().public_bytes_raw()


def sign(signing_key: bytes, message: bytes) -> bytes:
  """The Ed25519 signature, 64 bytes."""
  return ed25519.Ed25519PrivateKey.from_private_bytes(signing_key).sign(message)


def verify(key: bytes, signature: bytes, message: bytes):
  """Checks an Ed25519 signature.

  Raises:
    SignatureError: if the owner of the key did not sign the message.
  """
  try:
    ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
  except (InvalidSignature, ValueError) as error:
    raise errors.SignatureError('A signature does not belong to its message.') from error
