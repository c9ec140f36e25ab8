# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports of a real run, by the functions that the command calls."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.adapters import peft
from tasks import artifacts, export, exported_run, program, registry
from tasks.errors import UserError
from tasks.export import Format
from tests.integration import tiny_world
from tests.tasks import shared_builds


@pytest.fixture(scope='module', name='world')
def world_fixture(tmp_path_factory, tff_runtime):
  """A finished run of one round, and the preset that it began with."""
  del tff_runtime
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, 'TASKS', tiny_world.TASKS)
    patch.setenv('HETLORA_CACHE', str(tmp_path_factory.mktemp('cache')))
    shared_builds.share(patch)
    preset = tiny_world.save_preset(tmp_path_factory.mktemp('preset') / 'tiny')
    run = tmp_path_factory.mktemp('runs') / 'run'
    quick = {'decode_examples': 0, 'eval_clients': 1, 'deviation_from_exact': False}
    config = tiny_world.run_config(preset, rounds=1, **quick)
    program.train(config, run, resume=False, command=['hetlora', 'train'])
    yield run, preset


@pytest.fixture(name='copy')
def copy_fixture(world, tmp_path):
  return shutil.copytree(world[0], tmp_path / 'copy')


def _export(run, form, output, **options):
  return export.export(run, form, output, lambda text: None, **options)


def test_an_adapter_for_peft_is_that_of_the_run(world, tmp_path):
  run, _ = world
  _export(run, Format.PEFT, tmp_path / 'out')
  loaded = peft.load_peft_adapter(tmp_path / 'out').factors
  kept = peft.load_peft_adapter(run / artifacts.ADAPTER).factors
  assert list(loaded) == list(kept)
  for path, factors in kept.items():
    np.testing.assert_array_equal(loaded[path].b, factors.b)


def test_a_saved_model_computes_what_the_run_has_learned(world, tmp_path):
  run, _ = world
  _export(run, Format.SAVEDMODEL, tmp_path / 'out')
  opened = exported_run.open_run(run)
  tokens = tf.constant([[5, 7, 11, 2]])
  signature = tf.saved_model.load(str(tmp_path / 'out')).signatures['serving_default']
  logits = signature(token_ids=tokens, padding_mask=tf.ones_like(tokens))['logits']
  plain = opened.base.backbone.build()
  hidden = plain({'token_ids': tokens, 'padding_mask': tf.ones_like(tokens)})
  untuned = tf.matmul(hidden, plain.token_embedding.embeddings, transpose_b=True)
  difference = np.abs(np.asarray(logits) - np.asarray(untuned)).max()
  assert 1e-5 < difference < 10  # Training moved it, and it is the same model otherwise.


def test_an_unfinished_run_is_refused_with_how_to_finish_it(copy, tmp_path):
  (copy / 'summary.json').unlink()
  with pytest.raises(UserError, match=r'unfinished run .* hetlora train --resume'):
    _export(copy, Format.PEFT, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_no_run_and_a_directory_in_use_are_refused(world, tmp_path):
  with pytest.raises(UserError, match='holds no run'):
    _export(tmp_path, Format.PEFT, tmp_path / 'out')
  (tmp_path / 'used').mkdir()
  (tmp_path / 'used' / 'file').touch()
  with pytest.raises(UserError, match='not an empty directory'):
    _export(world[0], Format.PEFT, tmp_path / 'used')


def test_a_moved_backbone_is_named_and_found_again(world, copy, tmp_path):
  _, preset = world
  config = json.loads((copy / 'config.json').read_text())
  gone = tmp_path / 'gone'
  (copy / 'config.json').write_text(json.dumps({**config, 'backbone': str(gone)}))
  with pytest.raises(UserError, match=rf'{gone} is not there.*--backbone'):
    exported_run.open_run(copy)
  opened = exported_run.open_run(copy, str(shutil.copytree(preset, tmp_path / 'moved')))
  assert opened.base.backbone.class_name == 'GPT2Backbone'


def test_another_backbone_is_refused(copy, tmp_path):
  other = tiny_world.save_preset(tmp_path / 'other', seed=1)
  with pytest.raises(UserError, match='is not the one that'):
    exported_run.open_run(copy, str(other))
