# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import pathlib

from tasks import cache


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
  monkeypatch.setenv('HETLORA_CACHE', str(tmp_path / 'a'))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'b'))
  assert cache.cache_directory() == tmp_path / 'a'
  assert cache.own_cache_directory() == tmp_path / 'b' / 'hetlora_tff'
  monkeypatch.setenv('HETLORA_KEPT', str(tmp_path / 'c'))
  assert cache.kept_directory() == tmp_path / 'c'
  monkeypatch.delenv('HETLORA_KEPT')
  assert cache.kept_directory() == tmp_path / 'b' / 'hetlora_tff' / 'kept'
  monkeypatch.delenv('HETLORA_CACHE')
  assert cache.cache_directory() == tmp_path / 'b' / 'hetlora_tff'
  monkeypatch.delenv('XDG_CACHE_HOME')
  assert cache.cache_directory() == pathlib.Path.home() / '.cache' / 'hetlora_tff'
