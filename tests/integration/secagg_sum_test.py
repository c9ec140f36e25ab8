# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The protocol opens just what TFF's secure sum of the same values gives."""

import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from privacy import Rounding, SecureSumSpec, build_secure_aggregator
from privacy.noise import FreshSeeds
from privacy.quantization import decode, encode, wrap
from privacy.secagg import Client, Mode, ProtocolSpec, Server, primitives

pytestmark = pytest.mark.usefixtures('tff_runtime')

_NUM_CLIENTS, _LENGTH = 5, 37
_DROPPED = 2


def _open_sum(residues, modulus_bits, mode):
  """What the server of a session gets, in which one client leaves after it has shared its keys."""
  spec = ProtocolSpec(_NUM_CLIENTS, 4, _LENGTH, modulus_bits, mode)
  session, signing, verify = os.urandom(16), {}, None
  if mode is Mode.MALICIOUS:
    signing = {c: primitives.new_signing_key() for c in range(_NUM_CLIENTS)}
    verify = {c: primitives.verify_key(key) for c, key in signing.items()}
  clients = {
    c: Client(spec, c, session, signing_key=signing.get(c), verify_keys=verify)
    for c in range(_NUM_CLIENTS)
  }
  server = Server(spec, session, verify_keys=verify)
  for c, client in clients.items():
    server.receive(c, client.advertise())
  for c, message in server.close_phase().items():
    server.receive(c, clients[c].share_keys(message))
  for c, message in server.close_phase().items():
    if c != _DROPPED:
      server.receive(c, clients[c].mask(message, residues[c]))
  if mode is Mode.MALICIOUS:
    for c, message in server.close_phase().items():
      server.receive(c, clients[c].confirm(message))
  for c, message in server.close_phase().items():
    server.receive(c, clients[c].unmask(message))
  server.close_phase()
  return server.result


@pytest.mark.parametrize('mode', list(Mode))
@pytest.mark.parametrize(
  ('bits', 'modulus_bits'), [(16, None), (32, 62), (5, None)], ids=['usual', 'widest', 'coarse']
)
def test_protocol_and_tff_give_the_same_sum_to_the_last_bit(mode, bits, modulus_bits):
  spec = SecureSumSpec(
    bits, _NUM_CLIENTS, value_range=2.0, rounding=Rounding.NEAREST, modulus_bits=modulus_bits
  )
  values = np.random.default_rng(3).uniform(-2.2, 2.2, [_NUM_CLIENTS, _LENGTH]).astype(np.float32)
  residues = [wrap(encode(tf.constant(v), spec, FreshSeeds()), spec).numpy() for v in values]
  total, clients = _open_sum(residues, spec.sum_bits, mode)
  assert clients == tuple(c for c in range(_NUM_CLIENTS) if c != _DROPPED)
  assert total.dtype == np.uint64

  process = build_secure_aggregator(spec).create(tff.TensorType(np.float32, [_LENGTH]))
  summed = process.next(process.initialize(), [values[c] for c in clients]).result
  opened = decode(tf.constant(total.astype(np.int64)), spec, tf.TensorSpec([_LENGTH])).numpy()
  np.testing.assert_array_equal(opened, summed)
  # And that is the sum, within what rounding and the range may do.
  expected = np.clip(values[list(clients)], -2, 2).sum(0)
  np.testing.assert_allclose(opened, expected, atol=spec.error_of_sum(len(clients)) + 1e-5)
