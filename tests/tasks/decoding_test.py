# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of greedy decoding against a cacheless loop and against keras-nlp's own `generate`."""

import contextlib

import keras_nlp
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tasks import decoding

_VOCABULARY = 23
_END = 1


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


class _ShiftedQuery(tf.keras.layers.Layer):
  """Adds a bound vector to a projection, as a stand-in for an adapter layer."""

  def __init__(self, base):
    super().__init__()
    self._base = base
    self.shift = None

  def call(self, inputs):
    outputs = self._base(inputs)
    return outputs if self.shift is None else outputs + self.shift


class GreedyDecoderTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.named_parameters(
    ('gpt2', _gpt2),
    ('llama', _llama),
    ('mistral', lambda: _llama(keras_nlp.models.MistralBackbone)),
    ('phi3', lambda: _llama(keras_nlp.models.Phi3Backbone)),
    ('opt', lambda: _gpt2(keras_nlp.models.OPTBackbone)),
    ('bloom', lambda: _gpt2(keras_nlp.models.BloomBackbone, max_sequence_length=None)),
  )
  def test_equals_the_cacheless_loop(self, build):
    backbone = _randomize(build())
    prompts = _prompts([5, 1, 12, 3, 8])
    decoder = decoding.GreedyDecoder(backbone, max_new_tokens=7, end_token_id=_END, batch_size=2)
    expected = _slow_decode(backbone, prompts, 7)
    self.assertEqual(decoder.decode(prompts), expected)
    # The comparison says little if every prompt has the same continuation.
    self.assertGreater(len({tuple(tokens) for tokens in expected}), 1)

  def test_equals_keras_nlp_generate(self):
    backbone = _randomize(_gpt2())
    prompts = _prompts([6, 6, 6])
    model = keras_nlp.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    model.compile(sampler='greedy')
    model.generate_function = model.generate_step
    output = model.generate({k: tf.constant(v) for k, v in prompts.items()}, stop_token_ids=[_END])
    expected = []
    for tokens, mask in zip(output['token_ids'], output['padding_mask'], strict=True):
      expected.append([int(t) for t in tokens[6:][mask[6:]] if t != _END])
    decoded = decoding.greedy_decode(backbone, prompts, max_new_tokens=6, end_token_id=_END)
    self.assertEqual(decoded, expected)

  def test_cuts_before_the_end_token(self):
    backbone = _randomize(_gpt2())
    prompts = _prompts([4, 9, 2, 7, 11, 3])
    arguments = {'max_new_tokens': 8, 'batch_size': 3}
    free = decoding.greedy_decode(backbone, prompts, end_token_id=_VOCABULARY - 1, **arguments)
    row, position = next(
      (row, i) for row, new in enumerate(free) for i in range(2, 8) if new[i] not in new[:i]
    )
    end = free[row][position]
    cut = decoding.greedy_decode(backbone, prompts, end_token_id=end, **arguments)
    self.assertEqual(cut[row], free[row][:position])
    self.assertNotIn(end, [token for tokens in cut for token in tokens])

  def test_padding_with_the_end_token_does_not_end_the_text(self):
    backbone = _randomize(_gpt2())
    arguments = {'max_new_tokens': 5, 'end_token_id': _END}
    plain = decoding.greedy_decode(backbone, _prompts([4, 2]), **arguments)
    padded = decoding.greedy_decode(backbone, _prompts([4, 2], pad=_END), **arguments)
    self.assertEqual(padded, plain)
    self.assertNotEmpty(plain[0])

  def test_end_tokens_inside_a_prompt_do_not_end_the_text(self):
    backbone = _randomize(_gpt2())
    prompts = _prompts([5])
    prompts['token_ids'][0, 2] = _END
    decoded = decoding.greedy_decode(backbone, prompts, max_new_tokens=4, end_token_id=_END)
    self.assertEqual(decoded, _slow_decode(backbone, prompts, 4))

  def test_traces_once_for_all_widths_and_partial_batches(self):
    backbone = _gpt2()
    decoder = decoding.GreedyDecoder(backbone, max_new_tokens=3, end_token_id=_END, batch_size=2)
    decoder.decode(_prompts([5, 4, 3]))
    decoder.decode(_prompts([12, 1], seed=4))
    self.assertEqual(decoder._generate.experimental_get_tracing_count(), 1)

  def test_sees_variables_that_change_between_calls(self):
    backbone = _randomize(_gpt2())
    decoder = decoding.GreedyDecoder(backbone, max_new_tokens=6, end_token_id=_END)
    prompts = _prompts([6, 9])
    before = decoder.decode(prompts)
    query = backbone.transformer_layers[0]._self_attention_layer._query_dense
    query.kernel.assign(-2.0 * query.kernel)
    after = decoder.decode(prompts)
    self.assertEqual(after, _slow_decode(backbone, prompts, 6))
    self.assertNotEqual(after, before)

  def test_binds_adapters_of_the_call(self):
    backbone = _randomize(_gpt2())
    attention = backbone.transformer_layers[0]._self_attention_layer
    layer = attention._query_dense = _ShiftedQuery(attention._query_dense)

    @contextlib.contextmanager
    def bind(adapters):
      layer.shift = adapters['shift']
      yield
      layer.shift = None

    arguments = {'max_new_tokens': 6, 'end_token_id': _END}
    decoder = decoding.GreedyDecoder(backbone, bind=bind, **arguments)
    prompts = _prompts([6, 9, 11])
    decoded = [decoder.decode(prompts, {'shift': tf.fill([2, 4], x)}) for x in (0.0, 9.0)]
    self.assertEqual(decoded[0], decoding.greedy_decode(backbone, prompts, **arguments))
    self.assertNotEqual(decoded[0], decoded[1])
    self.assertEqual(decoder._generate.experimental_get_tracing_count(), 1)
    self.assertIsNone(layer.shift)
    with self.assertRaisesRegex(ValueError, 'adapters'):
      decoder.decode(prompts)

  def test_no_prompts(self):
    prompts = {'token_ids': np.zeros([0, 4]), 'padding_mask': np.zeros([0, 4])}
    self.assertEqual(
      decoding.greedy_decode(_gpt2(), prompts, max_new_tokens=2, end_token_id=_END), []
    )

  @parameterized.named_parameters(
    ('empty_row', _prompts([3, 0]), 'row 1 is empty'),
    ('too_long', _prompts([20], length=20), '25 positions, but the backbone has 24'),
    (
      'padded_at_the_front',
      {'token_ids': np.ones([1, 3]), 'padding_mask': np.array([[0, 1, 1]])},
      'prefix',
    ),
    ('ragged', {'token_ids': np.ones([1, 3]), 'padding_mask': np.ones([1, 2])}, 'shapes'),
  )
  def test_refuses_malformed_prompts(self, prompts, message):
    decoder = decoding.GreedyDecoder(_gpt2(), max_new_tokens=5, end_token_id=_END)
    with self.assertRaisesRegex(ValueError, message):
      decoder.decode(prompts)

  def test_refuses_a_backbone_that_cannot_generate(self):
    backbone = keras_nlp.models.BertBackbone(
      vocabulary_size=9, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4
    )
    with self.assertRaisesRegex(ValueError, 'BertBackbone'):
      decoding.GreedyDecoder(backbone, max_new_tokens=5, end_token_id=_END)

  @parameterized.parameters('max_new_tokens', 'batch_size')
  def test_refuses_counts_below_one(self, name):
    arguments = {'max_new_tokens': 1, 'batch_size': 1, name: 0}
    with self.assertRaisesRegex(ValueError, name):
      decoding.GreedyDecoder(_gpt2(), end_token_id=_END, **arguments)


if __name__ == '__main__':
  tf.test.main()
