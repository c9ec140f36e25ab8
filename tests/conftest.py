# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: quiet TensorFlow, repeatable hypothesis, one TFF worker, no GPU."""

import os
import shutil
import tempfile

# Before anything imports TensorFlow or matplotlib: both read these once.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
os.environ.setdefault('MPLBACKEND', 'Agg')

import absl.logging
import hypothesis
import pytest

# keras-nlp warns about a padding mask at every trace of a layer.
absl.logging.set_verbosity(absl.logging.ERROR)

# Derandomised: a red test stays red for the one who looks for the reason. No deadline: the first
# example of a property pays for tracing.
hypothesis.settings.register_profile(
  'house',
  derandomize=True,
  deadline=None,
  max_examples=30,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
  database=None,
)
hypothesis.settings.load_profile('house')

_OWN_KEPT = pytest.StashKey[str]()


def pytest_configure(config):
  """What runs keep for the next is kept for all tests and their processes, and goes with them."""
  if 'HETLORA_KEPT' not in os.environ:
    os.environ['HETLORA_KEPT'] = config.stash[_OWN_KEPT] = tempfile.mkdtemp(prefix='hetlora-kept-')


def pytest_unconfigure(config):
  """Removes it; pytest-xdist's workers have it of the process that started them."""
  if _OWN_KEPT in config.stash:
    shutil.rmtree(config.stash[_OWN_KEPT], ignore_errors=True)


@pytest.fixture(scope='session')
def tff_runtime():
  """One TFF worker for the whole run, with two clients at a time; it ends with the run.

  TFF's own default context would start a worker that keeps pytest's output open for ever.
  """
  from tasks import worker

  with worker.LocalWorker(2) as running:
    yield running
