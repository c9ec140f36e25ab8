# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What stands between the rounds of a private run and its clients: sampler, ledger and budget.

A round of a private run begins here or not at all: its clients are drawn with a secret key, and the
ledger counts it, on disk, before any of them is asked for anything.
"""

import contextlib
import hashlib
import pathlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

import privacy
from privacy import accounting, events
from tasks import dp_settings, participation
from tasks.checkpoints import RunState
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.run_directory import SECRETS
from tasks.samplers import SamplingError, build_sampler
from tasks.secrets import Secrets

LEDGER, DRAWS = 'ledger.jsonl', 'draws.jsonl'
NO_ANCHOR: dict[str, Any] = {'ledger_entries': 0, 'ledger_head': np.zeros(32, np.uint8)}


class Start(NamedTuple):
  """How a round begins.

  Attributes:
    cohort: indices of its clients; those from the number of clients on are canaries.
    fresh_noise: whether the aggregator's state, which holds the noise of a tree, is made anew.
  """

  cohort: list[int]
  fresh_noise: bool = False


class NoGuard:
  """For runs without privacy: cohorts by the seed, and no limit."""

  is_private = False

  def __init__(self, config: RunConfig, num_clients: int, root: pathlib.Path):
    """See `PrivacyGuard`."""
    self._config = config
    self._num_clients = num_clients
    self.checkpoint_folder = root / 'checkpoints'
    self._root = root
    self.evaluations = ''

  def log_file(self, name: str) -> pathlib.Path:
    """Where a log goes."""
    return self._root / name

  def open(self, state: RunState | None) -> None:
    """There is nothing to open."""

  def release(self, round_number: int) -> None:
    """There is nothing to note."""

  def anchor(self) -> dict[str, Any]:
    """What a checkpoint keeps of the ledger: nothing."""
    return NO_ANCHOR

  def reason_to_stop(self, round_number: int) -> str:
    """None."""
    return ''

  def silence(self) -> contextlib.AbstractContextManager[None]:
    """Whatever goes wrong is told."""
    return contextlib.nullcontext()

  def start_round(self, round_number: int) -> Start:
    """Draws the clients of a round."""
    clients = self._config.clients_per_round
    return Start(participation.cohort(self._num_clients, clients, self._config.seed, round_number))


class PrivacyGuard:
  """For private runs: counts every round before it starts, and refuses one above the budget.

  Attributes:
    checkpoint_folder: where the run's state goes.
    evaluations: prefix of the files that tell about single held-out clients.
  """

  is_private = True

  def __init__(self, config: RunConfig, num_clients: int, root: pathlib.Path):
    """Opens nothing yet; see `open`.

    Args:
      config: settled, see `tasks.dp_settings`.
      num_clients: that train, without canaries.
      root: directory of the run.
    """
    self._config = config
    self._spec = dp_settings.spec_of(config)
    self._num_clients = num_clients + config.audit_canaries
    self._ledger_path = root / LEDGER
    self._secrets = Secrets(root / SECRETS)
    # The state of correlated noise tells what noise is to come, and what was there.
    is_secret = self._spec.is_correlated
    self.checkpoint_folder = (root / SECRETS if is_secret else root) / 'checkpoints'
    self.evaluations = '' if config.public_eval_clients else f'{SECRETS}/'

  def log_file(self, name: str) -> pathlib.Path:
    """Where a log goes: it may quote clients, or tell how long they took."""
    return self._secrets.file(name)

  def open(self, state: RunState | None) -> None:
    """Opens the ledger and the sampler of a new or resumed run.

    Args:
      state: from which the run goes on; None for a new one.

    Raises:
      UserError: naming the ledger or the draws and what is wrong with them.
    """
    config = self._config
    try:
      self._ledger = privacy.Ledger(self._ledger_path)
      if state is not None:
        head = state.ledger_head.tobytes().hex()
        self._ledger.check_anchor(privacy.Anchor(state.ledger_entries, head))
      self._ledger.begin(
        self._spec,
        dp_settings.digest(config),
        delta=config.delta,
        target_epsilon=config.target_epsilon,
      )
      if self._ledger.rounds and not (self._secrets.directory / DRAWS).exists():
        raise UserError(
          f'{self._secrets.directory / DRAWS} is gone, without which clients could be drawn '
          'against the limits of this run; restore it or start a new run.'
        )
      self._sampler = build_sampler(
        self._spec.sampling,
        self._num_clients,
        config.clients_per_round,
        key=self._sampling_key(),
        draws=self._secrets.directory / DRAWS,
        min_separation=config.min_separation,
        max_participations=config.max_participations,
      )
    except (privacy.LedgerError, SamplingError) as error:
      raise UserError(str(error)) from error

  def anchor(self) -> dict[str, Any]:
    """What a checkpoint keeps of the ledger."""
    entries, head = self._ledger.anchor
    return {
      'ledger_entries': entries,
      'ledger_head': np.frombuffer(bytes.fromhex(head), np.uint8),
    }

  def reason_to_stop(self, round_number: int) -> str:
    """Why a round may not begin; empty where it may."""
    try:
      if not self._is_repeated(self._next(round_number)):
        self._sampler.check(self._attempts())
    except SamplingError as error:
      return f'{error} The model so far is kept.'
    target = self._config.target_epsilon
    if target is None or self._epsilon_with(round_number) <= target:
      return ''
    return f'another round would pass --target-epsilon {target:g}; the model so far is kept.'

  def _epsilon_with(self, round_number: int) -> float:
    """What everything started comes to with another round, as far as the claim goes."""
    starts = [*self._ledger.starts, self._next(round_number)]
    return accounting.claimed_epsilon(self._spec, starts, self._config.delta)

  def start_round(self, round_number: int) -> Start:
    """Draws the clients of a round and counts it, both on disk when this returns.

    Raises:
      UserError: if the sampler has nobody left to draw.
    """
    start = self._next(round_number)
    try:
      if self._is_repeated(start):
        cohort = self._sampler.repeat(round_number)
      else:
        cohort = self._sampler.draw(round_number, self._attempts())
    except SamplingError as error:
      raise UserError(str(error)) from error
    self._ledger.start_round(round_number, start.tree, start.leaf)
    return Start(cohort, fresh_noise=start.leaf == 0 and start.tree != 0)

  def release(self, round_number: int) -> None:
    """Notes that a round, whose checkpoint is on disk, is about to be seen."""
    self._ledger.release(round_number)

  @contextlib.contextmanager
  def silence(self) -> Iterator[None]:
    """Keeps to itself what goes wrong with clients: an error may quote their data.

    Raises:
      UserError: in place of any other error, which goes to a secret file.
    """
    try:
      yield
    except UserError:
      raise
    except Exception as error:
      path = self._secrets.directory / 'error.log'
      self._secrets.append_line(path.name, traceback.format_exc())
      raise UserError(
        f'A round failed, which counts nevertheless; {path} says why, and may quote clients.'
      ) from error

  def _next(self, round_number: int) -> events.Start:
    """How a round would start: on with the tree, its last leaf once more, or another tree.

    A round that is begun again and was not released is the same leaf: the same noise, which the
    checkpoint before it holds, for the same clients. Where it was released, the same noise beside a
    sum that rounds differently would tell the difference.
    """
    if not self._spec.is_correlated:
      return events.Start(round_number)
    leaves = self._leaves()
    if not leaves:
      return events.Start(round_number, 0, 0)
    last = leaves[-1]
    tree, leaf = last['tree'], last['leaf']
    # The first leaf of a later tree has noise that no checkpoint holds yet.
    can_repeat = leaf > 0 or tree == 0
    if can_repeat and last['round'] == round_number > self._ledger.last_release:
      return events.Start(round_number, tree, leaf)
    if last['round'] >= round_number or leaf + 1 == self._spec.restart_every:
      return events.Start(round_number, tree + 1, 0)
    return events.Start(round_number, tree, leaf + 1)

  def _is_repeated(self, start: events.Start) -> bool:
    """Whether a start is that of a leaf which was begun before."""
    return start.tree is not None and start in self._ledger.starts

  def _attempts(self) -> int:
    """What counts as drawn before, see `Sampler.draw`.

    For correlated noise leaves count and not starts: what was never a leaf of its own must not
    bring two turns of a client nearer to each other.
    """
    if not self._spec.is_correlated:
      return len(self._ledger.rounds)
    return len({(entry['tree'], entry['leaf']) for entry in self._leaves()})

  def _leaves(self) -> list[Mapping[str, Any]]:
    return [entry for entry in self._ledger.rounds if entry['kind'] == 'round']

  def _sampling_key(self) -> bytes:
    if self._config.insecure_seeded_noise:
      return hashlib.sha256(f'insecure {self._config.seed}'.encode()).digest()
    return self._secrets.key('sampling')


Guard: TypeAlias = NoGuard | PrivacyGuard


def build_guard(config: RunConfig, num_clients: int, root: pathlib.Path) -> Guard:
  """The guard that the settings of a run ask for; see `PrivacyGuard`."""
  kind = PrivacyGuard if dp_settings.is_private(config) else NoGuard
  return kind(config, num_clients, root)
