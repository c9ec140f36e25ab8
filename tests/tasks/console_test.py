# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from tasks.console import Progress

_ROW = {
  'train_loss': 2.5,
  'cohort_clients': 3,
  'pruned_clients': 0,
  'non_finite_clients': 0,
  'round_seconds': 1.26,
  'mean_rank': 6.0,
}


@pytest.fixture(name='shown')
def shown_fixture(capsys, monkeypatch):
  """What a round shows, as lines on stderr; columns wide enough not to wrap."""
  monkeypatch.setenv('COLUMNS', '200')

  def show(**changes):
    with Progress() as progress:
      progress.start_rounds(0, 4)
      progress.show_round(2, {**_ROW, **changes}, np.array([4, 9, 5]))
    output = capsys.readouterr()
    assert output.out == ''
    return output.err

  return show


def test_round_shows_loss_cohort_and_ranks(shown):
  assert shown() == 'round 2: loss 2.500 | 3 clients of rank 4 to 9 | 1.3 s\n'


def test_round_shows_who_pruned_and_who_failed(shown):
  line = shown(train_loss='', pruned_clients=1, non_finite_clients=2)
  assert 'no client trained' in line
  assert '| 1 pruned | 2 non-finite |' in line


def test_evaluation_names_the_base_and_the_round(capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  with Progress() as progress:
    progress.show_evaluation(0, {'eval_perplexity': 12.34})
    progress.show_evaluation(5, {'eval_perplexity': 9.5, 'eval_rouge_l': 0.25})
  first, second = capsys.readouterr().err.splitlines()
  assert first.startswith('untuned base: held-out perplexity 12.3')
  assert 'RougeL' not in first
  assert second.startswith('round 5: ')
  assert second.endswith('RougeL 0.250')


def test_resumed_run_says_where_it_goes_on(capsys):
  with Progress() as progress:
    progress.start_rounds(3, 5)
    progress.say_busy('evaluating')
    progress.say('[bold]as it is[/bold]')
  assert capsys.readouterr().err == 'Resuming after round 3.\n[bold]as it is[/bold]\n'


def test_ranks_are_left_out_where_they_mean_nothing(shown):
  assert 'rank' not in shown(mean_rank='')


def test_private_round_is_done_and_no_more(capsys):
  with Progress() as progress:
    progress.start_rounds(0, 4)
    progress.show_round(2, {'round': 2, 'eval_perplexity': 9.5})
  assert capsys.readouterr().err == 'round 2: noised\n'


def test_quiet_is_quiet(capsys):
  with Progress(quiet=True) as progress:
    progress.start_rounds(3, 4)
    progress.say('Loading ...')
    progress.show_round(4, _ROW, np.array([4]))
  assert capsys.readouterr() == ('', '')
