# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters between us and Hugging Face PEFT, both ways, on base weights that are the same."""

import json
import os
import pathlib
import subprocess

import keras_nlp
import numpy as np
import pytest

from hetlora_tff.adapters import factors as factors_lib
from hetlora_tff.adapters import huggingface_model, injection, peft
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.classification import CLASSIFIER, ClassificationModel, text_states
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.initial_adapters import initial_adapters
from hetlora_tff.adapters.model import CausalLanguageModel, vocabulary_logits

# An interpreter that has torch, transformers and peft: they cannot share one with TensorFlow 2.14.
TORCH_PYTHON = os.environ.get('HETLORA_TORCH_PYTHON')

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    TORCH_PYTHON is None,
    reason='HETLORA_TORCH_PYTHON names no interpreter with torch, transformers and peft',
  ),
]

# Importing torch takes longer than all that it does here: one process for all.
_REFERENCE = """
import json, pathlib, sys, warnings
import numpy as np, peft, torch, transformers
from safetensors.torch import load_file, save_file

root = pathlib.Path(sys.argv[1])
tokens, mask = (torch.tensor(np.load(root / f'{name}.npy')) for name in ('tokens', 'mask'))

def base_of(case, name=None):
  config = json.loads((root / case / 'base_model/config.json').read_text())
  model_class = getattr(transformers, name or config['architectures'][0])
  torch.manual_seed(0)
  return model_class.from_pretrained(root / case / 'base_model').eval()

def outputs(model):
  with torch.no_grad():
    found = model.eval()(tokens, attention_mask=mask, output_hidden_states=True)
  if model.config.model_type in ('bert', 'roberta'):
    return found.hidden_states[-1][:, 0]
  if 'logits' in found:
    return found.logits
  return found.last_hidden_state @ model.get_input_embeddings().weight.detach().T

for case in json.loads((root / 'exported.json').read_text()):
  base = base_of(case)
  with warnings.catch_warnings():
    warnings.simplefilter('error', UserWarning)
    model = peft.PeftModel.from_pretrained(base, root / case)
  loaded = peft.get_peft_model_state_dict(model)
  stored = load_file(root / case / 'adapter_model.safetensors')
  ours = {key: stored.pop(key) for key in list(stored) if '.classifier.lora_' in key}
  assert sorted(loaded) == sorted(stored), (case, sorted(loaded), sorted(stored))
  result = outputs(model)
  if ours and base.config.model_type in ('bert', 'roberta'):
    a, b = (ours[f'base_model.model.classifier.lora_{side}.weight'] for side in 'AB')
    settings = json.loads((root / case / 'adapter_config.json').read_text())
    scaling = settings['lora_alpha'] / settings['r']
    result = result @ (scaling * b @ a).T
  np.save(root / case / 'theirs.npy', result.numpy())

for case, recipe in json.loads((root / 'trained.json').read_text()).items():
  kind, model_class, settings, dtype = recipe
  base = base_of(kind, model_class)
  model = peft.get_peft_model(base, peft.LoraConfig(**settings))
  optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.05)
  for _ in range(3):
    optimizer.zero_grad()
    found = model(tokens, attention_mask=mask, output_hidden_states=True)
    found.hidden_states[-1].square().mean().backward()
    optimizer.step()
  for name, parameter in model.named_parameters():
    if 'lora_' in name:
      parameter.data = parameter.data.to(getattr(torch, dtype)).float()
  model.save_pretrained(root / case)
  path = root / case / 'adapter_model.safetensors'
  stored = load_file(path)
  save_file({key: value.to(getattr(torch, dtype)) for key, value in stored.items()}, path)
  np.save(root / case / 'theirs.npy', outputs(model).numpy())
"""

LENGTH, VOCABULARY, CLASSES, PAD = 7, 23, 3, 1
_SIZES = {'num_layers': 2, 'hidden_dim': 16, 'intermediate_dim': 24, 'vocabulary_size': VOCABULARY}
_HEADS = {**_SIZES, 'num_heads': 2, 'max_sequence_length': LENGTH}
_GROUPED = {**_SIZES, 'num_query_heads': 4, 'num_key_value_heads': 2}
KINDS = {
  'GPT2': _HEADS,
  'OPT': _HEADS,
  'Llama': {**_GROUPED, 'rope_scaling_factor': 2.0},
  'Mistral': {**_GROUPED, 'sliding_window': 4},
  'Bert': _HEADS,
  'Roberta': _HEADS,
}
ENCODERS = ('Bert', 'Roberta')
# Alpha is no multiple of a rank; where all is adapted, some modules hold fewer ranks.
CONFIGS = {
  'query_value': LoraConfig(max_rank=3, alpha=7.0),
  'all': LoraConfig(
    max_rank=4,
    alpha=2.5,
    targets=('.*',),
    rank_pattern={'value': 1, 'transformer_layer_1/.*': 2},
  ),
  'labels': LoraConfig(max_rank=3, alpha=5.0),
}
# What PEFT trains: the model class, its configuration, and the type of the tensors it saves.
TRAINED = {
  'gpt2_fused': ('GPT2', None, {'target_modules': ['c_attn'], 'r': 4, 'lora_alpha': 32}, 'float32'),
  'gpt2_bare': ('GPT2', 'GPT2Model', {'target_modules': 'all-linear', 'r': 2}, 'float32'),
  'llama_patterns': (
    'Llama',
    None,
    {
      'target_modules': ['q_proj', 'v_proj'],
      'r': 3,
      'lora_alpha': 6,
      'rank_pattern': {'layers.1.self_attn.q_proj': 2, 'v_proj': 4},
      'alpha_pattern': {'v_proj': 20},
    },
    'float32',
  ),
  'opt_rslora': (
    'OPT',
    None,
    {'target_modules': 'all-linear', 'r': 3, 'use_rslora': True},
    'float32',
  ),
  'mistral_expression': (
    'Mistral',
    None,
    {'target_modules': r'.*\.(k_proj|down_proj)', 'r': 3, 'lora_alpha': 5},
    'bfloat16',
  ),
  'bert_headed': ('Bert', 'BertForMaskedLM', {'target_modules': ['query', 'value']}, 'float16'),
  'roberta': ('Roberta', None, {'target_modules': ['key', 'intermediate.dense']}, 'float32'),
}


@pytest.fixture(scope='module')
def texts():
  rng = np.random.default_rng(2)
  tokens = rng.integers(PAD + 1, VOCABULARY, (3, LENGTH)).astype(np.int32)
  mask = np.ones_like(tokens)
  tokens[1, 4:], mask[1, 4:] = PAD, 0
  return {'token_ids': tokens, 'padding_mask': mask}


@pytest.fixture(scope='module')
def backbones(tmp_path_factory):
  rng, made = np.random.default_rng(1), {}
  for kind, arguments in KINDS.items():
    backbone = getattr(keras_nlp.models, f'{kind}Backbone')(**arguments)
    for variable in backbone.weights:
      variable.assign_add(rng.normal(size=variable.shape).astype(np.float32) * 0.2)
    made[kind] = FrozenBackbone.save(backbone, tmp_path_factory.mktemp('backbones') / kind)
  return made


@pytest.fixture(scope='module')
def root(tmp_path_factory, backbones, texts):
  """Our exports, what PEFT makes of them, and what PEFT trains itself."""
  directory = tmp_path_factory.mktemp('peft')
  np.save(directory / 'tokens.npy', texts['token_ids'].astype(np.int64))
  np.save(directory / 'mask.npy', texts['padding_mask'].astype(np.int64))
  cases = [f'{kind}_{name}' for kind in KINDS for name in CONFIGS]
  for case in cases:
    _export(directory / case, backbones[case.partition('_')[0]], case.partition('_')[2])
  (directory / 'exported.json').write_text(json.dumps(cases))
  trained = {case: [f'{kind}_all', *rest] for case, (kind, *rest) in TRAINED.items()}
  (directory / 'trained.json').write_text(json.dumps(trained))
  command = [str(TORCH_PYTHON), '-c', _REFERENCE, str(directory)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
  assert done.returncode == 0, done.stderr
  return directory


def _export(directory: pathlib.Path, backbone: FrozenBackbone, name: str):
  labels = [f'label {number}' for number in range(CLASSES)] if name == 'labels' else []
  (directory / 'base_model').mkdir(parents=True)
  tokens = {'pad_token_id': PAD}
  huggingface_model.save_huggingface_model(
    directory / 'base_model', backbone, special_tokens=tokens, labels=labels
  )
  config = CONFIGS[name]
  names = peft.save_peft_adapter(
    directory,
    _factors(_model(backbone, name).module_shapes(config), config),
    config,
    architecture=backbone.class_name,
    num_heads=backbone.num_heads,
  )
  assert names == peft.HUGGING_FACE_NAMES


def _model(backbone: FrozenBackbone, name: str):
  if name == 'labels':
    return ClassificationModel(backbone, LENGTH, CLASSES)
  return CausalLanguageModel(backbone, LENGTH)


def _factors(shapes, config: LoraConfig):
  rng, factors = np.random.default_rng(0), {}
  for path, (d_in, d_out) in shapes.items():
    rank = config.module_rank(path)
    sides = (rng.normal(size=size) * 0.2 for size in ([rank, d_in], [d_out, rank]))
    factors[path] = factors_lib.LoraFactors(*(side.astype(np.float32) for side in sides))
  return factors


def _outputs(backbone: FrozenBackbone, config: LoraConfig, adapters, texts):
  """What the model computes with the adapters, and without.

  These are logits of the vocabulary or of the labels; of a bare encoder, the state of the text.
  """
  zeros = {path: pair._replace(b=np.zeros_like(pair.b)) for path, pair in adapters.items()}
  if CLASSIFIER in adapters:
    logits = _model(backbone, 'labels').build_logits(config)
    return [np.array(logits(each, texts)) for each in (adapters, zeros)]
  model = backbone.build()
  adapted = injection.inject_lora(model, config, create_variables=False)
  found = []
  for each in (adapters, zeros):
    with injection.bound(adapted, each):
      if backbone.class_name.removesuffix('Backbone') in ENCODERS:
        found.append(np.array(text_states(backbone.class_name, model, texts)))
      else:
        found.append(np.array(vocabulary_logits(model.token_embedding, model(texts))))
  return found


def _assert_equal(ours: np.ndarray, plain: np.ndarray, theirs: np.ndarray, texts):
  assert np.abs(ours - plain).max() > 0.1
  if ours.ndim == 3:  # What follows a text is nothing.
    ours, theirs = (logits[texts['padding_mask'] > 0] for logits in (ours, theirs))
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', CONFIGS)
def test_an_exported_adapter_gives_our_logits_in_peft(root, backbones, texts, kind, name):
  directory = root / f'{kind}_{name}'
  adapters = peft.load_peft_adapter(directory).factors
  ours, plain = _outputs(backbones[kind], CONFIGS[name], adapters, texts)
  _assert_equal(ours, plain, np.load(directory / 'theirs.npy'), texts)


@pytest.mark.parametrize('case', TRAINED)
def test_an_adapter_that_peft_trained_gives_its_logits_here(root, backbones, texts, case):
  backbone = backbones[TRAINED[case][0]]
  every = LoraConfig(max_rank=9, alpha=3.0, targets=('.*',))
  shapes = CausalLanguageModel(backbone, LENGTH).module_shapes(every)
  adapters = initial_adapters(root / case, every, backbone, shapes)
  ours, plain = _outputs(backbone, every, adapters, texts)
  _assert_equal(ours, plain, np.load(root / case / 'theirs.npy'), texts)
