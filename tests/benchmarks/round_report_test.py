# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is made of the measurements of `make bench`."""

import io
import json
import math

import pytest
import rich.console

from benchmarks import load, peers, round_report

_TORCH = peers.NAMES[0]


def _measured(seconds, foreign=(0.0, 0.0, 0.0), flops=60, loss=None):
  pairs = zip(seconds, foreign, strict=True)
  return round_report.Measured(flops, [load.Sample(*pair) for pair in pairs], loss)


def _kinds(**changes):
  kinds = {
    round_report.round_of('float32'): _measured([2.0, 3.0, 4.0], loss=2.0),
    round_report.loop_of('float32'): _measured([1.0, 3.0, 5.0], loss=2.0),
    # Half the operations in half a second: 60 a second.
    round_report.peak_of('float32'): _measured([0.5, 0.5, 0.5], flops=30),
    _TORCH: _measured([4.0, 4.0, 4.0], loss=5.0),
    peers.FLOWER: _measured([8.0, 8.0, 8.0], loss=5.0),
  }
  return {**kinds, **changes}


def test_ratios_are_of_neighbours_and_of_the_fastest_rival():
  ratios = round_report.ratios(_kinds(), ['float32'])
  assert list(ratios.values()) == [
    {'median': 1.0, 'min': 0.8, 'max': 2.0, 'clean_repeats': 3},
    {'median': 0.375, 'min': 0.25, 'max': 0.5, 'clean_repeats': 3},
    {'median': 0.75, 'min': 0.5, 'max': 1.0, 'clean_repeats': 3},
    {'median': 0.333, 'min': 0.25, 'max': 0.5, 'clean_repeats': 3},
  ]
  assert _TORCH in list(ratios)[2]


def test_repeats_that_others_disturbed_are_left_out():
  busy = _measured([1.0, 3.0, 5.0], foreign=(0.0, 0.0, 1.9))
  ratios = round_report.ratios(_kinds(**{round_report.loop_of('float32'): busy}), ['float32'])
  over_loop = next(iter(ratios.values()))
  assert over_loop == {'median': 1.5, 'min': 1.0, 'max': 2.0, 'clean_repeats': 2}
  assert busy.seconds == [1.0, 3.0]


def test_without_a_clean_repeat_all_count_and_are_marked():
  busy = _measured([1.0, 3.0, 5.0], foreign=(0.2, 0.2, 1.9))
  kinds = _kinds(**{round_report.loop_of('float32'): busy})
  figures = round_report.summary(kinds, ['float32'])
  over_loop = next(iter(figures['ratios'].values()))
  assert over_loop == {'median': 1.0, 'min': 0.8, 'max': 2.0, 'clean_repeats': 0}
  (row,) = [line for line in _text(kinds, figures).splitlines() if 'bare loop, float32 ' in line]
  assert row.rstrip().endswith('1.90 !')


@pytest.mark.parametrize(('loss', 'agrees'), [(2.009, True), (1.98, False)])
def test_losses_of_both_types_are_compared(loss, agrees):
  rounded = {
    round_report.round_of('bfloat16'): _measured([1.0, 1.0, 1.0], loss=loss),
    round_report.loop_of('bfloat16'): _measured([1.0, 1.0, 1.0], loss=loss),
  }
  figures = round_report.summary(_kinds(**rounded), ['float32', 'bfloat16'])
  assert figures['loss_difference'] == pytest.approx(loss / 2 - 1)
  assert figures['loss_agrees'] is agrees


@pytest.mark.parametrize(('loss', 'agrees'), [(2.00001, True), (2.0001, False), (None, False)])
def test_a_loop_that_computes_something_else_than_the_round_is_marked(loss, agrees):
  loop = round_report.loop_of('float32')
  kinds = _kinds(**{loop: _measured([1.0, 3.0, 5.0], loss=loss)})
  figures = round_report.summary(kinds, ['float32'])
  assert list(figures['off']) == ([] if agrees else [loop])
  assert (f'! {loop}: loss {loss}, of round, float32 2.0' in _text(kinds, figures)) is not agrees


@pytest.mark.parametrize(
  ('loss', 'agrees'), [(5.02, True), (4.98, True), (5.03, False), (math.nan, False)]
)
def test_a_rival_whose_losses_are_off_is_marked_and_not_the_fastest(loss, agrees):
  rounded = 'PyTorch + PEFT, bfloat16'
  fast = {rounded: _measured([1.0, 1.0, 1.0], loss=loss)}
  kinds = _kinds(**{peers.REFERENCE: _measured([9.0, 9.0, 9.0], loss=5.0)}, **fast)
  figures = round_report.summary(kinds, ['float32'])
  assert list(figures['off']) == ([] if agrees else [rounded])
  (fastest,) = [name for name in figures['ratios'] if 'fastest rival' in name]
  assert (rounded in fastest) is agrees
  assert (f'! {rounded}: loss ' in _text(kinds, figures)) is not agrees
  # Python would write NaN, which is no JSON.
  json.dumps(figures, allow_nan=False)


def test_without_rivals_nothing_is_said_of_them():
  own = {name: kind for name, kind in _kinds().items() if name not in peers.NAMES}
  figures = round_report.summary(own, ['float32'])
  assert len(figures['ratios']) == 2
  assert 'Flower' not in _text(own, figures)


def _text(kinds, figures) -> str:
  output = io.StringIO()
  for table in round_report.tables('small', kinds, figures):
    rich.console.Console(file=output, width=120).print(table)
  return output.getvalue()
