# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora export --format daf`: the learning process of a run, for a production pipeline.

What is exported is the process that the run trained with, save what no pipeline has: those parts
are replaced or left out, and the console and the manifest name each. The result is loaded again and
does rounds beside the run's own process before it counts.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_federated as tff

import hetlora_tff
import privacy
from hetlora_tff import deployment
from tasks import config_files, dp_settings, exported_run, finished_run, run_inputs, same_rounds
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.experiment import Experiment
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
  notes += scale_to_production(experiment)
  with LocalWorker(2):
    say('Compiling the federated process ...')
    process = experiment.build_process()
    for note in notes:
      say(note)

    def verify(deployed: deployment.DeployedProcess) -> Mapping[str, Any]:
      say('Comparing rounds of the export with rounds of the run ...')
      return same_rounds.compare(
        process, deployed, _fixed_clients(experiment), repeats=_repeats(experiment.config)
      )

    try:
      deployed = deployment.save_daf(
        output_dir,
        process.as_learning_process(),
        backbone=experiment.base.backbone,
        model_weights=_model_weights(process, run),
        notes=notes,
        privacy=privacy_of(experiment.config),
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
  return dataclasses.replace(config, **replaced), [*(c.note for c in changes), _DEVICE_STATE]


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
    'Account for the rounds of the pipeline from this mechanism: the epsilon of the run is its own.'
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


def _repeats(config: RunConfig) -> int:
  """How many rounds to compare: one where nothing is drawn by chance."""
  rounds_by_chance = config.secure_aggregation and config.secure_rounding != 'nearest'
  return 3 if dp_settings.is_private(config) or rounds_by_chance else 1


def _fixed_clients(experiment: Experiment) -> list[Any]:
  """Clients of the smallest and the largest rank: two, or as many as a distributed sum needs."""
  ranks, config = experiment.initial_ranks, experiment.config
  two = [int(np.argmin(ranks)), int(len(ranks) - 1 - np.argmax(ranks[::-1]))]
  number = config.secure_threshold if config.privacy == 'distributed' else 2
  return experiment.client_data([two[place % 2] for place in range(number)], ranks, 1)


def _model_weights(
  process: hetlora_tff.HetLoraProcess, run: exported_run.ExportedRun
) -> tff.learning.models.ModelWeights:
  """Where the model of a finished run stands, in the layout of its process.

  They are from what the run released, never from a checkpoint: that holds more.
  """
  if process.layout is None:
    weights = {name: value.numpy() for name, value in run.base.backbone.weights().items()}
    return tff.learning.models.ModelWeights(weights, ())
  return process.layout.weights(run.adapters, rounds_done=run.config.rounds)
