# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, over the AST of every module."""

import pytest

from tests.house import rules

_CHECKS = (
  rules.import_problems,
  rules.keras_problems,
  rules.pure_tensor_problems,
  rules.private_tff_problems,
  rules.runfiles_problems,
)


@pytest.mark.parametrize('check', _CHECKS, ids=lambda check: check.__name__)
def test_repository_keeps_the_rule(check):
  modules = rules.tracked_files('.py')
  assert modules
  found = [problem for path in modules for problem in check(path, rules.read(path))]
  assert '\n'.join(found) == ''


@pytest.mark.parametrize(
  ('path', 'source'),
  [
    ('hetlora_tff/process.py', 'import privacy'),
    ('hetlora_tff/process.py', 'from privacy.accounting import epsilon'),
    ('hetlora_tff/process.py', 'def f():\n  from tasks import cli'),
    ('hetlora_tff/process.py', 'from . import evaluation'),
    ('privacy/clipping.py', 'import hetlora_tff.adapters.factors'),
    ('privacy/clipping.py', 'from tasks.errors import UserError'),
    ('tasks/cli.py', 'from tests.house import rules'),
    ('tasks/plots.py', 'import tf_keras'),
    ('tasks/plots.py', 'from tf_keras import layers'),
    ('tasks/export.py', 'import tf_keras'),
    ('hetlora_tff/adapters/exported.py', 'import tf_keras'),
    ('hetlora_tff/adapters/factors.py', 'import tensorflow_federated as tff'),
    ('hetlora_tff/clients/pruning.py', 'import keras_nlp'),
    ('hetlora_tff/clients/weights.py', 'from tensorflow import keras'),
    ('privacy/ledger.py', 'import tensorflow as tf'),
    ('privacy/accounting.py', 'from tensorflow_privacy import compute_zcdp_single_tree'),
    ('privacy/report/html.py', 'import tensorflow_federated as tff'),
  ],
)
def test_forbidden_import_is_found(path, source):
  assert len(rules.import_problems(path, source)) == 1


@pytest.mark.parametrize(
  ('path', 'source'),
  [
    (
      'hetlora_tff/process.py',
      'import tensorflow_federated as tff\nfrom hetlora_tff import config',
    ),
    ('hetlora_tff/adapters/factors.py', 'import tensorflow as tf'),
    ('tasks/weights.py', 'import keras_nlp'),
    ('tasks/cli.py', 'import privacy\nimport hetlora_tff'),
    ('hetlora_tff/export/keras_file.py', 'import tf_keras'),
    ('privacy/aggregators.py', 'import tensorflow_privacy as tfp'),
    ('privacy/ledger.py', 'import tensorflowish'),
    ('tests/tasks/export_test.py', 'import tf_keras'),
  ],
)
def test_allowed_import_passes(path, source):
  assert rules.import_problems(path, source) == []


def test_keras_by_another_name_is_found():
  for source in ('import keras', 'from keras.src import layers', 'from tensorflow import keras'):
    assert rules.keras_problems('hetlora_tff/adapters/layers.py', source)
  assert rules.keras_problems('hetlora_tff/adapters/layers.py', 'import keras_nlp') == []


def test_keras_in_a_pure_tensor_module_is_found():
  source = 'import tensorflow as tf\nx = tf.keras.layers.Dense'
  assert rules.pure_tensor_problems('hetlora_tff/adapters/factors.py', source)
  assert rules.pure_tensor_problems('hetlora_tff/adapters/layers.py', source) == []


def test_private_tff_import_needs_a_reason():
  private = 'from tensorflow_federated.python.core import environments'
  assert rules.private_tff_problems('tasks/worker.py', f'import os\n{private}')
  assert rules.private_tff_problems('tasks/worker.py', f'# No public name.\n{private}') == []
  assert rules.private_tff_problems('tasks/worker.py', f'{private}  # No public name.') == []
  assert rules.private_tff_problems('tasks/worker.py', 'import tensorflow_federated') == []


def test_way_out_of_the_runfiles_is_found():
  resolved = 'ROOT = pathlib.Path(__file__).resolve().parents[2]'
  assert rules.runfiles_problems('tests/tasks/worker_test.py', resolved)
  assert rules.runfiles_problems('tests/house/rules.py', resolved) == []
  as_it_is = 'ROOT = pathlib.Path(__file__).parents[2]'
  assert rules.runfiles_problems('tests/tasks/worker_test.py', as_it_is) == []
