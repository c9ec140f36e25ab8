# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora export --format daf`: the learning process of a run, for a production pipeline.

What is exported is the process that the run trained with, save what no pipeline has: those parts
are replaced or left out, and the console and the manifest name each. The result is loaded again and
does rounds beside the run's own process before it counts.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_federated as tff

import hetlora_tff
import privacy
from hetlora_tff import deployment
from privacy.banded import banded_coefficients
from tasks import (
  artifacts,
  config_files,
  dp_settings,
  exported_run,
  finished_run,
  run_inputs,
  same_rounds,
  secure_settings,
)
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.experiment import Experiment
from tasks.files import read_json
from tasks.run_directory import RunDirectory
from tasks.worker import LocalWorker

# The sums of these need a function of their own at every aggregator.
_OWN_AGGREGATION = {
  'svd': 'joins the factors of all clients before it decomposes them',
  'stacking': 'stacks the factors of all clients',
  'fedex': 'needs the products of the factors of all clients',
}
_DEVICE_STATE = (
  'Device state is left out: a client trains at the rank in its data (`rank`, one int32), and the'
  ' rank that self-pruning leaves it is not handed back.'
)
_STATE = (
  'A pipeline goes on from the weights of the run, and from whose turn it is where factors'
  ' alternate; what server optimizer, adaptive clip and noise had gathered stays with the run.'
)


class _Change(NamedTuple):
  """A part of a run that no pipeline has: where it is set, what stands in its place, and why."""

  key: str
  value: Any
  note: str


_CHANGES = (
  _Change(
    'distribution',
    'broadcast',
    'Rank-keyed select is replaced by a broadcast: clients download all ranks and cut theirs.',
  ),
  _Change(
    'upload_bits',
    None,
    'Uploads of fewer bits are replaced by float32: a DistributeAggregateForm has sums only; with'
    ' --secure-aggregation it sums integers of --secure-bits.',
  ),
  _Change(
    'deviation_from_exact', False, 'deviation_from_exact is left out: it looks at single clients.'
  ),
  _Change('audit_canaries', 0, 'Canaries are left out: they audit a simulation.'),
  _Change(
    'insecure_seeded_noise',
    False,
    'Seeded noise is replaced by noise from the operating system: a seed in the graph is known.',
  ),
)


def export_daf(
  directory: pathlib.Path,
  output_dir: pathlib.Path,
  say: Callable[[str], None],
  *,
  backbone: str | None = None,
) -> str:
  """Compiles the process of a finished run, checks it and writes it; all of it or nothing.

  Args:
    directory: of the run.
    output_dir: where to; must be new or empty.
    say: tells the user how far it is, and what is left out.
    backbone: where the run's backbone is now; None for where it was.

  Returns:
    What was written, in a sentence.

  Raises:
    UserError: naming what of the run cannot be deployed, or what is in the way.
  """
  finished_run.check_finished(directory)
  config, notes = deployable(config_files.from_json(directory / 'config.json'))
  run = exported_run.open_run(directory, backbone)
  say(f'Loading {config.task} ...')
  # The result stands where it does whatever training began with.
  moved = {'backbone': backbone or config.backbone, 'initial_adapter': None}
  experiment = Experiment(dataclasses.replace(config, **moved))
  with RunDirectory(directory, resume=True) as opened:
    run_inputs.check(experiment, opened)
  try:
    experiment.check_adapters(run.adapters)
  except ValueError as error:
    raise UserError(f'{directory / artifacts.ADAPTER}: {error}') from error
  notes += scale_to_production(experiment)
  with LocalWorker(2):
    say('Compiling the federated process ...')
    process = experiment.build_process()
    for note in notes:
      say(note)

    def verify(deployed: deployment.DeployedProcess) -> Mapping[str, Any]:
      say('Comparing rounds of the export with rounds of the run, of clients of random tokens ...')
      return _check(experiment, process, deployed)

    try:
      deployed = deployment.save_daf(
        output_dir,
        process.as_learning_process(),
        backbone=experiment.base.backbone,
        model_weights=_model_weights(process, run),
        notes=notes,
        privacy=privacy_of(experiment.config),
        requires=requirements(experiment.config, directory),
        verify=verify,
      )
    except ValueError as error:
      raise UserError(f'--format daf: {error}') from error
  manifest = deployed.manifest
  return (
    f'{output_dir} holds the learning process: a client downloads'
    f' {manifest["download"]["bytes"]:,} and uploads {manifest["upload"]["bytes"]:,} bytes a round;'
    f' rounds of it and of the run: {manifest["check"]["result"]}.'
  )


def deployable(config: RunConfig) -> tuple[RunConfig, list[str]]:
  """The settings with what can be deployed, and a sentence on each that was another.

  Raises:
    UserError: if the method, or the noise, cannot be deployed.
  """
  why = _OWN_AGGREGATION.get(config.method)
  if why:
    raise UserError(
      f'--format daf: method {config.method} {why}, and a DistributeAggregateForm has sums only;'
      ' export its model in another format, or train with hetlora, homlora or coverage.'
    )
  if config.privacy == 'distributed' and config.noise_cohort_size is not None:
    raise UserError(
      '--format daf: with --noise-cohort-size the clients of this run added the noise of another'
      ' cohort, whose threshold is not known; export a run with the threshold of production.'
    )
  changes = [c for c in _CHANGES if getattr(config, c.key) not in (c.value, None)]
  replaced = {change.key: change.value for change in changes}
  return dataclasses.replace(config, **replaced), [
    *(c.note for c in changes),
    _DEVICE_STATE,
    _STATE,
  ]


def scale_to_production(experiment: Experiment) -> list[str]:
  """Gives a run that stood for a larger one the noise and the denominator of that one.

  With `noise_cohort_size` a run adds the noise of the production run divided by how much fewer its
  clients are: on a production cohort that would be too little.

  Returns:
    A sentence on it, if it was so.
  """
  config = experiment.config
  if config.noise_cohort_size is None:
    return []
  experiment.config = dataclasses.replace(
    config, clients_per_round=config.noise_cohort_size, noise_cohort_size=None
  )
  return [
    f'Noise and denominator are those of {config.noise_cohort_size:,} clients a round, which the'
    f' {config.clients_per_round} of this run stood for: do not run it with fewer.'
  ]


def privacy_of(config: RunConfig) -> dict[str, Any] | None:
  """The mechanism in a process, and what holds only if the pipeline sees to it; None without one.

  Args:
    config: settled.
  """
  if not dp_settings.is_private(config):
    return None
  spec = dp_settings.spec_of(config)
  duties = [
    'The pipeline must account for its rounds from this mechanism, and add what the run has spent'
    ' (`requires`, `spent`) on clients that were in it.'
  ]
  if spec.sampling is privacy.Sampling.POISSON:
    duties.append(
      f'Draw every client by itself, with probability {spec.clients_per_round:g} /'
      f' {spec.population_size}, and tell nobody who was drawn; else there is no amplification.'
    )
  if spec.sampling is privacy.Sampling.MIN_SEPARATION:
    duties.append(
      f'Keep two rounds of a client {spec.min_separation} apart, and each client to'
      f' {spec.max_participations} rounds.'
    )
  if spec.is_correlated:
    duties.append(
      'Keep the state of the server secret: it holds the seed of the noise. A round that is done'
      ' again takes the same clients, or a new `aggregator` from `initialize`.'
    )
  if spec.mechanism is privacy.Mechanism.SKELLAM:
    duties.append(
      'Sum in a protocol that shows the server the sum alone, and none of fewer than'
      f' {spec.smallest_cohort} clients.'
    )
  return {'spec': spec.to_json(), 'noise_stddev': spec.noise_stddev, 'pipeline_must': duties}


def requirements(config: RunConfig, directory: pathlib.Path) -> dict[str, Any]:
  """What a pipeline has to keep to, beside what follows from the computations.

  Args:
    config: settled.
    directory: of the run, with its privacy report.
  """
  is_private = dp_settings.is_private(config)
  return {
    'clients_per_round': config.clients_per_round,
    'largest_cohort': secure_settings.largest_cohort(config) if config.secure_aggregation else None,
    'smallest_cohort': config.secure_threshold,
    'sampling': config.sampling,
    'population': config.population_size,
    'min_separation': config.min_separation,
    'max_participations': config.max_participations,
    'ranks': {'least': config.min_rank, 'most': config.max_rank, 'tiers': config.rank_tiers},
    'normaliser': {
      'weights': config.weights,
      # Of a private mean: that of the clients that come changes nothing.
      'clients': config.clients_per_round if is_private else None,
      'denominator': config.denominator,
      'weight_reference': config.weight_reference,
      'mean_weight': config.mean_weight,
    },
    'spent': _spent(directory / 'privacy_report.json') if is_private else None,
  }


def _spent(path: pathlib.Path) -> dict[str, Any]:
  """What the rounds of the run have cost, by its report."""
  content = read_json(path)
  headline = content.get('headline') if isinstance(content, dict) else None
  if not isinstance(headline, dict):
    raise UserError(f'{path} has no headline; write it anew with hetlora privacy-report.')
  keys = ('guarantee', 'epsilon', 'projected_epsilon', 'delta', 'relation', 'reasons')
  return {key: headline.get(key) for key in keys}


def noise_in_weights(config: RunConfig, num_clients: int) -> float | None:
  """Standard deviation of the noise that the first round of a process puts on a weight.

  Args:
    config: settled.
    num_clients: that come.

  Returns:
    None where there is none, or no one number: noised or many denominators, another server
    optimizer than SGD.
  """
  weighed = config.weights != 'uniform' and config.denominator != 'public'
  if not dp_settings.is_private(config) or weighed or config.method == 'coverage':
    return None
  if config.server_optimizer != 'sgd':
    return None
  spec = dp_settings.spec_of(config)
  stddev = spec.noise_stddev
  if spec.clipping is privacy.Clipping.ADAPTIVE:
    stddev = spec.adaptive_noise()[0] * spec.l2_clip_norm
  if spec.mechanism is privacy.Mechanism.BANDED:
    stddev *= float(np.linalg.norm(banded_coefficients(spec.min_separation or 1)))
  if spec.noise_shares:
    stddev *= math.sqrt(num_clients / spec.noise_shares)
  mean_weight = 1.0 if config.weights == 'uniform' else config.mean_weight
  return stddev * config.server_learning_rate / (spec.clients_per_round * mean_weight)


def _check(
  experiment: Experiment,
  process: hetlora_tff.HetLoraProcess,
  deployed: deployment.DeployedProcess,
) -> Mapping[str, Any]:
  config = experiment.config
  # Two, or as many as a distributed sum needs.
  number = config.secure_threshold if config.privacy == 'distributed' else 2
  clients = same_rounds.random_clients(experiment, number)
  found = same_rounds.compare(process, deployed, clients, repeats=_repeats(config))
  stddev, grid = noise_in_weights(config, number), dp_settings.secure_sum(config)
  if not stddev:
    return found
  rounding = 0.0
  if grid:
    # Where the clip adapts, the grid is in units of it.
    step = grid.step * (config.l2_clip_norm if config.clip == 'adaptive' else 1.0)
    rounding = number * (step / 2 * stddev / dp_settings.spec_of(config).noise_stddev) ** 2
  ratio = same_rounds.noise_ratio(deployed, clients, stddev, rounding=rounding)
  return {**found, 'noise_stddev': stddev, 'noise_ratio': ratio}


def _repeats(config: RunConfig) -> int:
  """How many rounds to compare: one where nothing is drawn by chance."""
  rounds_by_chance = config.secure_aggregation and config.secure_rounding != 'nearest'
  return 3 if dp_settings.is_private(config) or rounds_by_chance else 1


def _model_weights(
  process: hetlora_tff.HetLoraProcess, run: exported_run.ExportedRun
) -> tff.learning.models.ModelWeights:
  """Where the model of a finished run stands, in the layout of its process.

  They are from what the run released, never from a checkpoint: that holds more.
  """
  if process.layout is None:
    weights = {name: value.numpy() for name, value in run.base.backbone.weights().items()}
    return tff.learning.models.ModelWeights(weights, ())
  return process.layout.weights(run.adapters, rounds_done=_rounds_done(run.directory))


def _rounds_done(directory: pathlib.Path) -> int:
  """The rounds of a run, which a budget may have ended before its time."""
  path = directory / 'summary.json'
  summary = read_json(path)
  rounds = summary.get('rounds') if isinstance(summary, dict) else None
  if not isinstance(rounds, int):
    raise UserError(f'{path} does not say how many rounds the run had.')
  return rounds
