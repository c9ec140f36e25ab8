# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whose work counts as foreign."""

import collections
import types

import pytest

from benchmarks import load

_Machine = collections.namedtuple('_Machine', ['user', 'system', 'idle', 'iowait', 'guest'])
_Own = collections.namedtuple('_Own', ['user', 'system'])


class _Clock:
  """Two cores for a second a run: we take 0.4, our child 0.6, others 0.3, the rest is idle."""

  def __init__(self):
    self.runs = 0

  def run(self):
    self.runs += 1

  def cpu_times(self):
    # A guest's time is in the user's, too.
    return _Machine(*(self.runs * share for share in (1.0, 0.3, 0.5, 0.2, 0.25)))

  def process(self):
    def of(user, system, children=()):
      return types.SimpleNamespace(
        cpu_times=lambda: _Own(self.runs * user, self.runs * system),
        children=lambda recursive: list(children),
      )

    return of(0.3, 0.1, [of(0.6, 0.0)])


@pytest.mark.parametrize(('least_seconds', 'runs'), [(0.0, 1), (2.5, 3)])
def test_short_work_is_repeated_and_what_we_have_started_is_ours(least_seconds, runs, monkeypatch):
  clock = _Clock()
  fake = types.SimpleNamespace(cpu_times=clock.cpu_times, Process=clock.process)
  monkeypatch.setattr(load, 'psutil', fake)
  seconds = types.SimpleNamespace(perf_counter=lambda: float(clock.runs))
  monkeypatch.setattr(load, 'time', seconds)
  sample = load.measure(clock.run, least_seconds)
  assert clock.runs == runs
  assert sample.seconds == 1.0
  assert sample.foreign == pytest.approx(0.3)
  assert not sample.is_clean
