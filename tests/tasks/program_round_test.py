# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A round of the program, without the runtime."""

import contextlib
import types

import numpy as np

import hetlora_tff
from tasks import checkpoints, privacy_guard, program


def test_ranks_go_to_those_who_sent_them(monkeypatch):
  run = program._Run.__new__(program._Run)
  run._experiment = types.SimpleNamespace(
    longest_first=lambda cohort: cohort[::-1], client_data=lambda cohort, *_: cohort
  )
  run._rounds = types.SimpleNamespace(
    next=lambda state, data: hetlora_tff.HetLoraOutput(state, {}, [{'rank': 10 + i} for i in data])
  )
  run._guard = types.SimpleNamespace(
    start_round=lambda number: types.SimpleNamespace(cohort=[1, 3], fresh_noise=False),
    silence=contextlib.nullcontext,
    anchor=lambda: privacy_guard.NO_ANCHOR,
    is_private=False,
  )
  run._log = types.SimpleNamespace(event=lambda *_, **__: None)
  run._checkpoints = types.SimpleNamespace(settle=lambda: None)
  run._untold = None
  monkeypatch.setattr(run, '_measured', lambda *_: {})
  monkeypatch.setattr(run, '_release', lambda *_: None)
  monkeypatch.setattr(run, '_save', lambda *_: None)
  before = checkpoints.RunState(0, None, np.arange(4), **privacy_guard.NO_ANCHOR)
  assert run._one_round(before).ranks.tolist() == [0, 11, 2, 13]
