# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import json
import os
import pathlib
from unittest import mock

import numpy as np
import safetensors.numpy
import safetensors.tensorflow
import tensorflow as tf
from absl.testing import parameterized

from hetlora_tff.adapters import config as config_lib
from hetlora_tff.adapters import factors as factors_lib
from hetlora_tff.adapters import peft
from hetlora_tff.adapters.classification import CLASSIFIER

QUERY = 'transformer_layer_0/self_attention/query'
VALUE = 'transformer_layer_0/self_attention/value'
CONFIG = config_lib.LoraConfig(max_rank=3, alpha=6.0)


def _random(*shape, seed):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _factors(paths=(QUERY, VALUE), rank=3, d_in=8, d_out=8):
  return {
    path: factors_lib.LoraFactors(
      _random(rank, d_in, seed=2 * i), _random(d_out, rank, seed=2 * i + 1)
    )
    for i, path in enumerate(paths)
  }


class PeftTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.get_temp_dir())

  def _tensors(self):
    return safetensors.numpy.load_file(self.directory / peft.WEIGHTS_FILE)

  def _config(self):
    return json.loads((self.directory / peft.CONFIG_FILE).read_text())

  def _edit_config(self, **changes):
    (self.directory / peft.CONFIG_FILE).write_text(json.dumps({**self._config(), **changes}))

  def _drop_layout(self):
    """Makes the file one of others."""
    safetensors.numpy.save_file(self._tensors(), self.directory / peft.WEIGHTS_FILE)

  def _delta(self, module):
    """The weight update [d_out, d_in] that PEFT computes from the files."""
    tensors, config = self._tensors(), self._config()
    a, b = (tensors[f'base_model.model.{module}.lora_{side}.weight'] for side in 'AB')
    rank = config['rank_pattern'].get(module, config['r'])
    alpha = config['alpha_pattern'].get(module, config['lora_alpha'])
    self.assertEqual(a.shape[0], rank)
    return alpha / rank * b @ a

  def _our_delta(self, factors):
    return CONFIG.scaling * factors.b @ factors.a

  def _assert_round_trip(self, factors):
    loaded = peft.load_peft_adapter(self.directory)
    self.assertEqual(list(loaded.factors), list(factors))
    for path in factors:
      self.assertAllEqual(loaded.factors[path].a, factors[path].a)
      self.assertAllEqual(loaded.factors[path].b, factors[path].b)
    self.assertAlmostEqual(loaded.config['scaling'], CONFIG.scaling)
    return loaded.config

  def test_own_names(self):
    factors = _factors(d_in=4, d_out=6)
    peft.save_peft_adapter(self.directory, factors, CONFIG, base_model_name_or_path='tiny')
    self.assertEqual(
      {key: value.shape for key, value in self._tensors().items()},
      {
        'base_model.model.transformer_layer_0.self_attention.query.lora_A.weight': (3, 4),
        'base_model.model.transformer_layer_0.self_attention.query.lora_B.weight': (6, 3),
        'base_model.model.transformer_layer_0.self_attention.value.lora_A.weight': (3, 4),
        'base_model.model.transformer_layer_0.self_attention.value.lora_B.weight': (6, 3),
      },
    )
    written = self._config()
    self.assertEqual((written['r'], written['lora_alpha']), (3, 6))
    self.assertEqual(written['peft_type'], 'LORA')
    self.assertFalse(written['fan_in_fan_out'])
    self.assertIsNone(written['task_type'])
    self.assertCountEqual(os.listdir(self.directory), [peft.WEIGHTS_FILE, peft.CONFIG_FILE])
    loaded = self._assert_round_trip(factors)
    self.assertEqual(loaded['targets'], ('query', 'value'))
    self.assertEqual((loaded['max_rank'], loaded['alpha']), (3, 6.0))
    self.assertEqual(loaded['base_model_name_or_path'], 'tiny')

  def test_rank_stabilized_scale_and_tensors(self):
    config = config_lib.LoraConfig(max_rank=4, alpha=3.0, rank_stabilized=True)
    factors = {QUERY: factors_lib.LoraFactors(tf.ones([4, 2]), tf.ones([5, 4]))}
    peft.save_peft_adapter(self.directory, factors, config)
    self.assertEqual(self._config()['lora_alpha'] / self._config()['r'], 1.5)
    self.assertFalse(self._config()['use_rslora'])
    self.assertEqual(peft.load_peft_adapter(self.directory).config['scaling'], 1.5)

  def test_gpt2_query_and_value_become_blocks_of_c_attn(self):
    factors = _factors()
    names = peft.save_peft_adapter(self.directory, factors, CONFIG, architecture='GPT2Backbone')
    self.assertEqual(names, peft.HUGGING_FACE_NAMES)
    written = self._config()
    self.assertEqual((written['r'], written['lora_alpha']), (6, 12))
    self.assertTrue(written['fan_in_fan_out'])
    self.assertEqual(written['task_type'], 'CAUSAL_LM')
    self.assertEqual(written['target_modules'], ['transformer.h.0.attn.c_attn'])
    delta = self._delta('transformer.h.0.attn.c_attn')
    expected = np.concatenate(
      [self._our_delta(factors[QUERY]), np.zeros([8, 8]), self._our_delta(factors[VALUE])]
    )
    self.assertAllClose(delta, expected, rtol=1e-5, atol=1e-5)
    self._assert_round_trip(factors)

  def test_modules_of_different_ranks_keep_one_scale(self):
    output = 'transformer_layer_0/self_attention/output'
    factors = {**_factors(), **_factors([output], rank=2)}
    peft.save_peft_adapter(self.directory, factors, CONFIG, architecture='GPT2Backbone')
    delta = self._delta('transformer.h.0.attn.c_proj')
    self.assertAllClose(delta, self._our_delta(factors[output]), rtol=1e-5, atol=1e-5)
    self.assertAllClose(
      self._delta('transformer.h.0.attn.c_attn')[:8],
      self._our_delta(factors[QUERY]),
      rtol=1e-5,
      atol=1e-5,
    )
    self._assert_round_trip(factors)

  @parameterized.parameters(
    ('BloomBackbone', 'self_attention'),
    ('FalconBackbone', 'attention'),
  )
  def test_fused_heads_are_interleaved(self, architecture, attention):
    key, value = (f'transformer_layer_0/{attention}/{name}' for name in ('key', 'value'))
    factors = _factors([value, key])
    arguments = {'architecture': architecture, 'num_heads': 2}
    names = peft.save_peft_adapter(self.directory, factors, CONFIG, **arguments)
    self.assertEqual(names, peft.HUGGING_FACE_NAMES)
    # Hugging Face reads the rows as [heads, (query, key, value), head_dim].
    delta = self._delta('transformer.h.0.self_attention.query_key_value').reshape(2, 3, 4, 8)
    self.assertAllEqual(delta[:, 0], np.zeros([2, 4, 8]))
    for block, path in ((1, key), (2, value)):
      expected = self._our_delta(factors[path]).reshape(2, 4, 8)
      self.assertAllClose(delta[:, block], expected, rtol=1e-5, atol=1e-5)
    self._assert_round_trip(factors)

  def test_phi3_blocks_of_grouped_query_attention(self):
    query, value = 'transformer_layer_1/attention/query', 'transformer_layer_1/attention/value'
    factors = {**_factors([query]), **_factors([value], d_out=4)}
    peft.save_peft_adapter(self.directory, factors, CONFIG, architecture='Phi3Backbone')
    delta = self._delta('model.layers.1.self_attn.qkv_proj')
    expected = np.concatenate(
      [self._our_delta(factors[query]), np.zeros([4, 8]), self._our_delta(factors[value])]
    )
    self.assertAllClose(delta, expected, rtol=1e-5, atol=1e-5)
    self._assert_round_trip(factors)

  @parameterized.named_parameters(
    ('unknown_architecture', 'XLNetBackbone', (QUERY,)),
    ('module_without_counterpart', 'GPT2Backbone', (QUERY, 'elsewhere/dense')),
    ('bloom_without_heads', 'BloomBackbone', (QUERY,)),
    ('phi3_key_size_unknown', 'Phi3Backbone', ('transformer_layer_0/attention/query',)),
  )
  def test_falls_back_to_own_names(self, architecture, paths):
    factors = _factors(paths)
    names = peft.save_peft_adapter(self.directory, factors, CONFIG, architecture=architecture)
    self.assertEqual(names, peft.OWN_NAMES)
    expected = sorted(path.replace('/', '.') for path in paths)
    self.assertEqual(self._config()['target_modules'], expected)
    self._assert_round_trip(factors)

  @parameterized.named_parameters(
    ('opt', 'OPTBackbone', 'model.decoder.layers.0.self_attn.q_proj'),
    ('llama', 'LlamaBackbone', 'model.layers.0.self_attn.q_proj'),
    ('llama3', 'Llama3Backbone', 'model.layers.0.self_attn.q_proj'),
    ('mistral', 'MistralBackbone', 'model.layers.0.self_attn.q_proj'),
    ('bert', 'BertBackbone', 'encoder.layer.0.attention.self.query'),
    ('roberta', 'RobertaBackbone', 'encoder.layer.0.attention.self.query'),
    ('distil_bert', 'DistilBertBackbone', 'transformer.layer.0.attention.q_lin'),
  )
  def test_renamed_modules(self, architecture, module):
    factors = _factors()
    peft.save_peft_adapter(self.directory, factors, CONFIG, architecture=architecture)
    self.assertIn(module, self._config()['target_modules'])
    expected = self._our_delta(factors[QUERY])
    self.assertAllClose(self._delta(module), expected, rtol=1e-5, atol=1e-5)
    self._assert_round_trip(factors)

  def test_equal_adapters_are_equal_bytes(self):
    files = set()
    for _ in range(10):
      peft.save_peft_adapter(self.directory, _factors(), CONFIG, architecture='GPT2Backbone')
      names = (peft.WEIGHTS_FILE, peft.CONFIG_FILE)
      files.add(tuple((self.directory / name).read_bytes() for name in names))
    self.assertLen(files, 1)
    self._assert_round_trip(_factors())

  def test_reads_an_adapter_that_peft_wrote(self):
    module = 'model.layers.0.self_attn.q_proj'
    a, b = _random(2, 4, seed=0), _random(6, 2, seed=1)
    keys = [f'base_model.model.{module}.lora_{side}.weight' for side in 'AB']
    safetensors.numpy.save_file(
      dict(zip(keys, (a, b), strict=True)), self.directory / peft.WEIGHTS_FILE
    )
    config = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 16, 'target_modules': ['q_proj']}
    (self.directory / peft.CONFIG_FILE).write_text(json.dumps(config))
    loaded = peft.load_peft_adapter(self.directory)
    self.assertEqual(list(loaded.factors), [module])
    self.assertAllEqual(loaded.factors[module].b, b)
    self.assertEqual(loaded.config['scaling'], 8.0)
    self.assertEqual(loaded.config['targets'], ('q_proj',))

  def test_modules_of_several_scales_get_one(self):
    factors = _factors([QUERY, VALUE, 'transformer_layer_0/self_attention/key'])
    peft.save_peft_adapter(self.directory, factors, CONFIG)
    self._edit_config(alpha_pattern={'value': 15.0})
    loaded = peft.load_peft_adapter(self.directory)
    self.assertEqual(loaded.config['scaling'], CONFIG.scaling)
    for path, pair in factors.items():
      times = 2.5 if path == VALUE else 1.0
      self.assertAllClose(loaded.factors[path].b, times * pair.b)
      self.assertAllEqual(loaded.factors[path].a, pair.a)

  @parameterized.parameters(tf.float16, tf.bfloat16)
  def test_reads_half_precision(self, dtype):
    peft.save_peft_adapter(self.directory, _factors([QUERY]), CONFIG)
    halves = {key: tf.cast(value, dtype) for key, value in self._tensors().items()}
    safetensors.tensorflow.save_file(halves, self.directory / peft.WEIGHTS_FILE)
    (module,) = peft.load_peft_adapter(self.directory).factors
    loaded = peft.load_peft_adapter(self.directory).factors[module]
    a, b = (tf.cast(half, tf.float32) for _, half in sorted(halves.items()))
    self.assertAllEqual(loaded.a, a)
    self.assertAllEqual(loaded.b, b)
    self.assertEqual((loaded.a.dtype, loaded.b.dtype), (np.float32, np.float32))

  @parameterized.parameters(('GPT2Backbone', ['score']), ('BertBackbone', None))
  def test_a_classifier_is_a_matrix_where_hugging_face_has_one(self, architecture, heads):
    factors = {**_factors(), CLASSIFIER: _factors([CLASSIFIER], d_out=5)[CLASSIFIER]}
    names = peft.save_peft_adapter(self.directory, factors, CONFIG, architecture=architecture)
    self.assertEqual(names, peft.HUGGING_FACE_NAMES)
    written = self._config()
    self.assertEqual(written['modules_to_save'], heads)
    self.assertEqual(written['task_type'], 'SEQ_CLS' if heads else 'FEATURE_EXTRACTION')
    self.assertNotIn(CLASSIFIER, written['target_modules'])
    matrix = self._tensors().get('base_model.model.score.weight')
    if heads:
      self.assertAllClose(matrix, self._our_delta(factors[CLASSIFIER]), rtol=1e-5, atol=1e-5)
    else:
      self.assertIsNone(matrix)
    self._assert_round_trip(factors)

  def test_an_adapter_that_is_pickled_is_not_read(self):
    peft.save_peft_adapter(self.directory, _factors(), CONFIG)
    (self.directory / peft.WEIGHTS_FILE).rename(self.directory / 'adapter_model.bin')
    with self.assertRaisesRegex(ValueError, 'safe_serialization'):
      peft.load_peft_adapter(self.directory)

  def test_a_failed_write_keeps_the_old_file(self):
    factors = _factors()
    peft.save_peft_adapter(self.directory, factors, CONFIG)
    with (
      mock.patch.object(os, 'replace', side_effect=OSError('planned')),
      self.assertRaisesRegex(OSError, 'planned'),
    ):
      peft.save_peft_adapter(self.directory, _factors(rank=2), CONFIG)
    self.assertCountEqual(os.listdir(self.directory), [peft.WEIGHTS_FILE, peft.CONFIG_FILE])
    self._assert_round_trip(factors)

  @parameterized.named_parameters(
    ('empty', {}, 'empty'),
    ('transposed', {QUERY: (np.ones([2, 4]), np.ones([2, 4]))}, 'must be a'),
    ('infinite', {QUERY: (np.full([2, 4], np.inf), np.ones([4, 2]))}, 'not finite'),
  )
  def test_refuses_to_save(self, factors, message):
    factors = {path: factors_lib.LoraFactors(*pair) for path, pair in factors.items()}
    with self.assertRaisesRegex(ValueError, message):
      peft.save_peft_adapter(self.directory, factors, CONFIG)

  @parameterized.named_parameters(
    ('dtype', lambda tensors, a: {a: tensors[a].astype(np.float64)}, 'is F64'),
    ('not_finite', lambda tensors, a: {a: tensors[a] * np.nan}, 'not finite'),
    ('shape', lambda tensors, a: {a: tensors[a][0]}, r'lora_A \[r, d_in\]'),
    ('rank', lambda tensors, a: {a: tensors[a][:2]}, r'lora_A \[r, d_in\]'),
    ('foreign_name', lambda tensors, a: {'lm_head.weight': tensors[a]}, 'lm_head.weight'),
    ('missing', lambda tensors, a: {a: None}, r'lora_A\.weight is missing'),
  )
  def test_refuses_damaged_tensors(self, change, message):
    peft.save_peft_adapter(self.directory, _factors([QUERY]), CONFIG)
    tensors = self._tensors()
    (key,) = (key for key in tensors if 'lora_A' in key)
    changed = {**tensors, **change(tensors, key)}
    kept = {key: value for key, value in changed.items() if value is not None}
    safetensors.numpy.save_file(kept, self.directory / peft.WEIGHTS_FILE)
    with self.assertRaisesRegex(ValueError, message) as raised:
      peft.load_peft_adapter(self.directory)
    self.assertIn(peft.WEIGHTS_FILE, str(raised.exception))
    self.assertNotIn('\n', str(raised.exception))

  @parameterized.named_parameters(
    ('kind', {'peft_type': 'IA3'}, 'peft_type'),
    ('rank', {'r': 5}, 'rank 5'),
    ('alpha', {'lora_alpha': -1}, 'lora_alpha'),
    ('dora', {'use_dora': True}, 'use_dora'),
    ('bias', {'bias': 'all'}, 'bias'),
    ('trained_head', {'modules_to_save': ['score']}, 'modules_to_save'),
    ('tokens', {'trainable_token_indices': [1]}, 'trainable_token_indices'),
    ('start', {'init_lora_weights': 'pissa'}, 'init_lora_weights'),
    ('pattern', {'rank_pattern': {'(': 2}}, 'no regular expression'),
    ('pattern_list', {'rank_pattern': [2]}, 'must map'),
    ('targets', {'target_modules': None}, 'target_modules'),
  )
  def test_refuses_other_configurations(self, changes, message):
    peft.save_peft_adapter(self.directory, _factors(), CONFIG)
    self._edit_config(**changes)
    self._drop_layout()
    with self.assertRaisesRegex(ValueError, message) as raised:
      peft.load_peft_adapter(self.directory)
    self.assertIn(peft.CONFIG_FILE, str(raised.exception))

  def test_refuses_broken_files(self):
    with self.assertRaisesRegex(ValueError, 'no such file'):
      peft.load_peft_adapter(self.directory)
    peft.save_peft_adapter(self.directory, _factors(), CONFIG)
    weights = self.directory / peft.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-8])
    with self.assertRaisesRegex(ValueError, 'not a valid safetensors'):
      peft.load_peft_adapter(self.directory)
    (self.directory / peft.CONFIG_FILE).write_text('{')
    with self.assertRaisesRegex(ValueError, 'not valid JSON'):
      peft.load_peft_adapter(self.directory)

  def test_refuses_a_damaged_layout(self):
    peft.save_peft_adapter(self.directory, _factors(), CONFIG, architecture='GPT2Backbone')
    for layout in ('{', '{"targets": [], "modules": [{}]}', '{"modules": []}'):
      metadata = {'hetlora_layout': layout}
      safetensors.numpy.save_file(self._tensors(), self.directory / peft.WEIGHTS_FILE, metadata)
      with self.assertRaisesRegex(ValueError, 'layout is damaged'):
        peft.load_peft_adapter(self.directory)


if __name__ == '__main__':
  tf.test.main()
