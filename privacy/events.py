# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""From a spec and the rounds that were started to a `dp_accounting` event, before any epsilon.

An event is exact about what it composes: sensitivity is inside it, so a clip-to-S sum under
REPLACE_ONE, which one client moves by 2 S, is a Gaussian with half the noise multiplier. (The
accountants do not double it themselves.) So is what rounding for a secure sum adds to a client's
values: of S' instead of S, the multiplier is z S / S'. All events hold for adaptive composition.
"""

import bisect
import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import dp_accounting

from privacy.spec import DpSpec, Mechanism, Relation, Sampling
from privacy.trees import Tree, squared_sensitivity


@dataclasses.dataclass(frozen=True)
class SkellamDpEvent(dp_accounting.DpEvent):
  """Integers summed under Skellam noise, as `privacy.skellam` bounds them.

  Attributes:
    variance: of the noise on a coordinate.
    l1: how far one client can move the sum in L1 norm.
    l2: the same in L2 norm.
  """

  variance: float
  l1: float
  l2: float


_EVENT_TYPES = {
  kind.__name__: kind
  for kind in (
    dp_accounting.NoOpDpEvent,
    dp_accounting.NonPrivateDpEvent,
    dp_accounting.UnsupportedDpEvent,
    dp_accounting.GaussianDpEvent,
    dp_accounting.PoissonSampledDpEvent,
    dp_accounting.SelfComposedDpEvent,
    dp_accounting.ComposedDpEvent,
    SkellamDpEvent,
  )
}


class Start(NamedTuple):
  """A round that was started, whether or not anything of it was released.

  Attributes:
    round: its number; None where only that there was one is known.
    tree: which independent draw of correlated noise it belongs to; None for independent noise.
    leaf: its place in that draw, from 0.
  """

  round: int | None
  tree: int | None = None
  leaf: int | None = None


def round_event(spec: DpSpec, *, amplified: bool) -> dp_accounting.DpEvent:
  """The event of one round whose noise is independent of that of other rounds.

  Args:
    spec: of the run; of the production run, where the spec projects.
    amplified: whether to count on the sampling.

  Raises:
    ValueError: if the noise is not independent, or the spec claims no amplification.
  """
  if spec.is_correlated:
    raise ValueError(f'A round under {spec.mechanism} has no event apart from the other rounds.')
  _check_claim(spec, amplified)
  if spec.mechanism is Mechanism.SKELLAM:
    return _skellam_event(spec)
  event = dp_accounting.GaussianDpEvent(_multiplier(spec))
  probability = spec.sampling_probability
  if not amplified or probability is None:
    return event
  return dp_accounting.PoissonSampledDpEvent(probability, event)


def run_event(spec: DpSpec, rounds: int, *, amplified: bool) -> dp_accounting.DpEvent:
  """The event of a run in which everything goes as planned.

  Args:
    spec: of the run; of the production run, where the spec projects.
    rounds: how many, at least 0.
    amplified: whether to count on the sampling.

  Raises:
    ValueError: if the spec claims no amplification.
  """
  return started_event(spec, planned(spec, rounds), amplified=amplified)


def planned(spec: DpSpec, rounds: int) -> list[Start]:
  """The rounds of a run in which everything goes as planned, numbered from 0."""
  if not spec.is_correlated:
    return [Start(number) for number in range(rounds)]
  leaves = spec.restart_every or max(rounds, 1)
  return [Start(number, *divmod(number, leaves)) for number in range(rounds)]


def started_event(
  spec: DpSpec, starts: Sequence[Start], *, amplified: bool
) -> dp_accounting.DpEvent:
  """The event of all rounds that were started.

  A repeated round with independent noise is one more round: under POISSON sampling its clients are
  drawn again, elsewhere they may be the same. A round of a tree that is repeated as the same leaf,
  with the same clients and the same noise, is none. Of a round that is not known nothing can have
  been released; it counts as one that every client was in, in a tree of its own.

  Args:
    spec: of the run; of the production run, where the spec projects.
    starts: in order, repeated ones included.
    amplified: whether to count on the sampling.

  Raises:
    ValueError: if the spec claims no amplification, or a tree's leaves are not consecutive rounds.
  """
  _check_claim(spec, amplified)
  if not starts:
    return dp_accounting.NoOpDpEvent()
  if not spec.is_correlated:
    event, count = round_event(spec, amplified=amplified), len(starts)
    if spec.sampling is Sampling.MIN_SEPARATION:
      count = most_participations(spec, starts)
    return dp_accounting.SelfComposedDpEvent(event, count)
  trees = forest(starts)
  if spec.mechanism is Mechanism.TREE:
    squared = _unknown(starts) + squared_sensitivity(
      trees,
      min_separation=spec.min_separation or 1,
      max_participations=spec.max_participations,
    )
  else:
    # Leaves are consecutive rounds, or there were no forest, and at least as far apart as there are
    # bands: the columns of the matrix that a client is in do not overlap, and each has norm 1.
    squared = most_participations(spec, starts)
  return dp_accounting.GaussianDpEvent(_multiplier(spec) / math.sqrt(squared))


def most_participations(spec: DpSpec, starts: Sequence[Start]) -> int:
  """In how many started rounds one client can have been, under MIN_SEPARATION sampling.

  Up to `max_participations`, any rounds whose numbers are `min_separation` apart, with all attempts
  at each of them. That is as much as a sampler can bring about that goes by round numbers, and at
  least as much as one that goes by starts, whose repeated rounds have other clients: the rounds of
  one remainder have an average share of the starts or more. Rounds that are not known come on top.
  """
  # A leaf has its clients once, however often it is started.
  leaves = {start for start in starts if start.tree is not None}
  others = [start for start in starts if start.tree is None]
  attempts = collections.Counter(start.round for start in (*leaves, *others))
  numbers = sorted(number for number in attempts if number is not None)
  # best[i]: the most attempts of one client in the first i of the rounds.
  best = [0]
  for index, number in enumerate(numbers):
    apart = bisect.bisect_right(numbers, number - (spec.min_separation or 1))
    best.append(max(best[index], best[apart] + attempts[number]))
  return min(best[-1], spec.max_participations or best[-1]) + _unknown(starts)


def forest(starts: Iterable[Start]) -> list[Tree]:
  """The trees that known rounds belong to, in the order of their first starts.

  Raises:
    ValueError: if a tree's leaves are not consecutive rounds.
  """
  first_rounds: dict[int, int] = {}
  leaves: dict[int, int] = {}
  for start in starts:
    if start.round is None:
      continue
    if start.tree is None or start.leaf is None:
      raise ValueError(f'Correlated noise needs the tree and the leaf of a round, got {start}.')
    if first_rounds.setdefault(start.tree, start.round - start.leaf) != start.round - start.leaf:
      raise ValueError(f'{start} is not the round that follows from the leaves before it.')
    leaves[start.tree] = max(leaves.get(start.tree, 0), start.leaf + 1)
  return [Tree(first_rounds[tree], leaves[tree]) for tree in first_rounds]


def _unknown(starts: Iterable[Start]) -> int:
  return sum(start.round is None for start in starts)


def to_json(event: dp_accounting.DpEvent) -> dict[str, Any]:
  """An event as JSON has it: its type's name and its fields.

  Raises:
    ValueError: if it is of a type that no run of this package composes.
  """
  name = type(event).__name__
  if name not in _EVENT_TYPES:
    raise ValueError(f'{name} has no JSON form.')
  fields: dict[str, Any] = {'type': name}
  for key in _field_names(event):
    value = getattr(event, key)
    if key == 'event':
      value = to_json(value)
    elif key == 'events':
      value = [to_json(part) for part in value]
    fields[key] = value
  return fields


def from_json(fields: Mapping[str, Any]) -> dp_accounting.DpEvent:
  """The inverse of `to_json`.

  Raises:
    ValueError: if `fields` is no event.
  """
  values = dict(fields)
  kind = _EVENT_TYPES.get(values.pop('type', None))
  if kind is None:
    raise ValueError(f'Not an event: {fields}.')
  if 'event' in values:
    values['event'] = from_json(values['event'])
  if 'events' in values:
    values['events'] = [from_json(part) for part in values['events']]
  try:
    return kind(**values)
  except TypeError as error:
    raise ValueError(f'Not an event: {error}.') from error


def _field_names(event):
  if dataclasses.is_dataclass(event):
    return [field.name for field in dataclasses.fields(event)]
  return [field.name for field in event.__attrs_attrs__]


def _multiplier(spec: DpSpec) -> float:
  """Noise of one draw in units of what one client can move its sum by."""
  return spec.noise_multiplier / spec.inflation / _rounded_clips(spec)


def _rounded_clips(spec: DpSpec) -> int:
  """How many of them a client moves a sum by, as the relation has it."""
  return 2 if spec.relation is Relation.REPLACE_ONE else 1


def _skellam_event(spec: DpSpec) -> SkellamDpEvent:
  """One round in steps of the grid, with `noise_shares` shares of noise, the least there are.

  Squares of integers are no less than the integers: the L1 norm is at most the squared L2 norm.
  """
  sums = spec.secure_sum
  if sums is None or sums.rounded_clip is None or sums.coordinates is None:
    raise ValueError('SKELLAM noise needs a `secure_sum` with an `l2_clip_norm`.')
  l2 = _rounded_clips(spec) * sums.rounded_clip / sums.step
  deviation = spec.noise_multiplier * spec.l2_clip_norm / sums.step
  return SkellamDpEvent(deviation**2, min(math.sqrt(sums.coordinates) * l2, l2**2), l2)


def _check_claim(spec: DpSpec, amplified: bool):
  if amplified and not spec.amplified:
    raise ValueError('The spec claims no amplification by sampling.')
