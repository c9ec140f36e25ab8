# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the documentation strings of installed distributions, without importing any of them."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_TEST_PART = re.compile(r'^(tests?|testing|_?test_.*|.*_tests?)$')
_FENCE = re.compile(r'```.*?(```|\Z)', re.DOTALL)
# From a prompt to the end of its paragraph: the lines after a prompt are its output.
_DOCTEST = re.compile(r'^[ \t]*>>>.*(?:\n(?![ \t]*$).*)*', re.MULTILINE)
_RULE = re.compile(r'^[ \t]*[-=~^*#_"`+]{3,}[ \t]*$', re.MULTILINE)
_DIRECTIVE = re.compile(r'^[ \t]*\.\. .*$', re.MULTILINE)
_ROLE = re.compile(r':[\w:+.-]+:(?=`)')


class Docstring(NamedTuple):
  """One documentation string and where it stands.

  Attributes:
    module: dotted name of the module.
    name: name of the function, class or module it documents, without its parents.
    text: the string as written, without its common indentation.
  """

  module: str
  name: str
  text: str


def paragraphs(text: str) -> list[str]:
  """Returns the paragraphs of a docstring as single lines of prose.

  Dropped: fenced code, doctests with their output, directives, heading rules and the names of
  cross-reference roles. White space inside a paragraph becomes one space.
  """
  text = inspect.cleandoc(text).replace('<|endoftext|>', '')
  for pattern in (_FENCE, _DOCTEST, _RULE, _DIRECTIVE, _ROLE):
    text = pattern.sub('', text)
  blocks = re.split(r'\n[ \t]*\n', text.replace('``', '`'))
  lines = (' '.join(block.split()) for block in blocks)
  return [line for line in lines if line]


def version(distribution: str) -> str | None:
  """Returns the installed version of a distribution, or None where it is not installed."""
  try:
    return metadata.version(distribution)
  except metadata.PackageNotFoundError:
    return None


def read_me(distribution: str) -> str:
  """Returns the long description of an installed distribution, which is most often its README."""
  message = metadata.metadata(distribution)
  payload = message.get_payload()  # pyright: ignore[reportAttributeAccessIssue]
  return payload if isinstance(payload, str) else ''


def docstrings(distribution: str) -> Iterator[Docstring]:
  """Yields the docstrings of an installed distribution, tests left out.

  Modules come in the order of their names and docstrings in the order of the source, whatever the
  file system or the distribution's file list says.

  Args:
    distribution: the name under which it is installed, such as 'scikit-learn'.

  Raises:
    importlib.metadata.PackageNotFoundError: if it is not installed.
  """
  for module, tree in _modules(distribution):
    for node in _in_source_order(tree):
      if isinstance(node, _DOCUMENTED):
        text = ast.get_docstring(node)
        if text:
          yield Docstring(module, getattr(node, 'name', module.rpartition('.')[2]), text)


def long_strings(distribution: str) -> Iterator[str]:
  """Yields the string literals that hold a blank line: docstrings and the like of `add_newdoc`.

  Raises:
    importlib.metadata.PackageNotFoundError: if it is not installed.
  """
  for _, tree in _modules(distribution):
    for node in _in_source_order(tree):
      if isinstance(node, ast.Constant) and isinstance(node.value, str) and '\n\n' in node.value:
        yield node.value


def _modules(distribution: str) -> Iterator[tuple[str, ast.Module]]:
  found = {}
  for file in metadata.distribution(distribution).files or ():
    parts = file.with_suffix('').parts
    if file.suffix != '.py' or '..' in parts or any(_TEST_PART.match(part) for part in parts):
      continue
    found['.'.join(parts).removesuffix('.__init__')] = file.locate()
  for module in sorted(found):
    try:
      source = found[module].read_text(encoding='utf-8')
      if '"""' in source or "'''" in source:
        with warnings.catch_warnings():
          # Other people's invalid escape sequences are not our user's concern.
          warnings.simplefilter('ignore')
          yield module, ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError):
      # Templates, Python 2 leftovers and removed files: there is nothing to read in them.
      continue


def _in_source_order(tree: ast.AST) -> Iterator[ast.AST]:
  stack = [tree]
  while stack:
    node = stack.pop()
    yield node
    stack.extend(reversed(list(ast.iter_child_nodes(node))))
