# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import pytest

from tasks import config
from tasks.errors import UserError

_KEYS = [field.name for field in dataclasses.fields(config.RunConfig)]


def _write(tmp_path, content):
  path = tmp_path / 'run.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content), 'utf-8')
  return path


def test_defaults_run_the_embedded_model_on_the_default_task():
  resolved = config.resolve(None, {})
  assert resolved == config.RunConfig()
  assert (resolved.task, resolved.backbone) == ('docstring_summarization', 'embedded')
  assert resolved.targets == ('query', 'value')


def test_flags_go_over_the_file_and_the_file_over_defaults(tmp_path):
  path = _write(tmp_path, {'rounds': 7, 'alpha': 8, 'targets': ['key'], 'max_rank': 9})
  resolved = config.resolve(path, {'rounds': 3})
  assert (resolved.rounds, resolved.max_rank, resolved.seed) == (3, 9, 0)
  assert resolved.targets == ('key',)
  assert type(resolved.alpha) is float


def test_what_is_kept_reads_back_the_same(tmp_path):
  original = config.RunConfig(rounds=3, targets=('a', 'b'), alpha=0.5)
  assert config.from_json(_write(tmp_path, original.to_json())) == original
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
    ([], 'must hold a JSON object'),
    ('{', 'is not JSON'),
    ('', 'is not JSON'),
  ],
)
def test_wrong_file_is_one_line_that_names_file_and_key(tmp_path, content, message):
  path = _write(tmp_path, content)
  with pytest.raises(UserError) as caught:
    config.resolve(path, {})
  assert message in str(caught.value)
  assert 'run.json' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_file_that_is_not_text_is_named(tmp_path):
  (tmp_path / 'run.json').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(UserError, match=r'run\.json is not JSON'):
    config.resolve(tmp_path / 'run.json', {})


@pytest.mark.parametrize('name', ['missing.json', '.'])
def test_unreadable_file_is_named(tmp_path, name):
  with pytest.raises(UserError, match='Cannot read'):
    config.resolve(tmp_path / name, {})


_OUT_OF_RANGE = [
  ('seed', -1),
  ('seed', 2**31),
  ('rounds', 0),
  ('clients_per_round', 0),
  ('sequence_length', 31),
  ('max_rank', 0),
  ('min_rank', 0),
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
  ('decode_examples', -1),
  ('concurrent_clients', -1),
  ('targets', ()),
]


@pytest.mark.parametrize(('key', 'value'), _OUT_OF_RANGE)
def test_out_of_range_names_the_option(key, value):
  with pytest.raises(UserError) as caught:
    config.RunConfig(**{key: value})
  assert str(caught.value).startswith(f'{config.option(key)} ')
  assert '\n' not in str(caught.value)


def test_every_key_with_a_range_is_tried():
  unlimited = {'task', 'backbone'}
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


def test_smallest_rank_is_at_most_the_largest():
  with pytest.raises(UserError, match=r'--min-rank 9 is above --max-rank 8'):
    config.RunConfig(min_rank=9, max_rank=8)
  assert config.RunConfig(min_rank=8, max_rank=8).min_rank == 8


@pytest.fixture(name='run')
def run_fixture(tmp_path):
  kept = config.RunConfig(rounds=5, seed=3, targets=('query',))
  (tmp_path / 'config.json').write_text(json.dumps(kept.to_json()))
  return tmp_path, kept


def test_resumed_run_keeps_its_configuration(run):
  directory, kept = run
  assert config.resolve_resumed(directory, None, {}) == kept
  again = {'seed': 3, 'targets': ('query',)}
  assert config.resolve_resumed(directory, None, again) == kept
  more = config.resolve_resumed(directory, None, {'rounds': 9})
  assert more == dataclasses.replace(kept, rounds=9)


def test_changed_option_of_a_resumed_run_is_refused(run, tmp_path):
  directory, _ = run
  with pytest.raises(UserError, match=r'--seed: .* has 3'):
    config.resolve_resumed(directory, None, {'seed': 4})
  with pytest.raises(UserError, match='--alpha: '):
    config.resolve_resumed(directory, _write(tmp_path, {'alpha': 1.5}), {})
  with pytest.raises(UserError, match=r'--resume: .* holds no run'):
    config.resolve_resumed(directory / 'nothing', None, {})
