# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Work beside the main thread."""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any


def in_thread(function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future:
  """Runs a function in a thread that Ctrl-C does not wait for, as an executor's would."""
  future = concurrent.futures.Future()

  def run():
    try:
      future.set_result(function(*arguments))
    except BaseException as error:
      future.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  return future
