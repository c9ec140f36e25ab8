# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib

import pytest

from tasks import config, errors, multi_session_chat, task

PERSONAS = [['I bake.', 'I have  a cat.'], ['I ski.']]


def _turns(session, *speakers):
  return [
    {'text': f'{speaker} says {session}.{number}', 'id': speaker}
    for number, speaker in enumerate(speakers)
  ]


def first(conversation):
  """The first session, as `msc_personasummary` has it."""
  dialog = _turns('s1', 'bot_0', 'bot_1', 'bot_0')
  for turn in dialog:
    turn |= {'convai2_id': f'{conversation}_0', 'persona_text': 'never to be read'}
  return {
    'dialog': dialog,
    'followup': 'never to be read',
    'newfact': 'never to be read',
    'initial_data_id': conversation,
    'init_personachat': {'initial_data_id': conversation, 'init_personas': PERSONAS},
  }


def later(conversation, session, **changes):
  """A later one, as `msc_dialogue` has it."""
  return {
    'personas': [[f'I knew it by s{session - 1}.'], []],
    'dialog': _turns(f's{session}', 'Speaker 1', 'Speaker 2'),
    'metadata': {'initial_data_id': conversation, 'session_id': session},
    'previous_dialogs': [
      {'dialog': [{'text': 'never to be read'}], 'time_num': 2, 'time_unit': 'days'}
    ],
    'init_personas': PERSONAS,
    **changes,
  }


def write(path: pathlib.Path, *episodes):
  """Lines of JSON; what is text already is written as it is."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [e if isinstance(e, str) else json.dumps(e) for e in episodes]
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


@pytest.fixture
def msc(tmp_path):
  """A download: two conversations that go on, one that does not, one of `valid.txt`."""
  root = tmp_path / 'msc'
  summary, dialogue = root / 'msc_personasummary', root / 'msc_dialogue'
  write(summary / 'session_1/train.txt', first('t1'), first('t2'), first('t3'))
  write(summary / 'session_1/valid.txt', first('v1'))
  write(dialogue / 'session_2/train.txt', later('t1', 2), later('t2', 2))
  write(dialogue / 'session_2/valid.txt', later('v1', 2))
  # Nobody needs to have been there in every session.
  write(dialogue / 'session_4/train.txt', later('t1', 4))
  write(dialogue / 'session_4/test.txt', later('x1', 4))
  return root


def load(root, cache, **changes):
  settings = config.RunConfig(task='multi_session_chat', data_dir=str(root), **changes)
  request = task.Request(settings, cache, lambda text: None)
  return multi_session_chat.load_multi_session_chat(request)


def test_the_last_session_of_a_conversation_is_held_out(msc, tmp_path):
  data = load(msc, tmp_path / 'cache')
  assert data.shares_clients
  assert sorted(data.train) == sorted(data.test) == ['t1/1', 't1/2', 't2/1', 't2/2']
  assert [e.target for e in data.train['t1/1']] == [
    'bot_0 says s1.0', 'bot_0 says s1.2', 'Speaker 1 says s2.0',
  ]  # fmt: skip
  assert [e.target for e in data.test['t1/1']] == ['Speaker 1 says s4.0']
  assert [e.target for e in data.train['t2/2']] == ['bot_1 says s1.1']
  assert [e.target for e in data.test['t2/2']] == ['Speaker 2 says s2.1']
  assert sorted(data.validation) == ['v1/1', 'v1/2']
  assert [e.target for e in data.validation['v1/2']] == ['Speaker 2 says s2.1']


def test_nothing_of_the_held_out_sessions_is_in_training(msc, tmp_path):
  data = load(msc, tmp_path / 'cache')
  last = {'t1': 's4', 't2': 's2'}
  for client, examples in data.train.items():
    read = ' '.join(text for example in examples for text in example)
    assert 's1.' in read
    assert last[client[:2]] not in read
    assert 'never' not in read


def test_an_example_is_persona_turns_so_far_and_response(msc, tmp_path):
  data = load(msc, tmp_path / 'cache')
  opening, answer = data.train['t1/1'][:2]
  assert opening == ('', 'bot_0 says s1.0', 'I bake. I have a cat.')
  assert answer.source == 'me: bot_0 says s1.0\nyou: bot_1 says s1.1'
  assert data.train['t1/2'][0].source == 'you: bot_0 says s1.0'
  # What is known from the sessions before, not what the first one began with.
  assert data.train['t1/1'][2].head == 'I knew it by s1.'
  assert data.test['t1/2'][0].head == ''


def test_what_is_left_out_is_counted(msc, tmp_path):
  left_out = ' '.join(load(msc, tmp_path / 'cache').left_out)
  assert 'Speakers with one session, and so no later one to hold out: 2.' in left_out
  assert 'not the last of a conversation: 1.' in left_out
  assert 'Files test.txt, not read, as their speakers do not train: 1.' in left_out


@pytest.mark.parametrize('inner', ['', 'msc_dialogue'])
def test_other_layouts(inner, msc, tmp_path):
  flat = tmp_path / 'flat'
  (msc / 'msc_dialogue').rename(flat)
  write(flat / inner / 'session_1/train.txt', first('t1'))
  if inner:
    for session in ('session_2', 'session_4'):
      (flat / session).rename(flat / inner / session)
  assert sorted(load(flat, tmp_path / 'cache').train) == ['t1/1', 't1/2']


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"dialog"', 'is not JSON'),
    (later('t9', 2, metadata={}), "has no field 'initial_data_id': it has personas, dialog"),
    (later('', 2), "has an empty 'initial_data_id'"),
    (later('t9', 2, dialog=[]), "has no list of turns in 'dialog'"),
    (later('t9', 2, dialog='Hello'), "has no list of turns in 'dialog'"),
    (
      later('t9', 2, dialog=[{'text': 'Hi', 'id': 'bot_0'}, {'text': ' ', 'id': 'bot_1'}]),
      "has a turn without 'text': turn 2",
    ),
    (later('t9', 2, dialog=['Hi']), "has a turn without 'text': turn 1"),
    (later('t9', 2, dialog=[{'text': 'Hi', 'id': 'Bob'}]), "turn 1 is 'Bob', none of Speaker 1"),
    (later('t9', 2, dialog=[{'text': 'Hi'}]), 'turn 1 is None, none of Speaker 1'),
    (later('t9', 2, personas=['I bake.', 'I ski.']), 'not two lists of sentences'),
    (later('t9', 2, personas=[['I bake.']]), 'not two lists of sentences'),
    (later('t9', 2, personas=[['I bake.'], [7]]), 'not two lists of sentences'),
    (later('t1', 2), r'repeats an initial_data_id .*: .t1. is of .*session_2/train.txt, line 1'),
  ],
)  # fmt: skip
def test_a_bad_line_is_named_or_counted(line, message, msc, tmp_path):
  path = msc / 'msc_dialogue/session_2/train.txt'
  write(path, later('t1', 2), later('t2', 2), line)
  with pytest.raises(errors.UserError, match=f'^{path}, line 3: .*{message}') as error:
    load(msc, tmp_path / 'cache')
  assert '\n' not in str(error.value)
  data = load(msc, tmp_path / 'cache', skip_bad_records=True)
  assert len(data.train) == 4
  assert 'Bad records skipped: ' in data.left_out[0]


def test_a_last_session_that_is_skipped_leaves_the_one_before_as_last(msc, tmp_path):
  write(msc / 'msc_dialogue/session_4/train.txt', later('t1', 4, dialog=[]))
  data = load(msc, tmp_path / 'cache', skip_bad_records=True)
  assert [e.target for e in data.test['t1/1']] == ['Speaker 1 says s2.0']
  assert len(data.train['t1/1']) == 2


def test_nobody_trains_and_is_a_stranger_too(msc, tmp_path):
  write(msc / 'msc_dialogue/session_2/valid.txt', later('v1', 2), later('t1', 2))
  with pytest.raises(errors.UserError, match=r"valid.txt, line 2: .*'t1' is also in .*train.txt"):
    load(msc, tmp_path / 'cache')
  data = load(msc, tmp_path / 'cache', skip_bad_records=True)
  assert sorted(data.validation) == ['v1/1', 'v1/2']


def test_one_session_or_none_or_a_file_is_no_task(tmp_path):
  cache, root = tmp_path / 'cache', tmp_path / 'msc'
  with pytest.raises(errors.UserError, match=r'--data-dir .* no such file or directory'):
    load(root, cache)
  root.mkdir()
  with pytest.raises(errors.UserError, match=r'--data-dir .* no session_.*train.txt'):
    load(root, cache)
  write(root / 'session_1/train.txt', first('t1'))
  with pytest.raises(errors.UserError, match='is the only session'):
    load(root, cache)
  with pytest.raises(errors.UserError, match='is a file; name the directory'):
    load(root / 'session_1/train.txt', cache)
  write(root / 'session_2/train.txt', later('t2', 2))
  with pytest.raises(errors.UserError, match='Speakers with one session'):
    load(root, cache)
