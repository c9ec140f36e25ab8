# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The loaders on what real people wrote."""

import json
import pathlib
import subprocess

import pytest

from benchmarks import real_text
from tasks import config, federated_text, registry, task
from tests.integration import tiny_world

_DATA = tiny_world.ROOT.parent / 'shared' / 'data'
_IRC = _DATA / 'irc_ubuntu' / 'messages.jsonl.gz'
_SHAKESPEARE = _DATA / 'shakespeare' / 'speeches.jsonl.gz'

pytestmark = pytest.mark.skipif(
  not (_IRC.is_file() and _SHAKESPEARE.is_file()),
  reason='the two sets of real text are not there (shared/data beside the repository)',
)


def _load(found: task.Task, cache: pathlib.Path, **keys):
  run = config.RunConfig(**{'task': 'benchmarks.real_text:X', **keys})
  return found.load(task.Request(run, cache, print))


def _sizes(data: federated_text.FederatedText) -> dict[str, int]:
  return {
    client: size
    for split in (data.train, data.validation, data.test)
    for client, size in federated_text.sizes(split).items()
  }


def test_shakespeare_as_running_text(tmp_path):
  data = _load(
    registry.find_task('text_jsonl'),
    tmp_path,
    task='text_jsonl',
    data_dir=str(_SHAKESPEARE),
    client_field=('play', 'speaker'),
    text_field='text',
    max_examples=10_000,
  )
  sizes = _sizes(data)
  assert len(sizes) == 1347
  assert sum(sizes.values()) == 30_913
  assert not data.left_out


def test_shakespeare_as_a_conversation(tmp_path):
  data = _load(
    registry.find_task('benchmarks.real_text:SHAKESPEARE'), tmp_path, data_dir=str(_SHAKESPEARE)
  )
  clients = {**data.train, **data.validation, **data.test}
  first = clients['1henryiv/WESTMORELAND'][0]
  assert first.source.startswith('KING HENRY IV: So shaken as we are, so wan with care,\n')
  assert first.target.startswith('My liege, this haste was hot in question,')
  assert max(_sizes(data).values()) == 256


@pytest.mark.slow
def test_irc_has_the_users_that_are_known(tmp_path):
  keys = {'data_dir': str(_IRC), 'client_field': ('nick',), 'text_field': 'text'}
  found = registry.find_task('text_jsonl')
  everybody = _load(found, tmp_path, task='text_jsonl', max_examples=10**6, **keys)
  assert len(_sizes(everybody)) == 17_772
  assert sum(_sizes(everybody).values()) == 216_651
  usual = _load(found, tmp_path, task='text_jsonl', min_examples=20, **keys)
  assert len(_sizes(usual)) == 2505
  assert usual.left_out[0].startswith('Clients with fewer than 20 examples (--min-examples): 15,26')


@pytest.mark.slow
def test_irc_as_a_chat(tmp_path):
  data = _load(real_text.IRC, tmp_path, data_dir=str(_IRC), min_examples=20)
  example = next(iter(data.train.values()))[-1]
  assert len(example.source.splitlines()) >= 1
  assert all(': ' in line for line in example.source.splitlines()[:1])
  assert 2400 < len(_sizes(data)) <= 2505


@pytest.mark.slow
def test_irc_trains_from_the_command_line(tmp_path):
  preset = tmp_path / 'preset'
  preset.mkdir()
  tiny_world.save_preset(preset)
  flags = tiny_world.flags(
    preset,
    task='text_jsonl',
    data_dir=str(_IRC),
    client_field=('nick',),
    text_field='text',
    min_examples=20,
    eval_clients=8,
    decode_examples=0,
    personalization_clients=0,
  )
  run = tmp_path / 'run'
  command = tiny_world.command('train', '--output-dir', run, *flags)
  done = subprocess.run(command, cwd=tiny_world.ROOT, capture_output=True, text=True, timeout=280)
  assert done.returncode == 0, done.stderr
  summary = json.loads((run / 'summary.json').read_text())
  assert summary['final']['perplexity'] < summary['base']['perplexity']
