# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sizes, licence headers, unfinished work and machine paths, in every tracked file."""

import pathlib

import pytest

from tests.house import rules

_HEADER = '# Copyright 2026 The HetLoRA-TFF Authors.\n# SPDX-License-Identifier: Apache-2.0\n'


def _is_source(path: str) -> bool:
  name = pathlib.PurePosixPath(path).name
  return path.endswith(('.py', '.bzl', '.sh')) or name in ('BUILD', 'WORKSPACE', 'Makefile', 'run')


def _problems(check, is_subject) -> str:
  texts = {path: rules.read(path) for path in rules.tracked_files() if is_subject(path)}
  assert texts
  found = [p for path, text in texts.items() if text is not None for p in check(path, text)]
  return '\n'.join(found)


def test_modules_and_functions_are_short():
  assert _problems(rules.size_problems, lambda path: path.endswith('.py')) == ''


def test_sources_have_the_licence_header():
  assert _problems(rules.header_problems, _is_source) == ''


def test_nothing_is_unfinished():
  assert _problems(rules.unfinished_problems, lambda path: path != 'LICENSE') == ''


def test_no_path_of_one_machine():
  assert _problems(rules.machine_path_problems, lambda path: True) == ''


def test_no_empty_file():
  assert [path for path in rules.tracked_files() if not (rules.ROOT / path).stat().st_size] == []


def test_long_module_is_found():
  assert rules.size_problems('m.py', 'x = 1\n' * (rules.MODULE_LINES + 1))
  assert rules.size_problems('m.py', 'x = 1\n' * rules.MODULE_LINES) == []


@pytest.mark.parametrize('keyword', ['def', 'async def'])
def test_long_function_is_found_and_its_docstring_is_free(keyword):
  docstring = '  """Says.\n' + '\n' * 30 + '  """\n'
  body = '  x = 1\n' * rules.FUNCTION_LINES
  assert rules.size_problems('m.py', f'{keyword} f():\n{docstring}{body}') == []
  assert rules.size_problems('m.py', f'{keyword} f():\n{docstring}{body}  x = 1\n')


def test_missing_header_is_found():
  assert rules.header_problems('m.py', 'x = 1\n')
  assert rules.header_problems('m.py', '"""Doc."""\n' + _HEADER)
  assert rules.header_problems('m.py', _HEADER + 'x = 1\n') == []
  assert rules.header_problems('m.sh', '#!/bin/sh\n' + _HEADER) == []


def test_unfinished_work_is_found():
  for mark in ('TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X'):
    assert rules.unfinished_problems('m.py', f'x = 1  # {mark}: later')
  assert rules.unfinished_problems('m.py', 'todo = []  # a list of tasks') == []


@pytest.mark.parametrize(
  'parts', [('', 'root', 'x'), ('', 'work', 'main'), ('', 'home', 'me', 'x')]
)
def test_machine_path_is_found(parts):
  assert rules.machine_path_problems('m.py', f'open("{"/".join(parts)}")')


@pytest.mark.parametrize(
  'text',
  ['see https://example.org/work/paper', '/usr/bin/python3.11', '//tests/house:rules', 'a/tmp/b'],
)
def test_other_paths_pass(text):
  assert rules.machine_path_problems('m.md', text) == []
