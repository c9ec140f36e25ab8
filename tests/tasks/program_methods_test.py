# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole tiny runs of methods whose state, messages or results are not those of HetLoRA."""

import csv
import json

import pytest

from hetlora_tff.adapters import peft
from tasks import backbones, program, registry
from tasks.errors import UserError
from tests.integration import tiny_world
from tests.tasks import shared_builds


@pytest.fixture(scope='module', name='preset')
def preset_fixture(tmp_path_factory, tff_runtime):
  del tff_runtime
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, 'TASKS', tiny_world.TASKS)
    patch.setenv('HETLORA_CACHE', str(tmp_path_factory.mktemp('cache')))
    shared_builds.share(patch)
    yield tiny_world.save_preset(tmp_path_factory.mktemp('preset') / 'tiny')


def _rows(directory):
  with open(directory / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('method', 'uploaded', 'downloaded', 'trained'),
  [
    # Query and value of two layers, each 16 x 16, at rank 4; all weights are 9,792.
    ('ffa', 4 * 16 * 4, 4 * 16 * 4, 4 * 16),
    ('stacking', 4 * 32 * 4, 4 * (32 * 4 + 256), 4 * 32),
    ('full', 9792, 9792, 9792),
  ],
)
def test_run_ends_with_what_its_method_trains(
  preset, tmp_path, method, uploaded, downloaded, trained
):
  config = tiny_world.run_config(preset, method=method)
  program.train(config, tmp_path / 'run', resume=False, command=['hetlora'])
  last = _rows(tmp_path / 'run')[-1]
  clients = config.clients_per_round
  assert int(last['upload_bytes']) == clients * 4 * uploaded
  assert int(last['download_bytes']) == clients * 4 * downloaded
  mean_rank = float(last['mean_rank'] or 1)  # Of no meaning where all weights are trained.
  assert int(last['trained_parameters']) == trained * round(clients * mean_rank)
  assert float(last['deviation_from_exact'] or 0) < 1e-6
  assert (tmp_path / 'run' / 'adapter').is_dir() is (method != 'full')
  assert (tmp_path / 'run' / 'model').is_dir() is (method != 'ffa')
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert summary['final']['perplexity'] < summary['base']['perplexity']
  evaluated = program.evaluate_run(tmp_path / 'run')
  assert evaluated['final']['loss'] == pytest.approx(summary['final']['loss'], rel=1e-6)
  assert evaluated['base']['loss'] == pytest.approx(summary['base']['loss'], rel=1e-6)


@pytest.mark.slow
def test_uploads_of_few_bits_are_counted_as_they_are_and_learn(preset, tmp_path):
  config = tiny_world.run_config(preset, upload_bits=4)
  program.train(config, tmp_path / 'run', resume=False, command=['hetlora'])
  # Half a byte a number; four modules of two factors have four scales each.
  uploaded = 4 * tiny_world.BYTES_PER_RANK // 8 + 4 * 4 * 2 * 4
  assert int(_rows(tmp_path / 'run')[-1]['upload_bytes']) == config.clients_per_round * uploaded
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert {row['padded_bytes'] for row in summary['bytes_by_rank']} == {uploaded}
  assert summary['final']['perplexity'] < summary['base']['perplexity']


@pytest.mark.slow
def test_merged_model_is_a_backbone_of_its_own(preset, tmp_path):
  config = tiny_world.run_config(preset, method='fedex')
  program.train(config, tmp_path / 'run', resume=False, command=['hetlora'])
  model = backbones.load_base_model(str(tmp_path / 'run' / 'model'), tmp_path / 'cache')
  base = backbones.load_base_model(str(preset), tmp_path / 'cache')
  changed = [
    name
    for name, now, before in zip(
      model.backbone.weight_names, model.backbone.tensors, base.backbone.tensors, strict=True
    )
    if now.sha256 != before.sha256
  ]
  assert len(changed) == 4
  assert all(name.endswith(('query/kernel', 'value/kernel')) for name in changed)
  adapter = peft.load_peft_adapter(tmp_path / 'run' / 'adapter')
  assert adapter.config['base_model_name_or_path'] == 'model'
  (tmp_path / 'run' / 'model').rename(tmp_path / 'elsewhere')
  # Not evaluated on the base that the adapter does not belong to.
  with pytest.raises(UserError, match=r'run/model/manifest\.json'):
    program.evaluate_run(tmp_path / 'run')
