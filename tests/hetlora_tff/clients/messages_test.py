# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Messages by hand: one module, a server of rank 2 and a client of rank 1."""

import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors
from hetlora_tff.adapters.model import ModuleShape
from hetlora_tff.clients import messages
from hetlora_tff.clients.messages import Padding

CONFIG = LoraConfig(max_rank=2, alpha=1.0)
SHAPE = ModuleShape(d_in=1, d_out=3)


def factors(a, b):
  return {'m': LoraFactors(tf.constant(a, tf.float32), tf.constant(b, tf.float32))}


RECEIVED = factors([[1], [2]], [[1, 5], [2, 6], [3, 7]])
START = factors([[1]], [[1], [2], [3]])
KEPT = factors([[4]], [[0], [0], [9]])


def send(padding, trained=TrainedFactors.BOTH, trains_b=None):
  layout = AdapterLayout({'m': SHAPE}, CONFIG, trained)
  return messages.message(layout, padding, RECEIVED, START, KEPT, trains_b)['m']


def test_state_pulls_absent_rows_to_zero():
  sent = send(Padding.STATE)
  np.testing.assert_array_equal(sent.a, [[-3], [2]])
  np.testing.assert_array_equal(sent.b, [[1, 5], [2, 6], [-6, 7]])


def test_update_leaves_absent_rows_alone():
  sent = send(Padding.UPDATE)
  np.testing.assert_array_equal(sent.a, [[-3], [0]])
  np.testing.assert_array_equal(sent.b, [[1, 0], [2, 0], [-6, 0]])


def test_none_sends_the_factors():
  sent = send(Padding.NONE)
  np.testing.assert_array_equal(sent.a, [[4], [0]])
  np.testing.assert_array_equal(sent.b, [[0, 0], [0, 0], [9, 0]])


def test_b_alone_is_sent_where_b_alone_is_trained():
  np.testing.assert_array_equal(send(Padding.UPDATE, TrainedFactors.B), [[1, 0], [2, 0], [-6, 0]])


@pytest.mark.parametrize(
  ('trains_b', 'matrix'), [(True, [[1, 2, -6], [0, 0, 0]]), (False, [[-3, 0, 0], [0, 0, 0]])]
)
def test_the_factor_of_the_round_is_packed_and_unpacked(trains_b, matrix):
  sent = send(Padding.UPDATE, TrainedFactors.ALTERNATING, tf.constant(trains_b))
  np.testing.assert_array_equal(sent, matrix)
  update = messages.unpack_alternating(sent, tf.constant(trains_b), *SHAPE)
  whole = send(Padding.UPDATE)
  np.testing.assert_array_equal(update.a, np.zeros([2, 1]) if trains_b else whole.a)
  np.testing.assert_array_equal(update.b, whole.b if trains_b else np.zeros([3, 2]))


def test_what_is_asked_is_what_the_server_would_hold():
  layout = AdapterLayout({'m': SHAPE}, CONFIG)
  for padding in (Padding.STATE, Padding.UPDATE):
    asked = messages.asked(layout, padding, RECEIVED, START, KEPT)['m']
    sent = send(padding)
    np.testing.assert_array_equal(asked.a, RECEIVED['m'].a - sent.a)
    np.testing.assert_array_equal(asked.b, RECEIVED['m'].b - sent.b)
  asked = messages.asked(layout, Padding.NONE, RECEIVED, START, KEPT)['m']
  np.testing.assert_array_equal(asked.a, [[4], [0]])
