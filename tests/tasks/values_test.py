# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Values in JSON and on the command line; their ranges are tried in config_test."""

from collections.abc import Mapping

import pytest

from tasks import values

_NAMES = tuple[str, ...]
_TIERS, _PATTERN = Mapping[int, float], Mapping[str, int]


@pytest.mark.parametrize(
  ('expected', 'text', 'value'),
  [
    (_NAMES, ' query, value ,', ('query', 'value')),
    (_NAMES, '', ()),
    (_NAMES, r'layer_\d{1,2}/(?:a|b),[c,d]', (r'layer_\d{1,2}/(?:a|b)', '[c,d]')),
    (_TIERS, '4:0.5,8:0.3, 32:0.2', {4: 0.5, 8: 0.3, 32: 0.2}),
    (_TIERS, '4:1', {4: 1.0}),
    (_PATTERN, r'layer_\d{1,2}:4,(?:a|b):8', {r'layer_\d{1,2}': 4, '(?:a|b)': 8}),
    (int, 3, 3),
    (str, 'a,b', 'a,b'),
  ],
)
def test_word_of_the_command_line(expected, text, value):
  assert values.from_text(expected, text) == value
  assert values.is_composed(expected) == (not isinstance(expected, type))


@pytest.mark.parametrize(
  'text', ['4', '4:', ':0.5', '4:a', '4.5:1', '4:0.5,4:0.5', '4:0.5,8', '4:0.5,', ',', '']
)
def test_word_of_another_form(text):
  with pytest.raises(ValueError, match=r'is not NAME:VALUE|invalid literal|could not convert'):
    values.from_text(_TIERS, text)


@pytest.mark.parametrize(
  ('expected', 'content', 'value'),
  [
    (_NAMES, ['query'], ('query',)),
    (_TIERS, {'4': 1, '8': 0.5}, {4: 1.0, 8: 0.5}),
    (_PATTERN, {'query': 4}, {'query': 4}),
    (float, 3, 3.0),
    (bool, True, True),
  ],
)
def test_json_value(expected, content, value):
  read = values.from_json(expected, content)
  assert read == value
  assert type(read) is type(value)


@pytest.mark.parametrize(
  ('expected', 'content'),
  [
    (int, True),
    (int, 3.0),
    (int, None),
    (float, True),
    (bool, 1),
    (str, 3),
    (_NAMES, 'query'),
    (_NAMES, [3]),
    (_TIERS, {'small': 1.0}),
    (_TIERS, {'4': '1.0'}),
    (_TIERS, [[4, 1.0]]),
    (_PATTERN, {'query': 4.0}),
  ],
)
def test_json_value_of_another_type(expected, content):
  with pytest.raises(ValueError, match=r'is no |invalid literal'):
    values.from_json(expected, content)
