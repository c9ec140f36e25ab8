# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one way to replace a file, and to read JSON that a user may have broken."""

import json
import os
import pathlib
from typing import Any

from tasks.errors import UserError


def replace_file(path: pathlib.Path, data: bytes, *, mode: int = 0o666) -> None:
  """Replaces a file, all of it or nothing, whatever ends the process or fills the disk.

  Args:
    path: the file; its directory must exist.
    data: the new content.
    mode: who may read and write it, as far as the umask allows.

  Raises:
    OSError: if it cannot be written; what was there before is then still there.
  """
  # By process: two first runs may fill the same cache at once.
  draft = path.with_name(f'.{path.name}.{os.getpid()}.draft')
  try:
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(draft, path)
  finally:
    draft.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> Any:
  """The content of a JSON file.

  Raises:
    UserError: naming the file, if it is missing or not JSON.
  """
  try:
    return json.loads(path.read_text('utf-8'))
  except OSError as error:
    raise UserError(f'Cannot read {path}: {error.strerror}.') from error
  except ValueError as error:
    raise UserError(f'{path} is not JSON: {error}.') from error
