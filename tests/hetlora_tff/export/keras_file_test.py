# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import os
import pathlib
import subprocess

import numpy as np
import pytest
import tf_keras

from hetlora_tff.export import keras_file
from hetlora_tff.export.merged import ExportError, MergedModel
from tests.hetlora_tff.export import merged_models

# An interpreter with TensorFlow 2.16 or later, and tf-keras: it cannot share one with TFF.
TF216_PYTHON = os.environ.get('HETLORA_TF216_PYTHON')
_FAMILIES = [name.removesuffix('Backbone') for name in keras_file.families()]
# The others share the code of one of these; GPT-2 and Mistral are in a file below.
_QUICK = ('OPT', 'Bloom', 'Llama', 'Bert', 'Roberta')
_slow = pytest.mark.slow

# Importing TensorFlow takes longer than all that it does here: one process for all.
_LATER = """
import pathlib, sys
import numpy as np
import tensorflow as tf
import tf_keras
assert tuple(int(part) for part in tf.__version__.split('.')[:2]) >= (2, 16), tf.__version__
for case in pathlib.Path(sys.argv[1]).iterdir():
  model = tf_keras.models.load_model(case / 'model.keras')
  for number in range(2):
    inputs = dict(np.load(case / f'{number}.npz'))
    np.save(case / f'{number}.npy', model(inputs))
assert not {'keras_nlp', 'hetlora_tff'} & set(sys.modules)
"""


def _check(model, case):
  for batch, wanted in zip(case.batches, case.logits, strict=True):
    np.testing.assert_allclose(model(batch._asdict()), wanted, atol=1e-5)


@pytest.fixture(scope='module', name='gpt2')
def gpt2_fixture(tmp_path_factory):
  return merged_models.make('GPT2', tmp_path_factory.mktemp('gpt2') / 'backbone')


@pytest.mark.parametrize(
  'family', [name if name in _QUICK else pytest.param(name, marks=_slow) for name in _FAMILIES]
)
def test_rebuilt_model_computes_the_same(tmp_path, family):
  case = merged_models.make(family, tmp_path / 'backbone')
  _check(keras_file.build_keras_model(case.merged), case)


def test_file_loads_without_custom_objects(gpt2, tmp_path):
  keras_file.save_keras_file(tmp_path, gpt2.merged)
  loaded = tf_keras.models.load_model(tmp_path / keras_file.MODEL_FILE, safe_mode=True)
  _check(loaded, gpt2)
  assert loaded.count_params() == gpt2.frozen.num_parameters
  # The output layer is the embedding: who trains on changes both.
  embedding = loaded.get_layer('token_embedding')
  embedding.set_weights([0 * embedding.get_weights()[0]])
  assert not np.any(loaded(gpt2.batches[0]._asdict()))


def test_file_with_a_head_that_reads_the_last_token(tmp_path):
  case = merged_models.make('Mistral', tmp_path / 'backbone', head=True)
  (tmp_path / 'keras').mkdir()
  keras_file.save_keras_file(tmp_path / 'keras', case.merged)
  _check(tf_keras.models.load_model(tmp_path / 'keras' / keras_file.MODEL_FILE), case)


@pytest.mark.parametrize('family', ['Falcon', 'Phi3', 'Electra'])
def test_other_family_is_refused_by_name(gpt2, family):
  other = dataclasses.replace(gpt2.frozen, class_name=f'{family}Backbone')
  with pytest.raises(ExportError, match=f'A {family}Backbone cannot be rebuilt.*GPT2Backbone, OPT'):
    keras_file.build_keras_model(MergedModel(other, {}, None))


@_slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
  TF216_PYTHON is None, reason='HETLORA_TF216_PYTHON names no interpreter with TensorFlow >= 2.16'
)
def test_later_tensorflow_loads_the_files_of_all_families(tmp_path):
  cases = {}
  for family in _FAMILIES:
    cases[family] = merged_models.make(family, tmp_path / 'backbones' / family)
    directory = tmp_path / 'files' / family
    directory.mkdir(parents=True)
    keras_file.save_keras_file(directory, cases[family].merged)
    for number, batch in enumerate(cases[family].batches):
      np.savez(directory / f'{number}.npz', **batch._asdict())
  environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2'}
  command = [str(TF216_PYTHON), '-I', '-c', _LATER, str(tmp_path / 'files')]
  subprocess.run(command, check=True, env=environment, timeout=300, stdin=subprocess.DEVNULL)
  for family, case in cases.items():
    for number, wanted in enumerate(case.logits):
      found = np.load(pathlib.Path(tmp_path, 'files', family, f'{number}.npy'))
      np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=family)
