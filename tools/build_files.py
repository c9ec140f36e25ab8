# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Derives every package's BUILD file from the imports of its modules.

One `py_library` (`py_binary` where there is a main guard, `py_test` for tests) per module, named as
the module; a package's `__init__.py` is the target that bears the directory's name. Dependencies
are the first-party imports, data the files that strings name; third-party packages come from the
environment, as BUILD in the root says. Run from anywhere:

  python -m tools.build_files          prints what differs and exits with 1 if anything does
  python -m tools.build_files --write  writes the files
"""

import argparse
import ast
import contextlib
import difflib
import graphlib
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence

# Each top-level package and the other packages that may depend on it.
READERS = {
  'hetlora_tff': ('benchmarks', 'tasks', 'tests'),
  'privacy': ('benchmarks', 'tasks', 'tests'),
  'tasks': ('benchmarks', 'tests'),
  'benchmarks': ('tests',),
  'tests': (),
  'tools': ('tests',),
}
_MODULE_NAME = re.compile(r'[a-z]\w*(\.\w+)+')
# What is data, as against modules and BUILD files. A directory is a filegroup, as a whole.
_DATA_DIRECTORIES = ('assets', 'deploy', 'docs', 'suites', 'templates')
_DATA_SUFFIXES = ('.csv', '.in', '.json', '.md', '.toml', '.txt', '.yaml')
# Longer strings are texts, which the system would not take as a name.
_NAME_LENGTH = 200
_HEADER = """\
# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
# Written by `make build-files` from the imports.
"""


def _is_test(path: pathlib.Path) -> bool:
  return path.stem.endswith('_test')


def _label(root: pathlib.Path, parts: Sequence[str]) -> str | None:
  """The label of the module with these dotted parts, or None if there is no such file."""
  path = root.joinpath(*parts)
  if len(parts) > 1 and path.with_suffix('.py').is_file():
    return f'//{"/".join(parts[:-1])}:{parts[-1]}'
  if (path / '__init__.py').is_file():
    return f'//{"/".join(parts)}:{parts[-1]}'
  return None


def _imported(tree: ast.AST) -> Iterator[tuple[str, ...]]:
  """Dotted names that the module imports; `from a import b` counts as `a.b`."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (tuple(alias.name.split('.')) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      if node.level or node.module is None:
        raise ValueError(f'line {node.lineno}: write the import from the root, not relative')
      yield from ((*node.module.split('.'), alias.name) for alias in node.names)


def dependencies(root: pathlib.Path, source: str) -> list[str]:
  """First-party labels that a module with this source needs, sorted.

  Args:
    root: the repository.
    source: the text of one module.

  Raises:
    ValueError: an import is relative, or names a first-party module that does not exist.
  """
  labels = set()
  for parts in _imported(ast.parse(source)):
    if parts[0] not in READERS:
      continue
    label = _needed(root, parts)
    if label is None:
      raise ValueError(f'nothing in the repository is called {".".join(parts)}')
    labels.add(label)
  return sorted(labels)


def _needed(root: pathlib.Path, parts: Sequence[str]) -> str | None:
  """The label that an import of this dotted name needs, or None if there is no such thing."""
  # `from package.module import name` needs the module, `from package import module` too.
  return _label(root, parts) or _label(root, parts[:-1])


def _imported_by_strings(tree: ast.AST) -> Iterator[tuple[str, ...]]:
  """What strings of a test import: programs for another process, and modules that `-m` names."""
  for node in ast.walk(tree):
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
      continue
    if _MODULE_NAME.fullmatch(node.value):
      yield tuple(node.value.split('.'))
    elif 'import ' in node.value:
      with contextlib.suppress(SyntaxError):  # Prose.
        yield from _imported(ast.parse(textwrap.dedent(node.value)))


def _is_binary(tree: ast.Module) -> bool:
  return any(isinstance(n, ast.If) and '__name__' in ast.unparse(n.test) for n in tree.body)


def _test_size(source: str, path: pathlib.Path) -> str:
  if 'integration' in path.parts or 'mark.slow' in source:
    return 'large'
  return 'medium' if 'tensorflow' in source else 'small'


def _is_slow(tree: ast.Module) -> bool:
  """Whether every test of the module has the marker `slow`, so that a quick run has none."""
  of_all = [
    ast.unparse(node.value)
    for node in tree.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'pytestmark'
  ]
  if any('mark.slow' in marks for marks in of_all):
    return True
  tests = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef) and node.name.startswith('test')
  ]
  return bool(tests) and all(
    any('mark.slow' in ast.unparse(decorator) for decorator in test.decorator_list)
    for test in tests
  )


def _places(
  root: pathlib.Path, path: pathlib.Path, labels: Sequence[str]
) -> dict[pathlib.Path, str]:
  """Directories that a name in this module may be relative to, by their packages' labels."""
  packages = {label.partition(':')[0] for label in labels}
  places = {root / package.removeprefix('//'): package for package in packages}
  if path.relative_to(root).parts[0] != 'tools':  # They handle names, not what is there.
    places[root] = '//'
  return {**places, path.parent: ''}


def _data(tree: ast.AST, places: Mapping[pathlib.Path, str]) -> list[str]:
  """Labels of the data that strings of the module name: whole directories, and single files."""
  labels = set()
  for node in ast.walk(tree):
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
      continue
    name = pathlib.PurePosixPath(node.value[:_NAME_LENGTH])
    if name.is_absolute() or not name.parts or '..' in name.parts:
      continue
    for place, label in places.items():
      if name.parts[0] in _DATA_DIRECTORIES and (place / name.parts[0]).is_dir():
        labels.add(f'{label}:{name.parts[0]}')
      elif name.suffix in _DATA_SUFFIXES and (place / name).is_file():
        labels.add(f'{label}:{name}')
  return sorted(labels)


def _rule(kind: str, attributes: Mapping[str, str | bool | Sequence[str]]) -> str:
  lines = [f'{kind}(']
  for key, value in attributes.items():
    if isinstance(value, str):
      lines.append(f'    {key} = "{value}",')
    elif isinstance(value, bool):
      lines.append(f'    {key} = {value},')
    elif len(value) == 1:
      lines.append(f'    {key} = ["{value[0]}"],')
    elif value:
      lines += [f'    {key} = [', *(f'        "{item}",' for item in value), '    ],']
  return '\n'.join([*lines, ')\n'])


def _module_rule(root: pathlib.Path, path: pathlib.Path) -> str:
  """The rule of one module."""
  source = path.read_text(encoding='utf-8')
  tree = ast.parse(source)
  is_package = path.name == '__init__.py'
  name = path.parent.name if is_package else path.stem
  package = f'//{path.parent.relative_to(root).as_posix()}'
  # The house tests read the whole checkout and ask git for it: not to be found among runfiles.
  is_house, is_tests = path.parent.name == 'house', path.relative_to(root).parts[0] == 'tests'
  needed = set(dependencies(root, source))
  if is_tests and not is_house:
    named = (_needed(root, parts) for parts in _imported_by_strings(tree) if parts[0] in READERS)
    needed |= {label for label in named if label}
  labels = sorted(needed - {f'{package}:{name}'})
  deps = sorted(
    label.removeprefix(package) if label.startswith(f'{package}:') else label for label in labels
  )
  attributes: dict[str, str | bool | Sequence[str]] = {'name': name}
  kind = 'py_binary' if _is_binary(tree) else 'py_library'
  if _is_test(path):
    kind = 'py_test'
    attributes['size'] = _test_size(source, path)
    if is_house:
      attributes['tags'] = ['manual']
    elif _is_slow(tree):
      attributes['tags'] = ['slow']
  elif is_tests:
    attributes['testonly'] = True
  attributes['srcs'] = [path.name]
  attributes['data'] = _data(tree, _places(root, path, labels))
  attributes['deps'] = deps
  return _rule(kind, attributes)


def build_file(root: pathlib.Path, directory: pathlib.Path) -> str:
  """The text of one package's BUILD file.

  Args:
    root: the repository.
    directory: a directory below it that holds modules.
  """
  top = directory.relative_to(root).parts[0]
  modules = sorted(directory.glob('*.py'))
  data = [name for name in _DATA_DIRECTORIES if (directory / name).is_dir()]
  parts = [_HEADER]
  if any(_is_test(path) for path in modules):
    parts.append('load("//tools:py_test.bzl", "py_test")\n')
  readers = [f'//{reader}:__subpackages__' for reader in sorted((top, *READERS[top]))]
  parts += [_rule('package', {'default_visibility': readers}), 'licenses(["notice"])\n']
  for name in data:
    parts.append(f'filegroup(\n    name = "{name}",\n    srcs = glob(["{name}/**"]),\n)\n')
  if files := sorted(p.name for p in directory.iterdir() if p.suffix in _DATA_SUFFIXES):
    names = ''.join(f'        "{name}",\n' for name in files)
    parts.append(f'exports_files(\n    [\n{names}    ],\n)\n')
  parts += [_module_rule(root, path) for path in modules]
  return '\n'.join(parts)


def build_files(root: pathlib.Path) -> dict[pathlib.Path, str]:
  """Path and wanted text of every BUILD file below the top-level packages.

  Args:
    root: the repository.

  Raises:
    ValueError: a module's imports cannot be resolved; the message names the file.
  """
  wanted = {}
  for top in READERS:
    for directory in sorted({path.parent for path in (root / top).rglob('*.py')}):
      try:
        wanted[directory / 'BUILD'] = build_file(root, directory)
      except ValueError as error:
        raise ValueError(f'{directory.relative_to(root)}: {error}') from error
  return wanted


def differences(root: pathlib.Path) -> list[str]:
  """What `--write` would change, as lines of a diff; empty if the BUILD files are right."""
  wanted = build_files(root)
  lines = []
  stale = {path for top in READERS for path in (root / top).rglob('BUILD')} - set(wanted)
  for path in sorted({*wanted, *stale}):
    have = path.read_text(encoding='utf-8') if path.is_file() else ''
    name = path.relative_to(root).as_posix()
    lines += difflib.unified_diff(
      have.splitlines(), wanted.get(path, '').splitlines(), name, f'{name} (wanted)', lineterm=''
    )
  return lines


def import_cycle(root: pathlib.Path) -> list[str]:
  """The modules of one import cycle, which Bazel would refuse; empty if there is none."""
  graph = {}
  for top in READERS:
    for path in (root / top).rglob('*.py'):
      parts = path.relative_to(root).with_suffix('').parts
      if parts[-1] != '__init__':
        graph[_label(root, parts)] = dependencies(root, path.read_text(encoding='utf-8'))
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    return error.args[1]
  return []


def main(arguments: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description='Checks or writes the BUILD files.')
  parser.add_argument('--write', action='store_true', help='write the files')
  write = parser.parse_args(arguments).write
  root = pathlib.Path(__file__).resolve().parent.parent
  if cycle := import_cycle(root):
    print(f'import cycle: {" -> ".join(cycle)}')
    return 1
  changes = differences(root)
  if write:
    for path, text in build_files(root).items():
      path.write_text(text, encoding='utf-8')
  elif changes:
    print('\n'.join(changes))
    print('BUILD files and imports differ: run `make build-files`')
  return 0 if write else bool(changes)


if __name__ == '__main__':
  sys.exit(main())
