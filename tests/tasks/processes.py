# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a process still runs."""

import pathlib
import time


def runs(pid):
  """Whether the process is there and not a zombie."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return stat.rsplit(')', 1)[1].split()[0] != 'Z'


def is_gone_within(pid, seconds):
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    if not runs(pid):
      return True
    time.sleep(0.05)
  return False
