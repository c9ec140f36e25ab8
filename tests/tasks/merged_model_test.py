# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections

import numpy as np
import pytest

from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from tasks import backbones, base_model, merged_model, text
from tasks.errors import UserError
from tasks.evaluator import Evaluator
from tasks.federated_text import FederatedText, Kind
from tasks.packing import Packer
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


def _evaluator(base):
  clients = tiny_world.clients(1, 3)
  data = FederatedText('tiny', clients, {}, {})
  packer = Packer(base.tokenizer, kind=Kind.PAIR, sequence_length=tiny_world.SEQUENCE_LENGTH)
  return Evaluator(base, _CONFIG, data, clients, packer, examples_per_client=2, decode_examples=0)


def test_is_a_base_model_of_its_own(base, tmp_path):
  weights = _weights(base)
  saved = merged_model.save_merged_model(tmp_path / 'model', base, weights)
  assert saved == FrozenBackbone.load(tmp_path / 'model')
  loaded = backbones.load_base_model(str(tmp_path / 'model'), tmp_path / 'cache')
  assert loaded.backbone == saved
  sample = 'the cat sat on a red mat 7'
  assert loaded.tokenizer.encode(sample) == base.tokenizer.encode(sample)
  now = loaded.backbone.weights()
  assert now.keys() == weights.keys()
  for name, wanted in weights.items():
    np.testing.assert_array_equal(now[name], wanted, err_msg=name)


def test_works_with_the_embedded_tokenizer(tmp_path):
  tokenizer = text.Tokenizer(base_model.embedded_tokenizer())
  tiny = tiny_world.build_backbone(0, tokenizer.vocabulary_size)
  base = backbones.BaseModel(FrozenBackbone.save(tiny, tmp_path / 'base'), tokenizer)
  merged_model.save_merged_model(tmp_path / 'model', base, {})
  loaded = backbones.load_base_model(str(tmp_path / 'model'), tmp_path / 'cache')
  assert loaded.backbone.sha256 == base.backbone.sha256
  sample = 'Return the number of rows.\n=>'
  assert loaded.tokenizer.encode(sample) == tokenizer.encode(sample)


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
  adapters = collections.OrderedDict((p, LoraFactors(f.a, f.b)) for p, f in trained.items())
  evaluator = _evaluator(base)
  expected, without = (evaluator.losses(part).losses for part in (trained, adapters))
  assert np.abs(without - expected).max() > 1e-3
  changes = merged_model.residual_changes(base.backbone, _CONFIG, trained)
  assert len(changes) == 4
  merged_model.save_merged_model(tmp_path / 'model', base, changes)
  loaded = backbones.load_base_model(str(tmp_path / 'model'), tmp_path / 'cache')
  found = _evaluator(loaded).losses(adapters).losses
  np.testing.assert_allclose(found, expected, rtol=1e-5)


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
