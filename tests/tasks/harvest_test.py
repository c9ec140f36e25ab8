# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import pathlib
from importlib import metadata

import pytest

from tasks import harvest

_SOURCE = '''"""The module.

It has a body.
"""


class Thing:
  """A thing."""

  def method(self):
    """Does it."""


def later():
  pass


add_doc("""First.

Second.""")
'''


def _install(root: pathlib.Path, files: dict[str, str]) -> None:
  info = root / 'demo_dist-1.0.dist-info'
  info.mkdir()
  (info / 'METADATA').write_text(
    'Metadata-Version: 2.1\nName: demo-dist\nVersion: 1.0\n\n# Demo\n\nRead me.\n'
  )
  for name, content in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)
  (info / 'RECORD').write_text(''.join(f'{name},,\n' for name in files))


@pytest.fixture
def installed(tmp_path, monkeypatch):
  _install(
    tmp_path,
    {
      'demo/zeta.py': '"""Last."""\n',
      'demo/__init__.py': _SOURCE,
      'demo/broken.py': '"""Not Python.""" ((\n',
      'demo/tests/helper.py': '"""A test."""\n',
      'demo/zeta_test.py': '"""A test."""\n',
      'demo/explodes.py': '"""Never imported."""\nraise SystemExit("imported")\n',
      '../bin/tool.py': '"""A script."""\n',
    },
  )
  monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures('installed')
def test_docstrings_come_in_order_with_their_names():
  assert list(harvest.docstrings('demo-dist')) == [
    ('demo', 'demo', 'The module.\n\nIt has a body.'),
    ('demo', 'Thing', 'A thing.'),
    ('demo', 'method', 'Does it.'),
    ('demo.explodes', 'explodes', 'Never imported.'),
    ('demo.zeta', 'zeta', 'Last.'),
  ]


@pytest.mark.usefixtures('installed')
def test_long_strings_have_a_blank_line():
  found = list(harvest.long_strings('demo-dist'))
  assert found == ['The module.\n\nIt has a body.\n', 'First.\n\nSecond.']


@pytest.mark.usefixtures('installed')
def test_read_me_and_version():
  assert harvest.read_me('demo-dist') == '# Demo\n\nRead me.\n'
  assert harvest.version('demo-dist') == '1.0'


def test_what_is_not_installed():
  assert harvest.version('no-such-dist') is None
  with pytest.raises(metadata.PackageNotFoundError):
    list(harvest.docstrings('no-such-dist'))


def test_paragraphs_are_prose():
  text = """Computes
  a   sum.

  See :func:`other` and ``x``.

  >>> compute(1)
  1

  ```python
  compute(2)

  ```

  .. note:: Beware.

  Parameters
  ----------
  x : int
  """
  assert harvest.paragraphs(text) == [
    'Computes a sum.',
    'See `other` and `x`.',
    'Parameters',
    'x : int',
  ]


def test_the_end_token_cannot_be_written():
  assert harvest.paragraphs('a <|endoftext|>b') == ['a b']
