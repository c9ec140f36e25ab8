# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.aggregation import stacks
from hetlora_tff.aggregation.factor_types import factor_shapes

pytestmark = pytest.mark.usefixtures('tff_runtime')

VALUE = tff.to_type(
  collections.OrderedDict(
    wide=LoraFactors(a=tff.TensorType(np.float32, [3, 5]), b=tff.TensorType(np.float32, [2, 3])),
    narrow=LoraFactors(a=tff.TensorType(np.float32, [2, 2]), b=tff.TensorType(np.float32, [4, 2])),
  )
)


@pytest.fixture(scope='module')
def gather():
  stacker = stacks.Stacker(factor_shapes(VALUE))
  pack = tff.tensorflow.computation(VALUE)(stacker.pack)

  @tff.federated_computation(tff.FederatedType(VALUE, tff.CLIENTS))
  def computation(values):
    return stacker.gather(tff.federated_map(pack, values))

  assert computation.type_signature.result == tff.FederatedType(stacker.result_type, tff.SERVER)
  return computation


def _client(number, rank):
  """Every row of every module carries the client's number and its own."""
  held = np.arange(3) < rank
  code = (100 * number + np.arange(3) + 1).astype(np.float32) * held
  return collections.OrderedDict(
    wide=LoraFactors(a=np.tile(code[:, None], 5), b=np.tile(code, (2, 1))),
    narrow=LoraFactors(a=np.tile(code[:2, None], 2), b=np.tile(code[:2], (4, 1))),
  )


# The first 16 clients wait; the 17th makes a block of them, the 273rd one of 16 blocks.
@pytest.mark.parametrize('number', [0, 1, 5, 16, 17, 34, 100, 290])
def test_every_held_row_is_there_once_and_keeps_its_partner(gather, number):
  ranks = [k % 4 for k in range(number)]
  result = gather([_client(k, rank) for k, rank in enumerate(ranks)])
  expected = sorted(100 * k + j + 1 for k, rank in enumerate(ranks) for j in range(rank))
  for path, d_in, d_out in (('wide', 5, 2), ('narrow', 2, 4)):
    a, b = result[path]
    assert (a.shape, b.shape) == ((len(expected), d_in), (len(expected), d_out))
    np.testing.assert_array_equal(a, np.tile(a[:, :1], d_in))
    np.testing.assert_array_equal(b, np.tile(a[:, :1], d_out))
    held = [code for code in expected if path == 'wide' or code % 100 <= 2]
    assert sorted(code for code in a[:, 0] if code) == held


def test_a_row_is_copied_once_for_each_block_that_it_becomes_a_part_of():
  stack, copied = [tf.zeros([0, 1])] * stacks.NUM_TENSORS, 0
  for client in range(600):
    rows = tf.constant([[float(client)]])
    before = {id(tensor) for tensor in [*stack, rows]}
    stack = stacks.pushed(stack, rows)
    copied += sum(len(tensor) for tensor in stack if id(tensor) not in before)
  assert sorted(tf.concat(stack, 0)[:, 0].numpy()) == list(range(600))
  # 37 blocks of 16, and two of 256; a copy of all for every 16 clients would make it 11,000.
  assert copied == 37 * 16 + 2 * 256


def test_rows_without_b_are_dropped(gather):
  client = _client(1, 3)
  for factors in client.values():
    factors.b[:, 1] = 0
  assert sorted(gather([client])['wide'].a[:, 0]) == [101, 103]
