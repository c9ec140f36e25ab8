# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The program: rounds, evaluations, checkpoints and files of one run."""

import asyncio
import collections
import pathlib
import platform
import shlex
import shutil
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

import hetlora_tff
from hetlora_tff.adapters import peft
from hetlora_tff.adapters.model import Adapters
from tasks import harvest, metrics, report
from tasks.config import RunConfig
from tasks.config import from_json as config_from_json
from tasks.console import Progress
from tasks.errors import UserError
from tasks.evaluator import Evaluator, rouge_l_by_client
from tasks.experiment import Experiment
from tasks.run_directory import METRIC_COLUMNS, RANK_COLUMNS, RunDirectory
from tasks.worker import LocalWorker

_ENVIRONMENT = 'environment.json'
_BASE, _FINAL = 'evaluation_base.json', 'evaluation_final.json'
_MAX_SAMPLES = 12
_DISTRIBUTIONS = (
  'tensorflow', 'tensorflow-federated', 'tensorflow-privacy', 'keras-nlp', 'keras', 'numpy',
  'hetlora-tff',
)  # fmt: skip


class RunState(NamedTuple):
  """What a checkpoint holds, and all that a round needs from the one before.

  Attributes:
    round_number: rounds done.
    learning: the process's state at the server.
    ranks: int32 `[clients]`: every device's rank.
  """

  round_number: int
  learning: Any
  ranks: np.ndarray


def train(
  config: RunConfig, output_dir: pathlib.Path, *, resume: bool, command: list[str]
) -> dict[str, Any]:
  """Runs or resumes a training run; returns its summary, also in `summary.json`.

  Raises:
    UserError: for what the user can mend.
  """
  with RunDirectory(output_dir, resume=resume) as directory, Progress() as progress:
    progress.say(f'Loading {config.task} and the {config.backbone} backbone ...')
    experiment = Experiment(config)
    if resume:
      _check_inputs(experiment, directory)
    log = directory.root / 'worker.log'
    with LocalWorker(experiment.concurrent_clients(), log_file=log):
      progress.say('Building the federated process ...')
      process = experiment.build_process()
      run = _Run(experiment, process, directory, progress)
      state = run.start(resume)
      for _ in range(state.round_number, config.rounds):
        state = run.one_round(state)
      tiers = experiment.evaluate_tiers(process.get_model_weights(state.learning))
    return run.finish(state, tiers, command)


class _Run:
  """The steps of a run, on its experiment, process and directory."""

  def __init__(
    self,
    experiment: Experiment,
    process: hetlora_tff.HetLoraProcess,
    directory: RunDirectory,
    progress: Progress,
  ):
    self._experiment = experiment
    self._process = process
    self._directory = directory
    self._progress = progress
    self._evaluator = experiment.evaluator()
    self._checkpoints = tff.program.FileProgramStateManager(
      directory.root / 'checkpoints', 'round_', keep_total=2, keep_first=False
    )

  def start(self, resume: bool) -> RunState:
    """The untuned base, measured; or the last good checkpoint."""
    initial = RunState(0, self._process.initialize(), self._experiment.initial_ranks)
    state = self._restore(initial) if resume else None
    config = self._experiment.config
    if state is not None and state.round_number > config.rounds:
      raise UserError(f'--rounds {config.rounds}: this run has done {state.round_number} already.')
    self._directory.write_json('config.json', config.to_json())
    self._directory.write_json(_ENVIRONMENT, _environment(self._experiment))
    if state is None:
      state = initial
      for name in ('metrics.csv', 'ranks.csv'):
        (self._directory.root / name).unlink(missing_ok=True)
      self._record(state, {}, self._evaluate(state, write=True))
    for name in ('metrics.csv', 'ranks.csv'):
      self._directory.drop_rounds_after(name, state.round_number)
    self._progress.start_rounds(state.round_number, config.rounds)
    return state

  def one_round(self, state: RunState) -> RunState:
    """Trains a cohort, measures, checkpoints."""
    config = self._experiment.config
    number = state.round_number + 1
    started = time.monotonic()
    cohort = self._experiment.cohort(number)
    data = self._experiment.client_data(cohort, state.ranks, number)
    output = self._process.next(state.learning, data)
    seconds = time.monotonic() - started
    ranks = state.ranks.copy()
    ranks[cohort] = [int(device['rank']) for device in output.device_state]
    row = _round_metrics(output.metrics['client_work'], self._process, state.ranks[cohort])
    row['round_seconds'] = round(seconds, 3)
    state = RunState(number, output.state, ranks)
    self._progress.show_round(number, row, state.ranks[cohort])
    last = number == config.rounds
    evaluation = None
    if last or number % config.eval_every == 0:
      evaluation = self._evaluate(state, write=last)
    self._record(state, row, evaluation)
    return state

  def finish(
    self, state: RunState, tiers: list[dict[str, Any]], command: list[str]
  ) -> dict[str, Any]:
    """Writes adapters, summary, samples, plots and report."""
    experiment, directory = self._experiment, self._directory
    architecture = experiment.base.backbone.class_name
    names = peft.save_peft_adapter(
      directory.root / 'adapter',
      _as_factors(self._process.get_model_weights(state.learning)),
      experiment.lora_config,
      architecture=architecture,
      num_heads=experiment.base.backbone.num_heads,
    )
    if names != peft.HUGGING_FACE_NAMES:
      self._progress.say(
        f'adapter/ keeps our own module names: {architecture} or one of the targets has no known '
        'counterpart in Hugging Face.'
      )
    base, final = directory.read_json(_BASE), self._final_evaluation(state)
    summary = summarize(base, final)
    summary['tiers'] = [{**t, 'perplexity': metrics.perplexity(t['loss'], 1)} for t in tiers]
    summary['bytes_by_rank'] = _bytes_by_rank(self._process, experiment.initial_ranks)
    summary['adapter_names'] = names
    summary['command'] = shlex.join(command)
    directory.write_json('summary.json', summary)
    directory.write_json('samples.json', _samples(base['written'], final['written']))
    report.write_run_report(directory.root)
    return summary

  def _restore(self, initial: RunState) -> RunState | None:
    folder = self._directory.root / 'checkpoints'
    for draft in folder.glob('round_*_temp*'):  # A kill came while TFF was writing it.
      shutil.rmtree(draft, ignore_errors=True)
    versions = asyncio.run(self._checkpoints.get_versions()) or []
    unreadable = []
    for version in sorted(versions, reverse=True):
      path = folder / f'round_{version}'
      try:
        state = asyncio.run(self._checkpoints.load(version, initial))
        state = RunState(int(state.round_number), state.learning, np.array(state.ranks, np.int32))
      except Exception as error:  # a torn checkpoint fails in whatever way its bytes do
        self._progress.say(f'{path} cannot be read ({type(error).__name__}); trying an older one.')
        unreadable.append(path)
        continue
      for path in unreadable:  # Its round will be saved again under its name.
        path.rename(path.with_name(f'unreadable_{path.name}_{time.time_ns()}'))
      return state
    if versions:
      raise UserError(f'--resume: no checkpoint in {folder} can be read.')
    if self._directory.last_round('metrics.csv'):
      raise UserError(f'--resume: the checkpoints in {folder} are gone; start a new run.')
    return None

  def _final_evaluation(self, state: RunState) -> dict[str, Any]:
    """What the last round measured; measured now if a resumed run had no round left to do."""
    if (self._directory.root / _FINAL).exists():
      evaluation = self._directory.read_json(_FINAL)
      if evaluation.get('round') == state.round_number:
        return evaluation
    return self._evaluate(state, write=True)

  def _evaluate(self, state: RunState, *, write: bool) -> dict[str, Any]:
    """Held-out losses and, with `write`, RougeL of decoded text, kept as a file."""
    self._progress.say_busy('evaluating on held-out clients')
    started = time.monotonic()
    adapters = _as_factors(self._process.get_model_weights(state.learning))
    evaluation: dict[str, Any] = {'round': state.round_number}
    evaluation |= evaluate(self._evaluator, adapters, write=write)
    evaluation['seconds'] = round(time.monotonic() - started, 3)
    if write:
      self._directory.write_json(_FINAL if state.round_number else _BASE, evaluation)
    return evaluation

  def _record(
    self, state: RunState, row: Mapping[str, Any], evaluation: Mapping[str, Any] | None
  ) -> None:
    """Metrics first, checkpoint last: a resumed run drops rows without a checkpoint."""
    row = {'round': state.round_number, **row}
    if evaluation:
      row['eval_loss'] = evaluation['loss']
      row['eval_perplexity'] = evaluation['perplexity']
      row['eval_rouge_l'] = evaluation.get('rouge_l', '')
      row['eval_seconds'] = evaluation['seconds']
      self._progress.show_evaluation(state.round_number, evaluation)
    self._directory.append_rows('metrics.csv', METRIC_COLUMNS, [row])
    ranks, clients = np.unique(state.ranks, return_counts=True)
    self._directory.append_rows(
      'ranks.csv',
      RANK_COLUMNS,
      [
        {'round': state.round_number, 'rank': rank, 'clients': number}
        for rank, number in zip(ranks.tolist(), clients.tolist(), strict=True)
      ],
    )
    try:
      asyncio.run(self._checkpoints.save(state, state.round_number))
    except tf.errors.OpError as error:
      reason = (error.message or type(error).__name__).splitlines()[0]
      raise UserError(
        f'Cannot save round {state.round_number} to {self._directory.root}/checkpoints: {reason}; '
        'earlier rounds are kept.'
      ) from error


def evaluate(evaluator: Evaluator, adapters: Adapters, *, write: bool) -> dict[str, Any]:
  """Held-out loss and perplexity, by client and pooled; with `write` also text and RougeL."""
  losses = evaluator.losses(adapters)
  perplexity = metrics.pooled_perplexity(losses)
  result: dict[str, Any] = {
    'loss': float(np.log(perplexity)),
    'perplexity': perplexity,
    'clients': [
      {'client': client, 'loss': float(loss), 'tokens': int(count)}
      for client, loss, count in zip(*losses, strict=True)
    ],
    'written': [],
  }
  written = evaluator.write(adapters) if write else []
  if written:
    by_client = rouge_l_by_client(written)
    result['rouge_l'] = metrics.mean_interval(list(by_client.values())).mean
    result['rouge_l_by_client'] = by_client
    result['written'] = [w._asdict() for w in written]
  return result


def evaluate_run(path: pathlib.Path) -> dict[str, Any]:
  """Evaluates the adapters of a finished run against its base; writes `evaluation.json`.

  Raises:
    UserError: if the directory holds no finished run, or its files cannot be used.
  """
  if not (path / 'adapter').is_dir():
    raise UserError(f'{path} holds no finished run (no adapter/).')
  with RunDirectory(path, resume=True) as directory, Progress() as progress:
    experiment = Experiment(config_from_json(path / 'config.json'))
    _check_inputs(experiment, directory)
    try:
      adapters = peft.load_peft_adapter(path / 'adapter').factors
      experiment.check_adapters(adapters)
    except ValueError as error:
      raise UserError(str(error)) from error
    progress.say('Evaluating on held-out clients ...')
    evaluator = experiment.evaluator()
    zeros = collections.OrderedDict(
      (name, hetlora_tff.LoraFactors(f.a, np.zeros_like(f.b))) for name, f in adapters.items()
    )
    base = evaluate(evaluator, zeros, write=True)
    summary = summarize(base, evaluate(evaluator, adapters, write=True))
    directory.write_json('evaluation.json', summary)
  return summary


def summarize(base: Mapping[str, Any], final: Mapping[str, Any]) -> dict[str, Any]:
  """Before, after and the paired change over the same held-out clients."""
  summary: dict[str, Any] = {
    name: {key: result[key] for key in ('perplexity', 'loss', 'rouge_l') if key in result}
    for name, result in (('base', base), ('final', final))
  }
  change = metrics.paired_relative_interval(_client_losses(base), _client_losses(final))
  summary['relative_perplexity_change'] = {**change._asdict(), 'clients': len(final['clients'])}
  summary['clients'] = len(final['clients'])
  if 'rouge_l' in final:
    before, after = base['rouge_l_by_client'], final['rouge_l_by_client']
    gains = [after[client] - before[client] for client in after]
    summary['rouge_l_change'] = {
      **metrics.mean_interval(gains)._asdict(),
      'clients': len(gains),
    }
  return summary


def _client_losses(evaluation: Mapping[str, Any]) -> metrics.ClientLosses:
  clients = evaluation['clients']
  return metrics.ClientLosses(
    tuple(c['client'] for c in clients),
    np.array([c['loss'] for c in clients]),
    np.array([c['tokens'] for c in clients], np.float64),
  )


def _round_metrics(
  sums: Mapping[str, Any], process: hetlora_tff.HetLoraProcess, ranks: np.ndarray
) -> dict[str, Any]:
  predictions = float(sums['predictions'])
  return {
    'train_loss': float(sums['loss']) / predictions if predictions else '',
    'upload_bytes': sum(process.upload_bytes(int(rank)) for rank in ranks),
    'download_bytes': sum(process.download_bytes(int(rank)) for rank in ranks),
    'cohort_clients': int(sums['clients']),
    'pruned_clients': int(sums['pruned_clients']),
    'non_finite_clients': int(sums['non_finite_clients']),
    'mean_rank': round(float(ranks.mean()), 3),
    'trained_parameters': int(sums['trained_parameters']),
  }


def _bytes_by_rank(process: hetlora_tff.HetLoraProcess, ranks: np.ndarray) -> list[dict[str, int]]:
  return [
    {
      'rank': rank,
      'slice_bytes': process.slice_bytes(rank),
      'padded_bytes': process.upload_bytes(rank),
    }
    for rank in sorted({int(rank) for rank in ranks})
  ]


def _samples(before: list[dict], after: list[dict]) -> list[dict[str, str]]:
  pairs = list(zip(before, after, strict=True))[:_MAX_SAMPLES]
  return [
    {
      'client': new['client'],
      'source': new['source'],
      'reference': new['reference'],
      'base': old['prediction'],
      'tuned': new['prediction'],
    }
    for old, new in pairs
  ]


def _as_factors(adapters: Mapping[str, Any]) -> Adapters:
  """The adapters as NumPy arrays, whatever container the runtime returned."""
  return collections.OrderedDict(
    (path, hetlora_tff.LoraFactors(np.asarray(factors.a), np.asarray(factors.b)))
    for path, factors in adapters.items()
  )


def _check_inputs(experiment: Experiment, directory: RunDirectory) -> None:
  path = directory.root / _ENVIRONMENT
  if not path.exists():  # A kill came right after `config.json`.
    return
  environment = directory.read_json(_ENVIRONMENT)
  inputs = environment.get('inputs', {}) if isinstance(environment, dict) else None
  if not isinstance(inputs, dict):
    raise UserError(f'{path} does not describe a run.')
  experiment.check_inputs(inputs)


def _environment(experiment: Experiment) -> dict[str, Any]:
  return {
    'inputs': experiment.inputs(),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'processor': platform.machine(),
    'packages': {name: harvest.version(name) for name in _DISTRIBUTIONS},
  }
