# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which runs are compared, which belong together, and the figures of a group."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from tasks import comparison
from tasks.errors import UserError
from tasks.finished_run import FinishedRun
from tests.tasks import synthetic_runs


@pytest.fixture(name='write')
def write_fixture(tmp_path):
  """Writes and reads runs, each in a directory of its own."""
  made = []

  def write(**settings):
    made.append(synthetic_runs.write(tmp_path / f'run{len(made)}', **settings))
    return FinishedRun.read(made[-1])

  return write


def test_seeds_are_one_group_in_order(write):
  runs = [write(seed=seed, method=method) for seed in (1, 0, 2) for method in ('svd', 'hetlora')]
  groups = comparison.group_runs(runs, order=['hetlora', 'svd'])
  assert [group.label for group in groups] == ['hetlora', 'svd']
  assert [group.seeds for group in groups] == [[0, 1, 2]] * 2


def test_methods_without_a_place_come_last(write):
  runs = [write(method=method) for method in ('zeta', 'alpha', 'svd')]
  groups = comparison.group_runs(runs, order=['svd'])
  assert [group.label for group in groups] == ['svd', 'alpha', 'zeta']


def test_label_says_what_differs_within_a_method(write):
  runs = [write(max_rank=4), write(max_rank=32), write(method='naive', max_rank=8)]
  labels = [group.label for group in comparison.group_runs(runs)]
  assert labels == ['hetlora (max_rank 4)', 'hetlora (max_rank 32)', 'naive']


def test_long_differences_become_numbers(write):
  tiers = {'rank_assignment': 'tiers', 'rank_tiers': {'4': 0.5, '32': 0.5}}
  groups = comparison.group_runs([write(rank_assignment='power_law', rank_tiers=None),
                                  write(**tiers)])  # fmt: skip
  assert [group.label for group in groups] == ['hetlora 1', 'hetlora 2']
  assert [group.difference for group in groups] == [
    'rank_assignment power_law',
    'rank_assignment tiers, rank_tiers {"4": 0.5, "32": 0.5}',
  ]


def test_runs_that_differ_in_privacy_are_labelled_by_it(write):
  private = {'privacy': 'central', 'weights': 'uniform', 'noise_multiplier': 0.8, 'delta': 1e-6}
  runs = [
    write(),
    write(**private, target_epsilon=2.0),
    write(**private, target_epsilon=None),
    write(**private, target_epsilon=2.0, noise_cohort_size=1000, population_size=10**5),
  ]
  assert [group.label for group in comparison.group_runs(runs)] == [
    'hetlora (not private)',
    'hetlora (epsilon 2)',
    'hetlora (noise 0.8)',
    'hetlora (epsilon 2, 1,000 a round)',
  ]


def test_runs_that_differ_in_their_sums_alone_are_labelled_by_them(write):
  secure = {'secure_aggregation': True, 'secure_rounding': 'nearest', 'secure_threshold': 7}
  for private in ({}, {'privacy': 'central', 'target_epsilon': 2.0, 'noise_cohort_size': 1000}):
    runs = [write(**private), *(write(**private, **secure, secure_bits=bits) for bits in (8, 16))]
    labels = [group.label for group in comparison.group_runs(runs)]
    assert labels == ['hetlora (in the clear)', 'hetlora (8 bits)', 'hetlora (16 bits)']


def test_runs_that_differ_in_privacy_and_sums_are_labelled_by_both(write):
  level = {'target_epsilon': 8.0, 'noise_cohort_size': 1000}
  runs = [
    write(),
    write(secure_bits=6),
    write(privacy='central', **level),
    write(privacy='central', secure_bits=6, **level),
  ]
  central = [group.label for group in comparison.group_runs(runs)]
  assert central == [
    'hetlora (not private, in the clear)',
    'hetlora (no noise, 6 bits)',
    'hetlora (epsilon 8, in the clear)',
    'hetlora (epsilon 8, 6 bits)',
  ]
  runs.append(write(privacy='distributed', secure_bits=16, **level))
  both = [group.label for group in comparison.group_runs(runs)]
  assert both[:2] == central[:2]
  assert both[2:] == [
    'hetlora (central, in the clear)',
    'hetlora (central, 6 bits)',
    'hetlora (distributed, 16 bits)',
  ]


def test_runs_that_differ_in_their_cohort_alone_have_labels(write):
  level = {'privacy': 'central', 'target_epsilon': 2.0}
  runs = [write(**level), write(**level, noise_cohort_size=1000)]
  labels = [group.label for group in comparison.group_runs(runs)]
  assert labels == ['hetlora (epsilon 2)', 'hetlora (epsilon 2, 1,000 a round)']


def test_private_runs_that_differ_in_more_are_labelled_by_that(write):
  private = {'privacy': 'central', 'target_epsilon': 2.0}
  runs = [write(**private, l2_clip_norm=0.5), write(**private, l2_clip_norm=1.0)]
  labels = [group.label for group in comparison.group_runs(runs)]
  assert labels == ['hetlora (l2_clip_norm 0.5)', 'hetlora (l2_clip_norm 1.0)']


def test_a_setting_that_one_lacks_tells_both_apart(write):
  labels = {group.label for group in comparison.group_runs([write(), write(padding=None)])}
  assert labels == {'hetlora 1', 'hetlora 2'}


def test_differing_settings_leave_out_seed_and_method(write):
  runs = [write(seed=0), write(seed=1, method='svd', padding='none')]
  groups = comparison.group_runs(runs)
  assert comparison.differing_settings(groups) == {'padding': ['state', 'none']}


def test_perplexity_is_averaged_as_loss(write):
  losses = [4.0, 4.1, 4.5]
  (group,) = comparison.group_runs([write(final_loss=x, seed=s) for s, x in enumerate(losses)])
  margin = stats.t.ppf(0.975, 2) * np.std(losses, ddof=1) / math.sqrt(3)
  middle = np.mean(losses)
  np.testing.assert_allclose(
    group.perplexity, np.exp([middle, middle - margin, middle + margin]), rtol=1e-12
  )
  # The base of the synthetic runs is 5.5 + 0.02 seed: the change is taken seed by seed.
  changes = [loss - 5.5 - 0.02 * seed for seed, loss in enumerate(losses)]
  assert group.change.mean == pytest.approx(math.expm1(np.mean(changes)), rel=1e-12)


def test_one_seed_has_no_interval(write):
  (group,) = comparison.group_runs([write()])
  assert group.perplexity.low is None
  assert group.interval('rouge_l').high is None


def test_an_interval_beyond_all_numbers_is_infinite(write):
  runs = [write(final_loss=loss, seed=seed) for seed, loss in enumerate([4.0, 400.0])]
  (group,) = comparison.group_runs(runs)
  assert group.perplexity.high == math.inf
  assert group.perplexity.low >= 0


def test_costs_are_totals_and_of_one_client_in_one_round(write):
  run = write(upload=400.0, trained=60.0, flops=3000.0, rounds=4, clients_per_round=10)
  found = comparison.measure(run)
  assert found['upload_bytes'] == 1600
  assert found['upload_bytes_per_client'] == 40
  assert found['trained_parameters_per_client'] == 6
  assert (found['client_flops'], found['client_flops_per_client']) == (12_000, 300)
  assert (found['training_seconds'], found['round_seconds']) == (36, 9)


def test_what_was_not_measured_is_none(write):
  found = comparison.measure(write(flops=None, deviation=None, rouge_l=None))
  names = ('client_flops', 'client_flops_per_client', 'deviation_from_exact', 'rouge_l_change')
  assert [found[name] for name in names] == [None] * 4


def test_a_total_without_one_round_is_none(write, tmp_path):
  write()
  path = tmp_path / 'run0/metrics.csv'
  lines = path.read_text().splitlines()
  place = lines[0].split(',').index('upload_bytes')
  cells = lines[3].split(',')
  cells[place] = ''
  path.write_text('\n'.join([*lines[:3], ','.join(cells), *lines[4:]]) + '\n')
  run = FinishedRun.read(tmp_path / 'run0')
  assert comparison.measure(run)['upload_bytes'] is None
  assert comparison.measure(run)['download_bytes'] is not None


def test_a_measure_that_one_seed_lacks_is_none(write):
  (group,) = comparison.group_runs([write(seed=0), write(seed=1, rouge_l=None)])
  assert group.interval('rouge_l') is None
  assert group.mean('upload_bytes') is not None


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'task': 'other'}, r'run1 has --task other, but \S+run0 has docstring_summarization'),
    ({'eval_split': 'test'}, 'run1 has --eval-split test'),
    ({'eval_examples_per_client': 4}, 'run1 has --eval-examples-per-client 4'),
    ({'decode_examples': 0}, 'run1 has --decode-examples 0'),
    ({'sequence_length': 64}, 'run1 has --sequence-length 64'),
    ({}, 'run1 repeats .*run0'),
  ],
)
def test_runs_that_cannot_be_compared_are_refused_by_name(write, settings, said):
  runs = [write(), write(**settings)]
  with pytest.raises(UserError, match=said) as caught:
    comparison.group_runs(runs)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('key', 'said'), [('data_sha256', 'run1 has other data'), ('backbone_sha256', 'another backbone')]
)
def test_other_inputs_are_refused_by_name(write, tmp_path, key, said):
  runs = [write(), write(method='svd')]
  inputs = {**runs[1].inputs, key: 'f' * 64}
  (tmp_path / 'run1/environment.json').write_text(json.dumps({'inputs': inputs}))
  with pytest.raises(UserError, match=said):
    comparison.group_runs([runs[0], FinishedRun.read(tmp_path / 'run1')])


def test_data_of_another_seed_may_differ(write):
  runs = [write(seed=0), write(seed=1)]
  assert runs[0].inputs['data_sha256'] != runs[1].inputs['data_sha256']
  assert len(comparison.group_runs(runs)) == 1
