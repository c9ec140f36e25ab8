# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The script behind `make setup`: which Python it takes, and what an interruption leaves."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

from tests.house import rules

_SCRIPT = rules.ROOT / 'tools/environment.sh'


def _fake_python(path: pathlib.Path, version: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/sh\necho "{version} $0"\n')
  path.chmod(0o755)


def _run(directory, *arguments, **environment):
  env = {'PATH': f'{directory}/bin:/usr/bin:/bin', 'HOME': str(directory), **environment}
  return subprocess.run(
    ['/bin/sh', str(_SCRIPT), *arguments], cwd=directory, env=env, capture_output=True, text=True
  )


def test_named_python_is_taken():
  result = _run(rules.ROOT, 'find-python', PYTHON=sys.executable)
  assert result.returncode == 0
  assert pathlib.Path(result.stdout.strip()).is_file()


def test_first_fitting_python_on_the_path_is_taken(tmp_path):
  _fake_python(tmp_path / 'bin/python3.11', '3.12')
  _fake_python(tmp_path / 'bin/python3', '3.11')
  result = _run(tmp_path, 'find-python')
  assert result.stdout == f'{tmp_path}/bin/python3\n'


def test_without_a_fitting_python_one_line_says_what_was_found(tmp_path):
  (tmp_path / 'requirements.txt').write_text('')
  _fake_python(tmp_path / 'other/python', '3.12')
  result = _run(tmp_path, PYTHON=f'{tmp_path}/other/python')
  assert result.returncode != 0
  assert len(result.stderr.splitlines()) == 1
  assert 'Python 3.11' in result.stderr
  assert f'{tmp_path}/other/python (3.12)' in result.stderr


def test_python_that_fails_is_named_as_unusable(tmp_path):
  (tmp_path / 'requirements.txt').write_text('')
  result = _run(tmp_path, PYTHON=f'{tmp_path}/missing')
  assert result.returncode != 0
  assert 'missing (unusable, or without venv)' in result.stderr


@pytest.mark.slow
def test_failed_installation_shows_its_error_and_is_done_again(tmp_path):
  shutil.copy(rules.ROOT / 'pyproject.toml', tmp_path)
  (tmp_path / 'requirements.txt').write_text(
    f'--no-index\nnot-published==1.0 --hash=sha256:{"0" * 64}\n'
  )
  for _ in range(2):
    result = _run(tmp_path, PYTHON=sys.executable)
    assert result.returncode != 0
    assert 'creating .venv' in result.stderr
    assert 'not-published' in result.stderr
    assert not (tmp_path / '.venv/.locked').exists()


def test_lock_is_what_is_installed_here():
  """Tests that ran in another environment say nothing about this one."""
  text = (rules.ROOT / 'requirements.txt').read_text()
  locked = dict(re.findall(r'^([A-Za-z0-9_.-]+)==([^ ;\\]+)', text, re.MULTILINE))
  assert len(locked) > 100
  wrong = {name: metadata.version(name) for name in locked}
  assert {n: v for n, v in wrong.items() if v != locked[n]} == {}


def test_lock_has_hashes_and_names_no_host():
  lines = (rules.ROOT / 'requirements.txt').read_text().splitlines()
  pinned = [i for i, line in enumerate(lines) if '==' in line and not line.startswith((' ', '#'))]
  assert [lines[i] for i in pinned if not lines[i + 1].startswith('    --hash=sha256:')] == []
  assert [line for line in lines if '://' in line or 'index' in line] == []


def test_every_requirement_is_locked():
  wanted = (rules.ROOT / 'requirements.in').read_text() + (rules.ROOT / 'overrides.txt').read_text()
  names = re.findall(r'^([A-Za-z0-9_.-]+)', wanted, re.MULTILINE)
  lock = (rules.ROOT / 'requirements.txt').read_text()
  assert [name for name in names if f'\n{name.lower()}==' not in lock] == []


def test_second_setup_does_nothing():
  if pathlib.Path(sys.prefix) != rules.ROOT / '.venv':
    pytest.skip('runs in the environment that `make setup` made')
  result = _run(rules.ROOT, PATH=os.environ['PATH'])
  assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
