# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from tasks.files import replace_file


def test_replaces_and_leaves_no_draft(tmp_path):
  path = tmp_path / 'file'
  replace_file(path, b'one')
  replace_file(path, b'two')
  assert path.read_bytes() == b'two'
  assert os.listdir(tmp_path) == ['file']


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  replace_file(path, b'one')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    replace_file(path, b'two')
  assert path.read_bytes() == b'one'
  assert os.listdir(tmp_path) == ['file']
