# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Values of configuration keys: how JSON and the command line write them, and their ranges.

A range is a function from a value to what is wrong with it, as the rest of a sentence that begins
with the option, or None.
"""

import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

Range = Callable[[Any], str | None]
# Not one inside brackets of a regular expression.
_SEPARATING_COMMA = re.compile(r',(?![^({\[]*[)}\]])')


def at_least(bound: float) -> Range:
  """The range from a bound upwards."""
  return lambda value: None if value >= bound else f'must be at least {bound}'


def between(least: float, most: float) -> Range:
  """The range from one bound to another, both of them in it."""
  return lambda value: None if least <= value <= most else f'must be in [{least}, {most}]'


def one_of(*choices: str | int) -> Range:
  """The range of some names or numbers."""
  named = ', '.join(map(str, choices))
  return lambda value: None if value in choices else f'must be one of {named}'


def seed(value: int) -> str | None:
  """The range of a seed."""
  return None if 0 <= value < 2**31 else 'must be in [0, 2^31)'


def positive(value: float) -> str | None:
  """The range above zero."""
  return None if value > 0 else 'must be positive'


def in_unit(value: float) -> str | None:
  """The range (0, 1]."""
  return None if 0 < value <= 1 else 'must be in (0, 1]'


def fraction(value: float) -> str | None:
  """The range (0, 1)."""
  return None if 0 < value < 1 else 'must be in (0, 1)'


def tier_shares(value: Mapping[int, float]) -> str | None:
  """The range of the shares of clients that have a rank, by rank."""
  if min(value, default=0) < 1 or not all(share > 0 for share in value.values()):
    return 'must give ranks of at least 1 positive shares'
  total = sum(value.values())
  return None if abs(total - 1) < 1e-6 else f'must have shares that sum to 1, not to {total:g}'


def distinct_labels(value: tuple[str, ...]) -> str | None:
  """The range of the labels of a classification."""
  return None if len(set(value)) == len(value) > 1 else 'must be two or more different labels'


def pattern_ranks(value: Mapping[str, int]) -> str | None:
  """The range of ranks by regular expression."""
  for regex in value:
    try:
      re.compile(regex)
    except re.error as error:
      return f'must have regular expressions before the colons ({error})'
  return None if min(value.values(), default=1) >= 1 else 'must have ranks of at least 1'


def from_json(expected: Any, value: Any) -> Any:
  """The value of a type that a JSON value stands for.

  Args:
    expected: a scalar type, a tuple of one type or a mapping.
    value: as `json` reads it; the names of an object are text.

  Raises:
    ValueError: if it does not stand for one.
  """
  parts = typing.get_args(expected)
  if _is_mapping(expected) and isinstance(value, dict):
    read = {parts[0](name): from_json(parts[1], item) for name, item in value.items()}
    if len(read) < len(value):
      raise ValueError(f'{value!r} has a name twice')
    return read
  if _is_tuple(expected) and isinstance(value, list):
    return tuple(from_json(parts[0], item) for item in value)
  if expected is float and type(value) is int:
    return float(value)
  if type(value) is not expected:
    raise ValueError(f'{value!r} is no {expected}')
  return value


def from_text(expected: Any, text: Any) -> Any:
  """The value that a word of the command line stands for.

  Args:
    expected: as in `from_json`; a word for a scalar has been read already, and is left alone.
    text: `VALUE,...` for a tuple, `NAME:VALUE,...` for a mapping; a comma in brackets, or a comma
      or colon within NAME, is none that separates.

  Raises:
    ValueError: if it has another form, or a name comes twice.
  """
  if _is_tuple(expected):
    return tuple(part.strip() for part in _SEPARATING_COMMA.split(text) if part.strip())
  if not _is_mapping(expected):
    return text
  pairs = re.findall(r'(.+?):([^:,]+)(?:,|$)', text)
  name, number = typing.get_args(expected)
  values = {name(left.strip()): number(right) for left, right in pairs}
  if ','.join(':'.join(pair) for pair in pairs) != text or len(values) < max(1, len(pairs)):
    raise ValueError(f'{text!r} is not NAME:VALUE,...')
  return values


def is_composed(expected: Any) -> bool:
  """Whether a type is one that the command line writes as text with commas."""
  return _is_tuple(expected) or _is_mapping(expected)


def type_name(expected: Any) -> str:
  """What a JSON file has to hold for a type, in words."""
  if _is_mapping(expected):
    return 'an object of numbers'
  return 'a list of strings' if _is_tuple(expected) else expected.__name__


def _is_tuple(expected: Any) -> bool:
  return typing.get_origin(expected) is tuple


def _is_mapping(expected: Any) -> bool:
  return typing.get_origin(expected) is Mapping
