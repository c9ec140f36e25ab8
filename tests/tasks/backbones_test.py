# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
import pathlib
import shutil

import keras_nlp
import numpy as np
import pytest

from hetlora_tff.adapters.backbone import BackboneError, FrozenBackbone
from tasks import backbones, base_model
from tasks.errors import UserError
from tests.integration import tiny_world


@pytest.fixture(scope='module', name='preset')
def preset_fixture(tmp_path_factory):
  return tiny_world.save_preset(tmp_path_factory.mktemp('preset') / 'tiny')


@pytest.fixture(scope='module', name='original')
def original_fixture(tmp_path_factory):
  """A backbone directory of the user's own."""
  directory = tmp_path_factory.mktemp('original') / 'own'
  FrozenBackbone.save(tiny_world.build_backbone(), directory)
  backbones.save_tokenizer(tiny_world.build_tokenizer(), directory / 'tokenizer')
  return directory


@pytest.fixture(name='directory')
def directory_fixture(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'own')


def _same_weights(frozen, keras_backbone):
  built = frozen.build()
  return len(built.weights) == len(keras_backbone.weights) and all(
    np.array_equal(ours, theirs)
    for ours, theirs in zip(built.get_weights(), keras_backbone.get_weights(), strict=True)
  )


def _refused(name, cache):
  with pytest.raises(UserError) as caught:
    backbones.load_base_model(str(name), cache)
  message = str(caught.value)
  assert str(name) in message
  return message


def _conversions(cache):
  return sorted(path.name for path in (cache / 'backbones').iterdir())


def test_preset_directory_is_converted_once(preset, tmp_path, monkeypatch):
  model = backbones.load_base_model(str(preset), tmp_path)
  assert _same_weights(model.backbone, tiny_world.build_backbone())
  assert (
    model.tokenizer.encode('the cat') == tiny_world.build_tokenizer()('the cat').numpy().tolist()
  )
  monkeypatch.setattr(keras_nlp.models.Backbone, 'from_preset', None)
  again = backbones.load_base_model(str(preset), tmp_path)
  assert again.backbone == model.backbone
  assert len(_conversions(tmp_path)) == 1


@pytest.mark.slow
def test_changed_preset_is_converted_anew(preset, tmp_path):
  copy = shutil.copytree(preset, tmp_path / 'preset')
  backbones.load_base_model(str(copy), tmp_path / 'cache')
  other = tiny_world.build_backbone(seed=1)
  other.save_weights(str(copy / 'model.weights.h5'))
  model = backbones.load_base_model(str(copy), tmp_path / 'cache')
  assert _same_weights(model.backbone, other)
  assert len(_conversions(tmp_path / 'cache')) == 2


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('kind', ['backbone', pytest.param('task model', marks=pytest.mark.slow)])
def test_keras_file_beside_its_tokenizer(preset, tmp_path, kind):
  source = shutil.copytree(preset, tmp_path / 'preset')
  backbone = tiny_world.build_backbone(seed=2)
  model = backbone if kind == 'backbone' else keras_nlp.models.GPT2CausalLM(backbone=backbone)
  model.save(source / 'mine.keras')
  loaded = backbones.load_base_model(str(source / 'mine.keras'), tmp_path / 'cache')
  assert _same_weights(loaded.backbone, backbone)
  assert loaded.tokenizer.vocabulary_size == tiny_world.build_tokenizer().vocabulary_size()


def test_backbone_directory_is_used_in_place(directory, tmp_path):
  model = backbones.load_base_model(str(directory), tmp_path / 'cache')
  assert model.backbone.directory == str(directory)
  assert model.tokenizer.decode(model.tokenizer.encode('a red dog')) == 'a red dog'
  assert not (tmp_path / 'cache').exists()


@pytest.mark.slow
@pytest.mark.skipif(not base_model.ASSETS.is_dir(), reason='the base model is not in this tree')
def test_embedded_model_is_converted_and_verified(tmp_path):
  model = backbones.load_base_model('embedded', tmp_path)
  assert model.backbone.class_name == 'GPT2Backbone'
  assert model.tokenizer.vocabulary_size == model.backbone.config['vocabulary_size']
  (name,) = _conversions(tmp_path)
  assert name == f'embedded-{base_model.base_model_checksum()[:16]}'


@pytest.mark.parametrize('name', ['gpt9_base_en', 'nowhere/at/all', 'nowhere.keras', ''])
def test_unknown_name_is_one_line(tmp_path, name):
  message = _refused(name, tmp_path)
  assert message.startswith('--backbone ')
  assert '\n' not in message


def test_file_that_is_no_model_is_refused(tmp_path):
  (tmp_path / 'x.keras').write_text('not a model')
  assert 'neither' in _refused(tmp_path / 'x.keras', tmp_path)
  assert 'neither' in _refused(tmp_path, tmp_path)


def _altered(directory: pathlib.Path, how: str) -> None:
  tensor = directory / 'tensors' / '0000.bin'
  manifest = json.loads((directory / 'manifest.json').read_text())
  if how == 'one bit':
    data = bytearray(tensor.read_bytes())
    data[5] ^= 1
    tensor.write_bytes(data)
  elif how == 'cut':
    tensor.write_bytes(tensor.read_bytes()[:-4])
  elif how == 'missing':
    tensor.unlink()
  elif how == 'no JSON':
    (directory / 'manifest.json').write_text('{')
  elif how == 'other class':
    manifest['class'] = 'GPT9Backbone'
  elif how == 'encoder':
    manifest['class'] = 'RobertaBackbone'
  elif how == 'other size':
    manifest['config']['hidden_dim'] = 32
  elif how == 'small vocabulary':
    manifest['config']['vocabulary_size'] = 200
  elif how == 'outside':
    manifest['tensors'][0]['file'] = '../secret.bin'
  elif how == 'no tokenizer':
    shutil.rmtree(directory / 'tokenizer')
  if how != 'no JSON':
    (directory / 'manifest.json').write_text(json.dumps(manifest))


@pytest.mark.parametrize(
  ('how', 'named'),
  [
    ('one bit', '0000.bin'),
    ('cut', '0000.bin'),
    ('missing', '0000.bin'),
    ('no JSON', 'manifest.json'),
    ('other class', 'GPT9Backbone'),
    ('encoder', 'not a causal'),
    ('other size', 'does not fit'),
    ('small vocabulary', 'do not belong together'),
    ('outside', 'secret.bin'),
    ('no tokenizer', 'tokenizer'),
  ],
)
def test_altered_backbone_directory_is_refused(directory, tmp_path, how, named):
  _altered(directory, how)
  assert named in _refused(directory, tmp_path / 'cache')


def test_altered_conversion_names_what_to_remove(preset, tmp_path):
  backbones.load_base_model(str(preset), tmp_path)
  (name,) = _conversions(tmp_path)
  conversion = tmp_path / 'backbones' / name
  _altered(conversion, 'one bit')
  assert f'Remove {conversion}' in _refused(preset, tmp_path)
  shutil.rmtree(conversion)
  backbones.load_base_model(str(preset), tmp_path)


def test_faster_run_may_convert_the_same(preset, tmp_path, monkeypatch):
  save = FrozenBackbone.save

  def overtaken(backbone, directory, *args):
    save(backbone, directory, *args)
    raise BackboneError('not empty')

  monkeypatch.setattr(FrozenBackbone, 'save', overtaken)
  backbones.load_base_model(str(preset), tmp_path)


def test_preset_without_tokenizer_is_refused(preset, tmp_path):
  source = shutil.copytree(preset, tmp_path / 'preset')
  (source / 'tokenizer.json').unlink()
  assert 'without a tokenizer' in _refused(source, tmp_path / 'cache')


def test_full_disk_is_an_error_of_the_machine(preset, tmp_path, monkeypatch):
  def full(*unused):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  assert 'No space left' in _refused(preset, tmp_path)
  assert _conversions(tmp_path) == []


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
  monkeypatch.setenv('HETLORA_CACHE', str(tmp_path / 'a'))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'b'))
  assert backbones.cache_directory() == tmp_path / 'a'
  monkeypatch.delenv('HETLORA_CACHE')
  assert backbones.cache_directory() == tmp_path / 'b' / 'hetlora_tff'
  monkeypatch.delenv('XDG_CACHE_HOME')
  assert backbones.cache_directory() == pathlib.Path.home() / '.cache' / 'hetlora_tff'
