# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Who takes part in the rounds of a private run; no TensorFlow.

A cohort is a function of a secret key and of the attempt, the number of rounds that were started
before: whatever ends the process, the same attempt has the same cohort, and no two attempts share
their randomness. The stream is SHAKE-256 of key and attempt, so that cohorts that somebody learns
of say nothing about others.
"""

import collections
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from privacy.spec import Sampling
from tasks import secrets
from tasks.errors import UserError

Cohort = Callable[[int], list[int]]


class SamplingError(ValueError):
  """A population that cannot serve the rounds, or draws that were made otherwise."""


class Draw(NamedTuple):
  """A cohort as it was drawn.

  Attributes:
    round_number: what it was drawn for, from 1.
    attempt: rounds that were started before, those included that were repeated or torn.
    clients: indices into the population, ascending.
  """

  round_number: int
  attempt: int
  clients: list[int]


class Observed(NamedTuple):
  """What draws came to, for a report where they are no secret.

  Attributes:
    rounds: attempts that were drawn.
    max_participations: of one client; 0 without any.
    min_separation: least attempts from one participation of a client to its next; None if nobody
      took part twice.
    smallest_cohort: clients in the smallest one.
    largest_cohort: clients in the largest one.
  """

  rounds: int
  max_participations: int
  min_separation: int | None
  smallest_cohort: int
  largest_cohort: int


class Sampler:
  """Draws cohorts, and keeps on disk who was drawn before anybody is asked for anything."""

  def __init__(self, cohort: Cohort, draws: pathlib.Path):
    """Goes on with the draws of a file.

    Args:
      cohort: from an attempt to its clients, always the same.
      draws: file of the draws so far, which need not exist.

    Raises:
      SamplingError: if the last of them is not what `cohort` gives: the key has changed.
      UserError: if the file is malformed.
    """
    self._cohort = cohort
    self._path = draws
    self._draws = read_draws(draws)
    if self._draws and self._draws[-1].clients != cohort(self._draws[-1].attempt):
      raise SamplingError(
        f'{draws} was drawn with another key or from other clients; restore both or start a new'
        ' run.'
      )

  def draw(self, round_number: int, attempt: int) -> list[int]:
    """Returns the cohort of an attempt, which is on disk then.

    Args:
      round_number: from 1.
      attempt: number of rounds started before, those included that were repeated or torn. Drawn
        again, it has the same cohort, and so may be drawn again only if it was not started.

    Raises:
      SamplingError: if the population cannot serve it.
    """
    draw = Draw(round_number, attempt, self._cohort(attempt))
    if not self._draws or self._draws[-1] != draw:
      secrets.append_line(self._path, draw._asdict())
      self._draws.append(draw)
    return draw.clients

  def check(self, attempt: int) -> None:
    """Checks that an attempt can be drawn.

    Raises:
      SamplingError: if the population cannot serve it.
    """
    self._cohort(attempt)

  def repeat(self, round_number: int) -> list[int]:
    """Returns the cohort that a round had last, for a round that counts as the same.

    Raises:
      SamplingError: if nobody was drawn for that round.
    """
    for draw in reversed(self._draws):
      if draw.round_number == round_number:
        return draw.clients
    raise SamplingError(f'{self._path} has no clients of round {round_number}; start a new run.')


def build_sampler(
  sampling: Sampling,
  num_clients: int,
  clients_per_round: int,
  *,
  key: bytes,
  draws: pathlib.Path,
  min_separation: int | None = None,
  max_participations: int | None = None,
) -> Sampler:
  """The sampler of a run.

  Args:
    sampling: POISSON: each client takes part with probability `clients_per_round / num_clients`,
      by itself, and a cohort may be empty; FIXED: so many, without replacement; MIN_SEPARATION: so
      many, of those that did not take part in the last `min_separation - 1` attempts.
    num_clients: size of the population.
    clients_per_round: expected or exact size of a cohort.
    key: secret of this run.
    draws: file of the draws, in a directory that others cannot read.
    min_separation: attempts from one participation of a client to its next, for MIN_SEPARATION.
    max_participations: of one client, for MIN_SEPARATION; None for no bound.

  Raises:
    SamplingError: if the population cannot serve the rounds, naming the option to change.
  """
  return Sampler(
    _cohorts(sampling, num_clients, clients_per_round, min_separation, max_participations, key),
    draws,
  )


def check_serves(
  sampling: Sampling,
  num_clients: int,
  clients_per_round: int,
  *,
  rounds: int,
  min_separation: int | None = None,
  max_participations: int | None = None,
) -> None:
  """Checks that a population lasts for all planned rounds; see `build_sampler`.

  Raises:
    SamplingError: if it does not, naming the option to change.
  """
  any_key = b''
  cohort = _cohorts(
    sampling, num_clients, clients_per_round, min_separation, max_participations, any_key
  )
  # The last round of every group, which need not be of one size.
  for attempt in range(max(0, rounds - (min_separation or 1)), rounds):
    cohort(attempt)


def _cohorts(
  sampling: Sampling,
  num_clients: int,
  clients_per_round: int,
  min_separation: int | None,
  max_participations: int | None,
  key: bytes,
) -> Cohort:
  if clients_per_round > num_clients:
    raise SamplingError(
      f'--clients-per-round {clients_per_round}: there are only {num_clients} clients that train.'
    )
  match sampling:
    case Sampling.POISSON:
      return _poisson(num_clients, clients_per_round / num_clients, key)
    case Sampling.FIXED:
      return _fixed(num_clients, clients_per_round, key)
    case Sampling.MIN_SEPARATION:
      return _separated(num_clients, clients_per_round, min_separation, max_participations, key)


def read_draws(path: pathlib.Path) -> list[Draw]:
  """The draws of a file, without one that a kill tore; none where there is no file.

  Raises:
    UserError: naming the file and the line that is no draw.
  """
  return [_draw(path, number, line) for number, line in enumerate(secrets.read_lines(path), 1)]


def observed(draws: Sequence[Draw]) -> Observed:
  """Counts participations, every attempt once."""
  cohorts = {draw.attempt: draw.clients for draw in draws}
  attempts: dict[int, list[int]] = collections.defaultdict(list)
  for attempt in sorted(cohorts):
    for client in cohorts[attempt]:
      attempts[client].append(attempt)
  gaps = [int(np.diff(turns).min()) for turns in attempts.values() if len(turns) > 1]
  sizes = [len(clients) for clients in cohorts.values()]
  return Observed(
    rounds=len(cohorts),
    max_participations=max(map(len, attempts.values()), default=0),
    min_separation=min(gaps, default=None),
    smallest_cohort=min(sizes, default=0),
    largest_cohort=max(sizes, default=0),
  )


def _poisson(num_clients: int, probability: float, key: bytes) -> Cohort:
  def cohort(attempt: int) -> list[int]:
    # 53 bits: all that a double below 1 holds.
    uniform = (_stream(key, 'poisson', attempt, num_clients) >> np.uint64(11)) * 2.0**-53
    return np.flatnonzero(uniform < probability).tolist()

  return cohort


def _fixed(num_clients: int, clients_per_round: int, key: bytes) -> Cohort:
  def cohort(attempt: int) -> list[int]:
    order = np.argsort(_stream(key, 'fixed', attempt, num_clients))
    return sorted(order[:clients_per_round].tolist())

  return cohort


def _separated(
  num_clients: int,
  clients_per_round: int,
  min_separation: int | None,
  max_participations: int | None,
  key: bytes,
) -> Cohort:
  """Attempt t asks group t mod `min_separation`, each time the next in its circle.

  So turns are a multiple of `min_separation` apart, and within a group those of any two clients
  differ by one at most.
  """
  if min_separation is None or min_separation * clients_per_round > num_clients:
    raise SamplingError(
      f'--min-separation {min_separation}: {num_clients} clients that train, {clients_per_round} a'
      f' round, can be at most {num_clients // clients_per_round} rounds apart.'
    )
  order = np.argsort(_stream(key, 'partition', 0, num_clients))
  groups = [order[first::min_separation].tolist() for first in range(min_separation)]

  def cohort(attempt: int) -> list[int]:
    group = groups[attempt % min_separation]
    first = attempt // min_separation * clients_per_round
    end = first + clients_per_round
    if max_participations is not None and end > max_participations * len(group):
      raise SamplingError(
        f'--max-participations {max_participations}: {num_clients} clients that train,'
        f' {clients_per_round} a round and {min_separation} rounds apart, do not last for'
        f' {attempt + 1} rounds; take more participations, fewer rounds or fewer clients a round.'
      )
    return sorted(group[place % len(group)] for place in range(first, end))

  return cohort


def _stream(key: bytes, purpose: str, attempt: int, size: int) -> np.ndarray:
  """Uniform uint64 `[size]`, of their own for every key, purpose, attempt and size."""
  seed = key + f'/{purpose}/{attempt}/{size}'.encode()
  return np.frombuffer(hashlib.shake_256(seed).digest(8 * size), '<u8')


def _draw(path: pathlib.Path, number: int, line: Any) -> Draw:
  match line:
    case {'round_number': int(), 'attempt': int(), 'clients': [*clients]}:
      if all(type(client) is int for client in clients):
        return Draw(**line)
  raise UserError(f'{path}, line {number}: no draw; restore it or start a new run.')
