# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections

import numpy as np
import pytest

from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from tasks import backbones, merged_model, text
from tasks.errors import UserError
from tasks.evaluator import Evaluator
from tests.integration import tiny_world

_CONFIG = LoraConfig(max_rank=3, alpha=6.0)


@pytest.fixture(scope='module', name='base')
def base_fixture(tmp_path_factory):
  directory = tmp_path_factory.mktemp('base') / 'backbone'
  frozen = FrozenBackbone.save(tiny_world.build_backbone(), directory)
  return backbones.BaseModel(frozen, text.Tokenizer(tiny_world.build_tokenizer()))


def _weights(base, seed=1):
  rng = np.random.default_rng(seed)
  return collections.OrderedDict(
    (name, (w.numpy() + 0.1 * rng.normal(size=w.shape)).astype(np.float32))
    for name, w in base.backbone.weights().items()
  )


def _losses(base, parameters, config=None):
  evaluator = Evaluator(
    base,
    config,
    tiny_world.clients(1, 3),
    sequence_length=tiny_world.SEQUENCE_LENGTH,
    examples_per_client=2,
    decode_examples=0,
  )
  return evaluator.losses(parameters).losses


def test_is_a_base_model_of_its_own(base, tmp_path):
  weights = _weights(base)
  saved = merged_model.save_merged_model(tmp_path / 'model', base, weights)
  assert saved == FrozenBackbone.load(tmp_path / 'model')
  loaded = backbones.load_base_model(str(tmp_path / 'model'), tmp_path / 'cache')
  assert loaded.backbone == saved
  sample = 'the cat sat on a red mat 7'
  assert loaded.tokenizer.encode(sample) == base.tokenizer.encode(sample)
  expected = _losses(base, weights)
  np.testing.assert_array_equal(_losses(loaded, loaded.backbone.weights()), expected)
  assert np.abs(expected - _losses(base, base.backbone.weights())).max() > 1e-3


def test_works_with_the_embedded_tokenizer(base, tmp_path):
  embedded = backbones.load_base_model('embedded', tmp_path / 'cache')
  merged_model.save_merged_model(tmp_path / 'model', embedded, {})
  loaded = backbones.load_base_model(str(tmp_path / 'model'), tmp_path / 'cache')
  assert loaded.backbone.sha256 == embedded.backbone.sha256
  sample = 'Return the number of rows.\n=>'
  assert loaded.tokenizer.encode(sample) == embedded.tokenizer.encode(sample)


def test_residual_and_adapter_together_are_what_was_trained(base, tmp_path):
  rng = np.random.default_rng(5)
  width = tiny_world.WIDTH
  draw = lambda *shape: (0.3 * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
  trained = collections.OrderedDict(
    (
      f'transformer_layer_{layer}/self_attention/{name}',
      CorrectedFactors(draw(3, width), draw(width, 3), draw(width, width)),
    )
    for layer in (0, 1)
    for name in _CONFIG.targets
  )
  changes = merged_model.residual_changes(base.backbone, _CONFIG, trained)
  assert len(changes) == 4
  merged_model.save_merged_model(tmp_path / 'model', base, changes)
  loaded = backbones.load_base_model(str(tmp_path / 'model'), tmp_path / 'cache')
  adapters = collections.OrderedDict((p, LoraFactors(f.a, f.b)) for p, f in trained.items())
  expected = _losses(base, trained, _CONFIG)
  np.testing.assert_allclose(_losses(loaded, adapters, _CONFIG), expected, rtol=1e-5)
  assert np.abs(_losses(base, adapters, _CONFIG) - expected).max() > 1e-3


def test_replaces_an_earlier_one(base, tmp_path):
  first = merged_model.save_merged_model(tmp_path / 'model', base, _weights(base, 1))
  second = merged_model.save_merged_model(tmp_path / 'model', base, _weights(base, 2))
  assert FrozenBackbone.load(tmp_path / 'model').sha256 == second.sha256 != first.sha256
  assert [p.name for p in tmp_path.iterdir()] == ['model']


def test_an_earlier_one_survives_a_failure(base, tmp_path, monkeypatch):
  first = merged_model.save_merged_model(tmp_path / 'model', base, _weights(base, 1))

  def no_space(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(backbones, 'save_tokenizer', no_space)
  with pytest.raises(UserError, match='No space left'):
    merged_model.save_merged_model(tmp_path / 'model', base, _weights(base, 2))
  assert FrozenBackbone.load(tmp_path / 'model') == first
  assert [p.name for p in tmp_path.iterdir()] == ['model']


def test_loads_what_belongs_to_the_base_and_nothing_else(base, tmp_path):
  saved = merged_model.save_merged_model(tmp_path / 'model', base, _weights(base))
  assert merged_model.load_merged_model(tmp_path / 'model', base) == saved
  other = FrozenBackbone.save(tiny_world.build_backbone(0, 301), tmp_path / 'other')
  with pytest.raises(UserError, match='not made of the backbone'):
    merged_model.load_merged_model(tmp_path / 'other', base)
  (tmp_path / 'other' / other.tensors[0].file).unlink()
  with pytest.raises(UserError, match=r'0000\.bin'):
    merged_model.load_merged_model(tmp_path / 'other', base)
