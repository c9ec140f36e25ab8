# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import dataclasses
import functools
import os
import re
import types

import numpy as np
import pytest

from hetlora_tff.adapters.factors import LoraFactors
from tasks import backbones, device_evaluation, experiment, registry
from tasks.errors import UserError
from tests.integration import tiny_world


@pytest.fixture(scope='module', autouse=True)
def tiny_tasks_fixture(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, 'TASKS', tiny_world.TASKS)
    patch.setenv('HETLORA_CACHE', str(tmp_path_factory.mktemp('cache')))
    patch.setattr(backbones, 'load_base_model', functools.cache(backbones.load_base_model))
    yield


@pytest.fixture(scope='module', name='preset')
def preset_fixture(tmp_path_factory):
  return tiny_world.save_preset(tmp_path_factory.mktemp('preset') / 'tiny')


@pytest.fixture(scope='module', name='tiny')
def tiny_fixture(preset):
  return experiment.Experiment(tiny_world.run_config(preset, prune_decay=0.9))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'task': 'nosuch'}, '--task nosuch: unknown; there are blind, hollow, tiny'),
    ({'task': 'hollow'}, "--task hollow: client 'client_99' .* has no example"),
    ({'task': 'blind'}, '--eval-split test: blind has no such clients'),
    ({'backbone': 'nosuch'}, '--backbone nosuch is neither'),
    ({'targets': ('nosuch',)}, "--targets: .*'nosuch'.* there are: .*query"),
    ({'targets': ('[',)}, '--targets: .*regular expression'),
    ({'rank_pattern': {'nosuch': 2}}, "--rank-pattern: .*'nosuch' matches none .*query"),
    ({'rank_assignment': 'file', 'rank_file': 'nosuch'}, '--rank-file: cannot read nosuch'),
    ({'sequence_length': 33}, r'--sequence-length: .*\[2, 32\]'),
    ({'clients_per_round': 7}, '--clients-per-round 7: tiny has only 6'),
  ],
)
def test_what_cannot_be_met_names_its_option(preset, changes, message):
  with pytest.raises(UserError) as caught:
    experiment.Experiment(tiny_world.run_config(preset, **changes))
  assert re.match(message, str(caught.value))
  assert '\n' not in str(caught.value)


def test_ranks_are_within_bounds_and_follow_the_seed(preset, tiny):
  assert tiny.initial_ranks.shape == (6,)
  assert 1 <= tiny.initial_ranks.min() <= tiny.initial_ranks.max() <= 4
  again = experiment.Experiment(tiny_world.run_config(preset))
  np.testing.assert_array_equal(again.initial_ranks, tiny.initial_ranks)
  draws = [
    experiment.Experiment(tiny_world.run_config(preset, seed=seed)).initial_ranks.tolist()
    for seed in (1, 2)
  ]
  assert len({tuple(tiny.initial_ranks), *map(tuple, draws)}) == 3


def test_a_client_brings_its_rank_and_its_own_examples(tiny):
  ranks = np.array([1, 2, 3, 4, 1, 2], np.int32)
  (data,) = tiny.client_data([2], ranks, 1)
  assert [int(rank) for rank in data['rank']] == [3]
  batches = list(data['examples'])
  assert [len(batch['token_ids']) for batch in batches] == [2, 2]
  texts = {tiny.base.tokenizer.decode(row) for b in batches for row in b['token_ids'].numpy()}
  sources = [example.source for example in tiny.data.train['client_02']]
  assert all(any(text.startswith(source) for source in sources) for text in texts)


def test_those_with_most_to_do_come_first_and_canaries_last(preset):
  made = experiment.Experiment(tiny_world.run_config(preset, batch_size=4))
  # They hold 1, 2, 3, 4, 1 and 2 examples; 6 is no client.
  assert made.longest_first([6, 0, 4, 1, 3, 2, 5]) == [3, 2, 1, 5, 0, 4, 6]


def test_rows_of_any_cohort_are_made_once(preset, monkeypatch):
  monkeypatch.setattr(experiment, '_PACKED_CLIENTS', 1)
  made = experiment.Experiment(tiny_world.run_config(preset, clients_per_round=6))
  packed = []
  rows = made.packer.rows
  monkeypatch.setattr(made.packer, 'rows', lambda examples: packed.append(0) or rows(examples))
  cohort = made.longest_first(range(6))
  made.client_data(cohort, made.initial_ranks, 1)
  made.client_data(cohort, made.initial_ranks, 2)
  assert len(packed) == 6


@pytest.mark.parametrize(
  ('cores', 'wanted', 'at_a_time'), [(2, 0, 2), (64, 0, 3), (2, 64, 3), (64, 1, 1)]
)
def test_no_more_clients_at_a_time_than_a_round_has(preset, monkeypatch, cores, wanted, at_a_time):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)))
  config = tiny_world.run_config(preset, concurrent_clients=wanted)
  assert experiment.Experiment(config).concurrent_clients() == at_a_time


def test_private_processes_are_built(preset, monkeypatch):
  config = tiny_world.run_config(
    preset, privacy='central', noise_multiplier=1.0, delta=0.01, clients_per_round=2
  )
  made = experiment.Experiment(config)
  monkeypatch.setattr(experiment, 'kept', lambda *_: 'kept')
  monkeypatch.setattr(made, '_built_process', lambda: 'built')
  assert made.build_process() == 'built'


def test_what_a_run_measures_leaves_the_process_alone(preset, monkeypatch):
  keys = []
  monkeypatch.setattr(experiment, 'kept', lambda kind, parts, make: keys.append((kind, parts)))

  def parts_of_process(attributes=(), **changes):
    made = experiment.Experiment.__new__(experiment.Experiment)
    made.__dict__ |= {**tiny.__dict__, 'config': tiny_world.run_config(preset, **changes)}
    made.__dict__.update(attributes)
    made.build_process()
    return keys.pop()

  with monkeypatch.context() as patch:
    patch.setattr(experiment, 'kept', lambda kind, parts, make: make())
    tiny = experiment.Experiment(tiny_world.run_config(preset))
  same = parts_of_process()
  assert same[0] == 'process'
  assert parts_of_process(rounds=9, eval_every=1, decode_examples=0) == same
  for changes in ({'seed': 1}, {'batch_size': 3}, {'client_learning_rate': 0.5}):
    assert parts_of_process(**changes) != same
  ranks = tiny.initial_ranks.copy()
  ranks[0] += 1
  for changes in ({'initial_ranks': ranks}, {'data': types.SimpleNamespace(labels=('a', 'b'))}):
    assert parts_of_process(changes) != same
  backbone = tiny.base.backbone
  parts = {name: getattr(backbone, name) for name in ('directory', 'sha256', 'tensors')}
  (first, *others) = backbone.tensors
  for changes in (
    {'directory': 'elsewhere'},
    {'sha256': 'of another'},
    {'tensors': [dataclasses.replace(first, file='renamed'), *others]},
  ):
    other = types.SimpleNamespace(backbone=types.SimpleNamespace(**{**parts, **changes}))
    assert parts_of_process({'base': other}) != same


@pytest.mark.parametrize('distribution', ['broadcast', 'select'])
def test_modules_have_the_ranks_of_their_pattern(tff_runtime, preset, distribution):
  config = tiny_world.run_config(
    preset, distribution=distribution, rank_pattern={'transformer_layer_0/.*': 2}
  )
  built = experiment.Experiment(config)
  process = built.build_process()
  data = built.client_data([0, 1], np.full(6, 4, np.int32), 1)
  state = process.next(process.initialize(), data).state
  ranks = [f.a.shape[0] for f in process.get_model_weights(state).values()]
  assert ranks == [2, 2, 4, 4]
  assert process.sizes.download(4) == process.sizes.upload(4) == 4 * 12 * 32


def test_public_tiers_are_the_denominators_of_coverage(tff_runtime, preset):
  def build(dynamics):
    config = tiny_world.run_config(
      preset, method='coverage', rank_dynamics=dynamics, rank_assignment='tiers',
      rank_tiers={1: 5 / 6, 4: 1 / 6}, min_rank=None, clients_per_round=4,
    )  # fmt: skip
    return experiment.Experiment(config)

  moved = {}
  for dynamics in ('fixed', 'tier'):
    built = build(dynamics)
    process = built.build_process()
    largest = int(np.argmax(built.initial_ranks))
    data = built.client_data([largest], built.initial_ranks, 1)
    state = process.next(process.initialize(), data).state
    moved[dynamics] = next(iter(process.get_model_weights(state).values())).b
  # Of four clients all hold the first rank; 2/3 of one, taken as one, holds the others.
  np.testing.assert_allclose(4 * moved['tier'][:, 0], moved['fixed'][:, 0], rtol=1e-5)
  np.testing.assert_allclose(moved['tier'][:, 1:], moved['fixed'][:, 1:], rtol=1e-5)


def _adapters(shapes, rank=4):
  return collections.OrderedDict(
    (path, LoraFactors(np.zeros([rank, d_in]), np.zeros([d_out, rank])))
    for path, (d_in, d_out) in shapes.items()
  )


def test_adapters_of_another_model_are_refused(tiny):
  tiny.check_adapters(_adapters(tiny.shapes))
  wide = dict.fromkeys(tiny.shapes, (24, 24))
  with pytest.raises(ValueError, match='does not fit'):
    tiny.check_adapters(_adapters(wide))
  with pytest.raises(ValueError, match='is for key, not'):
    tiny.check_adapters(_adapters({'key': (16, 16)}))


def test_tiers_without_a_finite_loss_are_left_out(tff_runtime, tiny):
  def adapters(value):
    return collections.OrderedDict(
      (
        path,
        LoraFactors(np.full([4, shape.d_in], value, 'f4'), np.full([shape.d_out, 4], value, 'f4')),
      )
      for path, shape in tiny.shapes.items()
    )

  tiers = device_evaluation.evaluate_tiers(tiny, adapters(0.0), tiny.initial_ranks)
  assert sum(tier['clients'] for tier in tiers) == 3
  assert all(np.isfinite(tier['loss']) for tier in tiers)
  assert device_evaluation.evaluate_tiers(tiny, adapters(np.nan), tiny.initial_ranks) == []
