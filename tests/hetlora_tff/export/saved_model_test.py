# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.export.saved_model import save_saved_model
from tests.hetlora_tff.export import merged_models

# Isolated from the working directory, and so from this project.
_SERVING = """
import pathlib, sys
import numpy as np
import tensorflow as tf
root = pathlib.Path(sys.argv[1])
serve = tf.saved_model.load(str(root / 'model')).signatures['serving_default']
for number in range(2):
  inputs = {name: tf.constant(array) for name, array in np.load(root / f'{number}.npz').items()}
  np.save(root / f'{number}.npy', serve(**inputs)['logits'])
foreign = {'keras_nlp', 'hetlora_tff', 'tf_keras', 'tensorflow_federated'} & set(sys.modules)
assert not foreign, foreign
"""


@pytest.fixture(scope='module', name='case')
def case_fixture(tmp_path_factory):
  return merged_models.make('GPT2', tmp_path_factory.mktemp('base') / 'backbone')


def test_plain_tensorflow_serves_it_after_the_backbone_is_gone(case, tmp_path):
  (tmp_path / 'model').mkdir()
  save_saved_model(tmp_path / 'model', case.merged)
  backbone = pathlib.Path(case.frozen.directory)
  for number, batch in enumerate(case.batches):
    np.savez(tmp_path / f'{number}.npz', **batch._asdict())
  moved = backbone.rename(tmp_path / 'moved')
  try:
    environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2'}
    command = [sys.executable, '-I', '-c', _SERVING, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=120, stdin=subprocess.DEVNULL)
  finally:
    moved.rename(backbone)
  for number, wanted in enumerate(case.logits):
    np.testing.assert_allclose(np.load(tmp_path / f'{number}.npy'), wanted, atol=1e-5)


def test_names_no_file_of_this_machine(case, tmp_path):
  save_saved_model(tmp_path, case.merged)
  for file in filter(pathlib.Path.is_file, tmp_path.rglob('*')):
    content = file.read_bytes()
    for place in (case.frozen.directory, str(tmp_path), str(pathlib.Path(__file__).parents[3])):
      assert place.encode() not in content, file


def test_classification_has_the_head(tmp_path):
  case = merged_models.make('Bert', tmp_path / 'backbone')
  (tmp_path / 'model').mkdir()
  save_saved_model(tmp_path / 'model', case.merged)
  serve = tf.saved_model.load(str(tmp_path / 'model')).signatures['serving_default']
  for batch, wanted in zip(case.batches, case.logits, strict=True):
    inputs = {name: tf.constant(array) for name, array in batch._asdict().items()}
    assert wanted.shape == (len(batch.token_ids), merged_models.NUM_CLASSES)
    np.testing.assert_allclose(serve(**inputs)['logits'], wanted, atol=1e-5)
