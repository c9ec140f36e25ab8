# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command `hetlora`.

Commands import what they need when they run, so that help and wrong flags do not wait for
TensorFlow.
"""

import csv
import dataclasses
import errno
import inspect
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import rich.console
import rich.table
import typer

from tasks import methods, registry, values
from tasks.built_in import DATA_KEYS
from tasks.config import TYPES, RunConfig, default, from_text
from tasks.config_files import resolve, resolve_resumed
from tasks.errors import UserError
from tasks.export import Format
from tasks.export import export as export_run
from tasks.options import as_flag, option
from tasks.program_loader import import_program
from tasks.rank_file import read_rank_file

_USER_ERROR, _INTERRUPTED = 2, 130
# What the machine, not the program, did wrong.
_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_SCORES = {'rouge_1': 'Rouge1', 'rouge_2': 'Rouge2', 'rouge_l': 'RougeL', 'accuracy': 'accuracy'}
_METHODS = 'Methods; `hetlora tasks` says more:\n\n' + '\n\n'.join(
  f'{method.name}: {method.title} - {method.paper}' for method in methods.METHODS.values()
)

app = typer.Typer(
  add_completion=False,
  no_args_is_help=True,
  pretty_exceptions_enable=False,
  help='Federated LoRA fine-tuning with a rank of its own on every device.',
)


def main() -> None:
  """Runs the command line; user errors are one line and exit code 2."""
  try:
    code = app(standalone_mode=False)
    if code == _INTERRUPTED:  # Typer has caught it.
      raise KeyboardInterrupt
    sys.exit(code)
  except UserError as error:
    _fail(str(error), _USER_ERROR)
  except KeyboardInterrupt:
    _fail('Interrupted; finished rounds, if any, are kept: go on with --resume.', _INTERRUPTED)
  except typer.TyperException as error:
    if not error.format_message():  # No command at all, and the help is shown.
      sys.exit(_USER_ERROR)
    _fail(error.format_message(), _USER_ERROR)
  except OSError as error:
    if error.errno not in _MACHINE_ERRORS:
      raise
    where = f'{error.filename}: ' if error.filename else ''
    _fail(f'{where}{os.strerror(error.errno)}; finished rounds are kept.', _USER_ERROR)


def _fail(message: str, code: int) -> None:
  print(' '.join(f'hetlora: {message}'.split()), file=sys.stderr)
  sys.exit(code)


def _without(options: Sequence[str], words: Sequence[str]) -> list[str]:
  """The words of a command line without some options and their values."""
  kept = [word for word in words if not word.startswith(tuple(f'{name}=' for name in options))]
  pairs = zip([None, *kept], kept, strict=False)
  return [word for before, word in pairs if word not in options and before not in options]


def _unset(name: str, kind: type, flag: Any) -> inspect.Parameter:
  """A parameter of a command that is None where its flag is not given."""
  annotation = Annotated[kind | None, flag]
  return inspect.Parameter(
    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
  )


def _config_flags(*keys: str):
  """Gives a command a flag for each of these configuration keys, unset by default."""

  def decorate(command):
    signature = inspect.signature(command)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = [flag for key in keys for flag in _flags_of(RunConfig.__dataclass_fields__[key])]
    command.__signature__ = signature.replace(parameters=own + flags)
    return command

  return decorate


def _flags_of(field: dataclasses.Field) -> list[inspect.Parameter]:
  """The flag of a configuration key, and for a switch the one that turns it off."""
  name, kind, flags = option(field.name), TYPES[field.name], []
  usual = ' '.join(as_flag(field.name, default(field))[1:]) or 'none'
  panel = field.metadata.get('panel')
  if kind is bool and default(field):
    # In a panel of its own: two long names in a row leave no room for its help.
    name, usual, panel = f'{name}/{option("no_" + field.name)}', 'where it can be', 'Switches'
  elif kind is bool:  # What is off may be said to be off, but help is shorter without it.
    usual = 'no'
    hidden = typer.Option(option(f'no_{field.name}'), hidden=True)
    flags.append(_unset(f'no_{field.name}', bool, hidden))
  flag = typer.Option(
    name,
    help=f'{field.metadata["help"]} (default: {usual})',
    show_default=False,
    rich_help_panel=panel,
  )
  return [*flags, _unset(field.name, str if values.is_composed(kind) else kind, flag)]


def _given(flags: dict[str, Any]) -> dict[str, Any]:
  """The configuration keys that were given as flags, by their values."""
  given = {}
  for key, value in flags.items():
    if key not in TYPES:  # What turns a key off.
      key, value = key.removeprefix('no_'), False if value else None
    if value is not None:
      given[key] = from_text(key, value)
  return given


@app.command(epilog=_METHODS)
@_config_flags(*TYPES)
def train(
  *,
  output_dir: Annotated[
    pathlib.Path, typer.Option(help='Directory of the run: new, unless --resume.')
  ],
  config: Annotated[
    pathlib.Path | None, typer.Option(help='JSON file of configuration keys; flags go over it.')
  ] = None,
  resume: Annotated[
    bool, typer.Option('--resume', help='Go on with the run in --output-dir.')
  ] = False,
  workers: Annotated[
    str | None,
    typer.Option(
      help='Train clients on these `hetlora worker`s: HOST:PORT,...', show_default=False
    ),
  ] = None,
  token_file: Annotated[
    pathlib.Path | None, typer.Option(help='File with the token of the workers.')
  ] = None,
  tensorboard: Annotated[
    bool, typer.Option('--tensorboard', help='Write tensorboard/ in the run, too.')
  ] = False,
  quiet: Annotated[
    bool, typer.Option('--quiet', '-q', help='Say nothing but errors and the result.')
  ] = False,
  verbose: Annotated[bool, typer.Option('--verbose', '-v', help='Say every event.')] = False,
  **flags: Any,
) -> None:
  """Fine-tune a model on a federated task and write adapters, metrics and a report.

  Defaults are those of --method hetlora; another method has its own where it needs them.
  """
  if quiet and verbose:
    raise UserError('--quiet and --verbose exclude each other.')
  if token_file and not workers:
    raise UserError('--token-file: there are no --workers to send it to.')
  given = _given(flags)
  resolved = resolve_resumed(output_dir, config, given) if resume else resolve(config, given)
  registry.find_task(resolved.task)
  if resolved.rank_file:
    read_rank_file(pathlib.Path(resolved.rank_file), resolved.max_rank)
  program = import_program()
  from tasks import remote_worker
  from tasks.console import Verbosity

  summary = program.train(
    resolved,
    output_dir,
    resume=resume,
    command=['hetlora', *_without(('--workers', '--token-file'), sys.argv[1:])],
    workers=[address.strip() for address in workers.split(',')] if workers else [],
    token=remote_worker.read_token(token_file) if token_file else None,
    verbosity=Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL,
    tensorboard=tensorboard,
  )
  _print_summary(summary)
  print(f'Report: {output_dir / "report.html"}')


@app.command()
def evaluate(
  directory: Annotated[pathlib.Path, typer.Argument(help='Directory of a finished run.')],
) -> None:
  """Evaluate a run's adapters on its held-out clients and write evaluation.json."""
  _print_summary(import_program().evaluate_run(directory))
  print(f'Evaluation: {directory / "evaluation.json"}')


@app.command()
def report(
  directory: Annotated[pathlib.Path, typer.Argument(help='Directory of a run, finished or not.')],
) -> None:
  """Compute a run's privacy report anew from its ledger."""
  from tasks import privacy_report

  written = privacy_report.write_privacy_report(directory)
  print(f'{written.headline}.', *written.claim.reasons)
  print(f'Privacy report: {directory / "privacy_report.html"}')


@app.command()
def export(
  directory: Annotated[pathlib.Path, typer.Argument(help='Directory of a finished run.')],
  *,
  form: Annotated[
    Format,
    typer.Option(
      '--format',
      help='peft: adapter for Hugging Face PEFT; savedmodel, keras, preset, tflite: the merged '
      'model; daf: the learning process, compiled for a production pipeline.',
    ),
  ],
  output_dir: Annotated[pathlib.Path, typer.Option(help='Directory to write; new or empty.')],
  backbone: Annotated[
    str | None, typer.Option(help='Where the backbone of the run is now, if it has moved.')
  ] = None,
) -> None:
  """Write what a run has made in the form that others load; see docs/production.md."""
  print(export_run(directory, form, output_dir, _say, backbone=backbone))


@app.command()
def compare(
  runs: Annotated[
    list[pathlib.Path] | None, typer.Argument(help='Directories of finished runs.')
  ] = None,
  *,
  output_dir: Annotated[pathlib.Path, typer.Option(help='Directory of the comparison.')],
  config: Annotated[
    pathlib.Path | None,
    typer.Option(help='JSON file of a suite of runs, done first; finished ones are kept.'),
  ] = None,
) -> None:
  """Compare runs, over their seeds: a table, curves and a page."""
  directories = list(runs or ())
  if config is not None:
    from tasks import suite

    directories += suite.run_suite(config, output_dir)
  from tasks import compare as comparison

  comparison.compare(directories, output_dir)
  print(f'Comparison: {output_dir / "comparison.html"}')


@app.command()
@_config_flags('seed', *DATA_KEYS)
def tasks(
  *,
  clients: Annotated[
    str | None, typer.Option(help='List the clients of this task instead, as CSV.')
  ] = None,
  **flags: Any,
) -> None:
  """List the tasks that --task names and the methods that --method names."""
  if clients is not None:
    _print_clients(resolve(None, {'task': clients, **_given(flags)}))
    return
  console = rich.console.Console()
  table = rich.table.Table('task', 'what it is', box=None)
  for name, task in sorted(registry.TASKS.items()):
    table.add_row(name, task.description)
  console.print(table, '')
  table = rich.table.Table('method', 'what it is', 'paper', box=None)
  for method in methods.METHODS.values():
    table.add_row(method.name, f'{method.title}. {method.description}', method.paper)
  console.print(table)


@app.command()
def worker(
  *,
  host: Annotated[
    str, typer.Option(help='Address to listen on; any but loopback: on a private network only.')
  ] = '127.0.0.1',
  port: Annotated[int, typer.Option(help='0 takes a free one.', min=0, max=65535)] = 8000,
  max_concurrent_clients: Annotated[
    int | None, typer.Option(help='Clients that train at a time; one per core by default.')
  ] = None,
  backbone: Annotated[
    str, typer.Option(help='Base model to have ready: that of the runs to come.')
  ] = 'embedded',
  token_file: Annotated[
    pathlib.Path | None,
    typer.Option(help='File with what drivers must send; it is sent unencrypted.'),
  ] = None,
  log_file: Annotated[
    pathlib.Path | None,
    typer.Option(help="Where the runtime's own output goes, which may quote clients."),
  ] = None,
) -> None:
  """Let `hetlora train --workers` on other machines train clients on this one."""
  import_program()
  from tasks import worker_server

  worker_server.serve(host, port, max_concurrent_clients, backbone, token_file, log_file)


@app.command()
def doctor(
  *,
  as_json: Annotated[
    bool, typer.Option('--json', help='One JSON object instead of lines.')
  ] = False,
) -> None:
  """Check this machine: versions, processor, disk, a worker, and workers left behind."""
  from tasks import doctor as checks

  sys.exit(checks.run(as_json=as_json))


def _say(text: str) -> None:
  print(text, file=sys.stderr)


def _print_clients(config: RunConfig) -> None:
  registry.find_task(config.task)
  import_program()
  from tasks import cache, experiment, federated_text

  data = experiment.load_data(config, cache.cache_directory(), _say)
  writer = csv.writer(sys.stdout, lineterminator='\n')
  writer.writerow(['client', 'split', 'examples'])
  for split in ('train', 'validation', 'test'):
    for client, examples in sorted(federated_text.sizes(data.split(split)).items()):
      writer.writerow([client, split, examples])


def _print_summary(summary: dict[str, Any]) -> None:
  base, final = summary['base'], summary['final']
  table = rich.table.Table('held out', 'untuned base', 'tuned', 'change (95 % interval)', box=None)
  change = summary['relative_perplexity_change']
  table.add_row(
    'perplexity',
    f'{base["perplexity"]:.2f}',
    f'{final["perplexity"]:.2f}',
    _interval(change, lambda x: f'{100 * x:+.1f} %'),
  )
  for name, title in _SCORES.items():
    if name in final:
      change = _interval(summary[f'{name}_change'], lambda x: f'{x:+.3f}')
      table.add_row(title, f'{base[name]:.3f}', f'{final[name]:.3f}', change)
  rich.console.Console().print(table)


def _interval(change: dict[str, float | None], form) -> str:
  if change['low'] is None or change['high'] is None:
    return form(change['mean'])
  return f'{form(change["mean"])} ({form(change["low"])} to {form(change["high"])})'


if __name__ == '__main__':
  main()
