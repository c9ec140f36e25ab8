# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import errno
import functools
import json
import os
import pathlib
import re
import shutil

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.adapters import injection
from hetlora_tff.adapters.backbone import BackboneError, FrozenBackbone
from hetlora_tff.adapters.classification import ClassificationModel
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import LoraFactors
from hetlora_tff.adapters.model import CausalLanguageModel, causal_loss
from tasks import backbones, base_model
from tasks.decoding import Decoder
from tasks.errors import UserError
from tasks.federated_text import Example, Kind
from tasks.packing import Packer
from tests.integration import tiny_world
from tests.tasks import tiny_presets

_CONFIG = LoraConfig(max_rank=2, alpha=4.0)
_EXAMPLES = [Example('the cat sat on a mat', 'the cat'), Example('a dog ran', 'dogs and cats')]
# The others tell what these tell, of more families.
_QUICK = {'bloom', 'llama', 'bert'}


def _families(names):
  slow = pytest.mark.slow
  return [n if n in _QUICK else pytest.param(n, marks=slow) for n in names]


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


def _refused(name, cache, **options):
  with pytest.raises(UserError) as caught:
    backbones.load_base_model(str(name), cache, **options)
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


def _random_adapters(layers):
  rng = np.random.default_rng(3)

  def draw(*shape):
    return tf.constant(rng.normal(scale=0.3, size=shape), tf.float32)

  return collections.OrderedDict(
    (path, LoraFactors(draw(2, d_in), draw(d_out, 2))) for path, (d_in, d_out) in layers.items()
  )


def _loss_after_steps(loss_fn, adapters, batch):
  """Means before and after steps along the gradient, in which all factors take part."""

  @tf.function
  def step(adapters):
    with tf.GradientTape() as tape:
      tape.watch(adapters)
      loss = loss_fn(adapters, batch)
      mean = loss.total / loss.count
    return mean, tape.gradient(mean, adapters)

  means = []
  for _ in range(4):
    mean, gradients = step(adapters)
    means.append(float(mean))
    assert all(np.abs(g).max() > 0 for g in tf.nest.flatten(gradients))
    adapters = tf.nest.map_structure(lambda x, g: x - 0.05 * g, adapters, gradients)
  return means[0], means[-1], adapters


def _loaded(family, tmp_path, **options):
  """A family's base model out of a preset directory, and its rows."""
  original, tokenizer = tiny_presets.build(family)
  preset = tiny_presets.save(tmp_path / family, original, tokenizer)
  base = backbones.load_base_model(str(preset), tmp_path / 'cache', **options)
  built = base.backbone.build()
  for ours, theirs in zip(built.get_weights(), original.get_weights(), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  return base, built


@pytest.mark.parametrize('family', _families(tiny_presets.CAUSAL))
def test_causal_family_trains_and_writes(family, tmp_path):
  base, model = _loaded(family, tmp_path)
  packer = Packer(base.tokenizer, kind=Kind.PAIR, sequence_length=24, max_target_tokens=6)
  layers = injection.inject_lora(model, _CONFIG, create_variables=False)
  bind = functools.partial(injection.bound, layers)

  def loss_fn(adapters, batch):
    with bind(adapters):
      return causal_loss(model, batch)

  adapters = _random_adapters({path: (x.d_in, x.d_out) for path, x in layers.items()})
  rows = packer.rows(_EXAMPLES)
  _check_fast_step(base.backbone, loss_fn, adapters, rows)
  before, after, adapters = _loss_after_steps(loss_fn, adapters, rows)
  assert after < before
  prompts = packer.prompts(_EXAMPLES)
  end = base.tokenizer.end_token_id
  decoder = Decoder(model, max_new_tokens=4, end_token_id=end, bind=bind)
  written = [[*row, end][:4] for row in decoder.decode(prompts, adapters)]
  # keras-nlp's cached generation of Falcon leaves out the bias of positions.
  if family != 'falcon':
    with bind(adapters):
      assert _most_likely(model, prompts, written) == written


def _check_fast_step(backbone, loss_fn, adapters, rows):
  """Clients compute what Keras does, in float32 and, to 0.5 %, in bfloat16."""
  loss, gradient = _loss_and_gradient(loss_fn, adapters, rows)
  for dtype, close in (('float32', 1e-5), ('bfloat16', 5e-3)):
    fast = CausalLanguageModel(backbone, 24, dtype).build(_CONFIG)
    fast_loss, fast_gradient = _loss_and_gradient(fast, adapters, rows)
    assert fast_loss == pytest.approx(loss, rel=close)
    difference = np.linalg.norm(fast_gradient - gradient) / np.linalg.norm(gradient)
    assert difference < 10 * close, dtype
    # A type that is asked for and not used would be as exact as float32.
    assert (difference > 1e-4) == (dtype == 'bfloat16')


def _loss_and_gradient(loss_fn, adapters, rows):
  with tf.GradientTape() as tape:
    tape.watch(adapters)
    loss = loss_fn(adapters, rows).total
  gradients = tape.gradient(loss, tf.nest.flatten(adapters))
  return float(loss), np.concatenate([np.ravel(gradient) for gradient in gradients])


def _most_likely(model, prompts, written):
  """In the place of each token that was written, the one that a pass over the whole text gives."""
  ids, lengths = prompts['token_ids'].copy(), prompts['padding_mask'].sum(axis=1)
  for row, length, tokens in zip(ids, lengths, written, strict=True):
    row[length : length + len(tokens)] = tokens
  inputs = {'token_ids': tf.constant(ids), 'padding_mask': tf.ones_like(ids)}
  best = tf.argmax(model.token_embedding(model(inputs, training=False), reverse=True), axis=-1)
  return [
    best.numpy()[row, length - 1 : length - 1 + len(tokens)].tolist()
    for row, (length, tokens) in enumerate(zip(lengths, written, strict=True))
  ]


@pytest.mark.parametrize('family', _families(tiny_presets.ENCODERS))
def test_encoder_family_learns_labels_and_not_padding(family, tmp_path):
  base, _ = _loaded(family, tmp_path, encoder_allowed=True)
  packer = Packer(base.tokenizer, kind=Kind.LABEL, sequence_length=24, labels=('cat', 'dog'))
  rows = packer.rows([Example('the cat ran', 'cat'), Example('a dog ran on a mat', 'dog')])
  model = ClassificationModel(base.backbone, 24, 2)
  adapters = _random_adapters(model.module_shapes(_CONFIG))
  before, after, adapters = _loss_after_steps(model.build(_CONFIG), adapters, rows)
  assert after < before
  other = {**rows, 'token_ids': np.where(rows['padding_mask'], rows['token_ids'], 7)}
  logits = model.build_logits(_CONFIG)
  np.testing.assert_allclose(logits(adapters, other), logits(adapters, rows), atol=1e-5)


@pytest.mark.parametrize('family', tiny_presets.OTHERS)
def test_other_family_is_refused_before_it_is_read(family, tmp_path, monkeypatch):
  preset = tiny_presets.save(tmp_path / family, *tiny_presets.build(family))
  monkeypatch.setattr(keras_nlp.models.Backbone, 'from_preset', None)
  assert 'not a causal' in _refused(preset, tmp_path)
  assert 'can classify' in _refused(preset, tmp_path, encoder_allowed=True)


@pytest.mark.parametrize(
  ('name', 'encoder_allowed', 'named'),
  [
    ('gemma_2b_en', False, 'needs Keras 3.*: opt_2.7b_en, bloom_3b_multi, bloomz_3b_multi'),
    ('kaggle://keras/gemma/keras/gemma_7b_en/2', True, 'needs Keras 3.*: llama3_8b_en'),
    ('pali_gemma_3b_224', True, 'PaliGemmaBackbone needs Keras 3.*: bloom_3b_multi'),
    ('bert_base_en', False, 'not a causal.*: gpt2_base_en, .*opt_125m_en'),
    ('t5_small_multi', True, 't5_small_multi is neither .* Small presets .*bert_tiny_en_uncased'),
    ('gpt9_base_en', False, r'Did you mean gpt2_base_en '),
  ],
)
def test_preset_that_cannot_be_used_names_others(name, encoder_allowed, named, tmp_path):
  message = _refused(name, tmp_path, encoder_allowed=encoder_allowed)
  assert re.search(named, message), message
  assert '\n' not in message


def test_local_preset_for_another_keras_is_refused(preset, tmp_path):
  source = shutil.copytree(preset, tmp_path / 'preset')
  config = json.loads((source / 'config.json').read_text())
  config['class_name'] = 'GemmaBackbone'
  (source / 'config.json').write_text(json.dumps(config))
  (source / 'metadata.json').write_text('{"keras_version": "3.3.3", "parameter_count": 2506172416}')
  assert 'needs Keras 3' in _refused(source, tmp_path)
  config['registered_name'] = 'keras_hub>GPT2Backbone'
  (source / 'config.json').write_text(json.dumps(config))
  assert 'of keras-hub' in _refused(source, tmp_path)


@pytest.mark.parametrize(
  ('error', 'named'),
  [
    # What `requests` and keras-nlp raise.
    (OSError('HTTPSConnectionPool(...)'), 'cannot be reached'),
    (FileNotFoundError('`metadata.json` does not exist'), 'KAGGLE_KEY'),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 'No space left'),
  ],
)
def test_failed_download_is_one_line(error, named, tmp_path, monkeypatch):
  def fails(unused_name):
    raise error

  monkeypatch.setattr(keras_nlp.models.Backbone, 'from_preset', fails)
  assert named in _refused('gpt2_base_en', tmp_path)
