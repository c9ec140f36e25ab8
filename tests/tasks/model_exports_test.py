# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import resource

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.export.merged import ServableModel, merge
from tasks import backbones, export, model_exports, text
from tasks.errors import UserError
from tasks.exported_run import ExportedRun
from tests.integration import tiny_world

_LORA = LoraConfig(max_rank=2, alpha=4.0, targets=('self_attention/query',))
_QUERIES = [f'transformer_layer_{layer}/self_attention/query' for layer in range(2)]
_TEXT = 'the cat sat on a red mat 7'


@pytest.fixture(scope='module', name='run')
def run_fixture(tmp_path_factory):
  directory = tmp_path_factory.mktemp('base')
  frozen = FrozenBackbone.save(tiny_world.build_backbone(), directory / 'backbone')
  base = backbones.BaseModel(frozen, text.Tokenizer(tiny_world.build_tokenizer()))
  config = tiny_world.run_config(directory / 'backbone')
  return ExportedRun(directory / 'run', config, base, _LORA, _factors(_QUERIES), ())


@pytest.fixture(scope='module', name='labelled')
def labelled_fixture(run):
  head = {'classifier': LoraFactors(np.ones([2, tiny_world.WIDTH]), np.ones([3, 2]))}
  return run._replace(adapters={**run.adapters, **head}, labels=('cat', 'dog', 'mat'))


def _factors(paths):
  rng = np.random.default_rng(1)
  width = tiny_world.WIDTH
  sizes = ((2, width), (width, 2))
  return {
    path: LoraFactors(*(rng.normal(size=size).astype(np.float32) for size in sizes))
    for path in paths
  }


def _inputs(run):
  ids = np.array([run.base.tokenizer.encode(_TEXT)], np.int32)
  return {'token_ids': ids, 'padding_mask': np.ones_like(ids)}


def _logits(run):
  return ServableModel(merge(run.base.backbone, run.lora, run.adapters)).logits(
    **{name: tf.constant(value) for name, value in _inputs(run).items()}
  )['logits']


def _check_tokenizer(directory, run):
  loaded = keras_nlp.models.GPT2Tokenizer.from_preset(str(directory))
  assert loaded(_TEXT).numpy().tolist() == run.base.tokenizer.encode(_TEXT)


def test_every_form_of_the_command_for_models_is_here():
  others = {export.Format.PEFT, export.Format.DAF}
  assert list(model_exports.EXPORTS) == [f.value for f in export.Format if f not in others]


def test_saved_model_has_its_tokenizer(run, tmp_path):
  said = model_exports.export_saved_model(run, tmp_path / 'out')
  assert said.startswith(f'{tmp_path / "out"} is a SavedModel')
  serve = tf.saved_model.load(str(tmp_path / 'out')).signatures['serving_default']
  inputs = {name: tf.constant(value) for name, value in _inputs(run).items()}
  np.testing.assert_allclose(serve(**inputs)['logits'], _logits(run), atol=1e-5)
  _check_tokenizer(tmp_path / 'out' / 'tokenizer', run)
  assert not (tmp_path / 'out' / 'labels.json').exists()


def test_classification_has_its_labels(labelled, tmp_path):
  said = model_exports.export_keras_file(labelled, tmp_path / 'out')
  assert 'each label in labels.json' in said
  loaded = tf_keras.models.load_model(tmp_path / 'out' / 'model.keras')
  wanted = _logits(labelled)
  assert wanted.shape == (1, 3)
  np.testing.assert_allclose(loaded(_inputs(labelled)), wanted, atol=1e-4)
  assert json.loads((tmp_path / 'out' / 'labels.json').read_text()) == ['cat', 'dog', 'mat']
  _check_tokenizer(tmp_path / 'out' / 'tokenizer', labelled)


def test_preset_is_a_base_model_for_the_next_run(run, tmp_path):
  said = model_exports.export_preset(run, tmp_path / 'out')
  assert 'keras_nlp.models.GPT2Backbone.from_preset' in said
  base = backbones.load_base_model(str(tmp_path / 'out'), tmp_path / 'cache')
  found = _logits(ExportedRun(run.directory, run.config, base, None, {}, ()))
  np.testing.assert_allclose(found, _logits(run), atol=1e-5)
  assert base.tokenizer.encode(_TEXT) == run.base.tokenizer.encode(_TEXT)
  assert not (tmp_path / 'out' / 'tokenizer').exists()


def test_tflite_tells_its_size(run, tmp_path):
  said = model_exports.export_tflite(run, tmp_path / 'out')
  size = (tmp_path / 'out' / 'model.tflite').stat().st_size
  assert f'model.tflite ({size / 1e6:.1f} MB)' in said
  _check_tokenizer(tmp_path / 'out' / 'tokenizer', run)


def test_head_in_a_preset_is_refused_and_nothing_is_left(labelled, tmp_path):
  with pytest.raises(UserError, match='no place for a classification head; savedmodel, keras and'):
    model_exports.export_preset(labelled, tmp_path / 'out')
  assert not any(tmp_path.iterdir())


def test_used_directory_is_refused(run, tmp_path):
  (tmp_path / 'mine').write_text('')
  with pytest.raises(UserError, match='exists and is not an empty directory'):
    model_exports.export_saved_model(run, tmp_path)


@pytest.mark.parametrize('form', model_exports.EXPORTS)
def test_full_disk_is_told_and_nothing_is_left(run, tmp_path, form):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
  try:
    with pytest.raises(UserError, match=rf'an export to {tmp_path}/out: [A-Z][a-z ]+\.$'):
      model_exports.EXPORTS[form](run, tmp_path / 'out')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not any(tmp_path.iterdir())
