# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import errno
import json
import pathlib
import subprocess
import sys
import types

import pytest

from tasks import cli, config, registry
from tasks.built_in import DATA_KEYS
from tasks.errors import UserError
from tasks.federated_text import Example, FederatedText
from tasks.methods import METHODS
from tasks.options import as_flag

_SUMMARY = {
  'base': {'perplexity': 20.0},
  'final': {'perplexity': 15.0},
  'relative_perplexity_change': {'mean': -0.25, 'low': -0.3, 'high': -0.2},
}


@pytest.fixture(name='program')
def program_fixture(monkeypatch):
  """Stands for the program: records the calls, or raises what it is told to."""
  program = types.SimpleNamespace(calls=[], error=None)

  def act(*args, **kwargs):
    program.calls.append((args, kwargs))
    if program.error:
      raise program.error
    return _SUMMARY

  program.train = program.evaluate_run = act
  monkeypatch.setattr(cli, 'import_program', lambda: program)
  monkeypatch.setattr(cli, 'read_rank_file', lambda *unused: {})
  monkeypatch.setitem(registry.TASKS, 'other', registry.NamedTask('', act))
  return program


@pytest.fixture(name='run')
def run_fixture(monkeypatch, capsys, tmp_path):
  """Runs the command line in `tmp_path`; returns exit code, stdout and stderr."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('COLUMNS', '200')

  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['hetlora', *arguments])
    with pytest.raises(SystemExit) as caught:
      cli.main()
    output = capsys.readouterr()
    return caught.value.code or 0, output.out, output.err

  return run


def _is_one_line(text):
  return text.startswith('hetlora: ') and text.endswith('\n') and text.count('\n') == 1


# What these keys are not by themselves.
_OTHER = {
  'method': 'naive',
  'alpha': 8.0,
  'rank_pattern': {'query|value': 8, 'key': 4},
  'rank_dynamics': 'fixed',
  'rank_assignment': 'data_size',
  'rank_tiers': {4: 0.5, 8: 0.5},
  'rank_file': '/ranks.csv',
  'initial_adapter': '/adapter',
  'upload_bits': 8,
  'compute_dtype': 'bfloat16',
  'task': 'other',
  'client_learning_rate': 0.5,
  'rank_exponent': 0.5,
  'prune_weight': 0.5,
  'server_learning_rate': 0.5,
  'deviation_from_exact': False,
  'weights': 'model',
  'padding': 'update',
  'distribution': 'select',
  'client_optimizer': 'sgd',
  'server_optimizer': 'adam',
  'eval_split': 'validation',
  'prune_decay': 0.5,
  'max_rank': 40,
  'min_rank': 5,
  'sequence_length': 64,
  'targets': ('key', 'a|b'),
  'privacy': 'central',
  'noise_multiplier': 0.5,
  'l2_clip_norm': 0.25,
  'clip': 'adaptive',
  'clip_quantile': 0.25,
  'target_epsilon': 3.0,
  'delta': 1e-5,
  'sampling': 'minsep',
  'claim_amplification': False,
  'min_separation': 4,
  'max_participations': 5,
  'noise_cohort_size': 1000,
  'population_size': 100,
  'noise_matrix': 'banded',
  'tree_restart_every': 3,
  'weight_reference': 0.125,
  'mean_weight': 0.25,
  'denominator': 'noised',
  'public_eval_clients': True,
  'audit_canaries': 9,
  'insecure_seeded_noise': True,
  'secure_aggregation': True,
  'secure_bits': 12,
  'secure_rounding': 'stochastic',
  'secure_threshold': 8,
  'secure_coordinates': 1000,
  'assumed_colluders': 2,
  'num_beams': 3,
  'eval_clients': 9,
  'personalization_clients': 3,
  'data_dir': '/data',
  'client_field': ('play', 'speaker'),
  'text_field': 'text',
  'source_field': 'post',
  'target_field': 'summary',
  'label_field': 'label',
  'labels': ('yes', 'no'),
  'id_field': 'id',
  'min_examples': 5,
  'max_examples': 9,
  'skip_bad_records': True,
  'truncate_source': 'start',
  'max_target_tokens': 40,
}


def _other_value(field):
  if field.name in _OTHER:
    return _OTHER[field.name]
  return field.default + (1 if field.type in (int, float) else 'x')


# What makes a key count.
_CENTRAL = {'privacy': 'central', 'noise_multiplier': 1.0}
_TREE = {'privacy': 'tree', 'noise_multiplier': 1.0, 'min_separation': 2}
_BY_NORM = {**_CENTRAL, 'weights': 'model', 'weight_reference': 1.0}
_SECURE = {'secure_aggregation': True, 'l2_clip_norm': 1.0}
_LABELLED = {
  'task': 'text_classification', 'data_dir': '/data', 'client_field': ('user',), 'text_field': 'x',
  'label_field': 'y',
}  # fmt: skip
_PAIRS = {
  'task': 'text_jsonl', 'data_dir': '/data', 'client_field': ('user',), 'source_field': 'x',
  'target_field': 'y',
}  # fmt: skip
_NEEDED = {
  **dict.fromkeys(DATA_KEYS, _LABELLED),
  'source_field': _PAIRS,
  'target_field': _PAIRS,
  'rank_tiers': {'rank_assignment': 'tiers'},
  'rank_file': {'rank_assignment': 'file'},
  **{
    field.name: _CENTRAL
    for field in dataclasses.fields(config.RunConfig)
    if field.metadata.get('panel') == 'Privacy'
  },
  'clip_quantile': {**_CENTRAL, 'clip': 'adaptive'},
  'secure_aggregation': {'l2_clip_norm': 1.0},
  **dict.fromkeys(('secure_bits', 'secure_rounding', 'secure_threshold'), _SECURE),
  'secure_coordinates': {**_CENTRAL, 'secure_aggregation': True},
  'assumed_colluders': {**_CENTRAL, 'privacy': 'distributed'},
  'sampling': _CENTRAL | {'min_separation': 2},
  'min_separation': _TREE,
  'max_participations': _TREE,
  'noise_cohort_size': {**_CENTRAL, 'population_size': 10_000},
  'noise_matrix': _TREE,
  'tree_restart_every': _TREE,
  **dict.fromkeys(('weight_reference', 'mean_weight', 'denominator'), _BY_NORM),
}


@pytest.mark.parametrize('field', dataclasses.fields(config.RunConfig), ids=lambda f: f.name)
def test_every_key_is_a_flag_of_the_same_name(program, run, field):
  values = {**_NEEDED.get(field.name, {}), field.name: _other_value(field)}
  words = [word for key, value in values.items() for word in as_flag(key, value)]
  assert f'--{field.name}'.replace('_', '-') in ' '.join(words).replace('--no-', '--')
  code, _, error = run('train', '--output-dir', 'd', *words)
  assert (code, error) == (0, '')
  ((resolved, output_dir),), options = [c[0] for c in program.calls], program.calls[0][1]
  assert resolved == config.RunConfig(**values)
  assert getattr(resolved, field.name) == values[field.name]
  assert str(output_dir) == 'd'
  assert options['resume'] is False
  assert options['command'] == ['hetlora', *sys.argv[1:]]


def test_what_a_file_turns_on_a_flag_turns_off(program, run, tmp_path):
  (tmp_path / 'c.json').write_text(json.dumps({**_CENTRAL, 'public_eval_clients': True}))
  words = ('train', '--output-dir', 'd', '--config', 'c.json')
  assert run(*words, '--no-public-eval-clients')[0] == 0
  assert run(*words)[0] == 0
  assert [call[0][0].public_eval_clients for call in program.calls] == [False, True]


def test_flags_go_over_the_file(program, run, tmp_path):
  (tmp_path / 'c.json').write_text(json.dumps({'rounds': 7, 'seed': 5}))
  assert run('train', '--output-dir', 'd', '--config', 'c.json', '--rounds', '2')[0] == 0
  assert program.calls[0][0][0] == config.RunConfig(rounds=2, seed=5)


def test_summary_and_report_are_printed(program, run):
  code, out, _ = run('train', '--output-dir', 'd')
  assert code == 0
  assert '-25.0 % (-30.0 % to -20.0 %)' in out
  assert out.splitlines()[-1] == 'Report: d/report.html'
  assert run('evaluate', 'd')[1].splitlines()[-1] == 'Evaluation: d/evaluation.json'
  assert str(program.calls[-1][0][0]) == 'd'


def test_resume_takes_the_configuration_of_the_run(program, run, tmp_path):
  kept = config.RunConfig(rounds=4, seed=3)
  (tmp_path / 'config.json').write_text(json.dumps(kept.to_json()))
  assert run('train', '--output-dir', '.', '--resume', '--rounds', '6')[0] == 0
  (resolved, _), options = program.calls[0]
  assert resolved == dataclasses.replace(kept, rounds=6)
  assert options['resume'] is True
  code, _, error = run('train', '--output-dir', '.', '--resume', '--seed', '4')
  assert code == 2
  assert 'hetlora: --seed: ' in error
  assert len(program.calls) == 1


@pytest.mark.parametrize(
  ('arguments', 'named'),
  [
    (['train'], '--output-dir'),
    (['train', '--output-dir', 'd', '--nosuch'], '--nosuch'),
    (['train', '--output-dir', 'd', '--rounds', 'x'], '--rounds'),
    (['train', '--output-dir', 'd', '--rounds'], '--rounds'),
    (['train', '--output-dir', 'd', '--rounds', '0'], '--rounds'),
    (['train', '--output-dir', 'd', '--min-rank', '9', '--max-rank', '8'], '--max-rank 8'),
    (['train', '--output-dir', 'd', '--targets', ' , '], '--targets'),
    (['train', '--output-dir', 'd', '--rank-tiers', '4'], '--rank-tiers must be RANK:SHARE'),
    (['train', '--output-dir', 'd', '--method', 'ffa', '--padding', 'none'], '--method ffa'),
    (['compare', '--output-dir', 'd'], '--config'),
    (['compare', 'run'], '--output-dir'),
    (['train', '--output-dir', 'd', '--config', 'gone.json'], 'gone.json'),
    (['train', '--output-dir', 'd', '--resume'], '--resume'),
    (['train', '--output-dir', 'd', 'surplus'], 'surplus'),
    (['evaluate'], 'directory'),
    (['nosuch'], 'nosuch'),
    (['--nosuch'], '--nosuch'),
  ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(program, run, tmp_path, arguments, named):
  code, out, error = run(*arguments)
  assert (code, out) == (2, '')
  assert _is_one_line(error)
  assert named in error
  assert program.calls == []
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('raised', 'expected_code', 'said'),
  [
    (UserError('--task x:\n unknown'), 2, '--task x: unknown'),
    (KeyboardInterrupt(), 130, '--resume'),
    (OSError(errno.ENOSPC, 'full', 'd/metrics.csv'), 2, 'd/metrics.csv: No space left on device'),
    (OSError(errno.EROFS, 'x'), 2, 'Read-only file system'),
  ],
)
def test_expected_failures_are_one_line(program, run, raised, expected_code, said):
  program.error = raised
  for arguments in (['train', '--output-dir', 'd'], ['evaluate', 'd']):
    code, out, error = run(*arguments)
    assert (code, out) == (expected_code, '')
    assert _is_one_line(error)
    assert said in error


@pytest.mark.parametrize('raised', [ValueError('bug'), OSError(errno.EBADF, 'bug')])
def test_our_own_bugs_keep_their_traceback(program, monkeypatch, raised):
  program.error = raised
  monkeypatch.setattr(sys, 'argv', ['hetlora', 'evaluate', 'd'])
  with pytest.raises(type(raised), match='bug'):
    cli.main()


def test_without_a_command_there_is_help(run):
  code, out, error = run()
  assert (code, error) == (2, '')
  assert 'train' in out


def test_tasks_and_methods_are_listed(run):
  code, out, _ = run('tasks')
  assert code == 0
  assert 'docstring_summarization' in out
  for method in METHODS.values():
    (line,) = [line for line in out.splitlines() if line.split()[:1] == [method.name]]
    assert method.title in line
    assert method.paper in line


@pytest.fixture(name='comparison')
def comparison_fixture(monkeypatch):
  """Stands for `tasks.compare` and `tasks.suite`: records the calls."""
  calls = []

  def run_suite(*args):
    calls.append(args)
    return [pathlib.Path('d/runs/a-seed0')]

  compare = types.SimpleNamespace(compare=lambda *args: calls.append(args))
  for name, module in (('compare', compare), ('suite', types.SimpleNamespace(run_suite=run_suite))):
    monkeypatch.setitem(sys.modules, f'tasks.{name}', module)
    monkeypatch.setattr(f'tasks.{name}', module, raising=False)
  return calls


def test_runs_are_compared(comparison, run):
  code, out, error = run('compare', 'one', 'two', '--output-dir', 'd')
  assert (code, out, error) == (0, 'Comparison: d/comparison.html\n', '')
  assert comparison == [([pathlib.Path('one'), pathlib.Path('two')], pathlib.Path('d'))]


def test_suite_is_run_and_compared_with_the_runs_that_are_named(comparison, run):
  assert run('compare', 'one', '--output-dir', 'd', '--config', 'suite.json')[0] == 0
  directory, suite_run = pathlib.Path('d'), pathlib.Path('d/runs/a-seed0')
  assert comparison == [
    (pathlib.Path('suite.json'), directory),
    ([pathlib.Path('one'), suite_run], directory),
  ]


@pytest.mark.parametrize('arguments', [['train', '--help'], ['train', '--output-dir', 'd', '-x']])
def test_help_and_wrong_flags_do_not_wait_for_tensorflow(arguments):
  script = (
    'import atexit, sys\n'
    'heavy = ["tensorflow", "keras_nlp", "matplotlib", "numpy"]\n'
    'atexit.register(lambda: print("loaded:", [m for m in heavy if m in sys.modules]))\n'
    'from tasks import cli\n'
    'sys.argv[0] = "hetlora"\n'
    'cli.main()\n'
  )
  result = subprocess.run(
    [sys.executable, '-c', script, *arguments], capture_output=True, text=True, timeout=60
  )
  assert result.stdout.splitlines()[-1] == 'loaded: []'
  if '--help' in arguments:
    assert result.returncode == 0
    for field in dataclasses.fields(config.RunConfig):
      assert config.option(field.name) in result.stdout
    for method in METHODS.values():
      assert f'{method.name}: {method.title}' in result.stdout


def test_clients_of_a_task_are_listed(run, program, monkeypatch):
  one = Example('source', 'target')
  data = FederatedText('d', {'b,1': (one, one), 'a': (one,)}, {}, {'c': (one,)})
  monkeypatch.setitem(registry.TASKS, 'small', registry.NamedTask('', lambda *unused: data))
  code, out, _ = run('tasks', '--clients', 'small')
  assert code == 0
  # Without the program in its place, keras-nlp names its backend first.
  assert out.splitlines()[-4:] == [
    'client,split,examples',
    'a,train,1',
    '"b,1",train,2',
    'c,test,1',
  ]
  code, _, error = run('tasks', '--clients', 'nosuch')
  assert code == 2
  assert 'unknown; there are' in error


def test_bad_rank_file_is_refused_before_anything_is_loaded(run, tmp_path, monkeypatch):
  monkeypatch.setattr(cli, 'import_program', lambda: pytest.fail('loaded'))
  (tmp_path / 'ranks.csv').write_text('a,99')
  code, _, error = run(
    'train', '--output-dir', 'run', '--rank-assignment', 'file', '--rank-file', 'ranks.csv',
  )  # fmt: skip
  assert code == 2
  assert "line 1: client 'a' must have a rank in [1, 32]" in error


def test_options_of_operation_reach_the_program(program, run, tmp_path):
  (tmp_path / 'token').write_text('x' * 32)
  (tmp_path / 'token').chmod(0o600)
  words = ['--workers', 'a:1, b:2', '--token-file', 'token', '--tensorboard', '--verbose']
  assert run('train', '--output-dir', 'd', *words)[0] == 0
  options = program.calls[0][1]
  assert (options['workers'], options['token']) == (['a:1', 'b:2'], 'x' * 32)
  assert (options['verbosity'].name, options['tensorboard']) == ('VERBOSE', True)
  # Hosts and paths of this machine are nobody else's.
  assert options['command'][1:] == ['train', '--output-dir', 'd', '--tensorboard', '--verbose']
  assert run('train', '--output-dir', 'd', '--quiet', '--verbose')[0] == 2
