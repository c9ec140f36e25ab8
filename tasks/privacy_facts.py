# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the files of a run say to its privacy report beside the ledger; no TensorFlow."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from privacy.ledger import Ledger
from privacy.report import Facts
from privacy.spec import Relation
from tasks import dp_settings, page, plots, samplers, secure_facts
from tasks.built_in import BUILT_IN
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.files import read_json
from tasks.run_directory import REMOTE_WORKERS

_WITHHELD = {
  'train_loss': 'it is computed from the data of the clients of one round, without noise.',
  'upload_bytes': 'its sum tells how many clients took part in a round, and their ranks.',
  'download_bytes': 'its sum tells how many clients took part in a round, and their ranks.',
  'round_seconds': 'it grows with the number of clients and with their data.',
  'cohort_clients': 'how many clients were drawn is part of who was drawn.',
  'pruned_clients': 'it depends on what single clients learned.',
  'non_finite_clients': 'it depends on what single clients learned.',
  'mean_rank': 'it depends on who was drawn.',
  'trained_parameters': 'it depends on who was drawn.',
  'client_flops': 'it depends on who was drawn and on their data.',
  'deviation_from_exact': 'it is computed from what single clients learned.',
  'input_seconds': 'it depends on who was drawn and on their data.',
  'eval_client_perplexity_worst_decile': 'among few clients it is that of one.',
}
_EVALUATED = (
  'eval_loss', 'eval_perplexity', 'eval_rouge_1', 'eval_rouge_2', 'eval_rouge_l', 'eval_accuracy',
  'eval_client_perplexity_mean',
)  # fmt: skip
_MEANS = (
  'Mean losses, perplexities, accuracies and Rouge of held-out clients, in metrics.csv and'
  ' summary.json'
)
# What tells of single held-out clients, where it was released.
_SINGLE = ('samples.json', 'evaluation_base.json', 'evaluation_final.json')
_TUNING = (
  'This report is about one run. Other runs on the same clients, those included in which the'
  ' settings of this one were chosen, are not in its figures; each has a ledger of its own.'
)


def collect(directory: pathlib.Path, config: RunConfig, ledger: Ledger | None) -> Facts:
  """Gathers what a report says beside the ledger, and holds the files against the ledger.

  Args:
    directory: of the run; only `config.json` must be there.
    config: of the run.
    ledger: of the run, or None.

  Raises:
    UserError: naming a file that is malformed.
  """
  table = _metrics(directory / 'metrics.csv')
  audit = _audit(directory / 'audit.json')
  environment = _object(directory / 'environment.json') or {}
  single = [name for name in _SINGLE if _is_filled(directory / name)]
  problems, checks = _checks(config, ledger, table)
  if ledger is not None:
    _check_secrets(directory / 'secrets', problems, checks)
  observed = None
  if ledger is not None:
    checks.insert(0, f'The hash chain of the ledger is whole ({ledger.anchor.entries} entries).')
    # Where a client may be there or not, so may its turns; where it may be zeros, it has them.
    if ledger.spec.relation is Relation.ZERO_OUT_ONE:
      observed = _observed(directory / 'secrets' / 'draws.jsonl')
      problems += _broken_limits(ledger, observed)
  return Facts(
    unit=_unit(config),
    released=_released(config, ledger, table, single),
    not_covered=_not_covered(config, table, single, environment),
    withheld=_withheld(table) if ledger is not None else {},
    weighting=_weighting(config),
    public_data=_public_data(config),
    tuning=_TUNING,
    secure_aggregation=' '.join(secure_facts.describe(config)),
    problems=problems,
    observed=observed,
    audit=audit,
    checks=checks,
    software=_software(environment),
  )


def _metrics(path: pathlib.Path) -> plots.Table:
  """Columns of `metrics.csv`; none for a run that was killed before its first line."""
  if not path.exists():
    return {}
  try:
    return plots.read_table(path, ['round'])
  except ValueError as error:
    raise UserError(str(error)) from error


def _object(path: pathlib.Path) -> dict[str, Any] | None:
  """The object of a JSON file, or None without the file."""
  if not path.exists():
    return None
  content = read_json(path)
  if not isinstance(content, dict):
    raise UserError(f'{path} must hold a JSON object.')
  return content


def _audit(path: pathlib.Path) -> dict[str, Any] | None:
  """What an audit found, or None without one."""
  audit = _object(path)
  if audit is None:
    return None
  for key in ('epsilon_lower_bound', 'delta'):
    if page.number(audit.get(key)) is None:
      raise UserError(f'{path} must hold a number {key!r}.')
  return audit


def _is_filled(path: pathlib.Path) -> bool:
  return path.exists() and bool(read_json(path))


def _filled(table: plots.Table, column: str) -> bool:
  return column in table and bool(np.isfinite(table[column]).any())


def _checks(
  config: RunConfig, ledger: Ledger | None, table: plots.Table
) -> tuple[list[str], list[str]]:
  """What voids a claim, and what was compared and held."""
  if config.privacy == 'none':
    return ['The run had no privacy mechanism: no noise was added.'], []
  if ledger is None:
    return ['There is no ledger.jsonl, so nothing tells which rounds were started.'], []
  problems, checks = [], []
  if _describes(config, ledger):
    checks.append('config.json describes the mechanism, the delta and the budget of the ledger.')
  else:
    problems.append('config.json and ledger.jsonl describe different mechanisms.')
  rounds = table.get('round', np.array([]))
  started = {entry.get('round') for entry in ledger.rounds}
  unknown = len([x for x in rounds[rounds > 0] if int(x) not in started])
  torn = sum(entry['kind'] == 'torn' for entry in ledger.rounds)
  if unknown > torn:
    problems.append(f'{unknown} of the rounds in metrics.csv are not in the ledger.')
  else:
    checks.append('Every round of metrics.csv is in the ledger.')
  return problems, checks


def _check_secrets(secrets: pathlib.Path, problems: list[str], checks: list[str]) -> None:
  """Adds whether others may read what must be kept from them."""
  if not secrets.is_dir():
    checks.append('The directory secrets is not at hand: whether it was kept was not checked.')
  elif mode := secrets.stat().st_mode & 0o077:
    problems.append(f'Others may enter the directory secrets (mode bits {mode:03o}).')
  else:
    checks.append('Nobody but the owner may enter the directory secrets.')


def _describes(config: RunConfig, ledger: Ledger) -> bool:
  """Whether a configuration, which must be settled for it, is of the run of a ledger."""
  run = ledger.run or {}
  if None in (config.noise_multiplier, config.population_size, config.delta):
    return False
  promised = (dp_settings.spec_of(config), config.delta, config.target_epsilon)
  return promised == (
    ledger.spec,
    run.get('delta'),
    run.get('target_epsilon'),
  ) and dp_settings.digest(config) == run.get('config_sha256')


def _observed(path: pathlib.Path) -> dict[str, int] | None:
  """Participation as it was drawn, or None where the draws are not at hand."""
  try:
    draws = samplers.read_draws(path)
  except PermissionError:  # A reviewer need not be who ran it.
    return None
  counts = samplers.observed(draws)._asdict() if draws else {}
  return {name: value for name, value in counts.items() if value is not None} or None


def _broken_limits(ledger: Ledger, observed: Mapping[str, int] | None) -> list[str]:
  """Limits of participation that the draws do not keep, as sentences."""
  most, apart = ledger.spec.max_participations, ledger.spec.min_separation
  observed, problems = observed or {}, []
  if most is not None and observed.get('max_participations', 0) > most:
    problems.append(f'A client took part more than {most} times, which the figures rule out.')
  if apart is not None and observed.get('min_separation', apart) < apart:
    problems.append(f'A client took part twice within {apart} rounds, which the figures rule out.')
  return problems


def _unit(config: RunConfig) -> str:
  task = BUILT_IN.get(config.task)
  about = f' Task {config.task}: {task.description.rstrip(".")}.' if task else ''
  if task is not None and task.quotes_others:
    about += (
      ' What others wrote to a client is in its examples and counts as its own: the figures do not'
      ' protect the others there.'
    )
  if config.client_field:
    about += f' A client is a value of {", ".join(config.client_field)}.'
  return (
    'One client with all of its examples, in all rounds.'
    f'{about} A person who is k clients has k times the epsilon, at a larger delta.'
  )


def _released(
  config: RunConfig, ledger: Ledger | None, table: plots.Table, single: Sequence[str]
) -> list[str]:
  released = [
    'The model after every round, and so all that is computed from it: the adapter or weights that'
    ' the run leaves, and texts that it writes.',
    'The settings, the versions of software and this report.',
  ]
  if ledger is not None:
    released += [
      'The ledger.',
      'Not released, and to be kept secret: the directory secrets.',
    ]
  if any(_filled(table, name) for name in _EVALUATED):
    released.append(f'{_MEANS}, and plots of them.')
  if config.public_eval_clients:
    released.append(
      'Held-out clients one by one: their distribution, ranks and what adapters of their own gain,'
      ' in metrics.csv, summary.json, report.html and plots.'
    )
  return released + [f'{name}: texts or results of single held-out clients.' for name in single]


def _not_covered(
  config: RunConfig, table: plots.Table, single: Sequence[str], environment: Mapping[str, Any]
) -> list[str]:
  missing = [
    f'{name} in metrics.csv: {why}' for name, why in _WITHHELD.items() if _filled(table, name)
  ]
  if environment.get(REMOTE_WORKERS) is True:
    missing.append(
      'Clients trained on remote workers: these, whoever runs them and whoever reads the network'
      ' between, which nothing encrypts, saw the data and the updates of clients, and are trusted.'
    )
  if config.public_eval_clients:
    missing.append(
      'Held-out clients: whoever started the run declared that they are no secret, and nothing of'
      ' them is protected.'
    )
  else:
    missing.append(
      f'{_MEANS}: no noise is added to them. Neither is the choice of a model or of settings by'
      ' them covered.'
    )
    missing += [f'{name}: single held-out clients, whom nothing protects.' for name in single]
  task = BUILT_IN.get(config.task)
  if task is None:
    missing.append(
      f'How {config.task} makes clients and examples: nobody has checked that what a client holds'
      ' depends on this client alone.'
    )
  elif task.needs and not task.quotes_others:  # Where it does, the unit says so.
    missing.append('People who are quoted in the text of another client.')
  if task is not None and task.shares_clients and config.eval_split == 'test':
    missing.append(
      'Held-out text is what clients that train wrote later: results on it tell of the very clients'
      ' that the figures are about.'
    )
  if config.rank_assignment:
    missing.append(
      'Which device has which rank: ranks are taken as public, and as the same in the run without'
      ' a client. They must not follow from the data of a client.'
    )
  return missing


def _withheld(table: plots.Table) -> dict[str, str]:
  return {name: why for name, why in _WITHHELD.items() if not _filled(table, name)}


def _weighting(config: RunConfig) -> str:
  if config.privacy == 'none':
    bound = 'nothing bounds' if config.l2_clip_norm is None else 'a clip alone bounds'
    return f'{config.weights}; {bound} what one client changes'
  if config.method == 'coverage':
    return (
      'each row is divided by the expected number of clients of a round that hold it, a public'
      ' constant of the tiers'
    )
  if config.weights not in ('module', 'model'):
    return 'every client of a round counts the same'
  text = (
    f'by the norm of what a client learned, one weight per {config.weights}: norm /'
    f' {config.weight_reference:g}, at most 1, multiplied after the clip, so that it makes no'
    ' update larger than S'
  )
  if config.denominator == 'noised':
    return f'{text}; the sum of the weights is measured with noise, within the same clip'
  return f'{text}; the sum is also divided by the public mean weight {config.mean_weight:g}'


def _public_data(config: RunConfig) -> str:
  base = f'The base model ({config.backbone})'
  if config.initial_adapter is None:
    what, note = f'{base} and its tokenizer', ' The initial adapter is random, from the seed.'
  else:
    what, note = f'{base}, its tokenizer and the initial adapter ({config.initial_adapter})', ''
  return (
    f'{what} are taken as public, trained on no text of these clients; the figures do not cover'
    f' what they were trained on.{note}'
  )


def _software(environment: Mapping[str, Any]) -> dict[str, str]:
  packages = environment.get('packages')
  versions = {'python': environment.get('python')}
  versions |= packages if isinstance(packages, Mapping) else {}
  return {name: page.value_text(value) for name, value in versions.items() if value is not None}
