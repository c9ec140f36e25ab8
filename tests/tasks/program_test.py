# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs in this process; `tests/integration` runs the command."""

import csv
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from hetlora_tff.adapters import peft
from tasks import artifacts, checkpoints, console, program, registry
from tasks.errors import UserError
from tasks.federated_text import FederatedText
from tests.integration import tiny_world
from tests.tasks import kills, shared_builds

_ADAPTER = 'adapter/adapter_model.safetensors'
_ROUNDS = 3


@pytest.fixture(scope='module', name='world')
def world_fixture(tmp_path_factory, tff_runtime):
  """A preset, its task and a cache; returns how to train on them."""
  del tff_runtime
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, 'TASKS', tiny_world.TASKS)
    patch.setenv('HETLORA_CACHE', str(tmp_path_factory.mktemp('cache')))
    shared_builds.share(patch)
    preset = tiny_world.save_preset(tmp_path_factory.mktemp('preset') / 'tiny')

    def train(directory, *, resume=False, options=None, **changes):
      config = tiny_world.run_config(preset, **{'rounds': _ROUNDS, **changes})
      command = ['hetlora', 'train']
      return program.train(config, directory, resume=resume, command=command, **(options or {}))

    yield train


@pytest.fixture(scope='module', name='finished')
def finished_fixture(world, tmp_path_factory):
  """An undisturbed run."""
  directory = tmp_path_factory.mktemp('finished') / 'run'
  with shared_builds.own_worker():
    world(directory)
  return directory


@pytest.fixture(name='copy')
def copy_fixture(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / 'copy')


def _rows(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def _log(directory):
  return [json.loads(line) for line in (directory / 'log.jsonl').read_text().splitlines()]


def _tensors(directory):
  tensors = safetensors.numpy.load_file(directory / _ADAPTER)
  return {name: (value.shape, value.tobytes()) for name, value in tensors.items()}


def _numbers(directory):
  """Everything of a run that its seed decides."""
  timed = ('round_seconds', 'eval_seconds', 'input_seconds')
  return [
    [{k: v for k, v in row.items() if k not in timed} for row in _rows(directory / name)]
    for name in ('metrics.csv', 'ranks.csv')
  ] + [_tensors(directory), json.loads((directory / 'samples.json').read_text())]


def test_run_leaves_the_files_of_the_contract(finished):
  named = 'config.json environment.json metrics.csv ranks.csv summary.json report.html checkpoints'
  for name in (*named.split(), _ADAPTER, 'adapter/adapter_config.json', 'plots'):
    assert (finished / name).exists(), name
  assert len(list((finished / 'plots').glob('*.png'))) >= 3
  kept = json.loads((finished / 'config.json').read_text())
  assert [kept['task'], kept['rounds']] == ['tiny', 3]
  environment = json.loads((finished / 'environment.json').read_text())
  assert environment['packages']['tensorflow-federated']
  assert set(environment['inputs']) == {'backbone_sha256', 'data_sha256'}


def test_log_tells_what_happened_when(finished):
  events = [(line['event'], line.get('round')) for line in _log(finished)]
  in_order = [event for event in events if event[0] not in ('note', 'checkpoint_saved')]
  assert in_order == [
    # The untuned base while the first round trains.
    ('started', None), ('round_started', 1), ('evaluated', 0), ('round_finished', 1),
    ('round_started', 2), ('evaluated', 2), ('round_finished', 2),
    ('round_started', 3), ('evaluated', 3), ('round_finished', 3),
    ('finished', None),
  ]  # fmt: skip
  saved = [number for event, number in events if event == 'checkpoint_saved']
  assert saved == [0, 1, 2, 3]
  # That of a round while the next one trains, and before anything is told of it.
  for number in (1, 2):
    assert events.index(('checkpoint_saved', number)) < events.index(('round_finished', number + 1))
  assert all(line['seconds'] > 0 for line in _log(finished) if line['event'] == 'round_finished')


def test_adapter_is_for_hugging_face_and_names_no_local_base(finished):
  assert json.loads((finished / 'summary.json').read_text())['adapter_names'] == 'huggingface'
  written = json.loads((finished / 'adapter' / 'adapter_config.json').read_text())
  assert written['base_model_name_or_path'] == ''


def test_every_round_has_one_row_of_metrics(finished):
  rows = _rows(finished / 'metrics.csv')
  assert next(iter(rows[0])) == 'round'
  assert [int(row['round']) for row in rows] == [0, 1, 2, 3]
  trained = ('train_loss', 'upload_bytes', 'download_bytes', 'round_seconds')
  assert not any(rows[0][name] for name in trained)
  assert all(float(row[name]) > 0 for row in rows[1:] for name in trained)
  # Round 0, every second, and the last; text is decoded at the start and the end.
  assert [bool(row['eval_loss']) for row in rows] == [True, False, True, True]
  assert [bool(row['eval_rouge_l']) for row in rows] == [True, False, False, True]
  for row in rows:
    if row['eval_loss']:
      assert float(row['eval_perplexity']) == pytest.approx(np.exp(float(row['eval_loss'])))


def test_training_learns(finished):
  losses = [float(r['eval_loss']) for r in _rows(finished / 'metrics.csv') if r['eval_loss']]
  assert losses[-1] < losses[0] - 0.001


def test_ranks_count_every_client_in_every_round(finished):
  rows = _rows(finished / 'ranks.csv')
  for number in range(_ROUNDS + 1):
    counts = {int(r['rank']): int(r['clients']) for r in rows if int(r['round']) == number}
    assert sum(counts.values()) == 6
    assert set(counts) <= {1, 2, 3, 4}


def test_broadcast_moves_the_largest_rank_both_ways(finished):
  for row in _rows(finished / 'metrics.csv')[1:]:
    expected = 3 * 4 * tiny_world.BYTES_PER_RANK
    assert (int(row['upload_bytes']), int(row['download_bytes'])) == (expected, expected)


def test_adapter_holds_what_the_last_checkpoint_holds(finished):
  loaded = peft.load_peft_adapter(finished / 'adapter').factors
  saved = tf.saved_model.load(str(finished / 'checkpoints' / f'round_{_ROUNDS}'))
  checkpoint = [np.asarray(value) for value in tf.nest.flatten(saved())]
  assert len(loaded) == 4
  for factors in loaded.values():
    assert np.abs(factors.b).max() > 0
    for factor in factors:
      assert any(v.shape == factor.shape and np.array_equal(v, factor) for v in checkpoint)


def test_evaluation_of_the_adapter_repeats_that_of_the_run(world, finished):
  again = program.evaluate_run(finished)
  summary = json.loads((finished / 'summary.json').read_text())
  for name in ('base', 'final'):
    assert again[name] == pytest.approx(summary[name], rel=1e-6)
  written = json.loads((finished / 'evaluation.json').read_text())
  assert written['final'] == again['final']
  assert summary['final']['perplexity'] < summary['base']['perplexity']


def test_resume_after_an_interruption_equals_the_undisturbed_run(
  world, finished, tmp_path, monkeypatch, capsys
):
  show_round = console.Progress.show_round

  def interrupt(self, number, *args):
    if number == 3:
      raise KeyboardInterrupt
    show_round(self, number, *args)

  directory = tmp_path / 'run'
  with monkeypatch.context() as patch:
    patch.setattr(console.Progress, 'show_round', interrupt)
    with pytest.raises(KeyboardInterrupt):
      world(directory)
  # It came between the row of a round and its checkpoint. A kill may tear both.
  rows = (directory / 'metrics.csv').read_text()
  assert rows.splitlines()[-1].startswith('3,')
  (directory / 'metrics.csv').write_text(rows[:-5])
  (directory / 'checkpoints' / 'round_3_temp17').mkdir()
  for part in (directory / 'checkpoints' / 'round_2' / 'variables').iterdir():
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
  world(directory, resume=True)
  assert _numbers(directory) == _numbers(finished)
  assert not list(directory.glob('checkpoints/*_temp*'))
  shown = capsys.readouterr().err
  assert 'round_2 cannot be read' in ' '.join(shown.split())
  assert 'Resuming after round 1.' in shown


@pytest.mark.slow
def test_killed_ten_times_the_run_ends_as_if_undisturbed(world, finished, tmp_path):
  directory = tmp_path / 'run'

  def run(began):
    world(directory, resume=began and (directory / 'config.json').exists())

  kills.run_through_kills(10, 12, run)
  assert _numbers(directory) == _numbers(finished)
  events = [line['event'] for line in _log(directory)]
  assert events.count('failed') == 10
  assert events.count('started') >= 1
  assert events[-1] == 'finished'


@pytest.mark.slow
def test_workers_stand_in_for_the_process(world, finished, tmp_path, monkeypatch, capsys):
  asked = []

  class Rounds:
    """Says what it was asked for, and trains here."""

    def __init__(self, process, workers, *, backbone, token, say):
      asked.append((workers, backbone.class_name, token, callable(say)))
      self.next, self.close = process.next, lambda: asked.append('closed')

  monkeypatch.setattr(program, 'RemoteRounds', Rounds)
  directory = tmp_path / 'run'
  options = {
    'workers': ['a:1', 'b:2'], 'token': 'open sesame', 'tensorboard': True,
    'verbosity': console.Verbosity.QUIET,
  }  # fmt: skip
  world(directory, options=options)
  assert asked == [(['a:1', 'b:2'], 'GPT2Backbone', 'open sesame', True), 'closed']
  assert _tensors(directory) == _tensors(finished)
  assert json.loads((directory / 'config.json').read_text())['deviation_from_exact'] is False
  assert not any(row['deviation_from_exact'] for row in _rows(directory / 'metrics.csv'))
  assert list((directory / 'tensorboard').iterdir())
  assert capsys.readouterr().err == ''
  assert not [p for p in directory.rglob('*') if p.is_file() and b'sesame' in p.read_bytes()]


@pytest.mark.slow
def test_round_is_not_told_unless_the_one_before_is_kept(world, tmp_path, monkeypatch):
  save = checkpoints.tff.program.FileProgramStateManager.save

  async def full(self, state, version):
    if version == 2:
      raise tf.errors.ResourceExhaustedError(None, None, 'x.tmp; No space left on device\nmore')
    await save(self, state, version)

  directory = tmp_path / 'run'
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.tff.program.FileProgramStateManager, 'save', full)
    with pytest.raises(UserError, match=r'Cannot save round 2 .* round 1 is kept') as caught:
      world(directory)
  assert '\n' not in str(caught.value)
  assert [row['round'] for row in _rows(directory / 'metrics.csv')] == ['0', '1', '2']
  assert (_log(directory)[-1]['event'], _log(directory)[-1]['level']) == ('failed', 'error')


@pytest.mark.slow
def test_unreadable_checkpoints_are_refused_and_nothing_is_lost(world, copy):
  before = (copy / 'metrics.csv').read_bytes()
  for part in (copy / 'checkpoints').glob('round_*/saved_model.pb'):
    part.write_bytes(b'torn')
  with pytest.raises(UserError, match=r'--resume: no checkpoint in .* can be read'):
    world(copy, resume=True)
  shutil.rmtree(copy / 'checkpoints')
  with pytest.raises(UserError, match=r'--resume: the checkpoints in .* are gone'):
    world(copy, resume=True)
  assert (copy / 'metrics.csv').read_bytes() == before
  assert (copy / _ADAPTER).exists()


@pytest.mark.slow
def test_finished_run_can_be_resumed_shortened_never(world, finished, copy):
  with pytest.raises(UserError, match='--rounds 2: this run has done 3 already'):
    world(copy, resume=True, rounds=2)
  assert json.loads((copy / 'config.json').read_text())['rounds'] == 3
  world(copy, resume=True)
  assert _numbers(copy) == _numbers(finished)

  def stop(*unused):
    assert not (copy / 'summary.json').exists()  # It was the result of three rounds.
    raise UserError('stopped')

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(program._Run, '_one_round', stop)
    with pytest.raises(UserError, match='stopped'):
      world(copy, resume=True, rounds=4)
  with pytest.raises(UserError, match=r'holds an unfinished run \(no summary\.json\)'):
    program.evaluate_run(copy)
  world(copy, resume=True, rounds=4)
  assert [row['round'] for row in _rows(copy / 'metrics.csv')] == list('01234')


@pytest.mark.slow
def test_run_ended_early_is_evaluated_where_it_ends(world, copy):
  for name in ('evaluation_final.json', 'summary.json', 'report.html', _ADAPTER):
    (copy / name).unlink()
  shutil.rmtree(copy / 'checkpoints' / 'round_3')
  summary = world(copy, resume=True, rounds=2)
  row = _rows(copy / 'metrics.csv')[-1]
  assert row['round'] == '2'
  assert summary['final']['loss'] == pytest.approx(float(row['eval_loss']))


@pytest.mark.slow
def test_same_seed_same_numbers_and_another_seed_others(world, finished, tmp_path):
  world(tmp_path / 'same')
  assert _numbers(tmp_path / 'same') == _numbers(finished)
  world(tmp_path / 'other', seed=1)
  assert _numbers(tmp_path / 'other')[2] != _numbers(finished)[2]


@pytest.mark.slow
def test_select_downloads_the_slice_of_each_client_only(world, tmp_path):
  directory = tmp_path / 'run'
  world(directory, distribution='select', prune_decay=1.0)
  for row in _rows(directory / 'metrics.csv')[1:]:
    total = round(3 * float(row['mean_rank']))
    assert int(row['download_bytes']) == total * tiny_world.BYTES_PER_RANK
    assert int(row['trained_parameters']) == total * tiny_world.BYTES_PER_RANK // 4
    assert int(row['upload_bytes']) == 3 * 4 * tiny_world.BYTES_PER_RANK
    assert 3 <= total < 12


@pytest.mark.slow
def test_select_and_broadcast_train_the_same(world, finished, tmp_path):
  world(tmp_path / 'select', distribution='select')
  ours, theirs = (
    [float(row['train_loss']) for row in _rows(d / 'metrics.csv')[1:]]
    for d in (tmp_path / 'select', finished)
  )
  assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
  ('key', 'message'),
  [
    ('backbone_sha256', 'The backbone .*tiny has changed'),
    ('data_sha256', 'The data of task tiny'),
  ],
)
def test_changed_inputs_are_named_before_anything_is_written(world, copy, key, message):
  environment = json.loads((copy / 'environment.json').read_text())
  environment['inputs'][key] = 'another'
  (copy / 'environment.json').write_text(json.dumps(environment))
  (copy / 'evaluation.json').unlink(missing_ok=True)
  for act in (lambda: world(copy, resume=True, rounds=4), lambda: program.evaluate_run(copy)):
    with pytest.raises(UserError, match=message) as caught:
      act()
    assert '\n' not in str(caught.value)
  assert json.loads((copy / 'config.json').read_text())['rounds'] == _ROUNDS
  assert not (copy / 'evaluation.json').exists()


@pytest.mark.slow
def test_other_data_under_the_same_name_is_refused(world, copy, monkeypatch):
  def load(unused_request):
    clients = tiny_world.clients
    return FederatedText('tiny', clients(1, 6), clients(7, 2), clients(9, 3))

  monkeypatch.setitem(registry.TASKS, 'tiny', registry.NamedTask('other cats and dogs', load))
  with pytest.raises(UserError, match='The data of task tiny has changed'):
    program.evaluate_run(copy)


def test_run_without_a_description_is_not_resumed(world, copy):
  (copy / 'environment.json').write_text('[]')
  with pytest.raises(UserError, match=r'environment\.json does not describe a run'):
    program.evaluate_run(copy)


@pytest.mark.slow
def test_fallback_to_own_names_is_said(world, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(artifacts.peft.huggingface_names, 'find', lambda unused_architecture: None)
  assert world(tmp_path / 'run', rounds=1)['adapter_names'] == 'own'
  assert 'keeps our own module names: GPT2Backbone' in capsys.readouterr().err


def test_evaluate_needs_a_finished_run(tmp_path):
  with pytest.raises(UserError, match=r'holds no run \(no config\.json\)'):
    program.evaluate_run(tmp_path)


@pytest.mark.slow
def test_altered_adapter_is_one_line(world, copy):
  weights = copy / _ADAPTER
  weights.write_bytes(weights.read_bytes()[:-8])
  with pytest.raises(UserError, match='adapter_model') as caught:
    program.evaluate_run(copy)
  assert '\n' not in str(caught.value)


def test_two_checkpoints_are_kept(finished):
  names = sorted(path.name for path in (finished / 'checkpoints').iterdir())
  assert names == ['round_2', 'round_3']
