# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""An evaluation that was begun is the one that is told, once, with its errors."""

import json
import threading
import types

import pytest

from tasks import held_out
from tasks.errors import UserError


@pytest.fixture(name='world')
def world_fixture(tmp_path, monkeypatch):
  """Evaluations of a directory, and what they evaluated in which thread."""
  measured, built = [], []

  def evaluate(evaluator, parameters, *, write):
    measured.append((parameters, write, threading.current_thread()))
    if parameters == 'diverged':
      raise UserError('The held-out loss is not finite.')
    return {'perplexity': float(len(parameters))}

  monkeypatch.setattr(held_out.results, 'evaluate', evaluate)

  def write_json(name, value):
    (tmp_path / name).write_text(json.dumps(value))

  made = held_out.HeldOut(
    types.SimpleNamespace(evaluator=lambda: built.append(threading.current_thread())),
    types.SimpleNamespace(
      root=tmp_path,
      write_json=write_json,
      read_json=lambda name: json.loads((tmp_path / name).read_text()),
    ),
    '',
    types.SimpleNamespace(say_busy=lambda text: None),
    types.SimpleNamespace(event=lambda *args, **fields: None),
  )
  return types.SimpleNamespace(made=made, measured=measured, built=built)


def test_what_was_begun_is_used_once(world):
  world.made.begin('base')
  first = world.made.evaluate(0, 'base', write=True)
  assert world.made.base() == first
  assert (first['round'], first['perplexity']) == (0, 4.0)
  assert world.made.evaluate(1, 'tuned', write=True)['perplexity'] == 5.0
  assert world.made.final(1, 'tuned')['perplexity'] == 5.0
  assert [(what, write) for what, write, _ in world.measured] == [('base', True), ('tuned', True)]
  here = threading.current_thread()
  assert [thread is here for *_, thread in world.measured] == [False, True]
  # While it is built nobody else uses the tokenizer.
  assert world.built == [here]
  # Of another round: a resumed run has gone on.
  assert world.made.final(2, 'better')['perplexity'] == 6.0


def test_errors_are_those_of_the_evaluation(world):
  world.made.begin('diverged')
  with pytest.raises(UserError, match='not finite'):
    world.made.evaluate(0, 'diverged', write=True)
  with pytest.raises(FileNotFoundError):
    world.made.base()
