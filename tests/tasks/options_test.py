# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The walk over rules, on a small table of its own."""

import pytest

from tasks.errors import UserError
from tasks.options import AllBut, Anything, Limit, Rule, as_flag, option, settle

_RULES = (
  Rule('drink', Limit(('tea', 'milk', 'water'), 'has no bar'), {'place': ('home',)}),
  Rule('drink', Limit(('water', 'milk'), 'is for sleep'), {'hour': (3,)}),
  Rule('sugar', Limit((None,), 'is no hot drink'), {'drink': AllBut('tea')}),
  Rule('sugar', Limit((1, 2, None), 'is a small place'), {'place': ('home',)}),
  Rule('cup', Limit((), 'is poured into one'), {'drink': ('tea', 'milk'), 'place': ('home',)}),
)
_DEFAULTS = {'drink': 'wine', 'sugar': 2}


def _settle(**given):
  keys = ('place', 'hour', 'drink', 'sugar', 'cup')
  usual = {'place': 'home', 'hour': 12, 'cup': 'blue'}
  given = {key: {**usual, **given}.get(key) for key in keys}
  return settle(given, _DEFAULTS, _RULES)


def test_open_key_gets_its_default_or_the_first_value_that_all_rules_allow():
  assert _settle()['drink'] == 'tea'
  assert _settle(hour=3)['drink'] == 'milk'
  assert _settle(place='bar')['drink'] == 'wine'
  assert _settle(place='bar', hour=3)['drink'] == 'water'


def test_rules_see_settled_values():
  assert _settle()['sugar'] == 1
  assert _settle(place='bar')['sugar'] is None


def test_what_is_allowed_is_kept_and_settles_to_itself():
  settled = _settle(drink='water')
  assert settled['drink'] == 'water'
  assert settle(settled, _DEFAULTS, _RULES) == settled


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'drink': 'wine'}, '--drink wine: --place home has no bar; take tea or milk or water.'),
    ({'drink': 'tea', 'hour': 3}, '--drink tea: --hour 3 is for sleep; take water or milk.'),
    (
      {'sugar': 1, 'drink': 'water'},
      '--sugar 1: --drink water is no hot drink; leave it out.',
    ),
    (
      {'sugar': 1, 'hour': 3},
      '--sugar 1: --drink milk (the default here) is no hot drink; leave it out.',
    ),
    ({'sugar': 3}, '--sugar 3: --place home is a small place; take 1 or 2.'),
    (
      {'cup': None},
      '--cup is missing: --drink tea (the default here) with --place home is poured into one.',
    ),
  ],
)
def test_refusal_names_option_reason_and_mend(given, message):
  with pytest.raises(UserError) as caught:
    _settle(**given)
  assert str(caught.value) == message


def test_all_but_one_value():
  assert 'a' not in AllBut('a')
  assert None in AllBut('a')


@pytest.mark.parametrize(
  ('value', 'words'),
  [
    (3, ['--a-key', '3']),
    (True, ['--a-key']),
    (False, ['--no-a-key']),
    (None, []),
    (('b', 'c'), ['--a-key', 'b,c']),
    ({4: 0.5, 8: 0.5}, ['--a-key', '4:0.5,8:0.5']),
  ],
)
def test_flag_of_a_value(value, words):
  assert option('a_key') == '--a-key'
  assert as_flag('a_key', value) == words


def test_a_key_may_be_free_and_have_another_default_than_elsewhere():
  rules = (Rule('drink', Limit(Anything(None), 'sells nothing'), {'place': ('street',)}),)

  def drink(place, given):
    return settle({'place': place, 'drink': given}, {'drink': 'wine'}, rules)['drink']

  assert drink('street', None) is None
  assert drink('street', 'cocoa') == 'cocoa'
  assert drink('home', None) == 'wine'
