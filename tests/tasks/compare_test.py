# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The comparison as it is written: CSV, plots, page and table."""

import csv
import html.parser
import math
import re
import subprocess
import sys

import pytest

from tasks import compare
from tasks.errors import UserError
from tests.tasks import synthetic_runs

_LOSSES = {'hetlora': 4.6, 'svd': 4.5, 'stacking': 4.55, 'full': 4.2}


class _Page(html.parser.HTMLParser):
  """The visible text of a page and its addresses."""

  def __init__(self, path):
    super().__init__()
    self.words, self.addresses, self.tags = [], [], []
    self.raw = path.read_text()
    self.feed(self.raw)
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.addresses += [value for key, value in attrs if key in ('src', 'srcset', 'href')]

  def handle_data(self, data):
    self.words.append(data)


@pytest.fixture(name='make')
def make_fixture(tmp_path):
  """Writes runs of some methods and seeds, and compares them."""

  def make(losses=_LOSSES, seeds=(0, 1, 2), spread=0.01, extra=(), **settings):
    runs = [
      synthetic_runs.write(
        tmp_path / f'{method}-{seed}',
        final_loss=loss + spread * (seed - 1),
        method=method,
        seed=seed,
        **settings,
      )
      for method, loss in losses.items()
      for seed in seeds
    ]
    compare.compare([*runs, *extra], tmp_path / 'out')
    return _Page(tmp_path / 'out/comparison.html')

  return make


def _rows(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def test_writes_a_row_for_each_configuration_and_each_run(make, tmp_path):
  make()
  rows = {row['configuration']: row for row in _rows(tmp_path / 'out/comparison.csv')}
  assert list(rows) == list(_LOSSES)
  row = rows['svd']
  assert (row['method'], row['runs'], row['seeds']) == ('svd', '3', '0 1 2')
  assert float(row['perplexity']) == pytest.approx(math.exp(4.5))
  assert float(row['perplexity_low']) < math.exp(4.5) < float(row['perplexity_high'])
  assert float(row['upload_bytes']) == 5e6 * synthetic_runs.ROUNDS
  assert row['config.max_rank'] == '32'
  assert not any('seed' in key for key in row if key.startswith('config.'))
  runs = _rows(tmp_path / 'out/runs.csv')
  assert len(runs) == 12
  assert runs[0]['directory'] == str(tmp_path / 'hetlora-0')
  assert float(runs[0]['final_loss']) == pytest.approx(4.59)


def test_writes_the_plots_and_puts_them_into_the_page(make, tmp_path):
  page = make()
  names = sorted(path.name for path in (tmp_path / 'out/plots').iterdir())
  assert names == ['deviation.png', 'final.png', 'perplexity.png', 'upload.png']
  assert page.tags.count('img') == 4


def test_page_stands_alone(make):
  page = make()
  assert page.addresses
  assert all(address.startswith('data:') for address in page.addresses)
  assert not re.search(r'url\(|@import|https?://', page.raw)
  assert 'script' not in page.tags


def test_page_says_who_is_best_and_names_the_upper_bound(make):
  text = make(spread=0.015).text
  assert 'svd has the lowest held-out perplexity' in text
  assert 'Its 95 % interval over seeds is below those of all others.' not in text
  assert 'does not separate it from stacking.' in text
  assert 'Full fine-tuning of all weights (full), meant as the upper bound, reaches 66.69' in text


def test_page_says_when_the_best_stands_apart(make):
  assert 'is below those of all others' in make(spread=0.0001).text


def test_page_says_when_nothing_is_better_than_the_base(make):
  assert 'None of 2 configurations is better' in make({'hetlora': 5.8, 'svd': 5.7}).text


def test_one_configuration_is_a_page_too(make):
  text = make({'hetlora': 4.6}).text
  assert 'hetlora: held-out perplexity is' in text
  assert 'interval over seeds' not in text


def test_one_seed_has_no_interval_and_says_so(make, tmp_path):
  text = make(seeds=(0,)).text
  assert 'ran with a single seed, so there are no intervals' in text
  assert 'No intervals' in text
  assert '95 %' not in text
  assert {row['perplexity_low'] for row in _rows(tmp_path / 'out/comparison.csv')} == {''}


def test_two_seeds_are_said_to_be_few(make):
  assert 'Intervals over two seeds are very wide' in make(seeds=(0, 1)).text


def test_uneven_seeds_and_effort_are_said(make, tmp_path):
  extra = synthetic_runs.write(tmp_path / 'more', method='naive', seed=0, rounds=4, local_steps=9)
  text = make(extra=[extra]).text
  assert 'One seed only, and so no interval: naive.' in text
  assert 'Configurations ran with different seeds.' in text
  assert 'rounds, local steps differ.' in text


def test_page_explains_methods_and_leaves_out_unknown_ones(make):
  text = make({'svd': 4.5, 'novel': 4.6}).text
  assert 'Reconstruction and SVD (FlexLoRA)' in text
  assert 'arXiv:2402.11505' in text
  assert 'novel' in text


def test_columns_that_nobody_measured_are_left_out(make, tmp_path):
  text = make(flops=None, deviation=None, rouge_l=None).text
  for word in ('FLOPs', 'deviation', 'Deviation', 'RougeL'):
    assert word not in text
  assert not (tmp_path / 'out/plots/deviation.png').exists()


def test_epsilon_and_noise_have_columns_and_a_projection_is_called_one(
  make, tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '200')
  level = {'privacy': 'central', 'noise_multiplier': 0.75, 'deviation': None}
  projected = {'noise_cohort_size': 1000, 'population_size': 10**5, 'target_epsilon': 2.0}
  extra = [
    synthetic_runs.write(tmp_path / 'a', epsilons=(3.25, None), method='naive', **level),
    synthetic_runs.write(tmp_path / 'b', epsilons=(None, 1.96), method='ffa', **level, **projected),
    synthetic_runs.write(tmp_path / 'c', epsilons=(None, None), method='homlora', **level),
  ]
  page = make({'svd': 4.5}, seeds=(0,), extra=extra)
  rows = {row['configuration']: row for row in _rows(tmp_path / 'out/comparison.csv')}
  assert [rows[name]['epsilon'] for name in ('svd', 'naive', 'ffa')] == ['', '3.25', '']
  assert rows['ffa']['projected_epsilon'] == '1.96'
  assert rows['ffa']['config.noise_multiplier'] == '0.75'
  result = page.text.partition('Curves')[0]
  assert 'epsilon noise' in result
  assert '3.25' in result
  assert '1.96 projected' in result
  assert 'among 1,000' in result
  assert 'no guarantee' in result
  assert 'do not protect clients alike' in result
  assert 'It is no guarantee of theirs.' in result
  assert 'Epsilon bounds how much' in page.text
  assert (tmp_path / 'out/plots/privacy.png').exists()
  assert '1.96 (projected)' in ' '.join(capsys.readouterr().out.split())


def test_without_privacy_nothing_is_said_of_it(make, tmp_path):
  extra = [
    synthetic_runs.write(tmp_path / 'a', epsilons=(None, None), privacy='none', method='ffa')
  ]
  text = make({'svd': 4.5}, seeds=(0,), extra=extra).text
  for word in ('psilon', 'alike', 'guarantee'):
    assert word not in text
  assert not (tmp_path / 'out/plots/privacy.png').exists()


def test_an_exact_method_is_called_exact(make):
  assert 'exact' in make({'stacking': 4.5}, deviation=2e-8).text.partition('Curves')[0]


def test_settings_that_differ_are_shown(make, tmp_path):
  extra = synthetic_runs.write(tmp_path / 'more', method='naive', padding=None, client_momentum=0.9)
  text = make(extra=[extra]).text
  shown = text.partition('Settings that differ')[2]
  assert 'padding' in shown
  assert 'client_momentum' in shown


def test_text_from_files_is_escaped(make):
  page = make({'<script>alert(1)</script>': 4.5})
  assert 'script' not in page.tags
  assert '<script>alert(1)</script>' in page.text


def test_prints_a_table(make, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '160')
  make()
  lines = capsys.readouterr().out.splitlines()
  (row,) = [line for line in lines if line.split()[:2] == ['svd', '90.02']]
  assert re.search(r'svd +90\.02 \(87\.81 to 92\.28\)', row)


def test_refuses_nothing_and_writes_nothing_on_refusal(tmp_path):
  with pytest.raises(UserError, match='nothing to compare'):
    compare.compare([], tmp_path / 'out')
  with pytest.raises(UserError, match='absent holds no run'):
    compare.compare([tmp_path / 'absent'], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_refuses_an_output_that_is_a_file(make, tmp_path):
  (tmp_path / 'out').write_text('')
  with pytest.raises(UserError, match=r'--output-dir .*out is not a directory'):
    make()


def test_needs_no_tensorflow():
  code = 'import sys, tasks.compare, tasks.suite; sys.exit("tensorflow" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
