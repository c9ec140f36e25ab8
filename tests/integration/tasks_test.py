# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every task runs on the embedded model and serves held-out people better; one of your own, too."""

import json
import pathlib
import re

import pytest
import tensorflow_federated as tff

from tasks import program, registry
from tasks.config_files import resolve
from tasks.errors import UserError
from tasks.task import Request
from tests.integration import tiny_world

_NAMES = ('ann', 'bob', 'cid', 'dan', 'eve', 'fay', 'gus', 'hal', 'ida', 'joe', 'kim', 'lea')
_THINGS = ('cat', 'boat', 'lamp', 'song', 'hat', 'tree', 'door', 'cake', 'bird', 'road')
_FIELDS = {'client_field': ('user',), 'text_field': 'said'}


def _said(name, number):
  """What somebody says, with a habit of their own."""
  thing = _THINGS[(len(name) + ord(name[0]) + number) % len(_THINGS)]
  return f'my {thing} is as old as the {thing} of {name}, and it is not for sale'


def _write(path, values):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(value) + '\n' for value in values))
  return path


def _rows():
  return [(name, number) for name in _NAMES for number in range(4)]


def _chat(root):
  for session in range(1, 4):
    episodes = [
      {
        'initial_data_id': f'{one}_{two}',
        'personas': [[f'I am {one}.'], [f'I am {two}.']],
        'dialog': [
          {'id': f'Speaker {1 + turn % 2}', 'text': _said((one, two)[turn % 2], turn + session)}
          for turn in range(6)
        ],
      }
      for one, two in zip(_NAMES[::2], _NAMES[1::2], strict=True)
    ]
    _write(root / f'session_{session}/train.txt', episodes)
  return {'data_dir': str(root)}


def _reddit(root):
  posts = [
    {'author': name, 'id': f'{name}{number}', 'content': 3 * f'{_said(name, number)} . ',
     'summary': _said(name, number)}
    for name, number in _rows()
  ]  # fmt: skip
  return {'data_dir': str(_write(root / 'posts.json', posts))}


def _running_text(root):
  lines = [{'user': name, 'said': _said(name, number)} for name, number in _rows()]
  return {'data_dir': str(_write(root / 'said.jsonl', lines)), **_FIELDS}


def _labels(root):
  lines = [
    {'user': name, 'said': f'this is {word}: {_said(name, number)}', 'mood': word}
    for name, number in _rows()
    for word in ('good', 'bad')
  ]
  return {
    'data_dir': str(_write(root / 'moods.jsonl', lines)), **_FIELDS, 'label_field': 'mood',
    # The untuned head knows nothing, so there is more to learn.
    'rounds': 5,
  }  # fmt: skip


def _stackoverflow(root):
  """TFF's synthetic part, as a file of its format."""
  synthetic = tff.simulation.datasets.stackoverflow.get_synthetic()
  sets = {str(number): 'train' if number < 4 else 'heldout' for number in range(1, 7)}
  tff.simulation.datasets.save_to_sql_client_data(
    list(sets),
    lambda user: synthetic.create_tf_dataset_for_client(f'synthetic_{(int(user) - 1) % 3 + 1}'),
    str(root / 'stackoverflow.sqlite'),
    split_names_by_client_id=sets,
  )
  return {'data_dir': str(root), 'clients_per_round': 3}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('task', 'prepare'),
  [
    ('multi_session_chat', _chat),
    ('reddit_summarization', _reddit),
    ('stackoverflow', _stackoverflow),
    ('text_classification', _labels),
    ('text_jsonl', _running_text),
  ],
)
def test_held_out_text_is_served_better(task, prepare, tmp_path):
  config = resolve(
    None,
    {'task': task, 'rounds': 2, 'clients_per_round': 4, 'sequence_length': 64,
     'decode_examples': 2, 'personalization_clients': 0, **prepare(tmp_path)},
  )  # fmt: skip
  summary = program.train(config, tmp_path / 'run', resume=False, command=['hetlora'])
  base, final = summary['base'], summary['final']
  assert final['perplexity'] < 0.9 * base['perplexity']
  assert summary['relative_perplexity_change']['clients'] == summary['clients']
  assert summary['distribution']['perplexity']['final']['clients'] == summary['clients']
  assert ('accuracy' in final) == (task == 'text_classification')
  assert ('rouge_l' in final) == (task in ('multi_session_chat', 'reddit_summarization'))
  if task == 'text_classification':
    assert final['accuracy'] > base['accuracy']
    assert json.loads((tmp_path / 'run/adapter/labels.json').read_text()) == ['bad', 'good']
  assert (tmp_path / 'run/report.html').is_file()


def _documented_task(directory):
  docs = (tiny_world.ROOT / 'docs/tasks.md').read_text('utf-8')
  (code,) = re.findall(r'```python\n(.*?)```', docs, re.DOTALL)
  assert len(code.splitlines()) <= 50
  (directory / 'note_headings.py').write_text(code)
  for name in _NAMES:
    for number in range(3):
      note = directory / 'notes' / name / f'{number}.md'
      note.parent.mkdir(parents=True, exist_ok=True)
      note.write_text(f'# Note {number} of {name}\n{_said(name, number)}.\n')
  return f'{directory}/note_headings.py:NOTES', directory / 'notes'


def test_the_task_in_the_docs_loads_and_names_a_bad_note(tmp_path):
  task, notes = _documented_task(tmp_path)
  config = resolve(None, {'task': task, 'data_dir': str(notes)})
  data = registry.find_task(task).load(Request(config, tmp_path / 'cache', print))
  assert sorted([*data.train, *data.validation, *data.test]) == sorted(_NAMES)
  assert len(data.train) >= 6
  client, examples = next(iter(data.train.items()))
  assert [e.target for e in examples] == [f'Note {number} of {client}' for number in range(3)]
  assert examples[0].source == f'{_said(client, 0)}.'
  pathlib.Path(notes, 'ann', '3.md').write_text('# Only a heading\n')
  with pytest.raises(UserError, match=r'ann/3\.md, line 1: has no text below its heading; mend'):
    registry.find_task(task).load(Request(config, tmp_path / 'cache', print))


@pytest.mark.slow
def test_the_task_in_the_docs_trains_from_the_command_line(tmp_path):
  task, notes = _documented_task(tmp_path)
  preset = tiny_world.save_preset(tmp_path / 'preset')
  flags = tiny_world.flags(preset, task=task, data_dir=str(notes), personalization_clients=2)
  run = tiny_world.start('train', '--output-dir', tmp_path / 'run', *flags)
  out, error = run.communicate(timeout=300)
  assert run.returncode == 0, error
  assert 'perplexity' in out
  summary = json.loads((tmp_path / 'run/summary.json').read_text())
  assert summary['personalization']['clients'] == 1
