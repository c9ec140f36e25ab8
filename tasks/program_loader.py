# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The program, imported when it is needed: TensorFlow takes seconds and chatters."""

import contextlib
import io
import os
from types import ModuleType


def import_program() -> ModuleType:
  """Returns `tasks.program`, imported without what TensorFlow and its friends print."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
    import keras_nlp  # noqa: F401 (prints the name of its backend)
  from absl import logging

  from tasks import program

  # keras-nlp warns at every call that it was given the mask that it needs.
  logging.set_verbosity(logging.ERROR)
  return program
