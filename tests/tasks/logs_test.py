# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import datetime
import json
import logging
import os
import re

import pytest

from tasks.errors import UserError
from tasks.logs import Event, RunLog


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(name='said')
def said_fixture():
  return []


@pytest.fixture(name='path')
def path_fixture(tmp_path):
  return tmp_path / 'log.jsonl'


def test_events_are_lines_with_time_level_and_fields(path, said):
  with RunLog(path, said.append) as log:
    log.event(Event.ROUND_FINISHED, round=3, seconds=1.25)
    log.warn('Worker b is lost.')
  finished, warning, end = _lines(path)
  moment = datetime.datetime.fromisoformat(finished.pop('time'))
  assert abs(datetime.datetime.now(datetime.UTC) - moment) < datetime.timedelta(minutes=5)
  assert finished == {'level': 'info', 'event': 'round_finished', 'round': 3, 'seconds': 1.25}
  assert (warning['level'], warning['message']) == ('warning', 'Worker b is lost.')
  assert (end['event'], end['level']) == ('finished', 'info')
  assert said == ['Worker b is lost.']


@pytest.mark.parametrize(
  ('error', 'event', 'level'),
  [
    (UserError('no space'), 'failed', 'error'),
    (KeyboardInterrupt(), 'interrupted', 'warning'),
    (ZeroDivisionError('bug'), 'failed', 'error'),
  ],
)
def test_the_end_is_told_and_raised(path, said, error, event, level):
  with pytest.raises(type(error)), RunLog(path, said.append):
    raise error
  (end,) = _lines(path)
  assert (end['event'], end['level'], end['message']) == (event, level, str(error))
  assert end['error'] == type(error).__name__


def test_numbers_that_json_lacks_are_text(path, said):
  with RunLog(path, said.append) as log:
    log.event(Event.EVALUATED, perplexity=float('inf'), round=float('nan'))
  assert 'Infinity' not in path.read_text()
  assert (_lines(path)[0]['perplexity'], _lines(path)[0]['round']) == ('inf', 'nan')


def test_next_run_goes_on_after_what_a_kill_tore(path, said):
  path.write_text('{"event": "started"}\n{"event": "round_st')
  with RunLog(path, said.append):
    pass
  assert [line['event'] for line in _lines(path)] == ['started', 'finished']


def test_events_are_shown_with_the_fields_that_may_be(path, said):
  with RunLog(path, said.append, show=lambda name: name == 'round') as log:
    log.event(Event.ROUND_FINISHED, round=3, seconds=1.25)
    log.say('Building ...')
  assert said[0] == 'round_finished round=3'
  assert said[1] == 'Building ...'  # Once.
  assert said[2:] == ['finished']


def test_the_time_of_an_event_is_shown_where_it_may_be(path, said):
  with RunLog(path, said.append, show=lambda name: name == 'time') as log:
    log.event(Event.ROUND_FINISHED, round=3)
  assert re.fullmatch(r'\d\d:\d\d:\d\d round_finished', said[0])


def test_handlers_of_its_logger_hear_it_and_those_of_the_root_do_not(path, said, caplog):
  logger, mine = logging.getLogger('hetlora'), caplog.handler.__class__()
  logger.addHandler(mine)
  before = logger.level, logger.propagate, list(logger.handlers)
  with RunLog(path, said.append) as log:
    log.say('Building ...')
    log.event(Event.ROUND_STARTED, round=1)
    logging.getLogger('hetlora.mine').warning('of %s', 'mine')
  assert [record.getMessage() for record in mine.records] == [
    'Building ...', 'round_started', 'of mine', 'finished',
  ]  # fmt: skip
  assert caplog.records == []
  assert _lines(path)[2]['message'] == 'of mine'
  assert (logger.level, logger.propagate, logger.handlers) == before
  logger.removeHandler(mine)


def test_full_disk_ends_the_run_with_the_name_of_the_file(path, said, monkeypatch):
  def full(*unused):
    raise OSError(28, 'No space left on device')

  with RunLog(path, said.append) as log, monkeypatch.context() as patch:
    patch.setattr(os, 'write', full)
    with pytest.raises(OSError, match='No space') as caught:
      log.event(Event.ROUND_STARTED, round=1)
    patch.undo()
  assert caught.value.filename == str(path)
  assert [line['event'] for line in _lines(path)] == ['finished']


def test_an_end_for_want_of_space_is_not_hidden_by_another(path, said, monkeypatch):
  def full(*unused):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'write', full)
  with pytest.raises(UserError, match='first'), RunLog(path, said.append):
    raise UserError('first')
