# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command `hetlora`.

Commands import what they need when they run, so that help and wrong flags do not wait for
TensorFlow.
"""

import contextlib
import dataclasses
import errno
import inspect
import io
import os
import pathlib
import sys
import typing
from typing import Annotated, Any

import rich.console
import rich.table
import typer

from tasks.config import RunConfig, option, resolve, resolve_resumed
from tasks.errors import UserError

_USER_ERROR, _INTERRUPTED = 2, 130
# What the machine, not the program, did wrong.
_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

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


def _config_flags(command):
  """Gives a command one flag per configuration key, unset by default."""
  signature = inspect.signature(command)
  own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
  hints = typing.get_type_hints(RunConfig)
  flags = []
  for field in dataclasses.fields(RunConfig):
    is_list = hints[field.name] not in (int, float, str)
    default = getattr(RunConfig, field.name)
    default = ','.join(default) if is_list else default
    flag = typer.Option(
      option(field.name), help=f'{field.metadata["help"]} (default: {default})', show_default=False
    )
    kind = str if is_list else hints[field.name]
    flags.append(
      inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, flag],
      )
    )
  command.__signature__ = signature.replace(parameters=own + flags)
  return command


@app.command()
@_config_flags
def train(
  *,
  output_dir: Annotated[pathlib.Path, typer.Option(help='Directory of the run; must be new.')],
  config: Annotated[
    pathlib.Path | None, typer.Option(help='JSON file of configuration keys; flags go over it.')
  ] = None,
  resume: Annotated[
    bool, typer.Option('--resume', help='Go on with the run in --output-dir.')
  ] = False,
  **flags: Any,
) -> None:
  """Fine-tune a model on a federated task and write adapters, metrics and a report."""
  given = {key: value for key, value in flags.items() if value is not None}
  if 'targets' in given:
    given['targets'] = tuple(t.strip() for t in given['targets'].split(',') if t.strip())
  resolved = resolve_resumed(output_dir, config, given) if resume else resolve(config, given)
  program = _import_program()
  summary = program.train(resolved, output_dir, resume=resume, command=['hetlora', *sys.argv[1:]])
  _print_summary(summary)
  print(f'Report: {output_dir / "report.html"}')


@app.command()
def evaluate(
  directory: Annotated[pathlib.Path, typer.Argument(help='Directory of a finished run.')],
) -> None:
  """Evaluate a run's adapters on its held-out clients and write evaluation.json."""
  _print_summary(_import_program().evaluate_run(directory))
  print(f'Evaluation: {directory / "evaluation.json"}')


@app.command()
def tasks() -> None:
  """List the tasks that --task names."""
  from tasks import registry

  table = rich.table.Table('task', 'what it is', box=None)
  for name, task in sorted(registry.TASKS.items()):
    table.add_row(name, task.description)
  rich.console.Console().print(table)


def _import_program():
  """Imports TensorFlow and what needs it, without their chatter."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
    import keras_nlp  # noqa: F401 (prints the name of its backend)
  from absl import logging

  from tasks import program

  # keras-nlp warns at every call that it was given the mask that it needs.
  logging.set_verbosity(logging.ERROR)
  return program


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
  if 'rouge_l' in final:
    table.add_row(
      'RougeL',
      f'{base["rouge_l"]:.3f}',
      f'{final["rouge_l"]:.3f}',
      _interval(summary['rouge_l_change'], lambda x: f'{x:+.3f}'),
    )
  rich.console.Console().print(table)


def _interval(change: dict[str, float | None], form) -> str:
  if change['low'] is None or change['high'] is None:
    return form(change['mean'])
  return f'{form(change["mean"])} ({form(change["low"])} to {form(change["high"])})'


if __name__ == '__main__':
  main()
