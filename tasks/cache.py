# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where is kept what every run can make again: base models, harvested data, TFF's worker."""

import os
import pathlib


def cache_directory() -> pathlib.Path:
  """`$HETLORA_CACHE`, or the user's cache."""
  default = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(os.environ.get('HETLORA_CACHE') or pathlib.Path(default) / 'hetlora_tff')
