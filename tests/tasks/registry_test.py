# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import pytest

from tasks import registry
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.task import Request


def test_default_task_exists():
  assert registry.find_task(RunConfig().task).description


def test_unknown_task_lists_those_that_exist():
  with pytest.raises(UserError) as caught:
    registry.find_task('docstrings')
  assert str(caught.value) == (
    '--task docstrings: unknown; there are docstring_summarization, multi_session_chat, '
    'reddit_summarization, stackoverflow, text_classification, text_jsonl, or MODULE:NAME or '
    'FILE.py:NAME of your own.'
  )


def test_task_is_loaded_with_the_request(monkeypatch, tmp_path):
  from tasks import docstrings

  seen = []
  monkeypatch.setattr(docstrings, 'load_docstring_summarization', seen.append)
  request = Request(RunConfig(), tmp_path, print)
  registry.find_task('docstring_summarization').load(request)
  assert seen == [request]


@pytest.fixture(name='module')
def module_fixture(monkeypatch, tmp_path):
  """Somebody's module on the path."""
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'somebodys_task.py').write_text(
    'import types\n'
    "GOOD = types.SimpleNamespace(description='of mine', load=lambda request: request)\n"
    "BAD = types.SimpleNamespace(description='of mine')\n"
  )
  (tmp_path / 'somebodys_mistake.py').write_text('1 / 0\n')


def test_anybodys_task_is_found(module, tmp_path):
  assert registry.find_task('somebodys_task:GOOD').description == 'of mine'
  by_file = registry.find_task(f'{tmp_path}/somebodys_task.py:GOOD')
  assert by_file.description == 'of mine'
  assert registry.find_task(f'{tmp_path}/somebodys_task.py:GOOD') is by_file


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('somebodys_task:BAD', "'BAD' of somebodys_task is no task, which has a description"),
    ('somebodys_task:NONE', "'NONE' of somebodys_task is no task"),
    ('no_such_module:TASK', r"cannot import 'no_such_module' \(ModuleNotFoundError"),
    ('somebodys_mistake:TASK', r'cannot import .* \(ZeroDivisionError: division by zero\)'),
    (':TASK', "cannot import ''"),
    ('no_such.py:TASK', "cannot import 'no_such.py' \\(FileNotFoundError"),
  ],
)
def test_what_is_no_task_is_named(module, name, message):
  with pytest.raises(UserError, match=message):
    registry.find_task(name)
