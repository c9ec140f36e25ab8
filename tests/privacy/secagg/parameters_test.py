# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a protocol's parameters refuse, and what they derive."""

import dataclasses

import numpy as np
import pytest

from privacy.secagg.client import Client
from privacy.secagg.parameters import Mode, Phase, ProtocolSpec
from privacy.secagg.server import Server
from tests.privacy.secagg import harness


@pytest.mark.parametrize(
  ('num_clients', 'mode', 'least'),
  [
    (2, Mode.SEMI_HONEST, 2),
    (3, Mode.SEMI_HONEST, 2),
    (100, Mode.SEMI_HONEST, 51),
    (2, Mode.MALICIOUS, 2),
    (3, Mode.MALICIOUS, 3),
    (99, Mode.MALICIOUS, 67),
    (100, Mode.MALICIOUS, 67),
  ],
)
def test_threshold_is_more_than_its_share(num_clients, mode, least):
  ProtocolSpec(num_clients, least, 1, 1, mode)
  ProtocolSpec(num_clients, num_clients, 1, 1, mode)
  for threshold in (least - 1, num_clients + 1):
    with pytest.raises(ValueError, match=f'`threshold` .* needs {least} to {num_clients}'):
      ProtocolSpec(num_clients, threshold, 1, 1, mode)


def test_threshold_is_of_the_neighbourhood():
  spec = ProtocolSpec(100, 6, 1, 1, Mode.SEMI_HONEST, neighbours=10)
  assert spec.num_holders == 11
  assert spec.least_clients == 6
  with pytest.raises(ValueError, match='needs 6 to 11'):
    ProtocolSpec(100, 5, 1, 1, Mode.SEMI_HONEST, neighbours=10)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_clients': 1}, '`num_clients`'),
    ({'vector_length': 0}, '`vector_length`'),
    ({'vector_length': 1.5}, '`vector_length`'),
    ({'modulus_bits': 0}, '`modulus_bits` must be an integer from 1 to 62'),
    ({'modulus_bits': 63}, '`modulus_bits`'),
    ({'threshold': 7.5}, '`threshold` must be an integer'),
    ({'neighbours': 8.0}, '`neighbours` must be an integer'),
    ({'neighbours': 3}, 'not an even number from 2 to 8'),
    ({'neighbours': 10}, 'from 2 to 8'),
    ({'neighbours': 0}, 'from 2 to 8'),
    ({'neighbours': 4, 'mode': Mode.MALICIOUS}, 'SEMI_HONEST'),
    ({'smallest_cohort': 6}, '`smallest_cohort` must be an integer from 7 to 10'),
    ({'smallest_cohort': 11}, '`smallest_cohort`'),
    ({'smallest_cohort': 0}, '`smallest_cohort`'),
  ],
)
def test_numbers_that_do_not_go_together_are_refused(changes, message):
  good = ProtocolSpec(10, 7, 5, 20, Mode.SEMI_HONEST)
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(good, **changes)


def test_phases_follow_the_mode():
  assert harness.build_spec(3, Mode.MALICIOUS).phases == tuple(Phase)[:5]
  assert Phase.CONSISTENCY not in harness.build_spec(3, Mode.SEMI_HONEST).phases


def test_words_hold_the_modulus():
  assert harness.build_spec(3, Mode.SEMI_HONEST, bits=32).word == np.uint32
  assert harness.build_spec(3, Mode.SEMI_HONEST, bits=33).word == np.uint64


def test_context_tells_all_parameters_and_sessions_apart():
  spec = ProtocolSpec(20, 14, 5, 20, Mode.SEMI_HONEST)
  others = [
    dataclasses.replace(spec, **change)
    for change in (
      {'num_clients': 21},
      {'threshold': 15},
      {'vector_length': 6},
      {'modulus_bits': 21},
      {'mode': Mode.MALICIOUS},
      {'neighbours': 14},
      {'smallest_cohort': 15},
    )
  ]
  contexts = {s.context(bytes(16)) for s in (spec, *others)} | {spec.context(b'\x01' * 16)}
  assert len(contexts) == len(others) + 2
  with pytest.raises(ValueError, match='`session` has 15 bytes'):
    spec.context(bytes(15))


def test_parties_need_the_keys_of_their_mode():
  session = harness.build_session(harness.build_spec(3, Mode.MALICIOUS))
  keys, spec = session.verify_keys, session.spec
  for wrong in (None, {0: keys[0], 1: keys[1]}, {**keys, 1: b'short'}, {**keys, 1: keys[0]}):
    with pytest.raises(ValueError, match='`verify_keys`'):
      Server(spec, session.session, verify_keys=wrong)
    with pytest.raises(ValueError, match='`verify_keys`'):
      session.client(0, verify_keys=wrong)
  with pytest.raises(ValueError, match='`signing_key` is needed'):
    session.client(0, signing_key=None)
  with pytest.raises(ValueError, match='not that of client 0'):
    session.client(0, signing_key=session.signing_keys[1])
  with pytest.raises(ValueError, match='32'):
    session.client(0, signing_key=b'')
  plain = harness.build_spec(3, Mode.SEMI_HONEST)
  with pytest.raises(ValueError, match='leave them out'):
    Server(plain, session.session, verify_keys=keys)
  with pytest.raises(ValueError, match='`signing_key`'):
    Client(plain, 0, session.session, signing_key=session.signing_keys[0])
  for client_id in (-1, 3):
    with pytest.raises(ValueError, match='`client_id`'):
      Client(plain, client_id, session.session)
