# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tasks that `--task` names; no TensorFlow before one is loaded."""

import dataclasses
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import Any

from tasks.built_in import BUILT_IN
from tasks.errors import UserError
from tasks.federated_text import FederatedText
from tasks.task import Request, Task


@dataclasses.dataclass(frozen=True)
class NamedTask:
  """A `tasks.task.Task` of a description and a function."""

  description: str
  load: Callable[[Request], FederatedText]


def _docstring_summarization(request: Request) -> FederatedText:
  from tasks import docstrings

  return docstrings.load_docstring_summarization(request)


def _multi_session_chat(request: Request) -> FederatedText:
  from tasks import multi_session_chat

  return multi_session_chat.load_multi_session_chat(request)


def _reddit_summarization(request: Request) -> FederatedText:
  from tasks import reddit

  return reddit.load_reddit_summarization(request)


def _stackoverflow(request: Request) -> FederatedText:
  from tasks import stackoverflow

  return stackoverflow.load_stackoverflow(request)


def _text_classification(request: Request) -> FederatedText:
  from tasks import text_jsonl

  return text_jsonl.load_text_classification(request)


def _text_jsonl(request: Request) -> FederatedText:
  from tasks import text_jsonl

  return text_jsonl.load_text_jsonl(request)


_LOADERS = {
  'docstring_summarization': _docstring_summarization,
  'multi_session_chat': _multi_session_chat,
  'reddit_summarization': _reddit_summarization,
  'stackoverflow': _stackoverflow,
  'text_classification': _text_classification,
  'text_jsonl': _text_jsonl,
}
TASKS: dict[str, Task] = {
  name: NamedTask(task.description, _LOADERS[name]) for name, task in BUILT_IN.items()
}


def find_task(name: str) -> Task:
  """The task of that name, or `NAME` in anybody's module or file for `MODULE:NAME`.

  Raises:
    UserError: listing the names that exist, or saying what is wrong with the module.
  """
  if ':' in name:
    return _from_module(name)
  if name not in TASKS:
    raise UserError(
      f'--task {name}: unknown; there are {", ".join(sorted(TASKS))}, or MODULE:NAME or '
      'FILE.py:NAME of your own.'
    )
  return TASKS[name]


def _from_module(name: str) -> Task:
  where, _, attribute = name.rpartition(':')
  try:
    module = _import_file(where) if where.endswith('.py') else importlib.import_module(where)
  except Exception as error:  # Whatever a user's module does.
    raise UserError(
      f'--task {name}: cannot import {where!r} ({type(error).__name__}: {error}); a module must be '
      'on PYTHONPATH, or name its file as FILE.py:NAME.'
    ) from error
  task: Any = getattr(module, attribute, None)
  described = isinstance(getattr(task, 'description', None), str)
  if not described or not callable(getattr(task, 'load', None)):
    raise UserError(
      f'--task {name}: {attribute!r} of {where} is no task, which has a description and a '
      'method load.'
    )
  return task


def _import_file(path: str) -> types.ModuleType:
  """Imports a file once, under a name that no other module has."""
  name = f'_task_of_{path}'
  if name not in sys.modules:
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module  # Before it runs: a dataclass of it looks it up.
    try:
      loader.exec_module(module)
    except BaseException:
      del sys.modules[name]
      raise
  return sys.modules[name]
