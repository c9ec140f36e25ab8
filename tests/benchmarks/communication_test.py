# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import dataclasses

from benchmarks import communication, workload

_SMALL = workload.SIZES['small']


def test_rank_8_of_the_small_model_by_hand():
  found = communication.row(_SMALL, 8)
  # Query, key and value of 4 layers, each with 256 numbers in and out.
  numbers = 4 * 3 * 8 * (256 + 256)
  scales = 4 * 3 * 2 * 8
  assert found == {
    'rank': 8,
    'down': 4 * numbers,
    'up_float32': 4 * numbers,
    'up_16_bits': 2 * numbers + 4 * scales,
    'up_8_bits': numbers + 4 * scales,
    'up_4_bits': numbers // 2 + 4 * scales,
    # 16 clients need 4 bits more.
    'up_secure_16': numbers * 20 // 8,
    'up_secure_8': numbers * 12 // 8,
    'peft_each_way': 131_072,
  }


def test_what_a_client_selects_does_not_depend_on_the_server():
  server = dataclasses.replace(communication.message_sizes(_SMALL, 32), selects_rank=True)
  assert [server.download(r) for r in (1, 8)] == [
    communication.row(_SMALL, r)['down'] for r in (1, 8)
  ]


def test_all_weights_are_those_of_gpt2():
  published = dataclasses.replace(workload.SIZES['gpt2-base'], length=1024)
  assert communication.full_bytes(published) == 4 * 124_439_808
