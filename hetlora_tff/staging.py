# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Directories that appear whole or not at all."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

import safetensors


@contextlib.contextmanager
def staged(
  directory: str | os.PathLike, content: str, error_class: type[ValueError]
) -> Iterator[pathlib.Path]:
  """A directory beside the target to write into; it becomes the target if nothing fails.

  Args:
    directory: the target; must not exist or be empty.
    content: what is written, for the message: `'a backbone'`.
    error_class: what is raised.

  Yields:
    The directory to write into.

  Raises:
    ValueError: of `error_class`, if the target is in use or cannot be written.
  """
  target = pathlib.Path(directory).absolute()
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise error_class(f'{target} exists and is not an empty directory; choose another.')
  staging = None
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f'.{target.name}.{secrets.token_hex(8)}')
    staging.mkdir()
    yield staging
    os.replace(staging, target)
  except (OSError, safetensors.SafetensorError) as error:
    # Those of h5py and safetensors have neither a number nor a text of their own.
    reason = getattr(error, 'strerror', None) or str(error).partition('\n')[0]
    raise error_class(f'Cannot write {content} to {target}: {reason}.') from error
  finally:
    if staging is not None:
      shutil.rmtree(staging, ignore_errors=True)
