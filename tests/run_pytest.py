# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The entry point of every `py_test` under Bazel; `make test` calls pytest itself."""

import os
import pathlib
import sys

import pytest

_PACKAGES = ('benchmarks', 'hetlora_tff', 'privacy', 'tasks', 'tests', 'tools')


def undeclared(root: pathlib.Path) -> list[str]:
  """Our modules that were imported from elsewhere than this test's own files.

  Args:
    root: the directory of those files, where Bazel starts the test.
  """
  files = {
    name: getattr(module, '__file__', None)
    for name, module in sys.modules.items()
    if name.partition('.')[0] in _PACKAGES
  }
  return [
    f'{n}: {f}' for n, f in sorted(files.items()) if f and root not in pathlib.Path(f).parents
  ]


def main() -> int:
  status = int(pytest.main(['-p', 'no:cacheprovider', *sys.argv[1:]]))
  if strangers := undeclared(pathlib.Path.cwd()):
    print('imported, but not among the dependencies in BUILD:', *strangers, sep='\n  ')
    return status or 1
  return status


if __name__ == '__main__':
  code = main()
  sys.stdout.flush()
  sys.stderr.flush()
  # Every fixture is torn down. Without TensorFlow's own exit, a second and a half of a test file.
  os._exit(code)
