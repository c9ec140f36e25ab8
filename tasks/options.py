# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Options whose range and default depend on other options: one table, one walk over it.

A key that was left open is None until `settle` gives it the first value that its rules allow; a key
that has no meaning in a run has the one allowed value None, and stays so. What is settled settles
to itself.
"""

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.errors import UserError


class Limit(NamedTuple):
  """What a key may be.

  Attributes:
    values: all that it may be; the first is the default. Empty for a key that has to be given, and
      may be anything; `Anything` where it need not be given.
    because: why, as the end of a sentence that begins with the options that say so.
    instead: what else mends it, besides leaving the option out.
  """

  values: 'tuple[Any, ...] | Anything'
  because: str
  instead: str = ''


class Rule(NamedTuple):
  """A limit that holds where other keys have certain values.

  Attributes:
    key: the key that is limited.
    limit: to what.
    when: the values of other keys, all of them settled before this one, that bring it about.
  """

  key: str
  limit: Limit
  when: Mapping[str, Container[Any]]

  def holds(self, settled: Mapping[str, Any]) -> bool:
    """Whether the limit holds."""
    return all(settled[key] in values for key, values in self.when.items())


class AllBut(Container):
  """Every value but one, for `Rule.when`."""

  def __init__(self, value: Any):
    self._value = value

  def __contains__(self, value: object) -> bool:
    return value != self._value


class Anything(Collection):
  """Every value, one of them the default, for `Limit.values`."""

  def __init__(self, default: Any):
    self._default = default

  def __contains__(self, value: object) -> bool:
    return True

  def __iter__(self) -> Iterator[Any]:
    return iter([self._default])

  def __len__(self) -> int:
    return 1


def option(key: str) -> str:
  """The flag of a configuration key."""
  return '--' + key.replace('_', '-')


def as_flag(key: str, value: Any) -> list[str]:
  """The words that give a key its value on the command line; none for None."""
  if value is None:
    return []
  if isinstance(value, bool):
    return [option(key if value else f'no_{key}')]
  if isinstance(value, Mapping):
    value = ','.join(f'{name}:{number}' for name, number in value.items())
  elif isinstance(value, tuple):
    value = ','.join(value)
  return [option(key), str(value)]


def settle(
  given: Mapping[str, Any], defaults: Mapping[str, Any], rules: Sequence[Rule]
) -> dict[str, Any]:
  """Fills the keys that were left open and refuses what their rules exclude.

  Args:
    given: all keys; those in `defaults` may be None. A rule looks at keys that come earlier.
    defaults: of keys for which no rule holds.
    rules: in the order in which they are named in refusals; the first one's order of values
      decides the default.

  Returns:
    All keys, settled.

  Raises:
    UserError: naming the option, what excludes it and the mend.
  """
  settled: dict[str, Any] = {}
  for key, value in given.items():
    in_force = [rule for rule in rules if rule.key == key and rule.holds(settled)]
    for rule in in_force:
      if not _allows(rule, value):
        raise UserError(_refusal(rule, value, _named(rule.when, given, settled)))
    if value is None and in_force:
      value = next(
        choice
        for choice in in_force[0].limit.values
        if all(choice in rule.limit.values for rule in in_force)
      )
    settled[key] = defaults[key] if value is None and not in_force else value
  return settled


def _allows(rule: Rule, value: Any) -> bool:
  if not rule.limit.values:
    return value is not None
  return value is None or value in rule.limit.values


def _refusal(rule: Rule, value: Any, reason: str) -> str:
  if not rule.limit.values:
    return f'{option(rule.key)} is missing: {reason} {rule.limit.because}.'
  # None among others is for runs in which the key has no meaning: nothing that one could take.
  choices = [choice for choice in rule.limit.values if choice is not None] or [None]
  mend = 'leave it out' if len(choices) == 1 else f'take {" or ".join(map(str, choices))}'
  if rule.limit.instead:
    mend = f'{rule.limit.instead}, or {mend}'
  return f'{" ".join(as_flag(rule.key, value))}: {reason} {rule.limit.because}; {mend}.'


def _named(keys: Iterable[str], given: Mapping[str, Any], settled: Mapping[str, Any]) -> str:
  """The options that bring a rule about, and which of them nobody asked for."""
  return ' with '.join(
    f'no {option(key)}'
    if settled[key] is None
    else ' '.join(as_flag(key, settled[key]))
    + ('' if given[key] is not None else ' (the default here)')
    for key in keys
  )
