# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tasks that `--task` names; no TensorFlow before one is loaded."""

import dataclasses
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from tasks.errors import UserError
from tasks.federated_text import FederatedText
from tasks.task import Request, Task

# What a task may read of the configuration, and others have no use for.
DATA_KEYS = (
  'data_dir', 'client_field', 'text_field', 'source_field', 'target_field', 'label_field',
  'id_field', 'labels', 'min_examples', 'max_examples', 'skip_bad_records',
)  # fmt: skip
_OF_RECORDS = ('data_dir', 'min_examples', 'max_examples', 'skip_bad_records')


@dataclasses.dataclass(frozen=True)
class BuiltIn:
  """A `tasks.task.Task` by name.

  Attributes:
    description: one line for `hetlora tasks`.
    load: makes the data.
    reads: those of `DATA_KEYS` that have a meaning for it.
    needs: those among them that have to be given.
    usual: what keys are in its runs, where they are otherwise than usual.
    shares_clients: whether held-out text is of clients that train.
    quotes_others: whether a client's examples hold what others wrote to it.
  """

  description: str
  load: Callable[[Request], FederatedText]
  reads: tuple[str, ...] = ()
  needs: tuple[str, ...] = ()
  usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  shares_clients: bool = False
  quotes_others: bool = False


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


TASKS: dict[str, BuiltIn] = {
  'docstring_summarization': BuiltIn(
    'Body of a docstring -> its one-line summary. Clients are the Python modules of the installed '
    'environment.',
    _docstring_summarization,
  ),
  'multi_session_chat': BuiltIn(
    'Persona and turns so far -> the next response. Clients are the speakers of Multi-Session Chat '
    "as ParlAI ships it (--data-dir: session_1/train.txt, ...); each one's last session is held "
    'out.',
    _multi_session_chat,
    reads=_OF_RECORDS,
    needs=('data_dir',),
    usual={'truncate_source': 'start'},
    shares_clients=True,
    quotes_others=True,
  ),
  'reddit_summarization': BuiltIn(
    'Post -> its TL;DR. Clients are the authors of Webis TL;DR or Reddit TIFU JSON lines '
    '(--data-dir).',
    _reddit_summarization,
    reads=_OF_RECORDS,
    needs=('data_dir',),
  ),
  'stackoverflow': BuiltIn(
    "Questions and answers, word by word. Clients are the users of TFF's Stack Overflow, which is "
    'downloaded (to --data-dir, if given).',
    _stackoverflow,
    reads=('data_dir', 'max_examples'),
  ),
  'text_classification': BuiltIn(
    'Text -> its label, on encoders, too. JSON lines (--data-dir) with --client-field, '
    '--text-field and --label-field.',
    _text_classification,
    reads=(*_OF_RECORDS, 'client_field', 'text_field', 'label_field', 'labels', 'id_field'),
    needs=('data_dir', 'client_field', 'text_field', 'label_field'),
  ),
  'text_jsonl': BuiltIn(
    'Your own JSON lines (--data-dir): --source-field -> --target-field, or running text of '
    '--text-field. Clients are the values of --client-field.',
    _text_jsonl,
    reads=(*_OF_RECORDS, 'client_field', 'text_field', 'source_field', 'target_field', 'id_field'),
    needs=('data_dir', 'client_field'),
  ),
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


def usual(name: str) -> Mapping[str, Any]:
  """What keys usually are in runs of a task; nothing of its own for one that is not built in."""
  return TASKS[name].usual if name in TASKS else {}


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
