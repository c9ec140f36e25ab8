# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a task is; `docs/tasks.md` writes one."""

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
  from tasks.config import RunConfig
  from tasks.federated_text import FederatedText


class Request(NamedTuple):
  """What a task is loaded with.

  Attributes:
    config: of the run; a task reads its `data_dir`, fields, caps and seed there.
    cache: a directory for what is worth keeping; may not exist yet.
    say: tells the user how far it is; what it is told is no secret of a client.
  """

  config: 'RunConfig'
  cache: pathlib.Path
  say: Callable[[str], None]


class Task(Protocol):
  """What `--task` names: one of `tasks.registry.TASKS`, or anybody's as `FILE.py:NAME`."""

  @property
  def description(self) -> str:
    """One line for `hetlora tasks`."""
    ...

  def load(self, request: Request, /) -> 'FederatedText':
    """Makes the data of a run; the same request makes the same data.

    Raises:
      tasks.errors.UserError: naming the option, file or line that cannot be used.
    """
    ...
