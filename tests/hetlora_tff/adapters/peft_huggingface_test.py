# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Our adapters under Hugging Face PEFT, on base weights that are the same on both sides."""

import os
import subprocess

import keras_nlp
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from hetlora_tff.adapters import config as config_lib
from hetlora_tff.adapters import factors as factors_lib
from hetlora_tff.adapters import injection, peft

# An interpreter that has torch, transformers and peft: they cannot share one with TensorFlow 2.14.
TORCH_PYTHON = os.environ.get('HETLORA_TORCH_PYTHON')

_REFERENCE = """
import sys, numpy as np, peft, torch, transformers
from safetensors.numpy import load_file
directory, kind, *arguments = sys.argv[1:]
sizes = dict(zip(arguments[::2], map(int, arguments[1::2])))
config = getattr(transformers, kind + 'Config')(**sizes)
model_class = {'GPT2': 'GPT2LMHeadModel', 'Llama': 'LlamaForCausalLM'}[kind]
base = getattr(transformers, model_class)(config)
weights = {key: torch.tensor(value) for key, value in load_file(directory + '/base').items()}
missing, unexpected = base.load_state_dict(weights, strict=False)
assert not unexpected and set(missing) <= {'lm_head.weight'}, (missing, unexpected)
model = peft.PeftModel.from_pretrained(base, directory).eval()
loaded = peft.get_peft_model_state_dict(model)
expected = load_file(directory + '/adapter_model.safetensors')
assert sorted(loaded) == sorted(expected), sorted(loaded)
tokens = torch.tensor(np.load(directory + '/tokens.npy'))
with torch.no_grad():
  hidden = model(tokens, output_hidden_states=True).hidden_states[-1]
np.save(directory + '/hidden.npy', hidden.numpy())
"""


def _linear(layer, inputs_first=1):
  """A kernel as [d_in, d_out]; `inputs_first` counts its input axes."""
  kernel = layer.kernel.numpy()
  return kernel.reshape(int(np.prod(kernel.shape[:inputs_first])), -1)


def _gpt2_weights(backbone):
  weights = {
    'transformer.wte.weight': backbone.token_embedding.embeddings.numpy(),
    'transformer.wpe.weight': backbone.position_embedding.position_embeddings.numpy(),
  }

  def norm(name, layer):
    weights[f'{name}.weight'], weights[f'{name}.bias'] = layer.gamma.numpy(), layer.beta.numpy()

  for i, block in enumerate(backbone.transformer_layers):
    prefix, attention = f'transformer.h.{i}.', block._self_attention_layer
    parts = (attention._query_dense, attention._key_dense, attention._value_dense)
    weights[prefix + 'attn.c_attn.weight'] = np.concatenate([_linear(p) for p in parts], 1)
    weights[prefix + 'attn.c_attn.bias'] = np.concatenate([p.bias.numpy().ravel() for p in parts])
    weights[prefix + 'attn.c_proj.weight'] = _linear(attention._output_dense, 2)
    weights[prefix + 'attn.c_proj.bias'] = attention._output_dense.bias.numpy()
    for theirs, layer in (
      ('c_fc', block._feedforward_intermediate_dense),
      ('c_proj', block._feedforward_output_dense),
    ):
      weights[f'{prefix}mlp.{theirs}.weight'] = layer.kernel.numpy()
      weights[f'{prefix}mlp.{theirs}.bias'] = layer.bias.numpy()
    norm(prefix + 'ln_1', block._self_attention_layer_norm)
    norm(prefix + 'ln_2', block._feedforward_layer_norm)
  norm('transformer.ln_f', backbone.layer_norm)
  return weights


def _llama_weights(backbone):
  weights = {
    'model.embed_tokens.weight': backbone.token_embedding.embeddings.numpy(),
    'model.norm.weight': backbone.layer_norm.scale.numpy(),
  }
  for i, block in enumerate(backbone.transformer_layers):
    prefix, attention = f'model.layers.{i}.', block._self_attention_layer
    weights[prefix + 'input_layernorm.weight'] = block._self_attention_layernorm.scale.numpy()
    weights[prefix + 'post_attention_layernorm.weight'] = block._feedforward_layernorm.scale.numpy()
    for theirs, layer, inputs_first in (
      ('self_attn.q_proj', attention._query_dense, 1),
      ('self_attn.k_proj', attention._key_dense, 1),
      ('self_attn.v_proj', attention._value_dense, 1),
      ('self_attn.o_proj', attention._output_dense, 2),
      ('mlp.up_proj', block._feedforward_intermediate_dense, 1),
      ('mlp.gate_proj', block._feedforward_gate_dense, 1),
      ('mlp.down_proj', block._feedforward_output_dense, 1),
    ):
      weights[f'{prefix}{theirs}.weight'] = np.ascontiguousarray(_linear(layer, inputs_first).T)
  return weights


@pytest.mark.slow
@pytest.mark.skipif(
  TORCH_PYTHON is None,
  reason='HETLORA_TORCH_PYTHON names no interpreter with torch, transformers and peft',
)
@pytest.mark.parametrize('kind', ['GPT2', 'Llama'])
@pytest.mark.parametrize('targets', [('query', 'value'), ('.*',)], ids=['query_value', 'all'])
def test_hugging_face_peft_gives_the_same_hidden_states(tmp_path, kind, targets):
  common = {'vocabulary_size': 11, 'num_layers': 2, 'hidden_dim': 8, 'intermediate_dim': 12}
  tf.keras.utils.set_random_seed(1)
  if kind == 'GPT2':
    backbone = keras_nlp.models.GPT2Backbone(**common, num_heads=2, max_sequence_length=6)
    theirs = 'vocab_size 11 n_layer 2 n_head 2 n_embd 8 n_inner 12 n_positions 6'
  else:
    backbone = keras_nlp.models.LlamaBackbone(**common, num_query_heads=4, num_key_value_heads=2)
    theirs = (
      'vocab_size 11 num_hidden_layers 2 num_attention_heads 4 num_key_value_heads 2'
      ' hidden_size 8 intermediate_size 12'
    )
  rng = np.random.default_rng(0)
  for variable in backbone.weights:
    variable.assign_add(rng.normal(size=variable.shape).astype(np.float32) * 0.3)
  weights = _gpt2_weights(backbone) if kind == 'GPT2' else _llama_weights(backbone)
  safetensors.numpy.save_file(weights, tmp_path / 'base')
  tokens = rng.integers(0, 11, (3, 6))
  np.save(tmp_path / 'tokens.npy', tokens)

  config = config_lib.LoraConfig(max_rank=3, alpha=6.0, targets=targets)
  adapters = injection.inject_lora(backbone, config, create_variables=False)
  factors = {
    path: factors_lib.LoraFactors(
      rng.normal(size=(3, layer.d_in)).astype(np.float32),
      rng.normal(size=(layer.d_out, 3)).astype(np.float32),
    )
    for path, layer in adapters.items()
  }
  peft.save_peft_adapter(tmp_path, factors, config, architecture=f'{kind}Backbone')
  inputs = {'token_ids': tf.constant(tokens), 'padding_mask': tf.ones_like(tokens)}
  plain = backbone(inputs)
  with injection.bound(adapters, factors):
    ours = backbone(inputs)

  command = [TORCH_PYTHON, '-c', _REFERENCE, str(tmp_path), kind, *theirs.split()]
  done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
  assert done.returncode == 0, done.stderr
  hidden = np.load(tmp_path / 'hidden.npy')
  np.testing.assert_allclose(hidden, ours, rtol=1e-3, atol=1e-3)
  assert np.abs(plain - ours).max() > 0.1
