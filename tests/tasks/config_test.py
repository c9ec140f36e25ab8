# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import pytest

from tasks import config, config_files, methods
from tasks.built_in import DATA_KEYS
from tasks.errors import UserError

_KEYS = [field.name for field in dataclasses.fields(config.RunConfig)]


def _write(tmp_path, content):
  path = tmp_path / 'run.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content), 'utf-8')
  return path


def test_defaults_run_the_embedded_model_on_the_default_task():
  resolved = config_files.resolve(None, {})
  assert resolved == config.RunConfig()
  assert (resolved.task, resolved.backbone) == ('docstring_summarization', 'embedded')
  assert resolved.targets == ('query', 'value')


def test_flags_go_over_the_file_and_the_file_over_defaults(tmp_path):
  path = _write(tmp_path, {'rounds': 7, 'alpha': 8, 'targets': ['key'], 'max_rank': 9})
  resolved = config_files.resolve(path, {'rounds': 3})
  assert (resolved.rounds, resolved.max_rank, resolved.seed) == (3, 9, 0)
  assert resolved.targets == ('key',)
  assert type(resolved.alpha) is float


def test_what_is_kept_reads_back_the_same(tmp_path):
  original = config.RunConfig(
    rounds=3,
    targets=('a', 'b'),
    alpha=0.5,
    rank_pattern={'a|b': 3},
    rank_assignment='tiers',
    rank_tiers={4: 0.25, 16: 0.75},
  )
  assert config_files.from_json(_write(tmp_path, original.to_json())) == original
  assert sorted(original.to_json()) == sorted(_KEYS)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'ronds': 3}, "unknown key 'ronds'"),
    ({'rounds': '3'}, "'rounds' must be int, got '3'"),
    ({'rounds': 3.0}, "'rounds' must be int"),
    ({'rounds': True}, "'rounds' must be int"),
    ({'rounds': None}, "'rounds' must be int"),
    ({'alpha': 'x'}, "'alpha' must be float"),
    ({'alpha': True}, "'alpha' must be float"),
    ({'targets': 'query'}, "'targets' must be a list of strings"),
    ({'targets': ['query', 3]}, "'targets' must be a list of strings"),
    ({'task': 3}, "'task' must be str"),
    ({'method': None}, "'method' must be str"),
    ({'deviation_from_exact': 1}, "'deviation_from_exact' must be bool"),
    ({'rank_pattern': {'query': 4.0}}, "'rank_pattern' must be an object of numbers"),
    ({'rank_pattern': 'query:4'}, "'rank_pattern' must be an object of numbers"),
    ({'rank_tiers': {'small': 1.0}}, "'rank_tiers' must be an object of numbers"),
    ({'rank_tiers': [4, 0.5]}, "'rank_tiers' must be an object of numbers"),
    ([], 'must hold a JSON object'),
    ('{', 'is not JSON'),
    ('', 'is not JSON'),
  ],
)
def test_wrong_file_is_one_line_that_names_file_and_key(tmp_path, content, message):
  path = _write(tmp_path, content)
  with pytest.raises(UserError) as caught:
    config_files.resolve(path, {})
  assert message in str(caught.value)
  assert 'run.json' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_file_that_is_not_text_is_named(tmp_path):
  (tmp_path / 'run.json').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(UserError, match=r'run\.json is not JSON'):
    config_files.resolve(tmp_path / 'run.json', {})


@pytest.mark.parametrize('name', ['missing.json', '.'])
def test_unreadable_file_is_named(tmp_path, name):
  with pytest.raises(UserError, match='Cannot read'):
    config_files.resolve(tmp_path / name, {})


_OUT_OF_RANGE = [
  ('seed', -1),
  ('seed', 2**31),
  ('rounds', 0),
  ('clients_per_round', 0),
  ('sequence_length', 31),
  ('max_rank', 0),
  ('min_rank', 0),
  ('method', 'fedavg'),
  ('rank_pattern', {'[': 4}),
  ('rank_pattern', {'query': 0}),
  ('rank_dynamics', 'rising'),
  ('rank_assignment', 'random'),
  ('rank_tiers', {}),
  ('rank_tiers', {0: 1.0}),
  ('rank_tiers', {4: 0.5}),
  ('rank_tiers', {4: 1.5, 8: -0.5}),
  ('rank_tiers', {4: float('nan'), 8: 1.0}),
  ('rank_file', ''),
  ('initial_adapter', ''),
  ('upload_bits', 5),
  ('compute_dtype', 'float16'),
  ('rank_exponent', 0.0),
  ('alpha', 0.0),
  ('alpha', float('inf')),
  ('alpha', float('nan')),
  ('prune_decay', 0.0),
  ('prune_decay', 1.01),
  ('prune_weight', -0.1),
  ('weights', 'rank'),
  ('padding', 'zero'),
  ('distribution', 'push'),
  ('local_steps', 0),
  ('batch_size', 0),
  ('client_optimizer', 'lion'),
  ('client_learning_rate', 0.0),
  ('server_optimizer', 'lion'),
  ('server_learning_rate', -1.0),
  ('eval_every', 0),
  ('eval_split', 'train'),
  ('eval_examples_per_client', 0),
  ('num_beams', 0),
  ('eval_clients', 0),
  ('personalization_clients', -1),
  ('data_dir', ''),
  ('client_field', ()),
  ('labels', ('yes',)),
  ('labels', ('yes', 'yes')),
  ('min_examples', 0),
  ('max_examples', 0),
  ('truncate_source', 'middle'),
  ('max_target_tokens', 1),
  ('decode_examples', -1),
  ('concurrent_clients', -1),
  ('targets', ()),
  ('privacy', 'local'),
  ('secure_bits', 1),
  ('secure_bits', 33),
  ('secure_rounding', 'up'),
  ('secure_threshold', 1),
  ('secure_coordinates', 0),
  ('assumed_colluders', -1),
  ('noise_multiplier', -0.1),
  ('l2_clip_norm', 0.0),
  ('clip', 'none'),
  ('clip_quantile', 1.0),
  ('target_epsilon', 0.0),
  ('delta', 0.0),
  ('delta', 1.0),
  ('sampling', 'shuffle'),
  ('min_separation', 0),
  ('max_participations', 0),
  ('noise_cohort_size', 0),
  ('population_size', 0),
  ('noise_matrix', 'dense'),
  ('tree_restart_every', 0),
  ('weight_reference', 0.0),
  ('mean_weight', 1.5),
  ('denominator', 'secret'),
  ('audit_canaries', -1),
]


@pytest.mark.parametrize(('key', 'value'), _OUT_OF_RANGE)
def test_out_of_range_names_the_option(key, value):
  with pytest.raises(UserError) as caught:
    config.RunConfig(**{key: value})
  assert str(caught.value).startswith(
    (f'{config.option(key)} must ', f'{config.option(key)} needs ')
  )
  assert '\n' not in str(caught.value)


def test_every_key_with_a_range_is_tried():
  unlimited = {'task', 'backbone', *(key for key in _KEYS if config.TYPES[key] is bool)}
  unlimited |= {key for key in _KEYS if key.endswith('_field') and config.TYPES[key] is str}
  assert {key for key, _ in _OUT_OF_RANGE} | unlimited == set(_KEYS)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('prune_decay', 1.0),
    ('prune_weight', 0.0),
    ('decode_examples', 0),
    ('seed', 2**31 - 1),
    ('sequence_length', 32),
  ],
)
def test_bounds_belong_to_the_range(key, value):
  assert getattr(config.RunConfig(**{key: value}), key) == value


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'min_rank': 9}, '--min-rank'),
    ({'rank_pattern': {'query': 9, 'value': 2}}, '--rank-pattern'),
    ({'rank_assignment': 'tiers', 'rank_tiers': {4: 0.5, 9: 0.5}}, '--rank-tiers'),
  ],
)
def test_no_rank_is_above_the_largest(changes, named):
  with pytest.raises(UserError, match=f'{named} 9 is above --max-rank 8'):
    config.RunConfig(max_rank=8, **changes)
  assert config.RunConfig(max_rank=9, **changes).max_rank == 9


@pytest.fixture(name='run')
def run_fixture(tmp_path):
  kept = config.RunConfig(rounds=5, seed=3, targets=('query',))
  (tmp_path / 'config.json').write_text(json.dumps(kept.to_json()))
  return tmp_path, kept


def test_resumed_run_keeps_its_configuration(run):
  directory, kept = run
  assert config_files.resolve_resumed(directory, None, {}) == kept
  again = {'seed': 3, 'targets': ('query',)}
  assert config_files.resolve_resumed(directory, None, again) == kept
  more = config_files.resolve_resumed(directory, None, {'rounds': 9})
  assert more == dataclasses.replace(kept, rounds=9)


def test_changed_option_of_a_resumed_run_is_refused(run, tmp_path):
  directory, _ = run
  with pytest.raises(UserError, match=r'--seed: .* has 3'):
    config_files.resolve_resumed(directory, None, {'seed': 4})
  with pytest.raises(UserError, match='--alpha: '):
    config_files.resolve_resumed(directory, _write(tmp_path, {'alpha': 1.5}), {})
  with pytest.raises(UserError, match=r'--resume: .* holds no run'):
    config_files.resolve_resumed(directory / 'nothing', None, {})


def test_null_in_a_resumed_runs_file_asks_for_nothing(run, tmp_path):
  directory, kept = run
  path = _write(tmp_path, {'prune_decay': None})
  assert config_files.resolve_resumed(directory, path, {}) == kept


def _private_fields():
  fields = dataclasses.fields(config.RunConfig)
  return [
    field for field in fields if field.metadata.get('panel') in ('Privacy', 'Secure aggregation')
  ]


# A `config.json` as release 0.1 wrote it.
_BEFORE_METHODS = {
  'task': 'docstring_summarization',
  'seed': 4,
  'rounds': 16,
  'clients_per_round': 10,
  'backbone': 'embedded',
  'sequence_length': 128,
  'targets': ['query', 'value'],
  'max_rank': 8,
  'min_rank': 2,
  'rank_exponent': 0.1,
  'alpha': 64.0,
  'prune_decay': 1.0,
  'prune_weight': 0.01,
  'weights': 'uniform',
  'padding': 'update',
  'distribution': 'select',
  'local_steps': 5,
  'batch_size': 8,
  'client_optimizer': 'adam',
  'client_learning_rate': 0.01,
  'server_optimizer': 'adam',
  'server_learning_rate': 0.5,
  'eval_every': 4,
  'eval_split': 'test',
  'eval_examples_per_client': 16,
  'decode_examples': 128,
  'concurrent_clients': 0,
}


def test_runs_from_before_there_were_methods_can_be_read_and_resumed(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(_BEFORE_METHODS))
  read = config_files.from_json(tmp_path / 'config.json')
  assert {**read.to_json(), 'targets': ['query', 'value']}.items() >= _BEFORE_METHODS.items()
  assert (read.method, read.rank_dynamics) == ('hetlora', 'self_pruning')
  assert read.rank_assignment == 'power_law'
  assert config_files.resolve_resumed(tmp_path, None, {'rounds': 20}).rounds == 20


@pytest.mark.parametrize('method', list(methods.METHODS))
def test_every_method_is_settled_and_what_is_settled_settles_to_itself(method, tmp_path):
  settled = config.RunConfig(method=method)
  assert config_files.from_json(_write(tmp_path, settled.to_json())) == settled
  assert config_files.from_values('x', {'method': method, 'max_rank': None}) == settled
  without = {key for key, value in settled.to_json().items() if value is None}
  always = {'privacy', 'sampling', 'secure_aggregation'}
  assert without >= {field.name for field in _private_fields()} - always
  without -= {field.name for field in _private_fields()} | {*DATA_KEYS, 'max_target_tokens'}
  without -= {'rank_tiers', 'rank_file', 'rank_exponent', 'initial_adapter', 'upload_bits'}
  of_adapters = {
    'targets', 'alpha', 'max_rank', 'rank_pattern', 'rank_dynamics', 'rank_assignment', 'min_rank',
    'prune_decay', 'prune_weight',
  }  # fmt: skip
  assert without == (of_adapters if method == 'full' else set())


def test_hetlora_is_the_paper():
  settled = config.RunConfig()
  assert (settled.rank_dynamics, settled.rank_assignment) == ('self_pruning', 'power_law')
  assert (settled.weights, settled.padding) == ('module', 'state')
  assert (settled.prune_decay, settled.prune_weight, settled.rank_exponent) == (0.99, 0.01, 0.1)
  assert settled.deviation_from_exact is True


def test_pruning_off_is_decay_one_and_weight_zero():
  settled = config.RunConfig(rank_dynamics='fixed')
  assert (settled.prune_decay, settled.prune_weight) == (1.0, 0.0)
  assert settled.min_rank == 4  # Still the smallest that the power law draws.
  pruning = config.RunConfig(method='naive', rank_dynamics='self_pruning')
  assert (pruning.prune_decay, pruning.prune_weight) == (0.99, 0.01)


def test_tier_dynamics_come_with_tiers():
  settled = config.RunConfig(rank_dynamics='tier', rank_tiers={2: 0.5, 8: 0.5})
  assert settled.rank_assignment == 'tiers'
  assert (settled.min_rank, settled.rank_exponent, settled.prune_decay) == (1, None, 1.0)


@pytest.mark.parametrize(
  'changes',
  [
    {'server_optimizer': 'adam'},
    {'server_learning_rate': 0.5},
    {'distribution': 'select', 'padding': 'update'},
    {'method': 'coverage', 'distribution': 'select'},
    {'method': 'full'},
  ],
)
def test_deviation_is_measured_where_it_can_be(changes):
  assert config.RunConfig(**changes).deviation_from_exact is False
  with pytest.raises(UserError, match=r'--deviation-from-exact: --.*; leave it out\.'):
    config.RunConfig(**changes, deviation_from_exact=True)
  assert config.RunConfig(deviation_from_exact=False).deviation_from_exact is False
  assert config.RunConfig(distribution='select').deviation_from_exact is True
  assert config.RunConfig(padding='update').deviation_from_exact is True


def test_text_of_another_form_names_option_and_form():
  assert config.from_text('rank_tiers', '4:0.5,8:0.5') == {4: 0.5, 8: 0.5}
  with pytest.raises(UserError, match=r"--rank-tiers must be RANK:SHARE,\.\.\., got '4'\."):
    config.from_text('rank_tiers', '4')
  with pytest.raises(UserError, match=r"--rank-pattern must be REGEX:RANK,\.\.\., got 'query'\."):
    config.from_text('rank_pattern', 'query')


def test_what_is_no_object_of_keys_is_named_with_its_source():
  with pytest.raises(UserError, match=r'suite\.json, run 3 must hold a JSON object'):
    config_files.from_values('suite.json, run 3', [1])
  with pytest.raises(UserError, match=r"suite\.json, run 3: unknown key 'names'"):
    config_files.from_values('suite.json, run 3', {'names': 1})


def test_a_method_may_have_a_usual_value_of_its_own():
  assert config.RunConfig().client_learning_rate == 0.01
  assert config.RunConfig(method='full').client_learning_rate == 3e-4
  assert config.RunConfig(method='full', client_learning_rate=0.1).client_learning_rate == 0.1


def test_the_smallest_rank_stays_below_a_small_largest_one():
  assert [config.RunConfig(max_rank=rank).min_rank for rank in (1, 2, 4, 8, 32)] == [1, 1, 2, 4, 4]
  with pytest.raises(UserError, match='--min-rank 3 is above --max-rank 2'):
    config.RunConfig(max_rank=2, min_rank=3)


def test_paths_are_absolute_and_names_of_presets_are_not(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'backbone').mkdir()
  resolved = config_files.resolve(None, {'backbone': 'backbone', 'initial_adapter': 'run/adapter'})
  assert resolved.backbone == str(tmp_path / 'backbone')
  assert resolved.initial_adapter == str(tmp_path / 'run' / 'adapter')
  assert config_files.resolve(None, {'backbone': 'gpt2_base_en'}).backbone == 'gpt2_base_en'
