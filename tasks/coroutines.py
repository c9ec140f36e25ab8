# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Calls of TFF's coroutines from code that is none."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar('_T')


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
  """The result of a coroutine.

  `asyncio.run` would leave this thread without an event loop, which TFF's own training loop needs.
  """
  loop = asyncio.new_event_loop()
  try:
    return loop.run_until_complete(coroutine)
  finally:
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
