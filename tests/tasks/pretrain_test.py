# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from tasks import base_model, bpe, corpus, docstrings, federated_text, pretrain

_TINY = collections.OrderedDict(
  vocabulary_size=300,
  num_layers=1,
  num_heads=2,
  hidden_dim=16,
  intermediate_dim=32,
  dropout=0.0,
  max_sequence_length=16,
)
_DOCUMENTS = [f'The cat number {n} sits on the mat and sees a hat.' for n in range(120)]


def _config(**changes):
  return pretrain.PretrainConfig(**{'seed': 0, 'steps': 3, 'batch_size': 4, **changes})


@pytest.fixture
def small(monkeypatch):
  """A corpus and a model small enough to train in a test; no options for the whole process."""
  clients = {'client': [federated_text.Example('a', 'b')]}
  monkeypatch.setattr(docstrings, 'harvest_clients', lambda: clients)
  monkeypatch.setattr(corpus, 'build_corpus', lambda clients: _DOCUMENTS)
  monkeypatch.setattr(pretrain, 'BACKBONE_CONFIG', _TINY)
  monkeypatch.setattr(tf.config.experimental, 'enable_op_determinism', lambda: None)
  monkeypatch.setattr(tf.config.optimizer, 'set_experimental_options', lambda options: None)


def test_learning_rate_rises_then_falls_to_a_tenth():
  config = _config(peak_learning_rate=1.0, warmup=0.1)
  rates = [pretrain.learning_rate(config, done) for done in np.linspace(0, 1, 101)]
  assert 0 < rates[0] < 0.02
  assert int(np.argmax(rates)) == 10
  assert rates[10] == pytest.approx(1.0)
  assert rates[-1] == pytest.approx(0.1)
  assert np.all(np.diff(rates[:11]) > 0)
  assert np.all(np.diff(rates[10:]) < 0)


def test_windows_are_one_stream_of_ended_documents():
  rows = pretrain.windows([[1, 2], [3], [4, 5, 6]], end_token_id=9, length=4, order=[2, 0, 1])
  assert rows.tolist() == [[4, 5, 6, 9], [1, 2, 9, 3]]
  assert rows.dtype == np.int32


def _take(seed, each=7):
  documents = [[n] * each for n in range(1, 9)]
  stream = pretrain.batches(documents, 0, 8, _config(seed=seed))
  return [rows.tolist() for rows in itertools.islice(stream, 4)]


def test_batches_follow_the_seed_and_differ_by_pass():
  assert _take(1) == _take(1)
  assert _take(1) != _take(2)
  first, second = _take(1)[:2], _take(1)[2:]
  assert first != second
  assert sorted([*first[0], *first[1]]) == sorted([*second[0], *second[1]])


def test_other_documents_meet_in_every_pass():
  first, second, *_ = _take(1, each=3)
  assert sorted(first) != sorted(second)


def test_a_corpus_below_one_batch_is_refused():
  with pytest.raises(ValueError, match='batch_size'):
    next(pretrain.batches([[1]], 0, 8, _config()))


@pytest.mark.parametrize('name', ['steps', 'batch_size', 'minutes'])
def test_bad_numbers_are_named(name):
  with pytest.raises(ValueError, match=name):
    _config(**{name: 0})


def test_training_lowers_the_held_out_loss_from_that_of_a_guess():
  tf.keras.utils.set_random_seed(0)
  trainer = pretrain.Pretrainer(
    base_model.build_backbone(_TINY), _config(steps=60, peak_learning_rate=1e-2)
  )
  rows = np.tile(np.arange(16, dtype=np.int32), (4, 1))
  before = trainer.held_out_loss(rows)
  assert before == pytest.approx(np.log(300), rel=0.02)
  for step in range(60):
    trainer.train(rows, step / 60)
  assert trainer.held_out_loss(rows) < 0.5 * before


def test_held_out_loss_weighs_rows_not_batches():
  trainer = pretrain.Pretrainer(base_model.build_backbone(_TINY), _config())
  rows = np.random.default_rng(0).integers(0, 300, (5, 16), np.int32)
  each = [trainer.held_out_loss(rows[index : index + 1]) for index in range(5)]
  assert trainer.held_out_loss(rows) == pytest.approx(np.mean(each), rel=1e-5)


def test_the_command_writes_a_model_that_loads(small, tmp_path):
  assert pretrain.main(['--seed', '7', '--output-dir', str(tmp_path), '--steps', '3']) == 0
  provenance = json.loads((tmp_path / 'provenance.json').read_text())
  assert provenance['steps'] == 3
  assert provenance['config']['seed'] == 7
  assert provenance['corpus_sha256'] == corpus.checksum(_DOCUMENTS)
  assert str(tmp_path) not in (tmp_path / 'provenance.json').read_text()
  last = json.loads((tmp_path / 'log.jsonl').read_text().splitlines()[-1])
  assert last['held_out_loss'] == provenance['held_out_loss']
  assert base_model.embedded_backbone(tmp_path).count_params() > 0
  assert base_model.embedded_tokenizer(tmp_path).vocabulary_size() == 300
  assert bpe.END_OF_TEXT in json.loads((tmp_path / 'vocabulary.json').read_text())


def test_the_same_seed_gives_the_same_model(small, tmp_path):
  for name, seed in (('a', 1), ('b', 1), ('c', 2)):
    pretrain.main(['--seed', str(seed), '--output-dir', str(tmp_path / name), '--steps', '2'])
  a, b, c = (base_model.base_model_checksum(tmp_path / name) for name in 'abc')
  assert a == b
  assert a != c


def test_the_clock_can_end_it(small, tmp_path):
  arguments = ['--seed', '0', '--steps', '100000', '--minutes', '0.02']
  assert pretrain.main([*arguments, '--output-dir', str(tmp_path)]) == 0
  assert 1 <= json.loads((tmp_path / 'provenance.json').read_text())['steps'] < 100000


def test_bad_arguments_end_with_one_line(small, tmp_path, capsys):
  arguments = ['--seed', '0', '--output-dir', str(tmp_path), '--steps', '0']
  assert pretrain.main(arguments) == 2
  assert capsys.readouterr().err == 'error: steps must be at least 1, got 0.\n'
