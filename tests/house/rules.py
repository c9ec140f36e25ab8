# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The house rules as functions from a path and a text to the list of what breaks them."""

import ast
import pathlib
import re
import subprocess
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULE_LINES = 400
FUNCTION_LINES = 50
_HEADER = (
  '# Copyright 2026 The HetLoRA-TFF Authors.',
  '# SPDX-License-Identifier: Apache-2.0',
)
_FIRST_PARTY_BANS = {
  'hetlora_tff': ('privacy', 'tasks', 'tests', 'benchmarks', 'tools'),
  'privacy': ('hetlora_tff', 'tasks', 'tests', 'benchmarks', 'tools'),
  'tasks': ('tests', 'benchmarks', 'tools'),
}
# The only place of tf-keras, whose layers are not those of `tf.keras`.
_EXPORT = 'hetlora_tff/export/'
_TENSOR_MODULES = ('factors', 'pruning', 'weights')
_TENSOR_MODULE_BANS = ('tensorflow_federated', 'keras', 'tensorflow.keras', 'keras_nlp', 'tf_keras')
# All others of `privacy` run on a reviewer's laptop.
_MECHANISM_MODULES = (
  'aggregators', 'clipping', 'distributed', 'noise', 'quantization', 'queries',
  'secure_aggregators',
)  # fmt: skip
_REVIEWER_MODULE_BANS = ('tensorflow', 'tensorflow_federated', 'tensorflow_privacy', 'keras')
# Spelled in pieces, so that this file does not contain what it looks for.
_UNFINISHED = re.compile(r'\b(' + 'TO' + r'DO|FIX' + r'ME|XX' + r'X)\b')
_MACHINE_PATH = re.compile(
  r'(?<![\w.])/' + r'(root|work|home/\w+|Users/\w+|tmp/\w+)/|/\.py' + 'env/'
)


def tracked_files(suffix: str = '') -> list[str]:
  """Paths, relative to the root, that git tracks or would, with this suffix; no caches, no runs."""
  command = ['git', 'ls-files', '--cached', '--others', '--exclude-standard']
  listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
  return [
    p for p in sorted(set(listing.splitlines())) if p.endswith(suffix) and (ROOT / p).is_file()
  ]


def read(path: str) -> str | None:
  """The text of a tracked file, or None for one that is not text."""
  try:
    return (ROOT / path).read_text(encoding='utf-8')
  except UnicodeDecodeError:
    return None


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
  """Line and dotted name of each import; `from a import b` counts as `a.b`."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = '.' * node.level + (node.module or '')
      yield from ((node.lineno, f'{base}.{alias.name}') for alias in node.names)


def _is_below(name: str, package: str) -> bool:
  return name == package or name.startswith(f'{package}.')


def _banned(path: str) -> tuple[str, ...]:
  """The packages that the module at this path must not import."""
  parts = pathlib.PurePosixPath(path).parts
  top, stem = parts[0], pathlib.PurePosixPath(path).stem
  banned = _FIRST_PARTY_BANS.get(top, ())
  if top == 'hetlora_tff' and stem in _TENSOR_MODULES:
    banned += _TENSOR_MODULE_BANS
  if top == 'privacy' and stem not in _MECHANISM_MODULES:
    banned += _REVIEWER_MODULE_BANS
  if top in _FIRST_PARTY_BANS and not path.startswith(_EXPORT):
    banned += ('tf_keras',)
  return banned


def import_problems(path: str, source: str) -> list[str]:
  """Imports that the layering forbids, and relative ones."""
  problems = []
  for line, name in _imports(ast.parse(source)):
    if name.startswith('.'):
      problems.append(f'{path}:{line}: relative import')
    problems += [
      f'{path}:{line}: must not import {package}'
      for package in _banned(path)
      if _is_below(name, package)
    ]
  return problems


def keras_problems(path: str, source: str) -> list[str]:
  """Keras by another name than `tf.keras` in the packages."""
  if path.split('/')[0] not in _FIRST_PARTY_BANS:
    return []
  return [
    f'{path}:{line}: use tf.keras, not {name}'
    for line, name in _imports(ast.parse(source))
    if _is_below(name, 'keras') or _is_below(name, 'tensorflow.keras')
  ]


def pure_tensor_problems(path: str, source: str) -> list[str]:
  """Uses of `tf.keras` in the pure tensor modules, which no import gives away."""
  if not path.startswith('hetlora_tff/') or pathlib.PurePosixPath(path).stem not in _TENSOR_MODULES:
    return []
  return [
    f'{path}:{node.lineno}: a pure tensor module must not use tf.keras'
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ('tf.keras', 'tensorflow.keras')
  ]


def private_tff_problems(path: str, source: str) -> list[str]:
  """Private TFF modules without a comment, there or on the line above, that says why."""
  lines = source.splitlines()
  problems = []
  for line, name in _imports(ast.parse(source)):
    explained = '#' in lines[line - 1] or (line > 1 and lines[line - 2].lstrip().startswith('#'))
    if _is_below(name, 'tensorflow_federated.python') and not explained:
      problems.append(f'{path}:{line}: private TFF import without a comment that says why')
  return problems


def runfiles_problems(path: str, source: str) -> list[str]:
  """Tests that follow `__file__` out of the files that Bazel gives them, which are links."""
  if not path.startswith('tests/') or path.startswith('tests/house/'):
    return []
  return [
    f'{path}:{number}: `__file__` resolved leaves the runfiles: use it as it is'
    for number, line in enumerate(source.splitlines(), 1)
    if re.search(r'__file__\)\.resolve|realpath\(__file__', line)
  ]


def size_problems(path: str, source: str) -> list[str]:
  """Modules and function bodies that are too long; a docstring does not count."""
  problems = []
  length = len(source.splitlines())
  if length > MODULE_LINES:
    problems.append(f'{path}: {length} lines, at most {MODULE_LINES}')
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      continue
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    length = (body[-1].end_lineno or 0) - body[0].lineno + 1
    if length > FUNCTION_LINES:
      problems.append(f'{path}:{node.lineno}: {node.name} has {length} lines of body')
  return problems


def header_problems(path: str, source: str) -> list[str]:
  """A missing licence header; a script has its interpreter line first."""
  lines = source.splitlines()
  start = 1 if lines and lines[0].startswith('#!') else 0
  if tuple(lines[start : start + 2]) == _HEADER:
    return []
  return [f'{path}: the licence header is missing']


def unfinished_problems(path: str, text: str) -> list[str]:
  """Marks of unfinished work."""
  return [
    f'{path}:{number}: unfinished: {line.strip()[:60]}'
    for number, line in enumerate(text.splitlines(), 1)
    if _UNFINISHED.search(line)
  ]


def machine_path_problems(path: str, text: str) -> list[str]:
  """Absolute paths of somebody's machine."""
  return [
    f'{path}:{number}: a path of one machine: {line.strip()[:60]}'
    for number, line in enumerate(text.splitlines(), 1)
    if _MACHINE_PATH.search(line)
  ]
