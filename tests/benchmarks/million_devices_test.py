# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import pytest

from benchmarks import million_devices
from benchmarks.device_plan import Assumptions

_ASSUMED = {'layers': 3, 'width': 32, 'vocabulary': 100, 'min_rank': 1, 'max_rank': 4}
# Query and value of 3 layers, two factors each; a scale for each rank of a factor.
_NUMBERS, _SCALES = 3 * 2 * 2 * 4 * 32, 3 * 2 * 2 * 4


@pytest.mark.parametrize(
  ('bits', 'size'),
  [
    (32, 4 * _NUMBERS),
    (16, 2 * _NUMBERS + 4 * _SCALES),
    (8, _NUMBERS + 4 * _SCALES),
    (4, _NUMBERS // 2 + 4 * _SCALES),
  ],
)
def test_bytes_that_a_device_sends_by_hand(bits, size):
  assumed = Assumptions(upload_bits=bits, **_ASSUMED)
  assert million_devices.device_costs(assumed).upload.tolist() == [0, size, size, size, size]
