# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import json
import os
import subprocess

import numpy as np
import pytest

import hetlora_tff
from hetlora_tff.adapters import peft
from tasks import config, exported_run, peft_export, text
from tasks.backbones import BaseModel
from tasks.errors import UserError
from tests.tasks import tiny_presets

TORCH_PYTHON = os.environ.get('HETLORA_TORCH_PYTHON')
LORA = hetlora_tff.LoraConfig(max_rank=2, alpha=3.0)
LABELS = ('good', 'bad')
WIDTH = tiny_presets.WIDTH
SENTENCE = 'the cat sat on a mat'

# What the card shows, and the ids of a sentence, as Hugging Face has them.
_READER = """
import json, pathlib, re, sys, os
import transformers
for directory in sys.argv[1:]:
  os.chdir(directory)
  (code,) = re.findall('```python\\n(.*?)```', pathlib.Path('README.md').read_text(), re.S)
  exec(code, {})
  tokenizer = transformers.AutoTokenizer.from_pretrained('base_model')
  ids = tokenizer('SENTENCE').input_ids
  pathlib.Path('ids.json').write_text(json.dumps(ids))
"""


def _run(directory, family, labels=()):
  backbone, tokenizer = tiny_presets.build(family)
  frozen = hetlora_tff.FrozenBackbone.save(backbone, directory / 'backbone')
  model = hetlora_tff.CausalLanguageModel(frozen, 8)
  if labels:
    model = hetlora_tff.ClassificationModel(frozen, 8, len(labels))
  rng, adapters = np.random.default_rng(0), {}
  for path, (d_in, d_out) in model.module_shapes(LORA).items():
    sides = (rng.normal(size=shape) for shape in ([2, d_in], [d_out, 2]))
    adapters[path] = hetlora_tff.LoraFactors(*(side.astype(np.float32) for side in sides))
  return exported_run.ExportedRun(
    directory,
    config.RunConfig(task='summarization'),
    BaseModel(frozen, text.Tokenizer(tokenizer)),
    LORA,
    adapters,
    tuple(labels),
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return _run(tmp_path_factory.mktemp('run'), 'gpt2')


def test_the_directory_is_complete(run, tmp_path):
  (run.directory / 'privacy_report.md').write_text('# No guarantee')
  told = peft_export.export_peft(run, tmp_path / 'out')
  assert str(tmp_path / 'out') in told
  assert 'base_model/' in told
  found = sorted(str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.*'))
  assert found == [
    'README.md',
    'adapter_config.json',
    'adapter_model.safetensors',
    'base_model/config.json',
    'base_model/merges.txt',
    'base_model/model.safetensors',
    'base_model/tokenizer_config.json',
    'base_model/vocab.json',
    'privacy_report.md',
  ]
  loaded = peft.load_peft_adapter(tmp_path / 'out')
  assert loaded.config['base_model_name_or_path'] == 'base_model'
  for path, pair in run.adapters.items():
    np.testing.assert_array_equal(loaded.factors[path].a, pair.a)
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert run.base.backbone.sha256 in card
  assert 'AutoModelForCausalLM' in card
  assert str(tmp_path) not in card


def test_labels_are_those_of_the_base_model(run, tmp_path):
  peft_export.export_peft(run._replace(labels=LABELS), tmp_path / 'out')
  described = json.loads((tmp_path / 'out/base_model/config.json').read_text())
  assert described['architectures'] == ['GPT2ForSequenceClassification']
  assert described['id2label'] == {'0': 'good', '1': 'bad'}
  assert described['pad_token_id'] == run.base.tokenizer.pad_token_id
  assert json.loads((tmp_path / 'out/labels.json').read_text()) == list(LABELS)


def _as(run, class_name):
  """The run of another family whose modules have these names."""
  backbone = dataclasses.replace(run.base.backbone, class_name=class_name)
  return run._replace(base=run.base._replace(backbone=backbone))


def test_a_family_whose_base_is_not_written_says_so(run, tmp_path):
  told = peft_export.export_peft(_as(run, 'BloomBackbone'), tmp_path / 'out')
  assert 'base model is yours' in told
  assert not (tmp_path / 'out/base_model').exists()


def test_a_changed_base_is_never_left_to_the_reader(run, tmp_path):
  (tmp_path / 'run/model').mkdir(parents=True)
  changed = run._replace(directory=tmp_path / 'run')
  with pytest.raises(UserError, match=r'changed the BloomBackbone itself, .*--format savedmodel'):
    peft_export.export_peft(_as(changed, 'BloomBackbone'), tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  peft_export.export_peft(changed, tmp_path / 'out')
  assert (tmp_path / 'out/base_model/config.json').exists()


def test_what_peft_cannot_load_is_refused(run, tmp_path):
  with pytest.raises(UserError, match=r'DebertaV3Backbone .*no known counterpart'):
    peft_export.export_peft(_as(run, 'DebertaV3Backbone'), tmp_path / 'out')
  assert not any(tmp_path.iterdir())


def test_full_fine_tuning_has_no_adapter(run, tmp_path):
  with pytest.raises(UserError, match='--format savedmodel'):
    peft_export.export_peft(run._replace(lora=None, adapters={}), tmp_path / 'out')


def test_a_place_that_cannot_be_written_is_named(run, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    UserError, match=r'--format peft: Cannot write an adapter to .*out: File exists'
  ):
    peft_export.export_peft(run, tmp_path / 'file' / 'out')


@pytest.mark.slow
@pytest.mark.skipif(
  TORCH_PYTHON is None,
  reason='HETLORA_TORCH_PYTHON names no interpreter with torch, transformers and peft',
)
def test_the_card_works_as_it_is_and_the_tokens_are_ours(tmp_path):
  kinds = {'gpt2': (), 'opt': LABELS, 'bert': LABELS, 'roberta': LABELS}
  runs = {}
  for kind, labels in kinds.items():
    runs[kind] = _run(tmp_path / kind, kind, labels)
    peft_export.export_peft(runs[kind], tmp_path / kind / 'out')
  outputs = [str(tmp_path / kind / 'out') for kind in kinds]
  command = [str(TORCH_PYTHON), '-c', _READER.replace('SENTENCE', SENTENCE), *outputs]
  done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
  assert done.returncode == 0, done.stderr
  for kind, run in runs.items():
    ids = json.loads((tmp_path / kind / 'out/ids.json').read_text())
    tokenizer = run.base.tokenizer
    ending = [tokenizer.end_token_id] if kind in tiny_presets.ENCODERS else []
    assert ids == [*tokenizer.start_ids, *tokenizer.encode(SENTENCE), *ending], kind
