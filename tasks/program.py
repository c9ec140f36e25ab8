# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The program: rounds, evaluations, checkpoints and files of one run."""

import pathlib
import platform
import shlex
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import hetlora_tff
from tasks import (
  artifacts,
  audit,
  device_evaluation,
  dp_settings,
  harvest,
  metrics,
  privacy_guard,
  privacy_report,
  report,
  results,
  secure_facts,
)
from tasks.checkpoints import Checkpoints, RunState
from tasks.config import RunConfig
from tasks.config_files import from_json as config_from_json
from tasks.console import Progress
from tasks.errors import UserError
from tasks.experiment import Experiment
from tasks.run_directory import METRIC_COLUMNS, RANK_COLUMNS, SECRETS, RunDirectory
from tasks.worker import LocalWorker

_ENVIRONMENT = 'environment.json'
_SECRET_INPUTS = f'{SECRETS}/inputs.json'
SUMMARY = 'summary.json'
_BASE, _FINAL = 'evaluation_base.json', 'evaluation_final.json'
_DISTRIBUTIONS = (
  'tensorflow', 'tensorflow-federated', 'tensorflow-privacy', 'keras-nlp', 'keras', 'numpy',
  'hetlora-tff',
)  # fmt: skip


def train(
  config: RunConfig, output_dir: pathlib.Path, *, resume: bool, command: list[str]
) -> dict[str, Any]:
  """Runs or resumes a training run; returns its summary, also in `summary.json`.

  Raises:
    UserError: for what the user can mend.
  """
  with RunDirectory(output_dir, resume=resume) as directory, Progress() as progress:
    progress.say(f'Loading {config.task} and the {config.backbone} backbone ...')
    experiment = Experiment(config, progress.say)
    if resume:
      _check_inputs(experiment, directory)
    guard = privacy_guard.build_guard(experiment.config, len(experiment.client_ids), directory.root)
    if experiment.config.secure_aggregation:
      progress.say(secure_facts.grid(experiment.config))
    with LocalWorker(experiment.concurrent_clients(), log_file=guard.worker_log()):
      progress.say('Building the federated process ...')
      process = experiment.build_process()
      run = _Run(experiment, process, guard, directory, progress)
      state = run.start(resume)
      while state.round_number < config.rounds and run.affords_round(state):
        state = run.one_round(state)
      parameters = artifacts.as_arrays(process.get_model_weights(state.learning))
      tiers = []
      if not guard.evaluations:  # A tier may be one client.
        tiers = device_evaluation.evaluate_tiers(experiment, parameters, state.ranks)
      own = device_evaluation.personalize(
        experiment, process, state.learning.global_model_weights, state.ranks
      )
    return run.finish(state, tiers, own, command)


class _Run:
  """The steps of a run, on its experiment, process and directory."""

  def __init__(
    self,
    experiment: Experiment,
    process: hetlora_tff.HetLoraProcess,
    guard: privacy_guard.Guard,
    directory: RunDirectory,
    progress: Progress,
  ):
    self._experiment = experiment
    self._process = process
    self._guard = guard
    self._directory = directory
    self._progress = progress
    self._evaluator = experiment.evaluator()
    self._checkpoints = Checkpoints(self._guard.checkpoint_folder, progress.say)

  def start(self, resume: bool) -> RunState:
    """The untuned base, measured; or the last good checkpoint."""
    initial = RunState(
      0, self._process.initialize(), self._experiment.initial_ranks, **privacy_guard.NO_ANCHOR
    )
    state = self._restore(initial) if resume else None
    config = self._experiment.config
    if state is not None and state.round_number > config.rounds:
      raise UserError(f'--rounds {config.rounds}: this run has done {state.round_number} already.')
    self._directory.write_json('config.json', config.to_json())
    _record_inputs(self._experiment, self._directory)
    if state is None or state.round_number < config.rounds:
      # What a run with fewer rounds ended with is no result of this one.
      (self._directory.root / SUMMARY).unlink(missing_ok=True)
    self._guard.open(state)
    if state is None:
      state = initial._replace(**self._guard.anchor())
      for name in ('metrics.csv', 'ranks.csv'):
        (self._directory.root / name).unlink(missing_ok=True)
      self._record(state, {}, self._evaluate(state, write=True))
      self._checkpoints.save(state)
    for name in ('metrics.csv', 'ranks.csv'):
      self._directory.drop_rounds_after(name, state.round_number)
    if self._directory.last_round('metrics.csv') != state.round_number:
      # A kill came between the checkpoint of a private round and its release.
      self._guard.release(state.round_number)
      self._release(state, {})
    self._progress.start_rounds(state.round_number, config.rounds)
    return state

  def affords_round(self, state: RunState) -> bool:
    """Whether the privacy budget, if there is one, has room for another round."""
    stop = self._guard.reason_to_stop(state.round_number + 1)
    if stop:
      self._progress.say(f'Stopping after round {state.round_number}: {stop}')
    return not stop

  def one_round(self, state: RunState) -> RunState:
    """Trains a cohort, measures, checkpoints."""
    number = state.round_number + 1
    started = time.monotonic()
    start = self._guard.start_round(number)
    learning = state.learning
    if start.fresh_noise:
      learning = learning._replace(aggregator=self._process.initialize().aggregator)
    with self._guard.silence():
      data = self._experiment.client_data(start.cohort, state.ranks, number)
      input_seconds = time.monotonic() - started
      learning, measured, ranks = self._next(learning, data, state.ranks, start.cohort)
    row = {}
    if measured['client_work']:  # Nobody asks the clients of a private run.
      row = results.round_row(measured, self._process.sizes, state.ranks[start.cohort])
      if not self._experiment.config.secure_aggregation:  # It looks at the data of each client.
        predictions = int(measured['client_work']['predictions'])
        row['client_flops'] = self._experiment.flops(
          start.cohort, state.ranks, predictions, self._process.sizes
        )
      row['input_seconds'] = round(input_seconds, 3)
      row['round_seconds'] = round(time.monotonic() - started, 3)
    self._progress.show_round(number, row, state.ranks[start.cohort] if row else None)
    state = RunState(number, learning, ranks, **self._guard.anchor())
    if self._guard.is_private:
      # Before anything of the round is told: a round that is done again was never seen.
      self._checkpoints.save(state)
      self._guard.release(number)
      self._release(state, row)
    else:
      # Last: a resumed run drops the rows of rounds without a checkpoint.
      self._release(state, row)
      self._checkpoints.save(state)
    return state

  def _next(self, learning, data, ranks: np.ndarray, cohort: list[int]):
    """The state, the metrics and all devices' ranks after a round."""
    if not cohort:  # A runtime hands nothing back to nobody.
      output = self._process.as_learning_process().next(learning, data)
      return output.state, output.metrics, ranks
    output = self._process.next(learning, data)
    ranks = ranks.copy()
    for index, device in zip(cohort, output.device_state, strict=True):
      if index < len(ranks):  # A canary is no device.
        ranks[index] = int(device['rank'])
    return output.state, output.metrics, ranks

  def _release(self, state: RunState, row: Mapping[str, Any]) -> None:
    """Writes and shows what a round came to."""
    config = self._experiment.config
    last = state.round_number == config.rounds
    evaluation = None
    if last or state.round_number % config.eval_every == 0:
      evaluation = self._evaluate(state, write=last)
    self._record(state, row, evaluation)

  def finish(
    self,
    state: RunState,
    tiers: list[dict[str, Any]],
    own: dict[str, Any] | None,
    command: list[str],
  ) -> dict[str, Any]:
    """Writes model, summary, samples, plots and report.

    Args:
      state: after the last round.
      tiers: of `device_evaluation.evaluate_tiers`.
      own: of `device_evaluation.personalize`.
      command: that began the run.
    """
    experiment, directory = self._experiment, self._directory
    self._progress.say_busy('writing the model')
    names = artifacts.save(directory.root, experiment, self._parameters(state))
    if names == artifacts.OWN_NAMES:
      what = f'{experiment.base.backbone.class_name} or one of the targets'
      if experiment.data.labels:
        what = 'the classifier'
      self._progress.say(
        f'adapter/ keeps our own module names: {what} has no known counterpart in Hugging Face.'
      )
    base, final = (
      directory.read_json(self._guard.evaluations + _BASE),
      self._final_evaluation(state),
    )
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
      start = artifacts.as_arrays(self._process.initialize().global_model_weights.trainable)
      end = artifacts.as_arrays(state.learning.global_model_weights.trainable)
      audit.write_audit(directory.root, experiment.config, start, end)
    written = privacy_report.write_privacy_report(directory.root)
    if self._guard.is_private:
      self._progress.say(f'{written.headline}; {directory.root / "privacy_report.html"} says more.')
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

  def _final_evaluation(self, state: RunState) -> dict[str, Any]:
    """What the last round measured; measured now if a resumed run had no round left to do."""
    name = self._guard.evaluations + _FINAL
    if (self._directory.root / name).exists():
      evaluation = self._directory.read_json(name)
      if evaluation.get('round') == state.round_number:
        return evaluation
    return self._evaluate(state, write=True)

  def _evaluate(self, state: RunState, *, write: bool) -> dict[str, Any]:
    """Held-out losses and, with `write`, RougeL of decoded text, kept as a file."""
    self._progress.say_busy('evaluating on held-out clients')
    started = time.monotonic()
    evaluation: dict[str, Any] = {'round': state.round_number}
    evaluation |= results.evaluate(self._evaluator, self._parameters(state), write=write)
    evaluation['seconds'] = round(time.monotonic() - started, 3)
    if write:
      name = self._guard.evaluations + (_FINAL if state.round_number else _BASE)
      self._directory.write_json(name, evaluation)
    return evaluation

  def _record(
    self, state: RunState, row: Mapping[str, Any], evaluation: Mapping[str, Any] | None
  ) -> None:
    """Writes the rows of a round."""
    row = {'round': state.round_number, **row}
    if evaluation:
      row |= results.evaluation_row(evaluation, single_clients=not self._guard.evaluations)
      row['eval_seconds'] = evaluation['seconds']
      self._progress.show_evaluation(state.round_number, evaluation)
    self._directory.append_rows('metrics.csv', METRIC_COLUMNS, [row])
    held = state.ranks if self._process.layout else []
    ranks, clients = np.unique(held, return_counts=True)
    self._directory.append_rows(
      'ranks.csv',
      RANK_COLUMNS,
      [
        {'round': state.round_number, 'rank': rank, 'clients': number}
        for rank, number in zip(ranks.tolist(), clients.tolist(), strict=True)
      ],
    )


def evaluate_run(path: pathlib.Path) -> dict[str, Any]:
  """Evaluates what a finished run has made against its base; writes `evaluation.json`.

  Raises:
    UserError: if the directory holds no finished run, or its files cannot be used.
  """
  if not (path / SUMMARY).is_file():
    begun = (path / 'config.json').is_file()
    mend = f'; finish it with hetlora train --resume --output-dir {path}' if begun else ''
    raise UserError(f'{path} holds no finished run (no {SUMMARY}){mend}.')
  with RunDirectory(path, resume=True) as directory, Progress() as progress:
    experiment = Experiment(config_from_json(path / 'config.json'))
    _check_inputs(experiment, directory)
    progress.say('Evaluating on held-out clients ...')
    base = results.evaluate(*artifacts.untuned(experiment), write=True)
    final = results.evaluate(*artifacts.load(path, experiment), write=True)
    single = not dp_settings.is_private(experiment.config) or experiment.config.public_eval_clients
    summary = results.summarize(base, final, single_clients=single)
    directory.write_json('evaluation.json', summary)
  return summary


def _check_inputs(experiment: Experiment, directory: RunDirectory) -> None:
  recorded: dict[str, str] = {}
  for name in (_ENVIRONMENT, _SECRET_INPUTS):
    path = directory.root / name
    if not path.exists():  # None in this run, or a kill came right after `config.json`.
      continue
    content = directory.read_json(name)
    inputs = content.get('inputs', {}) if isinstance(content, dict) else None
    if not isinstance(inputs, dict):
      raise UserError(f'{path} does not describe a run.')
    recorded |= inputs
  experiment.check_inputs(recorded)


def _record_inputs(experiment: Experiment, directory: RunDirectory) -> None:
  """Writes what the run needs besides its configuration, and what made it."""
  public, secret = experiment.inputs(), {}
  if dp_settings.is_private(experiment.config):
    # Whoever knows all other clients could try out what the last one has.
    secret['data_sha256'] = public.pop('data_sha256')
    directory.write_json(_SECRET_INPUTS, {'inputs': secret})
  directory.write_json(_ENVIRONMENT, {'inputs': public, **_environment()})


def _environment() -> dict[str, Any]:
  return {
    'python': platform.python_version(),
    'platform': platform.platform(),
    'processor': platform.machine(),
    'packages': {name: harvest.version(name) for name in _DISTRIBUTIONS},
  }
