# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tasks that `--task` names."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from tasks.errors import UserError
from tasks.federated_text import FederatedText


class Task(NamedTuple):
  """A task by name.

  Attributes:
    description: one line for `hetlora tasks`.
    load: makes the data from (cache directory, seed of the split).
  """

  description: str
  load: Callable[[pathlib.Path, int], FederatedText]


def _docstring_summarization(cache_dir: pathlib.Path, seed: int) -> FederatedText:
  from tasks import docstrings

  return docstrings.load_docstring_summarization(cache_dir, seed)


TASKS = {
  'docstring_summarization': Task(
    'Body of a docstring -> its one-line summary. Clients are the Python modules of the installed '
    'environment.',
    _docstring_summarization,
  ),
}


def find_task(name: str) -> Task:
  """The task of that name.

  Raises:
    UserError: listing the names that exist.
  """
  if name not in TASKS:
    raise UserError(f'--task {name}: unknown; there are {", ".join(sorted(TASKS))}.')
  return TASKS[name]
