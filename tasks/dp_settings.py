# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The privacy settings of a run as a `privacy.DpSpec`, and those that only data and model settle.

No TensorFlow here: the report reads settings by the same rules.
"""

import dataclasses
import hashlib
import json

import privacy
from privacy import accounting, events
from tasks import samplers, secure_settings
from tasks.config import RunConfig
from tasks.errors import UserError

# With the least noise that is looked for, a grid that serves some noise is not refused.
_LEAST_NOISE = 1e-3
# All that may change when a run is resumed.
_FREE_KEYS = ('rounds',)
_MECHANISMS = {
  'central': privacy.Mechanism.GAUSSIAN,
  'tree': privacy.Mechanism.TREE,
  'distributed': privacy.Mechanism.SKELLAM,
}


def is_private(config: RunConfig) -> bool:
  """Whether the run has a privacy mechanism at all."""
  return config.privacy != 'none'


def settle(config: RunConfig, num_clients: int, coordinates: int) -> RunConfig:
  """Fills what depends on clients and model: population, delta, coordinates and calibrated noise.

  Args:
    config: of the run; of one without privacy it is returned as it is.
    num_clients: that train, without canaries.
    coordinates: most numbers of what it sends that one client can change.

  Returns:
    The same settings with `population_size`, `delta`, `noise_multiplier` and, for secure sums,
    `secure_coordinates` given. It settles to itself.

  Raises:
    UserError: naming the option that does not fit the population, or that cannot be met.
  """
  if not is_private(config):
    secure_settings.update_sum(config)
    return config
  population = config.population_size or num_clients
  if config.noise_cohort_size is None and population != num_clients:
    raise UserError(
      f'--population-size {population}: {config.task} has {num_clients} clients that train; leave '
      'it out, or add --noise-cohort-size to project to another population.'
    )
  delta = config.delta or float(f'{population**-1.1:.2g}')
  if delta >= 1 / population:
    raise UserError(
      f'--delta {delta:g} is not below 1 / {population}, one over the population: it would allow '
      f'to publish a client as it is; take less, or leave it out for {population**-1.1:.2g}.'
    )
  config = dataclasses.replace(config, population_size=population, delta=delta)
  if config.secure_aggregation:
    if coordinates > (config.secure_coordinates or coordinates):
      raise UserError(
        f'--secure-coordinates {config.secure_coordinates}: a client may change {coordinates} '
        'numbers, all of which rounding lengthens; leave it out.'
      )
    config = dataclasses.replace(
      config, secure_coordinates=config.secure_coordinates or coordinates
    )
  if config.noise_multiplier is None:
    config = dataclasses.replace(config, noise_multiplier=_calibrated(config))
  _check_feasible(config)
  try:
    samplers.check_serves(
      privacy.Sampling(config.sampling),
      num_clients + config.audit_canaries,
      config.clients_per_round,
      rounds=config.rounds,
      min_separation=config.min_separation,
      max_participations=config.max_participations,
    )
  except samplers.SamplingError as error:
    raise UserError(str(error)) from error
  return config


def spec_of(config: RunConfig) -> privacy.DpSpec:
  """The mechanism of a settled private run.

  Raises:
    UserError: if the settings make no mechanism.
  """
  return _spec(config, config.noise_multiplier)


def secure_sum(config: RunConfig) -> privacy.SecureSumSpec | None:
  """The secure sum of a settled run's updates, with room for noise; None for a plain sum.

  Raises:
    UserError: naming the option that does not fit.
  """
  return spec_of(config).secure_sum if is_private(config) else secure_settings.update_sum(config)


def digest(config: RunConfig) -> str:
  """SHA-256 of what makes a ledger that of this run."""
  content = {key: value for key, value in config.to_json().items() if key not in _FREE_KEYS}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _spec(config: RunConfig, noise_multiplier: float) -> privacy.DpSpec:
  banded = config.noise_matrix == 'banded'
  try:
    return privacy.DpSpec(
      noise_multiplier=noise_multiplier,
      l2_clip_norm=config.l2_clip_norm,
      clients_per_round=config.clients_per_round,
      mechanism=privacy.Mechanism.BANDED if banded else _MECHANISMS[config.privacy],
      clipping=privacy.Clipping(config.clip),
      clip_quantile=config.clip_quantile or 0.5,
      sampling=privacy.Sampling(config.sampling),
      # Canaries are drawn like everyone else.
      population_size=config.population_size + config.audit_canaries,
      amplified=config.claim_amplification,
      min_separation=config.min_separation,
      max_participations=config.max_participations,
      restart_every=config.tree_restart_every,
      noise_cohort_size=config.noise_cohort_size,
      insecure_seed=config.seed if config.insecure_seeded_noise else None,
      secure_sum=secure_settings.update_sum(config),
      smallest_cohort=config.secure_threshold if config.privacy == 'distributed' else None,
      assumed_colluders=config.assumed_colluders or 0,
    )
  except ValueError as error:
    raise UserError(f'--privacy {config.privacy}: {error}') from error


def _check_feasible(config: RunConfig) -> None:
  spec, target = spec_of(config), config.target_epsilon
  if spec.clipping is privacy.Clipping.ADAPTIVE:
    try:
      spec.adaptive_noise()
    except ValueError as error:
      raise UserError(f'--clip adaptive: {error}') from error
  if target is None:
    return
  cost = accounting.claimed_epsilon(spec, events.planned(spec, 1), config.delta)
  if cost > target:
    raise UserError(
      f'--target-epsilon {target:g} is below what one round costs at --noise-multiplier '
      f'{config.noise_multiplier:g}: {cost:.3g}; take more noise or a larger target.'
    )


def _calibrated(config: RunConfig) -> float:
  """The smallest noise that keeps all rounds within the target."""
  possible = _LEAST_NOISE if config.privacy == 'distributed' else 1.0
  try:
    spec = accounting.calibrate(
      _spec(config, possible), config.rounds, config.target_epsilon, config.delta
    )
  except ValueError as error:
    raise UserError(f'--target-epsilon {config.target_epsilon:g}: {error}') from error
  return spec.noise_multiplier
