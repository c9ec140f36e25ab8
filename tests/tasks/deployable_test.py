# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What of a run is deployed, what is replaced, and that a wrong export is none."""

import contextlib
import json
import types

import numpy as np
import pytest
import safetensors.numpy

from hetlora_tff.adapters import peft
from tasks import deployable, dp_settings, program, registry, same_rounds
from tasks.errors import UserError
from tasks.experiment import Experiment
from tests.integration import tiny_world
from tests.tasks import shared_builds

PRIVATE = {'privacy': 'central', 'noise_multiplier': 1.0, 'l2_clip_norm': 0.1}
MODULE_WEIGHTS = {'weights': 'module', 'weight_reference': 4.0, 'mean_weight': 0.5}
PRODUCTION = {'noise_cohort_size': 1000, 'population_size': 10_000}


def _config(tmp_path, **changes):
  return tiny_world.run_config(tmp_path, **changes)


@pytest.mark.parametrize(
  ('changes', 'key', 'value', 'said'),
  [
    ({'distribution': 'select'}, 'distribution', 'broadcast', 'Rank-keyed select is replaced'),
    ({'upload_bits': 8}, 'upload_bits', None, 'Uploads of fewer bits are replaced by float32'),
    ({}, 'deviation_from_exact', False, 'deviation_from_exact is left out'),
    ({**PRIVATE, 'audit_canaries': 5}, 'audit_canaries', 0, 'Canaries are left out'),
    (
      {**PRIVATE, 'insecure_seeded_noise': True},
      'insecure_seeded_noise',
      False,
      'Seeded noise is replaced',
    ),
  ],
)
def test_what_no_pipeline_has_is_replaced_by_name(tmp_path, changes, key, value, said):
  config = _config(tmp_path, **changes)
  assert getattr(config, key) != value
  result, notes = deployable.deployable(config)
  assert getattr(result, key) == value
  assert any(note.startswith(said) for note in notes)
  # Once done, there is nothing left but the ranks of devices and what the server has gathered.
  device_state, gathered = deployable.deployable(result)[1]
  assert device_state.startswith('Device state is left out')
  assert 'stays with the run' in gathered


@pytest.mark.parametrize('method', ['svd', 'stacking', 'fedex'])
def test_methods_of_other_aggregations_are_refused_by_name(tmp_path, method):
  with pytest.raises(UserError, match=f'--format daf: method {method} .* sums only'):
    deployable.deployable(_config(tmp_path, method=method))


def test_noise_of_a_projection_becomes_that_of_production(tmp_path):
  config = dp_settings.settle(_config(tmp_path, **PRIVATE, **PRODUCTION), 6, 100)
  experiment = types.SimpleNamespace(config=config)
  (note,) = deployable.scale_to_production(experiment)
  assert '1,000 clients a round' in note
  before, after = (dp_settings.spec_of(c) for c in (config, experiment.config))
  # The mean had the noise of the production run, its sum far less.
  assert before.noise_stddev == pytest.approx(0.1 * 3 / 1000)
  assert after.noise_stddev == pytest.approx(0.1)
  assert after.clients_per_round == 1000
  assert deployable.scale_to_production(experiment) == []


def test_the_duties_of_a_pipeline_follow_from_the_mechanism(tmp_path):
  assert deployable.privacy_of(_config(tmp_path)) is None
  poisson = _config(tmp_path, **PRIVATE, sampling='poisson', population_size=6)
  told = deployable.privacy_of(dp_settings.settle(poisson, 6, 100))
  assert 'with probability 3 / 6' in ' '.join(told['pipeline_must'])
  assert told['spec']['noise_multiplier'] == 1.0
  json.dumps(told)


def test_a_pipeline_is_told_what_the_process_was_made_for(tmp_path):
  report = {'headline': {'guarantee': 'dp', 'epsilon': 3.5, 'delta': 1e-3, 'statement': 'x'}}
  (tmp_path / 'privacy_report.json').write_text(json.dumps(report))
  changes = {'sampling': 'poisson', 'population_size': 6, 'secure_aggregation': True}
  config = dp_settings.settle(_config(tmp_path, **PRIVATE, **changes), 6, 100)
  told = deployable.requirements(config, tmp_path)
  assert told['spent']['epsilon'] == 3.5
  # Everybody may be drawn, and the modulus has room for no more.
  assert (told['clients_per_round'], told['largest_cohort'], told['population']) == (3, 6, 6)
  assert told['normaliser']['clients'] == 3
  assert told['ranks'] == {'least': 1, 'most': 4, 'tiers': None}
  assert deployable.requirements(_config(tmp_path), tmp_path)['spent'] is None
  json.dumps(told)


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({}, 0.1 / 3),
    ({'server_learning_rate': 0.5}, 0.05 / 3),
    ({**MODULE_WEIGHTS, 'denominator': 'public'}, 0.2 / 3),
    ({**MODULE_WEIGHTS, 'denominator': 'noised'}, None),
    ({'privacy': 'tree', 'sampling': 'minsep', 'min_separation': 1}, 0.1 / 3),
    (
      {'privacy': 'distributed', 'secure_aggregation': True, 'secure_threshold': 3},
      0.1 / 3 * (4 / 3) ** 0.5,
    ),
    ({'server_optimizer': 'adam'}, None),
    ({'method': 'coverage', 'rank_tiers': {1: 0.5, 4: 0.5}}, None),
  ],
)
def test_the_noise_of_a_weight_follows_from_the_settings(tmp_path, changes, expected):
  config = dp_settings.settle(_config(tmp_path, **{**PRIVATE, **changes}), 6, 100)
  assert deployable.noise_in_weights(config, 4) == (expected and pytest.approx(expected))


def test_the_turn_is_that_after_the_last_round_and_not_after_the_planned_ones(tmp_path):
  turns = types.SimpleNamespace(weights=lambda adapters, rounds_done: rounds_done)
  process = types.SimpleNamespace(layout=turns)
  run = types.SimpleNamespace(
    directory=tmp_path, adapters={}, config=_config(tmp_path, method='rolora', rounds=4)
  )
  (tmp_path / 'summary.json').write_text('{"rounds": 3}')
  assert deployable._model_weights(process, run) == 3
  (tmp_path / 'summary.json').write_text('{}')
  with pytest.raises(UserError, match=r'summary\.json does not say how many rounds'):
    deployable._model_weights(process, run)


@pytest.mark.slow
def test_a_private_run_becomes_an_export_or_nothing(tmp_path, monkeypatch, tff_runtime):
  monkeypatch.setattr(registry, 'TASKS', tiny_world.TASKS)
  monkeypatch.setenv('HETLORA_CACHE', str(tmp_path / 'cache'))
  shared_builds.share(monkeypatch)
  monkeypatch.setattr(deployable, 'LocalWorker', lambda _: contextlib.nullcontext())
  (tmp_path / 'preset').mkdir()
  preset = tiny_world.save_preset(tmp_path / 'preset')
  run, out = tmp_path / 'run', tmp_path / 'out'
  config = _config(preset, **PRIVATE, **PRODUCTION, rounds=1, eval_every=1)
  program.train(config, run, resume=False, command=['hetlora'])

  # No rounds are done with anybody's data: they would be rounds that no ledger knows.
  monkeypatch.delattr(Experiment, 'client_data')
  with monkeypatch.context() as patch:
    patch.setattr(same_rounds, '_DEVIATIONS', 0.0)
    with pytest.raises(UserError, match='--format daf: rounds of the export and of the run end'):
      deployable.export_daf(run, out, lambda text: None)
  assert not out.exists()

  preset = preset.rename(tmp_path / 'moved')
  said = []
  with pytest.raises(UserError, match='--backbone'):
    deployable.export_daf(run, out, said.append)
  deployable.export_daf(run, out, said.append, backbone=str(preset))
  manifest = json.loads((out / 'manifest.json').read_text())
  assert manifest['check']['result'] == 'equal in distribution'
  assert manifest['check']['noise_ratio'] == pytest.approx(1.0, abs=0.2)
  assert manifest['requires']['spent']['projected_epsilon'] > 0
  assert manifest['privacy']['noise_stddev'] == pytest.approx(0.1)
  assert set(manifest['notes']) <= set(said)
  stored = safetensors.numpy.load_file(out / 'model_weights.safetensors')
  released = peft.load_peft_adapter(run / 'adapter').factors
  for path, factors in released.items():
    np.testing.assert_array_equal(stored[f'trainable/{path}/b'], factors.b)
  for path in out.rglob('*.pb'):
    assert str(tmp_path).encode() not in path.read_bytes()
