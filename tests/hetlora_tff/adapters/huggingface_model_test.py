# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of a base model; `peft_huggingface_test` has transformers compute with them."""

import json

import keras_nlp
import numpy as np
import pytest
import safetensors.numpy

from hetlora_tff.adapters import huggingface_model
from hetlora_tff.adapters.backbone import FrozenBackbone

WIDTH, LENGTH = 8, 6
_SIZES = {
  'vocabulary_size': 11,
  'num_layers': 1,
  'hidden_dim': WIDTH,
  'intermediate_dim': 12,
}
_HEADS = {**_SIZES, 'num_heads': 2, 'max_sequence_length': LENGTH}
_GROUPED = {**_SIZES, 'num_query_heads': 4, 'num_key_value_heads': 2}
# Family to arguments, and to the numbers that Hugging Face has and keras-nlp has not.
FAMILIES = {
  'GPT2': (_HEADS, 0),
  'OPT': (_HEADS, 2 * WIDTH),
  'Llama': (_GROUPED, 0),
  'Mistral': (_GROUPED, 0),
  'Bert': (_HEADS, 0),
  'Roberta': (_HEADS, 3 * WIDTH),
}


def _save(directory, family):
  backbone = getattr(keras_nlp.models, f'{family}Backbone')(**FAMILIES[family][0])
  frozen = FrozenBackbone.save(backbone, directory / 'backbone')
  huggingface_model.save_huggingface_model(
    directory, frozen, special_tokens={'eos_token_id': 4}, labels=()
  )
  weights = safetensors.numpy.load_file(directory / huggingface_model.WEIGHTS_FILE)
  return backbone, frozen, weights, _config(directory)


def _config(directory):
  return json.loads((directory / huggingface_model.CONFIG_FILE).read_text())


@pytest.mark.parametrize('family', FAMILIES)
def test_every_weight_is_written_once(tmp_path, family):
  _, frozen, weights, config = _save(tmp_path, family)
  written = sum(value.size for value in weights.values())
  assert written == frozen.num_parameters + FAMILIES[family][1]
  assert config['eos_token_id'] == 4
  assert config['bos_token_id'] is None
  assert config['vocab_size'] == 11


def test_gpt2_fuses_query_key_and_value(tmp_path):
  backbone, _, weights, config = _save(tmp_path, 'GPT2')
  attention = backbone.transformer_layers[0]._self_attention_layer
  kernels = [
    np.reshape(getattr(attention, f'_{name}_dense').kernel, [WIDTH, WIDTH])
    for name in ('query', 'key', 'value')
  ]
  fused = weights['transformer.h.0.attn.c_attn.weight']
  np.testing.assert_array_equal(fused, np.concatenate(kernels, axis=1))
  assert config['architectures'] == ['GPT2LMHeadModel']


def test_a_classifier_has_its_labels_and_no_vocabulary(tmp_path):
  backbone = keras_nlp.models.MistralBackbone(**_GROUPED)
  frozen = FrozenBackbone.save(backbone, tmp_path / 'backbone')
  huggingface_model.save_huggingface_model(
    tmp_path, frozen, special_tokens={'pad_token_id': 0}, labels=('no', 'yes')
  )
  config = _config(tmp_path)
  assert config['architectures'] == ['MistralForSequenceClassification']
  assert config['label2id'] == {'no': 0, 'yes': 1}
  assert 'lm_head.weight' not in safetensors.numpy.load_file(tmp_path / 'model.safetensors')


def test_another_family_is_refused(tmp_path):
  frozen = FrozenBackbone('', 'BloomBackbone', {}, 'float32', ())
  assert not huggingface_model.is_known('BloomBackbone')
  with pytest.raises(ValueError, match='BloomBackbone is none of GPT2Backbone'):
    huggingface_model.save_huggingface_model(tmp_path, frozen, special_tokens={})
