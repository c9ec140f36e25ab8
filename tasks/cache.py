# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where is kept what every run can make again: base models, harvested data, TFF's worker."""

import os
import pathlib
import stat


def cache_directory() -> pathlib.Path:
  """`$HETLORA_CACHE`, which people may share, or the user's own."""
  return pathlib.Path(os.environ.get('HETLORA_CACHE') or own_cache_directory())


def own_cache_directory() -> pathlib.Path:
  """The user's own cache: for what is executed."""
  cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(cache) / 'hetlora_tff'


def kept_directory() -> pathlib.Path:
  """`$HETLORA_KEPT`, or a part of the user's own cache: for what one run keeps for the next."""
  return pathlib.Path(os.environ.get('HETLORA_KEPT') or own_cache_directory() / 'kept')


def is_ours(path: pathlib.Path | int) -> bool:
  """Whether nobody else can change a file or a directory; what is executed must be so."""
  status = os.stat(path)
  return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
