# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one way to replace a file."""

import os
import pathlib


def replace_file(path: pathlib.Path, data: bytes) -> None:
  """Replaces a file, all of it or nothing, whatever ends the process or fills the disk.

  Args:
    path: the file; its directory must exist.
    data: the new content.

  Raises:
    OSError: if it cannot be written; what was there before is then still there.
  """
  # By process: two first runs may fill the same cache at once.
  draft = path.with_name(f'.{path.name}.{os.getpid()}.draft')
  try:
    with open(draft, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(draft, path)
  finally:
    draft.unlink(missing_ok=True)
