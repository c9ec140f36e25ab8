# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters of others, as our server holds them; `peft_huggingface_test` has PEFT train some."""

import json

import keras_nlp
import numpy as np
import pytest
import safetensors.numpy

from hetlora_tff.adapters import factors as factors_lib
from hetlora_tff.adapters import peft
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.initial_adapters import initial_adapters
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.adapters.model import CausalLanguageModel

WIDTH = 8
CONFIG = LoraConfig(max_rank=4, alpha=6.0)
QUERY, KEY, VALUE = (
  f'transformer_layer_0/self_attention/{name}' for name in ('query', 'key', 'value')
)
FUSED = 'transformer.h.0.attn.c_attn'


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
  made = keras_nlp.models.GPT2Backbone(
    vocabulary_size=11,
    num_layers=2,
    num_heads=2,
    hidden_dim=WIDTH,
    intermediate_dim=12,
    max_sequence_length=6,
  )
  return FrozenBackbone.save(made, tmp_path_factory.mktemp('backbone') / 'gpt2')


@pytest.fixture(scope='module')
def shapes(backbone):
  return CausalLanguageModel(backbone, 6).module_shapes(CONFIG)


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _write(directory, modules, **settings):
  """What PEFT writes."""
  tensors = {}
  for module, pair in modules.items():
    for side, factor in zip('AB', pair, strict=True):
      tensors[f'base_model.model.{module}.lora_{side}.weight'] = factor
  safetensors.numpy.save_file(tensors, directory / peft.WEIGHTS_FILE)
  rank = len(next(iter(modules.values()))[0])
  config = {'peft_type': 'LORA', 'target_modules': list(modules), 'r': rank, 'lora_alpha': 9}
  (directory / peft.CONFIG_FILE).write_text(json.dumps(config | settings))


def _query_and_value(rank=3, key=False):
  """A fused adapter `[3d, rank]`, its rows for the key zero or not."""
  b = _random(3 * WIDTH, rank, seed=1)
  if not key:
    b[WIDTH : 2 * WIDTH] = 0.0
  return _random(rank, WIDTH), b


def test_a_fused_adapter_becomes_those_of_its_parts(backbone, shapes, tmp_path):
  a, b = _query_and_value()
  _write(tmp_path, {FUSED: (a, b)})
  adapters = initial_adapters(tmp_path, CONFIG, backbone, shapes)
  assert list(adapters) == list(shapes)
  for path, rows in ((QUERY, b[:WIDTH]), (VALUE, b[2 * WIDTH :])):
    found = adapters[path]
    assert (found.a.shape, found.b.shape) == ((4, WIDTH), (WIDTH, 4))
    assert (found.a.dtype, found.b.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(CONFIG.scaling * found.b @ found.a, 3.0 * rows @ a, atol=1e-5)


def test_every_prefix_of_the_ranks_is_the_best_of_its_size(backbone, shapes, tmp_path):
  a, b = _query_and_value()
  _write(tmp_path, {FUSED: (a, b)})
  whole = 3.0 * b[:WIDTH] @ a
  left, values, right = np.linalg.svd(whole)
  factors = initial_adapters(tmp_path, CONFIG, backbone, shapes)[QUERY]
  for rank in (1, 2, 3):
    cut = factors_lib.truncate(factors, rank)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    np.testing.assert_allclose(CONFIG.scaling * cut.b @ cut.a, best, atol=1e-4)


def test_what_the_adapter_leaves_unused_starts_as_without_one(backbone, shapes, tmp_path):
  _write(tmp_path, {FUSED: _query_and_value()})
  adapters = initial_adapters(tmp_path, CONFIG, backbone, shapes)
  fresh = AdapterLayout(shapes, CONFIG).initial_a()
  np.testing.assert_array_equal(adapters[QUERY].a[3:], fresh[QUERY][3:])
  assert not adapters[QUERY].b[:, 3:].any()
  untouched = QUERY.replace('_0', '_1')
  np.testing.assert_array_equal(adapters[untouched].a, fresh[untouched])
  assert not adapters[untouched].b.any()


def test_an_adapter_that_has_not_learnt_is_none(backbone, shapes, tmp_path):
  a, b = _query_and_value()
  _write(tmp_path, {'h.0.mlp.c_fc': (a, np.zeros([12, 3], np.float32)), FUSED: (a, b)})
  assert list(initial_adapters(tmp_path, CONFIG, backbone, shapes)) == list(shapes)


def test_our_own_adapter_comes_back(backbone, shapes, tmp_path):
  other = LoraConfig(max_rank=2, alpha=7.0)
  factors = {
    path: factors_lib.LoraFactors(_random(2, d_in, seed=3), _random(d_out, 2, seed=4))
    for path, (d_in, d_out) in shapes.items()
  }
  peft.save_peft_adapter(tmp_path, factors, other, architecture='GPT2Backbone')
  for path, found in initial_adapters(tmp_path, CONFIG, backbone, shapes).items():
    expected = other.scaling * factors[path].b @ factors[path].a
    np.testing.assert_allclose(CONFIG.scaling * found.b @ found.a, expected, atol=1e-4)


@pytest.mark.parametrize(
  ('modules', 'message'),
  [
    ({FUSED: _query_and_value(key=True)}, f'adapts {KEY}.*`targets` query, value'),
    ({FUSED: _query_and_value(rank=5)}, 'has rank 5 in .*query, which holds 4 here; `max_rank`'),
    ({'lm_head': _query_and_value()}, "no counterpart of the module 'lm_head'; .*transformer.h.0"),
    ({'h.7.attn.c_attn': _query_and_value()}, 'no counterpart'),
    ({FUSED: _query_and_value(), FUSED[12:]: _query_and_value()}, 'are the same module'),
    ({FUSED: (_random(3, 9), _random(24, 3))}, 'maps 9 numbers to 24, and .* 8 to 24'),
  ],
  ids=['target', 'rank', 'head', 'layer', 'twice', 'width'],
)
def test_what_does_not_fit_is_named(backbone, shapes, tmp_path, modules, message):
  _write(tmp_path, modules)
  with pytest.raises(ValueError, match=message) as raised:
    initial_adapters(tmp_path, CONFIG, backbone, shapes)
  assert str(tmp_path) in str(raised.value)
  assert '\n' not in str(raised.value)
