# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.adapters import injection
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from hetlora_tff.adapters.merge import merged_kernels

CONFIG = LoraConfig(max_rank=3, alpha=6.0, targets=('query', 'feedforward_intermediate'))
INPUTS = {
  'token_ids': np.array([[1, 5, 22, 3, 0], [7, 2, 4, 9, 11]], np.int32),
  'padding_mask': np.array([[1, 1, 1, 1, 0], [1] * 5], np.int32),
}


@pytest.fixture(scope='module')
def frozen(tmp_path_factory):
  tf.keras.utils.set_random_seed(1)
  backbone = keras_nlp.models.GPT2Backbone(
    vocabulary_size=23,
    num_layers=2,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=12,
    max_sequence_length=5,
  )
  rng = np.random.default_rng(1)
  for weight in backbone.weights:
    weight.assign(rng.normal(scale=0.4, size=weight.shape))
  return FrozenBackbone.save(backbone, tmp_path_factory.mktemp('merge') / 'backbone')


def _adapters(frozen, corrected):
  model = frozen.build()
  adapted = injection.inject_lora(model, CONFIG, create_variables=False)
  rng = np.random.default_rng(2)
  result = collections.OrderedDict()
  for path, layer in adapted.items():
    a, b, residual = (
      rng.normal(scale=0.4, size=size).astype(np.float32)
      for size in ((2, layer.d_in), (layer.d_out, 2), (layer.d_out, layer.d_in))
    )
    result[path] = CorrectedFactors(a, b, residual) if corrected else LoraFactors(a, b)
  with injection.bound(adapted, result):
    return result, model(INPUTS).numpy()


@pytest.mark.parametrize('corrected', [False, True])
def test_merged_backbone_computes_what_the_adapted_one_does(frozen, tmp_path, corrected):
  adapters, expected = _adapters(frozen, corrected)
  kernels = merged_kernels(frozen, CONFIG, adapters)
  assert len(kernels) == 4
  merged = frozen.merged(tmp_path / 'merged', kernels)
  np.testing.assert_allclose(merged.build()(INPUTS), expected, rtol=1e-4, atol=1e-5)
  assert np.abs(expected - frozen.build()(INPUTS)).max() > 1e-2


def test_zero_products_leave_every_kernel_as_it_is(frozen):
  adapters, _ = _adapters(frozen, corrected=False)
  zeros = {path: LoraFactors(a, np.zeros_like(b)) for path, (a, b) in adapters.items()}
  for name, kernel in merged_kernels(frozen, CONFIG, zeros).items():
    np.testing.assert_array_equal(kernel, frozen.weights()[name])


def test_refuses_adapters_of_other_modules(frozen):
  adapters, _ = _adapters(frozen, corrected=False)
  adapters.popitem()
  with pytest.raises(ValueError, match='feedforward_intermediate'):
    merged_kernels(frozen, CONFIG, adapters)
