# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The FLOP estimate against products counted one by one."""

import pytest

from tasks import costs

_CONFIG = {'num_layers': 1, 'hidden_dim': 4, 'vocabulary_size': 10}
_TENSORS = [
  ('token_embedding/embeddings:0', [10, 4]),
  ('position_embedding/embeddings:0', [8, 4]),
  ('layer/query/kernel:0', [4, 2, 2]),
  ('layer/query/bias:0', [2, 2]),
  ('layer/key/kernel:0', [4, 2, 2]),
  ('layer/value/kernel:0', [4, 2, 2]),
  ('layer/attention_output/kernel:0', [2, 2, 4]),
  ('gamma:0', [4]),
  ('kernel:0', [4, 16]),
  ('bias:0', [16]),
  ('kernel:0', [16, 4]),
]
_SIZE = costs.model_size(_CONFIG, _TENSORS)


def _product(rows, inner, columns):
  """Operations of one matrix product."""
  return 2 * rows * inner * columns


def _layer(rows, d_in, d_out, *, trained):
  """Forward, gradient of the input and, where it is trained, of the matrix."""
  forward = _product(rows, d_in, d_out)
  to_input = _product(rows, d_out, d_in)
  return forward + to_input + (_product(d_in, rows, d_out) if trained else 0)


def _attention(sequences, length, width):
  """Scores and their use; each product has two gradients."""
  scores = _product(length, width, length)
  used = _product(length, length, width)
  return 3 * sequences * (scores + used)


def _backbone(sequences, length, predictions, *, trained):
  rows = sequences * length
  kernels = [(4, 4)] * 4 + [(4, 16), (16, 4)]
  total = sum(_layer(rows, *kernel, trained=trained) for kernel in kernels)
  total += _layer(predictions, 4, 10, trained=trained)
  return total + _attention(sequences, length, 4)


def test_sizes_leave_out_what_does_not_multiply():
  assert costs.ModelSize(4 * 16 + 2 * 64, 40, 1, 4) == _SIZE


def test_full_training_is_every_product_counted():
  got = costs.client_flops(
    _SIZE, tokens=24, predictions=5, sequence_length=8, trained=232, full=True
  )
  assert got == _backbone(3, 8, 5, trained=True)


@pytest.mark.parametrize('rank', [1, 3])
def test_adapters_are_every_product_counted(rank):
  got = costs.client_flops(
    _SIZE, tokens=24, predictions=5, sequence_length=8, trained=rank * (4 + 4)
  )
  adapter = _layer(24, 4, rank, trained=True) + _layer(24, rank, 4, trained=True)
  assert got == _backbone(3, 8, 5, trained=False) + adapter


def test_a_frozen_factor_has_no_gradient_of_its_own():
  got = costs.client_flops(
    _SIZE, tokens=24, predictions=5, sequence_length=8, trained=3 * 4, frozen=3 * 4
  )
  adapter = _layer(24, 4, 3, trained=False) + _layer(24, 3, 4, trained=True)
  assert got == _backbone(3, 8, 5, trained=False) + adapter


def test_no_tokens_cost_nothing():
  assert costs.client_flops(_SIZE, tokens=0, predictions=0, sequence_length=8, trained=9) == 0


def test_a_configuration_of_another_kind_is_an_error():
  with pytest.raises(KeyError, match='hidden_dim'):
    costs.model_size({'num_layers': 1, 'vocabulary_size': 10}, _TENSORS)


def test_a_classifier_meets_no_vocabulary_and_reads_no_pooler():
  config = {key: _CONFIG[key] for key in ('num_layers', 'hidden_dim')}
  tensors = [*_TENSORS, ('pooled_dense/kernel:0', [4, 4]), ('pooled_dense/bias:0', [4])]
  size = costs.model_size(config, tensors, predicts_tokens=False)
  assert size == _SIZE._replace(vocabulary_weights=0)
  got = costs.client_flops(size, tokens=24, predictions=5, sequence_length=8, trained=0)
  assert got == _backbone(3, 8, 0, trained=False)


def test_shared_layers_cost_each_time_they_are_passed():
  config = {**_CONFIG, 'num_layers': 6, 'num_groups': 2, 'num_inner_repetitions': 2}
  tensors = [('embedding_projection/kernel:0', [3, 4])]
  tensors += [
    (f'group_{group}_inner_layer_{inner}/query/kernel:0', [4, 2, 2])
    for group in range(2)
    for inner in range(2)
  ]
  # Four layers, each passed three times.
  assert costs.model_size(config, tensors) == costs.ModelSize(12 + 12 * 16, 40, 12, 4)
