# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The BUILD files say what the imports say."""

import sys
import textwrap
import types

import pytest

from tests import run_pytest
from tests.house import rules
from tools import build_files


def _listed(*labels):
  return '[\n' + ''.join(f'        "{label}",\n' for label in labels) + '    ]'


def _write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(textwrap.dedent(text), encoding='utf-8')


@pytest.fixture
def repository(tmp_path):
  """A small repository whose BUILD files are right."""
  _write(tmp_path / 'hetlora_tff/__init__.py', 'from hetlora_tff.adapters.factors import pad\n')
  _write(tmp_path / 'hetlora_tff/adapters/factors.py', 'import tensorflow as tf\npad = tf.pad\n')
  _write(
    tmp_path / 'hetlora_tff/adapters/layers.py',
    """
    from hetlora_tff.adapters import factors
    """,
  )
  _write(tmp_path / 'tasks/assets/words.txt', 'a\n')
  _write(tmp_path / 'tasks/text.py', "import hetlora_tff\nWORDS = 'assets/words.txt'\n")
  _write(tmp_path / 'tests/tasks/text_test.py', 'from tasks.text import WORDS\n')
  for path, text in build_files.build_files(tmp_path).items():
    path.write_text(text, encoding='utf-8')
  return tmp_path


def test_build_files_of_the_project_are_up_to_date():
  lines = build_files.differences(rules.ROOT)
  assert not lines, '\n'.join(['run `make build-files`', *lines])


def test_imports_of_the_project_have_no_cycle():
  assert build_files.import_cycle(rules.ROOT) == []


def test_rules_hold_the_imports(repository):
  assert build_files.differences(repository) == []
  adapters = (repository / 'hetlora_tff/adapters/BUILD').read_text()
  assert 'name = "layers",\n    srcs = ["layers.py"],\n    deps = [":factors"],' in adapters
  assert (
    'deps = ["//hetlora_tff/adapters:factors"]' in (repository / 'hetlora_tff/BUILD').read_text()
  )
  tasks = (repository / 'tasks/BUILD').read_text()
  assert 'srcs = glob(["assets/**"])' in tasks
  assert 'data = [":assets"],\n    deps = ["//hetlora_tff:hetlora_tff"],' in tasks
  tests = (repository / 'tests/tasks/BUILD').read_text()
  assert 'py_test(\n    name = "text_test",\n    size = "small",' in tests
  assert 'deps = ["//tasks:text"]' in tests


def test_packages_do_not_see_each_other(repository):
  build = (repository / 'hetlora_tff/adapters/BUILD').read_text()
  assert '//tasks:__subpackages__' in build
  assert '//privacy' not in build


def test_data_is_what_strings_name(repository):
  _write(repository / 'privacy/table.json', '[]\n')
  _write(repository / 'docs/page.md', 'A page.\n')
  _write(repository / 'privacy/noise.py', "TABLE = 'table.json'\n")
  _write(
    repository / 'tests/tasks/data_test.py',
    """
    from privacy import noise
    from tasks import text
    NAMES = 'table.json', 'assets', 'docs/page.md', 'gone.json', '../privacy/table.json'
    """,
  )
  build = build_files.build_file(repository, repository / 'privacy')
  assert 'exports_files(\n    [\n        "table.json",' in build
  assert 'data = [":table.json"]' in build
  build = build_files.build_file(repository, repository / 'tests/tasks')
  assert f'data = {_listed("//:docs", "//privacy:table.json", "//tasks:assets")}' in build


def test_what_a_test_runs_in_another_process_is_a_dependency(repository):
  _write(
    repository / 'tests/tasks/process_test.py',
    """
    import hetlora_tff
    COMMAND = ['-m', 'tasks.text']
    SCRIPT = '''
      import json
      from hetlora_tff.adapters import layers
    '''
    PROSE = 'import taxes of tasks.gone', 'tasks.gone', 'json.decoder'
    """,
  )
  build = build_files.build_file(repository, repository / 'tests/tasks')
  labels = ('//hetlora_tff/adapters:layers', '//hetlora_tff:hetlora_tff', '//tasks:text')
  assert f'deps = {_listed(*labels)}' in build


@pytest.mark.parametrize(
  ('source', 'tagged'),
  [
    ('@pytest.mark.slow\ndef test_a(): pass\n@pytest.mark.slow\ndef test_b(): pass\n', True),
    ('@pytest.mark.slow\ndef test_a(): pass\ndef test_b(): pass\n', False),
    ('pytestmark = [pytest.mark.slow, other]\ndef test_a(): pass\n', True),
    ('pytestmark = other\ndef test_a(): pass\n', False),
  ],
)
def test_a_file_of_slow_tests_alone_is_tagged(repository, source, tagged):
  (repository / 'tests/tasks/text_test.py').write_text(source)
  build = build_files.build_file(repository, repository / 'tests/tasks')
  assert ('tags = ["slow"]' in build) == tagged


def test_modules_from_elsewhere_are_found(monkeypatch, tmp_path):
  module = types.ModuleType('tasks.other')
  module.__file__ = str(tmp_path / 'elsewhere' / 'other.py')
  monkeypatch.setitem(sys.modules, 'tasks.other', module)
  assert f'tasks.other: {module.__file__}' in run_pytest.undeclared(tmp_path / 'here')
  assert not [line for line in run_pytest.undeclared(tmp_path) if 'tasks.other' in line]


def test_new_import_is_a_difference(repository):
  _write(repository / 'tasks/text.py', 'import os\n')
  assert '-    deps = ["//hetlora_tff:hetlora_tff"],' in build_files.differences(repository)


def test_new_module_is_a_difference(repository):
  _write(repository / 'tasks/plots.py', 'import matplotlib\n')
  assert '+    name = "plots",' in build_files.differences(repository)


def test_edited_and_left_over_build_files_are_differences(repository):
  _write(repository / 'tasks/old/BUILD', '# left over\n')
  (repository / 'hetlora_tff/BUILD').write_text('')
  text = '\n'.join(build_files.differences(repository))
  assert 'tasks/old/BUILD' in text
  assert 'hetlora_tff/BUILD' in text


def test_import_of_a_missing_module_is_an_error(repository):
  _write(repository / 'tasks/text.py', 'from hetlora_tff.adapters.gone import x\n')
  with pytest.raises(ValueError, match='gone'):
    build_files.build_files(repository)


def test_import_cycle_is_found(repository):
  assert build_files.import_cycle(repository) == []
  _write(
    repository / 'hetlora_tff/adapters/factors.py', 'from hetlora_tff.adapters import layers\n'
  )
  assert '//hetlora_tff/adapters:layers' in build_files.import_cycle(repository)
