# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole processes with secure sums: what the server sees, and how little rounding changes."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import privacy
from tasks import dp_settings, program, registry
from tasks.errors import UserError
from tasks.experiment import Experiment
from tests.integration import tiny_world
from tests.tasks import shared_builds

_CLIP = 0.5
_CLIPPED = {
  'l2_clip_norm': _CLIP,
  'weights': 'uniform',
  'padding': 'update',
  'rank_dynamics': 'fixed',
  'decode_examples': 0,
}
_SECURE = {**_CLIPPED, 'secure_aggregation': True}
_NOISED = {'noise_multiplier': 0.5, 'delta': 0.01, 'l2_clip_norm': _CLIP, 'decode_examples': 0}
_CENTRAL = {**_NOISED, 'privacy': 'central', 'secure_aggregation': True}
_DISTRIBUTED = {**_NOISED, 'privacy': 'distributed'}
_TIERS = {
  'rank_dynamics': 'tier', 'rank_tiers': {1: 0.5, 4: 0.5}, 'max_rank': 8, 'rank_exponent': None,
  'min_rank': None, 'rank_assignment': None,
}  # fmt: skip
# What a method leaves no choice of.
_OWN = {'homlora': ('padding', 'rank_dynamics'), 'full': ('padding', 'rank_dynamics')}
_FLAGSHIP = {**_CENTRAL, **_TIERS, 'weights': 'module', 'weight_reference': 0.05}


@pytest.fixture(scope='module', name='preset')
def preset_fixture(tmp_path_factory, tff_runtime):
  del tff_runtime
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, 'TASKS', tiny_world.TASKS)
    patch.setenv('HETLORA_CACHE', str(tmp_path_factory.mktemp('cache')))
    shared_builds.share(patch)
    yield tiny_world.save_preset(tmp_path_factory.mktemp('preset') / 'tiny')


def _experiment(preset, **changes):
  return Experiment(tiny_world.run_config(preset, **changes))


def _round(experiment, process, cohort=(0, 1, 2)):
  data = experiment.client_data(list(cohort), experiment.initial_ranks, 1)
  return process.next(process.initialize(), data)


def _numbers(state):
  return [np.asarray(t) for t in tf.nest.flatten(state.global_model_weights.trainable)]


@pytest.fixture(scope='module', name='built')
def built_fixture(preset):
  """Experiment and process by name."""
  settings = {'plain': _CLIPPED, 'secure': _SECURE, 'flagship': _FLAGSHIP}
  experiments = {name: _experiment(preset, **given) for name, given in settings.items()}
  return {name: (made, made.build_process()) for name, made in experiments.items()}


@pytest.fixture(scope='module', name='rounds')
def rounds_fixture(built):
  """Weights and metrics after one round, with plain sums and with secure ones."""
  outputs = {name: _round(*built[name]) for name in ('plain', 'secure')}
  return {name: (_numbers(output.state), output.metrics) for name, output in outputs.items()}


def test_secure_and_plain_round_agree_within_the_printed_bound(built, rounds):
  spec = dp_settings.secure_sum(built['secure'][0].config)
  bound = _CLIP * spec.error_of_sum(3) / 3
  (plain, _), (secure, _) = rounds['plain'], rounds['secure']
  apart = max(np.abs(p - s).max() for p, s in zip(plain, secure, strict=True))
  moved = max(np.abs(p).max() for p in plain)
  assert 0 < apart <= bound + 2e-7 * moved
  assert apart < 1e-3 * moved


def test_secure_measurements_are_those_of_plain_sums(rounds):
  plain, secure = rounds['plain'][1]['client_work'], rounds['secure'][1]['client_work']
  assert plain.keys() == secure.keys()
  for name, value in plain.items():
    if name == 'loss':
      np.testing.assert_allclose(secure[name], value, rtol=1e-6)
    else:
      np.testing.assert_array_equal(secure[name], value, err_msg=name)
  assert secure['predictions'] > 0
  assert secure['trained_clients'] == 3


def _check_secure(process):
  tff.test.assert_not_contains_unsecure_aggregation(process.next)
  learning = process.as_learning_process()
  tff.backends.mapreduce.get_distribute_aggregate_form_for_computation(learning.next)


def test_process_sums_nothing_in_the_clear_and_lowers(built):
  _check_secure(built['flagship'][1])


@pytest.mark.slow
@pytest.mark.parametrize(
  ('method', 'settings'),
  [
    ('hetlora', {**_SECURE, 'weights': 'module', 'weight_reference': 0.1}),
    ('hetlora', {**_CENTRAL, 'clip': 'adaptive', 'noise_multiplier': 0.1}),
    ('hetlora', _DISTRIBUTED),
    ('homlora', _DISTRIBUTED),
    ('naive', {**_SECURE, 'weights': 'examples'}),
    ('coverage', {**_SECURE, **_TIERS}),
    ('coverage', {**_DISTRIBUTED, **_TIERS}),
    ('ffa', _CENTRAL),
    ('rolora', _DISTRIBUTED),
    ('full', _SECURE),
    ('full', _DISTRIBUTED),
  ],
)
def test_every_method_that_sums_updates_can_be_secure(preset, method, settings):
  # What the method has by itself, it need not be given.
  given = {key: value for key, value in settings.items() if key not in _OWN.get(method, ())}
  _check_secure(_experiment(preset, **given, method=method).build_process())


def test_a_plain_process_does_not_pass_for_a_secure_one(built):
  tff.test.assert_not_contains_unsecure_aggregation(built['secure'][1].next)
  with pytest.raises(AssertionError):
    tff.test.assert_not_contains_unsecure_aggregation(built['plain'][1].next)


@pytest.mark.slow
def test_run_without_privacy_writes_what_secure_sums_tell(preset, tmp_path):
  config = tiny_world.run_config(preset, **_SECURE)
  program.train(config, tmp_path / 'run', resume=False, command=['hetlora', 'train'])
  with open(tmp_path / 'run' / 'metrics.csv', newline='') as file:
    *_, row = csv.DictReader(file)
  assert float(row['train_loss']) > 0
  assert (row['cohort_clients'], row['non_finite_clients']) == ('3', '0')
  # Computed from the data of single clients.
  assert row['client_flops'] == ''
  # Sums of 3 clients of 16 bits have 18.
  numbers = 4 * 2 * 2 * (tiny_world.WIDTH + tiny_world.WIDTH)
  assert int(row['upload_bytes']) == 3 * numbers * 18 // 8
  report = json.loads((tmp_path / 'run' / 'privacy_report.json').read_text())
  assert report['headline']['guarantee'] == 'none'


@pytest.fixture(scope='module', name='flagship')
def flagship_fixture(preset, tmp_path_factory):
  """A finished run with tiers, padded updates, weights, noise and secure sums in one process."""
  directory = tmp_path_factory.mktemp('flagship') / 'run'
  config = tiny_world.run_config(preset, **_FLAGSHIP)
  program.train(config, directory, resume=False, command=['hetlora', 'train'])
  return directory


def test_flagship_has_the_noise_that_it_is_accounted_for(built):
  """Nobody is there: what is left is noise, in the rows that a device holds."""
  experiment, process = built['flagship']
  process = process.as_learning_process()
  start = process.initialize()
  deviations = []
  for _ in range(40):
    after = _numbers(process.next(start, []).state)
    noise = [a - b for a, b in zip(after, _numbers(start), strict=True)]
    held = [n[:4] if n.shape[0] == 8 else n[:, :4] for n in noise]
    assert all(np.count_nonzero(n) == h.size for n, h in zip(noise, held, strict=True))
    deviations.append(np.concatenate([h.ravel() for h in held]))
  config = experiment.config
  spec = dp_settings.spec_of(config)
  expected = spec.noise_stddev / (config.clients_per_round * config.mean_weight)
  found = np.concatenate(deviations).std()
  # Of 40 x 512 draws: six standard errors are 3 %.
  assert found == pytest.approx(expected, rel=0.03)
  assert spec.noise_stddev == pytest.approx(0.5 * _CLIP)
  assert spec.inflation > 1.0


def test_flagship_is_accounted_with_what_rounding_adds(preset, flagship):
  report = json.loads((flagship / 'privacy_report.json').read_text())
  ledger = privacy.Ledger(flagship / 'ledger.jsonl')
  spec = ledger.spec
  assert spec.secure_sum.rounding is privacy.Rounding.CONDITIONAL
  # Four rows of every module: query and value of two layers, 32 x 32.
  assert spec.secure_sum.coordinates == 4 * 2 * 2 * (tiny_world.WIDTH + tiny_world.WIDTH)
  event = ledger.event(amplified=True)
  alone = dataclasses.replace(spec, secure_sum=None, noise_multiplier=0.5 / spec.inflation)
  expected = privacy.events.run_event(alone, 2, amplified=True)
  assert privacy.epsilon(event, 0.01) == pytest.approx(privacy.epsilon(expected, 0.01), rel=1e-6)
  assert report['headline']['epsilon'] == pytest.approx(privacy.epsilon(event, 0.01), rel=1e-3)
  assert 'Simulated' in report['secure_aggregation']


@pytest.mark.slow
def test_distributed_run_is_accounted_before_it_begins(preset, tmp_path):
  config = tiny_world.run_config(preset, **_DISTRIBUTED)
  program.train(config, tmp_path / 'run', resume=False, command=['hetlora', 'train'])
  ledger = privacy.Ledger(tmp_path / 'run' / 'ledger.jsonl')
  assert ledger.spec.mechanism is privacy.Mechanism.SKELLAM
  # Of three clients, all must be there; and their noise together is that of the specification.
  assert ledger.spec.smallest_cohort == 3
  report = json.loads((tmp_path / 'run' / 'privacy_report.json').read_text())
  expected = privacy.epsilon(ledger.event(amplified=False), 0.01, accountant='rdp')
  assert report['headline']['epsilon'] == pytest.approx(expected, rel=1e-3)
  with open(tmp_path / 'run' / 'metrics.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['train_loss'] for row in rows] == ['', '', '']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({**_CENTRAL, 'secure_coordinates': 10}, '--secure-coordinates 10: a client may change '),
    (
      {**_DISTRIBUTED, 'secure_bits': 24},
      "--privacy distributed: A client's share of the noise has a variance of 5.86e+12 ",
    ),
  ],
)
def test_what_no_secure_sum_serves_is_refused_before_the_first_round(preset, changes, message):
  with pytest.raises(UserError) as caught:
    _experiment(preset, **changes)
  assert str(caught.value).startswith(message)
