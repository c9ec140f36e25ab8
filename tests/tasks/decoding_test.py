# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of decoding against a cacheless loop and against keras-nlp's own `generate`."""

import collections
import functools

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from hetlora_tff.adapters import injection, layers
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import LoraFactors
from tasks import decoding

_VOCABULARY = 23
_END = 1
# What the adapted models below write often.
_FREQUENT = 8
_LORA = LoraConfig(max_rank=2, alpha=4.0)
_PATHS = [f'transformer_layer_{n}/self_attention/{name}' for n in (0, 1) for name in _LORA.targets]


def _gpt2(cls=keras_nlp.models.GPT2Backbone, **overrides):
  arguments = {
    'vocabulary_size': _VOCABULARY,
    'num_layers': 2,
    'num_heads': 2,
    'hidden_dim': 8,
    'intermediate_dim': 16,
    'max_sequence_length': 24,
    **overrides,
  }
  return cls(**{name: value for name, value in arguments.items() if value is not None})


def _llama(cls=keras_nlp.models.LlamaBackbone, **overrides):
  return cls(
    **{
      'vocabulary_size': _VOCABULARY,
      'num_layers': 2,
      'num_query_heads': 2,
      'num_key_value_heads': 1,
      'hidden_dim': 8,
      'intermediate_dim': 16,
      **overrides,
    }
  )


def _randomize(backbone):
  """Makes next tokens depend on the whole prompt: fresh weights only repeat the last token."""
  generator = np.random.default_rng(7)
  for weight in backbone.weights:
    # Vectors are biases and norms, which must not drown the rest.
    if weight.shape.rank == 1:
      weight.assign_add(generator.normal(scale=0.1, size=weight.shape))
    else:
      weight.assign(generator.normal(scale=0.7, size=weight.shape))
  return backbone


def _prompts(lengths, length=12, pad=0, seed=3):
  generator = np.random.default_rng(seed)
  mask = (np.arange(length) < np.array(lengths)[:, np.newaxis]).astype(np.int32)
  token_ids = generator.integers(2, _VOCABULARY, mask.shape)
  return {'token_ids': np.where(mask, token_ids, pad).astype(np.int32), 'padding_mask': mask}


def _slow_decode(backbone, prompts, max_new_tokens):
  """One forward pass of the whole text per token and per prompt, without padding or cache."""
  decoded = []
  for row, mask in zip(prompts['token_ids'], prompts['padding_mask'], strict=True):
    text = row[: mask.sum()].tolist()
    new = []
    while len(new) < max_new_tokens:
      inputs = {'token_ids': tf.constant([text]), 'padding_mask': tf.ones([1, len(text)], tf.int32)}
      logits = backbone.token_embedding(backbone(inputs, training=False), reverse=True)
      token = int(np.argmax(logits[0, -1]))
      if token == _END:
        break
      new.append(token)
      text.append(token)
    decoded.append(new)
  return decoded


def _generate(backbone, prompts, max_new_tokens, sampler):
  """keras-nlp's own generation, one prompt at a time."""
  model = keras_nlp.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
  model.compile(sampler=sampler)
  # Its compiled function would compile anew for every length.
  model.generate_function = model.generate_step
  decoded = []
  for row, mask in zip(prompts['token_ids'], prompts['padding_mask'], strict=True):
    length = mask.sum()
    token_ids = np.zeros([1, length + max_new_tokens], np.int32)
    token_ids[0, :length] = row[:length]
    inputs = {'token_ids': token_ids, 'padding_mask': np.arange(token_ids.shape[1])[None] < length}
    output = model.generate(tf.nest.map_structure(tf.constant, inputs), stop_token_ids=[_FREQUENT])
    tokens = output['token_ids'][0, length:][output['padding_mask'][0, length:]]
    decoded.append([int(token) for token in tokens if token != _FREQUENT])
  return decoded


def _adapters(seed):
  generator = np.random.default_rng(seed)
  draw = lambda *shape: generator.normal(scale=0.7, size=shape).astype(np.float32)  # noqa: E731
  return collections.OrderedDict((path, LoraFactors(draw(2, 8), draw(8, 2))) for path in _PATHS)


def _merged(adapters):
  """An ordinary model with `W + scaling b a` written into its kernels."""
  backbone = _randomize(_gpt2())
  for path, (a, b) in adapters.items():
    layer, _, name = path.split('/')
    dense = getattr(backbone.get_layer(layer)._self_attention_layer, f'_{name}_dense')
    dense.kernel.assign_add((_LORA.scaling * b @ a).T.reshape(dense.kernel.shape))
  return backbone


class DecoderTest(tf.test.TestCase, parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # Shared: tracing is most of the time.
    cls.backbone = _randomize(_gpt2())
    cls.decoder = decoding.Decoder(cls.backbone, max_new_tokens=7, end_token_id=_END, batch_size=2)

  def tearDown(self):
    super().tearDown()
    # One trace serves all prompts, widths, partial batches and weights.
    self.assertLessEqual(self.decoder._generate.experimental_get_tracing_count(), 1)

  def _check(self, backbone, decoder):
    prompts = _prompts([5, 1, 12, 3, 8])
    prompts['token_ids'][0, 2] = _END  # Within a prompt it ends nothing.
    expected = _slow_decode(backbone, prompts, 7)
    self.assertEqual(decoder.decode(prompts), expected)
    # The comparison says little if every prompt has the same continuation.
    self.assertGreater(len({tuple(tokens) for tokens in expected}), 1)

  def test_equals_the_cacheless_loop(self):
    self._check(self.backbone, self.decoder)

  @parameterized.named_parameters(
    ('llama', _llama),
    ('bloom', lambda: _gpt2(keras_nlp.models.BloomBackbone, max_sequence_length=None)),
    ('mistral', lambda: _llama(keras_nlp.models.MistralBackbone)),
    ('phi3', lambda: _llama(keras_nlp.models.Phi3Backbone)),
    ('opt', lambda: _gpt2(keras_nlp.models.OPTBackbone)),
  )
  @pytest.mark.slow
  def test_equals_the_cacheless_loop_of(self, build):
    backbone = _randomize(build())
    self._check(
      backbone, decoding.Decoder(backbone, max_new_tokens=7, end_token_id=_END, batch_size=2)
    )

  @parameterized.named_parameters(('greedy', 1), ('beams', 3))
  def test_equals_keras_nlp_generate_of_the_merged_model(self, num_beams):
    backbone = _randomize(_gpt2())
    adapted = injection.inject_lora(backbone, _LORA, create_variables=False)
    decoder = decoding.Decoder(
      backbone,
      max_new_tokens=8,
      end_token_id=_FREQUENT,
      batch_size=6,
      bind=functools.partial(layers.bound, adapted),
      num_beams=num_beams,
    )
    prompts = _prompts([6, 2, 12, 6, 1])
    sampler = 'greedy' if num_beams == 1 else keras_nlp.samplers.BeamSampler(num_beams)
    decoded = []
    for adapters in (_adapters(0), _adapters(1)):
      decoded.append(decoder.decode(prompts, adapters))
      self.assertEqual(decoded[-1], _generate(_merged(adapters), prompts, 8, sampler))
    # Some end within the bound, others do not.
    self.assertContainsSubset({2, 8}, set(map(len, decoded[0] + decoded[1])))
    self.assertNotEqual(*decoded)
    self.assertEqual(decoder._generate.experimental_get_tracing_count(), 1)
    with self.assertRaisesRegex(ValueError, 'adapters'):
      decoder.decode(prompts)

  def test_padding_with_the_end_token_does_not_end_the_text(self):
    plain = self.decoder.decode(_prompts([4, 2]))
    self.assertEqual(self.decoder.decode(_prompts([4, 2], pad=_END)), plain)
    self.assertNotEmpty(plain[0])

  def test_sees_variables_that_change_between_calls(self):
    prompts = _prompts([6, 9])
    before = self.decoder.decode(prompts)
    query = self.backbone.transformer_layers[0]._self_attention_layer._query_dense
    query.kernel.assign(-2.0 * query.kernel)
    after, expected = self.decoder.decode(prompts), _slow_decode(self.backbone, prompts, 7)
    query.kernel.assign(-0.5 * query.kernel)
    self.assertEqual(after, expected)
    self.assertNotEqual(after, before)

  def test_no_prompts(self):
    prompts = {'token_ids': np.zeros([0, 4]), 'padding_mask': np.zeros([0, 4])}
    self.assertEqual(self.decoder.decode(prompts), [])

  @parameterized.named_parameters(
    ('empty_row', _prompts([3, 0]), 'row 1 is empty'),
    ('too_long', _prompts([20], length=20), '27 positions, but the backbone has 24'),
    (
      'padded_at_the_front',
      {'token_ids': np.ones([1, 3]), 'padding_mask': np.array([[0, 1, 1]])},
      'prefix',
    ),
    ('ragged', {'token_ids': np.ones([1, 3]), 'padding_mask': np.ones([1, 2])}, 'shapes'),
  )
  def test_refuses_malformed_prompts(self, prompts, message):
    with self.assertRaisesRegex(ValueError, message):
      self.decoder.decode(prompts)

  def test_refuses_a_backbone_that_cannot_generate(self):
    backbone = keras_nlp.models.BertBackbone(
      vocabulary_size=9, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4
    )
    with self.assertRaisesRegex(ValueError, 'BertBackbone'):
      decoding.Decoder(backbone, max_new_tokens=5, end_token_id=_END)

  @parameterized.parameters('max_new_tokens', 'batch_size', 'num_beams')
  def test_refuses_counts_below_one(self, name):
    arguments = {'max_new_tokens': 1, 'batch_size': 1, name: 0}
    with self.assertRaisesRegex(ValueError, name):
      decoding.Decoder(self.backbone, end_token_id=_END, **arguments)


if __name__ == '__main__':
  tf.test.main()
