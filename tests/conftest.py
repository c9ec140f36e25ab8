# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: quiet TensorFlow, repeatable hypothesis, one TFF worker, no GPU."""

import os

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


@pytest.fixture(scope='session')
def tff_runtime():
  """One TFF worker for the whole run, with two clients at a time; it ends with the run.

  TFF's own default context would start a worker that keeps pytest's output open for ever.
  """
  from tasks import worker

  with worker.LocalWorker(2) as running:
    yield running
