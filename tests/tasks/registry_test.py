# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import pytest

from tasks import registry
from tasks.config import RunConfig
from tasks.errors import UserError


def test_default_task_exists():
  assert registry.find_task(RunConfig().task).description


def test_unknown_task_lists_those_that_exist():
  with pytest.raises(UserError) as caught:
    registry.find_task('docstrings')
  assert str(caught.value) == '--task docstrings: unknown; there are docstring_summarization.'


def test_task_is_loaded_with_cache_and_seed(monkeypatch, tmp_path):
  from tasks import docstrings

  seen = []
  monkeypatch.setattr(docstrings, 'load_docstring_summarization', lambda *args: seen.append(args))
  registry.find_task('docstring_summarization').load(tmp_path, 7)
  assert seen == [(tmp_path, 7)]
