# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The program: rounds, evaluations, checkpoints and files of one run."""

import contextlib
import dataclasses
import pathlib
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import hetlora_tff
from tasks import (
  artifacts,
  audit,
  device_evaluation,
  dp_settings,
  finished_run,
  logs,
  metrics,
  privacy_guard,
  privacy_report,
  releases,
  report,
  results,
  run_inputs,
  secure_facts,
)
from tasks.checkpoints import Checkpoints, RunState
from tasks.config import RunConfig
from tasks.config_files import from_json as config_from_json
from tasks.console import Progress, Verbosity
from tasks.errors import UserError
from tasks.experiment import Experiment
from tasks.held_out import HeldOut
from tasks.logs import Event, RunLog
from tasks.remote_rounds import RemoteRounds
from tasks.run_directory import RunDirectory
from tasks.worker import LocalWorker

SUMMARY = 'summary.json'


def train(
  config: RunConfig,
  output_dir: pathlib.Path,
  *,
  resume: bool,
  command: list[str],
  workers: Sequence[str] = (),
  token: str | None = None,
  verbosity: Verbosity = Verbosity.NORMAL,
  tensorboard: bool = False,
) -> dict[str, Any]:
  """Runs or resumes a training run; returns its summary, also in `summary.json`.

  Args:
    config: of the run.
    output_dir: its directory: new or, with `resume`, one that holds it.
    resume: whether to go on from its last checkpoint.
    command: that began it, for the report.
    workers: `host:port` of each `hetlora worker` that trains clients; none for this machine.
    token: that these workers want, if they do.
    verbosity: how much is said on stderr.
    tensorboard: whether to write for TensorBoard, too.

  Raises:
    UserError: for what the user can mend.
  """
  if tensorboard and dp_settings.is_private(config):
    raise UserError(
      '--tensorboard stamps every round with its time, and how long rounds take depends on who was'
      ' drawn; leave it out of a private run: metrics.csv has what may be told.'
    )
  quiet, verbose = (verbosity is kind for kind in (Verbosity.QUIET, Verbosity.VERBOSE))
  with RunDirectory(output_dir, resume=resume) as directory, Progress(quiet=quiet) as progress:
    progress.say(f'Loading {config.task} and the {config.backbone} backbone ...')
    if workers and config.deviation_from_exact:
      progress.say('--workers: deviation_from_exact needs all updates in one place; left out.')
      config = dataclasses.replace(config, deviation_from_exact=False)
    experiment = Experiment(config, progress.say)
    if resume:
      run_inputs.check(experiment, directory)
    guard = privacy_guard.build_guard(experiment.config, len(experiment.client_ids), directory.root)
    may_leave = _boundary(guard)
    show = (lambda field: may_leave(('metrics', field))) if verbose else None
    told = releases.Releases(directory, progress, may_leave=may_leave, tensorboard=tensorboard)
    with (
      RunLog(guard.log_file(logs.LOG), progress.say, show=show) as log,
      LocalWorker(experiment.concurrent_clients(), log_file=guard.log_file('worker.log')),
    ):
      if experiment.config.secure_aggregation:
        log.say(secure_facts.grid(experiment.config))
      log.say('Building the federated process ...')
      process = experiment.build_process()
      rounds = _build_rounds(process, experiment, workers, token, log)
      run = _Run(experiment, process, rounds, guard, directory, progress, told, log)
      return run.finish(run.all_rounds(resume), command)


def _boundary(guard: privacy_guard.Guard) -> releases.Filter:
  if guard.is_private:
    return releases.privacy_boundary(public_held_out=not guard.evaluations)
  return releases.everything


class _LocalRounds:
  """Rounds in TFF's current context."""

  def __init__(self, process: hetlora_tff.HetLoraProcess):
    self._process = process

  def close(self) -> None:
    """There is nothing to give up."""

  def next(self, state: Any, client_data: Sequence[Any]) -> hetlora_tff.HetLoraOutput:
    """As `process.next`, of nobody, too: a runtime hands nothing back to nobody."""
    if client_data:
      return self._process.next(state, client_data)
    output = self._process.as_learning_process().next(state, client_data)
    return hetlora_tff.HetLoraOutput(output.state, output.metrics, [])


def _build_rounds(
  process: hetlora_tff.HetLoraProcess,
  experiment: Experiment,
  workers: Sequence[str],
  token: str | None,
  log: RunLog,
) -> _LocalRounds | RemoteRounds:
  if not workers:
    return _LocalRounds(process)
  backbone = experiment.base.backbone
  try:
    return RemoteRounds(process, workers, backbone=backbone, token=token, say=log.warn)
  except ValueError as error:
    raise UserError(f'--workers: {error}') from error


class _Run:
  """The steps of a run, on its experiment, process and directory."""

  def __init__(
    self,
    experiment: Experiment,
    process: hetlora_tff.HetLoraProcess,
    rounds: _LocalRounds | RemoteRounds,
    guard: privacy_guard.Guard,
    directory: RunDirectory,
    progress: Progress,
    told: releases.Releases,
    log: RunLog,
  ):
    self._experiment = experiment
    self._process = process
    self._rounds = rounds
    self._guard = guard
    self._directory = directory
    self._progress = progress
    self._told = told
    self._log = log
    self._held_out = HeldOut(experiment, directory, guard.evaluations, progress, log)
    # Whose release waits until the first round has been trained beside its evaluation.
    self._untold: RunState | None = None
    self._checkpoints = Checkpoints(guard.checkpoint_folder, log.warn, self._saved)

  def all_rounds(self, resume: bool) -> RunState:
    """The state after the last round, whose checkpoint is on disk."""
    with contextlib.closing(self._rounds), self._checkpoints:
      state = self._start(resume)
      while state.round_number < self._experiment.config.rounds and self._affords_round(state):
        state = self._one_round(state)
    return state

  def _start(self, resume: bool) -> RunState:
    """The untuned base, measured; or the last good checkpoint."""
    config, learning = self._experiment.config, self._experiment.initial_state(self._process)
    initial = RunState(0, learning, self._experiment.initial_ranks, **privacy_guard.NO_ANCHOR)
    state = self._restore(initial) if resume else None
    if state is not None and state.round_number > config.rounds:
      raise UserError(f'--rounds {config.rounds}: this run has done {state.round_number} already.')
    self._directory.write_json('config.json', config.to_json())
    remote = isinstance(self._rounds, RemoteRounds)
    run_inputs.record(self._experiment, self._directory, remote_workers=remote)
    if state is None or state.round_number < config.rounds:
      # What a run with fewer rounds ended with is no result of this one.
      (self._directory.root / SUMMARY).unlink(missing_ok=True)
    self._guard.open(state)
    if state is None:
      self._log.event(Event.STARTED, task=config.task, method=config.method, rounds=config.rounds)
      state = initial._replace(**self._guard.anchor())
      self._told.start(None)
      if self._guard.is_private:
        # How long its evaluation takes is told, and must not depend on who trains.
        self._release(state, {})
      else:
        self._held_out.begin(self._parameters(state))
        self._untold = state
      self._save(state)
    else:
      self._log.event(Event.RESUMED, round=state.round_number, rounds=config.rounds)
      if not self._told.start(state.round_number):
        # A kill came between the checkpoint of a private round and its release.
        self._guard.release(state.round_number)
        self._release(state, {})
    self._progress.start_rounds(state.round_number, config.rounds)
    return state

  def _affords_round(self, state: RunState) -> bool:
    """Whether the privacy budget, if there is one, has room for another round."""
    stop = self._guard.reason_to_stop(state.round_number + 1)
    if stop:
      self._log.say(f'Stopping after round {state.round_number}: {stop}')
    return not stop

  def _one_round(self, state: RunState) -> RunState:
    """Trains a cohort, measures, checkpoints."""
    number = state.round_number + 1
    started = time.monotonic()
    start = self._guard.start_round(number)
    self._log.event(Event.ROUND_STARTED, round=number, clients=len(start.cohort))
    learning = state.learning
    if start.fresh_noise:
      learning = learning._replace(aggregator=self._process.initialize().aggregator)
    with self._guard.silence():
      cohort = self._experiment.longest_first(start.cohort)
      data = self._experiment.client_data(cohort, state.ranks, number)
      input_seconds = time.monotonic() - started
      output = self._rounds.next(learning, data)
    seconds = time.monotonic() - started
    if self._untold is not None:
      self._release(self._untold, {})
      self._untold = None
    cohort_ranks = state.ranks[[index for index in cohort if index < len(state.ranks)]]
    row = {
      **self._measured(output.metrics, cohort, state.ranks),
      'input_seconds': round(input_seconds, 3),
      'round_seconds': round(seconds, 3),
    }
    state = RunState(
      number, output.state, _new_ranks(state.ranks, cohort, output), **self._guard.anchor()
    )
    # That of the round before: nothing is told of this one unless there is a way back to that one.
    self._checkpoints.settle()
    if self._guard.is_private:
      # Before anything of the round is told: a round that is done again was never seen.
      self._save(state)
      self._guard.release(number)
      self._release(state, row, cohort_ranks)
    else:
      # Last, and while the next round trains: a resumed run drops the rows of rounds without one.
      self._release(state, row, cohort_ranks)
      self._save(state)
    self._log.event(Event.ROUND_FINISHED, round=number, seconds=row['round_seconds'])
    return state

  def _measured(
    self, measured: Mapping[str, Any], cohort: list[int], ranks: np.ndarray
  ) -> dict[str, Any]:
    """What clients tell; nobody asks those of a private run."""
    if not measured['client_work']:
      return {}
    row = results.round_row(measured, self._process.sizes, ranks[cohort])
    if not self._experiment.config.secure_aggregation:  # It looks at the data of each client.
      predictions = int(measured['client_work']['predictions'])
      row['client_flops'] = self._experiment.flops(cohort, ranks, predictions, self._process.sizes)
    return row

  def _release(
    self, state: RunState, row: Mapping[str, Any], cohort_ranks: np.ndarray | None = None
  ) -> None:
    """Tells what a round came to, measured on held-out clients where it is time to."""
    config, number = self._experiment.config, state.round_number
    is_end = number in (0, config.rounds)
    evaluated = {}
    if is_end or number % config.eval_every == 0:
      evaluation = self._held_out.evaluate(number, self._parameters(state), write=is_end)
      evaluated = results.evaluation_row(evaluation) | {'eval_seconds': evaluation['seconds']}
    ranks = state.ranks if self._process.layout else None
    self._told.release(number, {**row, **evaluated}, ranks, cohort_ranks)

  def _save(self, state: RunState) -> None:
    self._checkpoints.save(state)
    if self._guard.is_private:
      self._checkpoints.settle()

  def _saved(self, round_number: int, seconds: float) -> None:
    self._log.event(Event.CHECKPOINT_SAVED, round=round_number, seconds=round(seconds, 3))

  def finish(self, state: RunState, command: list[str]) -> dict[str, Any]:
    """Measures by device, and writes model, summary, samples, plots and report.

    Args:
      state: after the last round.
      command: that began the run.
    """
    experiment, directory = self._experiment, self._directory
    tiers = []
    if not self._guard.evaluations:  # A tier may be one client.
      tiers = device_evaluation.evaluate_tiers(experiment, self._parameters(state), state.ranks)
    own = device_evaluation.personalize(
      experiment, self._process, state.learning.global_model_weights, state.ranks
    )
    self._progress.say_busy('writing the model')
    names = artifacts.save(directory.root, experiment, self._parameters(state))
    if names == artifacts.OWN_NAMES:
      self._log.say(
        f'adapter/ keeps our own module names: {experiment.base.backbone.class_name} or one of the'
        ' targets has no known counterpart in Hugging Face.'
      )
    base = self._held_out.base()
    final = self._held_out.final(state.round_number, self._parameters(state))
    summary = results.summarize(base, final, single_clients=not self._guard.evaluations)
    if tiers:
      summary['tiers'] = [{**t, 'perplexity': metrics.perplexity(t['loss'], 1)} for t in tiers]
    if own is not None:
      summary['personalization'] = own
    summary['bytes_by_rank'] = results.bytes_by_rank(self._process.sizes, experiment.initial_ranks)
    summary['adapter_names'] = names
    summary['rounds'] = state.round_number
    summary['left_out'] = list(experiment.data.left_out)
    summary['command'] = shlex.join(command)
    directory.write_json(SUMMARY, summary)
    if not self._guard.evaluations:
      directory.write_json('samples.json', results.samples(base['written'], final['written']))
    if experiment.config.audit_canaries:
      initial = experiment.initial_state(self._process)
      start = artifacts.as_arrays(initial.global_model_weights.trainable)
      end = artifacts.as_arrays(state.learning.global_model_weights.trainable)
      audit.write_audit(directory.root, experiment.config, start, end)
    written = privacy_report.write_privacy_report(directory.root)
    if self._guard.is_private:
      self._log.say(f'{written.headline}; {directory.root / "privacy_report.html"} says more.')
    report.write_run_report(directory.root)
    return summary

  def _parameters(self, state: RunState) -> Any:
    return artifacts.as_arrays(self._process.get_model_weights(state.learning))

  def _restore(self, initial: RunState) -> RunState | None:
    state = self._checkpoints.restore(initial)
    if state is None and self._directory.last_round('metrics.csv'):
      raise UserError(
        f'--resume: the checkpoints in {self._directory.root} are gone; start a new run.'
      )
    return state


def _new_ranks(
  ranks: np.ndarray, cohort: list[int], output: hetlora_tff.HetLoraOutput
) -> np.ndarray:
  """All devices' ranks after a round."""
  ranks = ranks.copy()
  for index, device in zip(cohort, output.device_state, strict=True):
    if index < len(ranks):  # A canary is no device.
      ranks[index] = int(device['rank'])
  return ranks


def evaluate_run(path: pathlib.Path) -> dict[str, Any]:
  """Evaluates what a finished run has made against its base; writes `evaluation.json`.

  Raises:
    UserError: if the directory holds no finished run, or its files cannot be used.
  """
  finished_run.check_finished(path)
  with RunDirectory(path, resume=True) as directory, Progress() as progress:
    experiment = Experiment(config_from_json(path / 'config.json'))
    run_inputs.check(experiment, directory)
    progress.say('Evaluating on held-out clients ...')
    base = results.evaluate(*artifacts.untuned(experiment), write=True)
    final = results.evaluate(*artifacts.load(path, experiment), write=True)
    single = not dp_settings.is_private(experiment.config) or experiment.config.public_eval_clients
    summary = results.summarize(base, final, single_clients=single)
    directory.write_json('evaluation.json', summary)
  return summary
