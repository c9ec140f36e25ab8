# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The primitives against their standards' own test vectors."""

import hashlib
import hmac

import pytest

from privacy.secagg import errors, primitives
from privacy.secagg.primitives import AgreementKey, Purpose

_hex = bytes.fromhex

# RFC 7748, section 6.1.
_ALICE = _hex('77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a')
_ALICE_PUBLIC = _hex('8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a')
_BOB = _hex('5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb')
_BOB_PUBLIC = _hex('de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f')
_AGREED = _hex('4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742')


def test_agreement_is_that_of_rfc_7748():
  alice, bob = AgreementKey(_ALICE), AgreementKey(_BOB)
  assert (alice.private, alice.public) == (_ALICE, _ALICE_PUBLIC)
  assert (bob.private, bob.public) == (_BOB, _BOB_PUBLIC)
  assert alice.agree(_BOB_PUBLIC) == bob.agree(_ALICE_PUBLIC) == _AGREED


def test_new_keys_agree_and_differ():
  one, other = AgreementKey.generate(), AgreementKey.generate()
  assert one.agree(other.public) == other.agree(one.public)
  assert len({one.private, one.public, other.private, other.public}) == 4


# Points of order 1, 2, 4 and 8: with them, everybody agrees on zero.
@pytest.mark.parametrize(
  'public',
  [
    '00' * 32,
    '01' + '00' * 31,
    'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
    'e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800',
    '5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157',
  ],
)
def test_public_keys_of_low_order_are_refused(public):
  with pytest.raises(errors.KeyAgreementError):
    AgreementKey(_ALICE).agree(_hex(public))


def test_derivation_is_that_of_rfc_5869():
  # Case 3, without salt and info; its 42 bytes begin with our 32.
  expected = '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d'
  assert primitives.hkdf(b'\x0b' * 22, b'') == _hex(expected)


def test_derivation_reads_the_info():
  info = b'what the key is for'
  extracted = hmac.new(bytes(32), b'secret', hashlib.sha256).digest()
  expected = hmac.new(extracted, info + b'\x01', hashlib.sha256).digest()
  assert primitives.hkdf(b'secret', info) == expected


def test_labels_differ_in_every_part():
  labels = [
    primitives.label(context, purpose, *clients)
    for context in (b'a' * 32, b'b' * 32)
    for purpose in Purpose
    for clients in ((), (1,), (256,), (1, 2), (2, 1))
  ]
  assert len(set(labels)) == len(labels)


def test_key_stream_is_that_of_nist_sp_800_38a():
  # F.5.5; the counter carries into the next byte after the first block.
  key = _hex('603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4')
  counter = 0xF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF
  plaintext = _hex(
    '6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51'
    '30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710'
  )
  ciphertext = _hex(
    '601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5'
    '2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6'
  )
  stream = primitives.keystream(key, counter, 64)
  assert bytes(s ^ p for s, p in zip(stream, plaintext, strict=True)) == ciphertext
  assert primitives.keystream(key, counter + 2, 32) == stream[32:]
  assert primitives.keystream(key, counter, 5) == stream[:5]


def test_encryption_is_aes_256_gcm():
  # Case 14 of McGrew and Viega's specification: key, nonce and plaintext of zeros.
  sealed = primitives.seal(bytes(32), bytes(16), b'')
  assert sealed == _hex('cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919')
  assert primitives.unseal(bytes(32), sealed, b'') == bytes(16)


def test_encryption_finds_every_change():
  sealed = primitives.seal(b'k' * 32, b'shares', b'from 1 to 2')
  assert primitives.unseal(b'k' * 32, sealed, b'from 1 to 2') == b'shares'
  for index in range(len(sealed)):
    changed = bytearray(sealed)
    changed[index] ^= 1
    with pytest.raises(errors.DecryptionError):
      primitives.unseal(b'k' * 32, bytes(changed), b'from 1 to 2')
  for key, associated in ((b'l' * 32, b'from 1 to 2'), (b'k' * 32, b'from 2 to 1')):
    with pytest.raises(errors.DecryptionError):
      primitives.unseal(key, sealed, associated)


def test_signatures_are_those_of_rfc_8032():
  # Section 7.1, test 3.
  key = _hex('c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7')
  public = _hex('fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025')
  signature = _hex(
    '6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac'
    '18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a'
  )
  assert primitives.verify_key(key) == public
  assert primitives.sign(key, _hex('af82')) == signature
  primitives.verify(public, signature, _hex('af82'))
  for wrong in (
    (public, signature, _hex('af83')),
    (public, signature[:-1] + b'\x00', _hex('af82')),
    (public, b'', _hex('af82')),
    (primitives.verify_key(primitives.new_signing_key()), signature, _hex('af82')),
    (b'\xff' * 32, signature, _hex('af82')),
  ):
    with pytest.raises(errors.SignatureError):
      primitives.verify(*wrong)
