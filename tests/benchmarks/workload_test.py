# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The work of the benchmarks is that of the rivals: its tokens, and the operations of a step."""

import numpy as np
import pytest

from benchmarks import workload


def test_tokens_are_those_that_the_rivals_draw():
  tokens = workload.tokens_of(workload.SIZES['small'], 3)
  assert tokens.shape == (4, 8, 64)
  assert tokens.dtype == np.int32
  # Of their own `client_data`, preset `small`, seed 0, client 3.
  assert tokens[0, 0, :8].tolist() == [67, 3670, 8, 4, 0, 10, 0, 31]
  assert int(tokens.sum()) == 1703877


# Counted by PyTorch's `FlopCounterMode` on the rivals' model.
@pytest.mark.parametrize(('size', 'counted'), [('tiny', 61734912), ('small', 11037310976)])
def test_operations_of_a_step_are_those_that_pytorch_counts(size, counted):
  # Their last position meets the vocabulary and ours does not; ours have three `a`, theirs one.
  assert workload.step_flops(workload.SIZES[size]) == pytest.approx(counted, rel=0.015)
