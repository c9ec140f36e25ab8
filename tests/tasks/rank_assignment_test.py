# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import json

import pytest

from hetlora_tff.clients import ranks
from tasks import rank_assignment, rank_file
from tasks.config import RunConfig
from tasks.errors import UserError

_SIZES = {f'client_{index:02d}': 10 * index + 1 for index in range(20)}


def _write(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def _from_file(path, **changes):
  return RunConfig(max_rank=8, rank_assignment='file', rank_file=str(path), **changes)


def test_power_law_has_the_runs_bounds_exponent_and_seed():
  config = RunConfig(min_rank=3, max_rank=9, rank_exponent=0.7)
  drawn = rank_assignment.assign_ranks(config, _SIZES, [5, 1])
  assert drawn == ranks.truncated_power_law_ranks(list(_SIZES), 3, 9, exponent=0.7, seed=[5, 1])


def test_tiers_have_their_shares():
  config = RunConfig(rank_dynamics='tier', rank_tiers={2: 0.5, 4: 0.3, 32: 0.2})
  dealt = rank_assignment.assign_ranks(config, _SIZES, 0)
  assert collections.Counter(dealt.values()) == {2: 10, 4: 6, 32: 4}
  assert dealt != rank_assignment.assign_ranks(config, _SIZES, 1)


def test_more_data_more_ranks():
  config = RunConfig(rank_assignment='data_size', min_rank=2, max_rank=6)
  by_client = rank_assignment.assign_ranks(config, _SIZES, 0)
  assert list(by_client.values()) == sorted(by_client.values())
  assert set(by_client.values()) == {2, 3, 4, 5, 6}


def test_one_rank_for_all_and_none_at_all():
  config = RunConfig(method='homlora', max_rank=7)
  assert rank_assignment.assign_ranks(config, _SIZES, 0) == dict.fromkeys(_SIZES, 7)
  config = RunConfig(method='full')
  assert rank_assignment.assign_ranks(config, _SIZES, 0) == dict.fromkeys(_SIZES, 1)
  assert rank_assignment.tier_bounds(config) == []


@pytest.mark.parametrize(
  ('low', 'high', 'bounds'),
  [(4, 32, [7, 11, 19, 32]), (1, 1, [1]), (3, 4, [3, 4]), (1, 4, [1, 2, 3, 4])],
)
def test_tiers_for_evaluation_are_evenly_spaced_up_to_the_largest_rank(low, high, bounds):
  assert rank_assignment.tier_bounds(RunConfig(min_rank=low, max_rank=high)) == bounds


def test_device_tiers_are_those_for_evaluation():
  tiers = {'rank_assignment': 'tiers', 'rank_tiers': {8: 0.5, 2: 0.5}}
  assert rank_assignment.tier_bounds(RunConfig(max_rank=8, **tiers)) == [2, 8]
  assert rank_assignment.tier_bounds(RunConfig(max_rank=9, **tiers)) == [2, 8, 9]


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('ranks.json', '{"a": 1, "b, c": 8}'),
    ('ranks.csv', 'client,rank\na,1\n"b, c",8\n'),
    ('ranks.txt', '\ufeffa,1\r\n\r\n"b, c", 8'),
  ],
)
def test_file_gives_each_client_its_rank(tmp_path, name, content):
  path = _write(tmp_path, name, content)
  assert rank_file.read_rank_file(path, 8) == {'a': 1, 'b, c': 8}
  assert rank_assignment.assign_ranks(_from_file(path), {'b, c': 3}, 0) == {'b, c': 8}


def test_clients_that_the_file_leaves_out_are_refused_or_draw_from_it(tmp_path):
  path = _write(tmp_path, 'ranks.json', json.dumps({'client_00': 8, 'x': 2, 'y': 2, 'z': 5}))
  config = _from_file(path)
  with pytest.raises(
    UserError, match=r"ranks\.json gives no rank to client 'client_01' \(19 of 20"
  ):
    rank_assignment.assign_ranks(config, _SIZES, 0)
  sizes = {f'client_{index:04d}': 1 for index in range(1000)} | {'client_00': 1}
  drawn = rank_assignment.assign_ranks(config, sizes, 0, unlisted='draw')
  assert drawn['client_00'] == 8
  counts = collections.Counter(drawn.values())
  assert set(counts) == {2, 5, 8}
  assert 450 < counts[2] < 550
  assert drawn == rank_assignment.assign_ranks(config, sizes, 0, unlisted='draw')
  assert drawn != rank_assignment.assign_ranks(config, sizes, 1, unlisted='draw')


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('r.json', '[1]', r'r\.json must hold a JSON object'),
    ('r.json', '[["a", 1]]', r'r\.json must hold a JSON object'),
    ('r.json', '{"a": 1', r'r\.json cannot be read: '),
    ('r.json', '{"a": "1"}', r"r\.json: client 'a' must have a rank in \[1, 8\] .* got '1'"),
    ('r.json', '{"a": true}', "client 'a' must have a rank"),
    ('r.json', '{"a": 1.0}', "client 'a' must have a rank"),
    ('r.json', '{"a": {"b": 1}}', "client 'a' must have a rank"),
    ('r.json', '{"a": 1, "b": 2, "a": 1}', r"r\.json: client 'a' is listed twice"),
    ('r.json', '{}', r'r\.json lists no client'),
    ('r.json', '', r'r\.json cannot be read: '),
    ('r.csv', '', r'r\.csv lists no client'),
    ('r.csv', 'client,rank\n', r'r\.csv lists no client'),
    ('r.csv', 'a,1\nb\n', r"r\.csv, line 2 must be client,rank, got 'b'"),
    ('r.csv', 'a,1\n\nb,2,3\n', r'r\.csv, line 3 must be client,rank'),
    ('r.csv', 'a,0\n', r"r\.csv, line 1: client 'a' must have a rank in \[1, 8\] .* got 0"),
    ('r.csv', 'client,rank\na,9\n', r"line 2: client 'a' must have a rank"),
    ('r.csv', 'a,-1\n', r"line 1: client 'a' must have a rank .* got '-1'"),
    ('r.csv', 'a,1.0\n', r"client 'a' must have a rank .* got '1\.0'"),
    ('r.csv', 'a,1\na,1\n', r"line 2: client 'a' is listed twice"),
    ('r.csv', '"a,1\n', r'r\.csv cannot be read: '),
    ('r.csv', b'\xff\xfe,1\n', r'r\.csv cannot be read: '),
  ],
)
def test_wrong_file_is_one_line_that_names_file_line_and_client(tmp_path, name, content, message):
  path = _write(tmp_path, name, content)
  with pytest.raises(UserError, match=message) as caught:
    rank_assignment.assign_ranks(_from_file(path), {'a': 1}, 0)
  assert str(caught.value).startswith('--rank-file: ')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['missing.csv', '.'])
def test_unreadable_file_is_named(tmp_path, name):
  with pytest.raises(UserError, match='--rank-file: cannot read '):
    rank_assignment.assign_ranks(_from_file(tmp_path / name), {'a': 1}, 0)
