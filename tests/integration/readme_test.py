# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The example of the README runs as it stands there."""

import collections
import pathlib
import re

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import hetlora_tff  # noqa: F401 (the examples import them, unseen by the BUILD files)
import privacy
import privacy.secagg
import privacy.secagg.tcp  # noqa: F401

_ROOT = pathlib.Path(__file__).parents[2]
_LENGTH = 128


def _examples(path):
  return re.findall(r'```python\n(.*?)```', (_ROOT / path).read_text('utf-8'), re.DOTALL)


def _client_data():
  def examples(client_id):
    del client_id
    tokens = np.random.default_rng(0).integers(1, 50, [4, _LENGTH], np.int32)
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(
        token_ids=tokens,
        padding_mask=np.ones_like(tokens),
        loss_weights=np.ones(tokens.shape, np.float32),
      )
    ).batch(2)

  return tff.simulation.datasets.ClientData.from_clients_and_tf_fn(
    ['one', 'two'], lambda _: examples(None)
  )


@pytest.mark.slow
@pytest.mark.usefixtures('tff_runtime')
def test_the_python_example_trains(tmp_path, monkeypatch):
  example, _ = _examples('README.md')
  monkeypatch.chdir(tmp_path)
  names = {
    'keras_nlp_backbone': keras_nlp.models.GPT2Backbone(
      vocabulary_size=50,
      num_layers=1,
      num_heads=2,
      hidden_dim=8,
      intermediate_dim=16,
      max_sequence_length=_LENGTH,
    ),
    'client_data': _client_data(),
    'ranks': {'one': 1, 'two': 32},
    'cohorts': [['one', 'two'], ['two']],
  }
  exec(example, names)
  before = names['process'].initialize()
  adapters = [names['process'].get_model_weights(s) for s in (before, names['state'])]
  changed = [np.any(x != y) for x, y in zip(*map(tf.nest.flatten, adapters), strict=True)]
  assert all(changed)
  assert names['clients'].ranks['one'] == 1


def test_the_python_examples_of_secure_aggregation_run(capsys):
  _, factories = _examples('README.md')
  names = {}
  exec(factories, names)
  assert isinstance(names['aggregator'], tff.aggregators.UnweightedAggregationFactory)
  assert names['session'].modulus_bits == names['grid'].sum_bits
  [session] = _examples('docs/secure_aggregation.md')
  exec(session, {})
  said = re.search(r'# (\[.*\])', session).group(1)
  assert capsys.readouterr().out.strip() == said
