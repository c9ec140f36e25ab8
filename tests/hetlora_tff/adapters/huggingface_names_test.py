# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

from absl.testing import absltest, parameterized

from hetlora_tff.adapters import huggingface_names


def _place(architecture, sizes, num_heads=None):
  return huggingface_names.place(huggingface_names.find(architecture), sizes, num_heads)


class HuggingFaceNamesTest(parameterized.TestCase):
  def test_unknown_architecture(self):
    self.assertIsNone(huggingface_names.find('XLNetBackbone'))
    self.assertIsNone(huggingface_names.find(None))

  def test_number_of_the_layer_is_kept(self):
    path = 'transformer_layer_12/feedforward_gate'
    spot = _place('LlamaBackbone', {path: (2, 6)})[path]
    self.assertEqual(spot, ('model.layers.12.mlp.gate_proj', 0, 2, 1, 0, 6, 6))

  def test_bart_stacks(self):
    paths = {
      'transformer_encoder_layer_0/self_attention/query': 'model.encoder.layers.0.self_attn.q_proj',
      'transformer_decoder_layer_0/self_attention/query': 'model.decoder.layers.0.self_attn.q_proj',
      'transformer_decoder_layer_0/cross_attention/output': (
        'model.decoder.layers.0.encoder_attn.out_proj'
      ),
    }
    places = _place('BartBackbone', dict.fromkeys(paths, (1, 4)))
    self.assertEqual({path: spot.module for path, spot in places.items()}, paths)

  @parameterized.named_parameters(
    ('gpt2', 'GPT2Backbone', 'self_attention', (8, 8), None, (1, 0, 8, 24), (1, 16, 8, 24)),
    ('bloom', 'BloomBackbone', 'self_attention', (8, 8), 2, (2, 0, 4, 12), (2, 8, 4, 12)),
    ('falcon', 'FalconBackbone', 'attention', (8, 8), 4, (4, 0, 2, 6), (4, 4, 2, 6)),
    ('phi3', 'Phi3Backbone', 'attention', (8, 4), None, (1, 0, 8, 16), (1, 12, 4, 16)),
  )
  def test_fused_query_and_value(self, architecture, attention, d_out, num_heads, *expected):
    paths = [f'transformer_layer_3/{attention}/{name}' for name in ('query', 'value')]
    sizes = {paths[0]: (5, d_out[0]), paths[1]: (7, d_out[1])}
    places = _place(architecture, sizes, num_heads)
    self.assertLen({spot.module for spot in places.values()}, 1)
    self.assertEqual([(p.rank_start, p.rank) for p in places.values()], [(0, 5), (5, 7)])
    rows = [(p.groups, p.start, p.size, p.total) for p in places.values()]
    self.assertEqual(rows, list(expected))

  @parameterized.named_parameters(
    ('other_module', 'GPT2Backbone', 'transformer_layer_0/self_attention/relative', None),
    ('other_layer', 'GPT2Backbone', 'pooler', None),
    ('heads_unknown', 'BloomBackbone', 'transformer_layer_0/self_attention/query', None),
    ('heads_do_not_divide', 'BloomBackbone', 'transformer_layer_0/self_attention/query', 3),
    ('sibling_size_unknown', 'Phi3Backbone', 'transformer_layer_0/attention/query', None),
  )
  def test_no_place(self, architecture, path, num_heads):
    self.assertEmpty(_place(architecture, {path: (2, 8)}, num_heads))

  def test_a_module_without_a_place_leaves_the_others_theirs(self):
    path = 'transformer_layer_0/feedforward_output'
    self.assertEqual(list(_place('GPT2Backbone', {path: (2, 8), 'classifier': (2, 3)})), [path])

  @parameterized.parameters(
    ('transformer.h.1.attn.c_attn', True),
    ('h.1.attn.c_attn', True),
    ('model.transformer.h.1.attn.c_attn', True),
    ('h.11.attn.c_attn', False),
    ('xh.1.attn.c_attn', False),
    ('attn.c_attn', False),
  )
  def test_classes_differ_in_what_stands_before_a_layer(self, name, same):
    theirs = 'transformer.h.1.attn.c_attn'
    self.assertEqual(huggingface_names.same_module(name, theirs), same)

  def test_only_causal_models_have_our_head(self):
    heads = {
      name: huggingface_names.find(f'{name}Backbone').head
      for name in ('GPT2', 'Mistral', 'Bert', 'Bart')
    }
    self.assertEqual(heads, {'GPT2': 'score', 'Mistral': 'score', 'Bert': None, 'Bart': None})


if __name__ == '__main__':
  absltest.main()
