# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from tasks import base_model, text

_TEXT = 'Computes the mean of all values — naïve, but exact.\nReturns: a float.'
_LIMIT_BYTES = 11e6


@pytest.fixture(scope='module', name='backbone')
def backbone_fixture():
  return base_model.embedded_backbone()


def test_the_backbone_has_the_documented_shape(backbone):
  config = backbone.get_config()
  expected = {'num_layers': 4, 'hidden_dim': 256, 'num_heads': 4, 'vocabulary_size': 8192}
  assert expected.items() <= config.items()
  assert backbone.count_params() == 5_289_472
  assert {weight.dtype.name for weight in backbone.weights} == {'float32'}


def test_the_weights_are_those_of_the_file(backbone):
  stored = safetensors.numpy.load_file(base_model.ASSETS / 'model.safetensors')
  values = [stored[name] for name in sorted(stored)]
  assert len(values) == len(backbone.weights)
  for value, weight in zip(values, backbone.get_weights(), strict=True):
    np.testing.assert_array_equal(value.astype(np.float32), weight)
    assert np.isfinite(weight).all()


def _mean_loss(backbone, ids):
  row = np.asarray([ids], np.int32)
  hidden = backbone({'token_ids': row, 'padding_mask': np.ones_like(row)})
  logits = backbone.token_embedding(hidden, reverse=True).numpy()[0, :-1].astype(np.float64)
  logits -= logits.max(axis=-1, keepdims=True)
  log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  return -log_probabilities[np.arange(len(ids) - 1), ids[1:]].mean()


def test_the_model_has_learned_english(backbone):
  tokenizer = text.Tokenizer(base_model.embedded_tokenizer())
  ids = tokenizer.encode(
    'Returns the number of elements in the array. If the axis is None, the array'
  )
  shuffled = np.random.default_rng(0).permutation(ids).tolist()
  assert _mean_loss(backbone, ids) < 5.0
  assert _mean_loss(backbone, ids) < _mean_loss(backbone, shuffled) - 1.0


def test_the_tokenizer_returns_what_it_read():
  tokenizer = text.Tokenizer(base_model.embedded_tokenizer())
  assert tokenizer.vocabulary_size == 8192
  assert tokenizer.end_token_id == 8191
  ids = tokenizer.encode(_TEXT)
  assert tokenizer.decode(ids) == _TEXT
  assert len(ids) < 0.4 * len(_TEXT)


def test_the_assets_are_small_and_say_where_they_come_from():
  files = list(base_model.ASSETS.iterdir())
  assert sum(file.stat().st_size for file in files) <= _LIMIT_BYTES
  provenance = json.loads((base_model.ASSETS / 'provenance.json').read_text())
  assert provenance['command'][:3] == ['python', '-m', 'tasks.pretrain']
  assert provenance['steps'] == provenance['config']['steps']
  assert len(provenance['corpus_sha256']) == 64
  assert provenance['held_out_loss'] < 5.0


def test_the_checksum_covers_what_decides_the_model(tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(base_model.ASSETS, copy)
  base = base_model.base_model_checksum()
  assert base_model.base_model_checksum(copy) == base
  (copy / 'provenance.json').write_text('{}')
  assert base_model.base_model_checksum(copy) == base
  for name in ('config.json', 'model.safetensors', 'vocabulary.json', 'merges.txt'):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert base_model.base_model_checksum(copy) != base
    (copy / name).write_bytes(content)


def test_weights_of_another_model_are_refused(tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(base_model.ASSETS, copy)
  config = json.loads((copy / 'config.json').read_text())
  (copy / 'config.json').write_text(json.dumps({**config, 'num_layers': 3}))
  with pytest.raises(ValueError, match=r'model\.safetensors'):
    base_model.embedded_backbone(copy)
