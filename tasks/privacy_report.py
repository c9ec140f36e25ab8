# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the privacy report of a run directory, from its ledger; no TensorFlow."""

import dataclasses
import json
import pathlib

from privacy.claim import Guarantee
from privacy.ledger import Anchor, Ledger, LedgerError
from privacy.report import PrivacyReport
from tasks import page, plots, privacy_facts, privacy_plots
from tasks.config import RunConfig
from tasks.config_files import from_json as config_from_json
from tasks.errors import UserError
from tasks.files import read_json, replace_file

NAME = 'privacy_report'
_TEMPLATE = 'privacy_report.html'
_LEDGER = 'ledger.jsonl'
_CAPTIONS = {
  privacy_plots.ROUNDS: (
    'Epsilon after so many started rounds, on a logarithmic axis, by the accountant of the'
    ' headline, which is the dot.'
  ),
  privacy_plots.DELTA: (
    'One run has an epsilon for every delta: these are by the accountant of the headline, on'
    ' logarithmic axes. The dot is the headline; the other points of its curve hold as well.'
  ),
}


def write_privacy_report(run_directory: pathlib.Path) -> PrivacyReport:
  """Writes `privacy_report.{json,md,html}` and its plots, of a finished or unfinished run.

  Everything is computed from `ledger.jsonl`; what the run said of itself is only compared with it.

  Args:
    run_directory: holds `config.json`, and what else the run has written.

  Raises:
    UserError: naming the file that is missing or malformed, or a ledger that was changed since the
      report before.
  """
  directory = pathlib.Path(run_directory)
  if not (directory / 'config.json').is_file():
    raise UserError(f'{directory} holds no run (no config.json).')
  config = config_from_json(directory / 'config.json')
  try:
    ledger = _open_ledger(directory, config)
    facts = privacy_facts.collect(directory, config, ledger)
    if ledger is not None:
      facts = dataclasses.replace(facts, checks=[*facts.checks, *_continues(directory, ledger)])
    report = PrivacyReport.from_ledger(ledger, facts)
    curves = privacy_plots.curves(ledger, report.claim) if ledger else {}
  except LedgerError as error:
    raise UserError(str(error)) from error
  light = privacy_plots.draw(curves, report.claim, plots.LIGHT)
  dark = privacy_plots.draw(curves, report.claim, plots.DARK)
  for name in _CAPTIONS:
    path = directory / 'plots' / f'{name}.png'
    if name in light:
      path.parent.mkdir(exist_ok=True)
      replace_file(path, light[name])
    else:
      path.unlink(missing_ok=True)
  html = _html(config, report, page.figures(light, dark, _CAPTIONS))
  # The JSON last: it anchors the ledger, and the next report is held against it.
  for suffix, text in (
    ('html', html),
    ('md', report.to_markdown()),
    ('json', json.dumps(report.to_json(), indent=2) + '\n'),
  ):
    replace_file(directory / f'{NAME}.{suffix}', text.encode())
  return report


def _open_ledger(directory: pathlib.Path, config: RunConfig) -> Ledger | None:
  """The ledger of a private run, or None if there is none."""
  path = directory / _LEDGER
  return Ledger(path) if config.privacy != 'none' and path.exists() else None


def _continues(directory: pathlib.Path, ledger: Ledger) -> list[str]:
  """Checks that a ledger goes on from the one that the last report saw, and says so.

  Raises:
    LedgerError: if it is shorter, or another.
  """
  path = directory / f'{NAME}.json'
  content = read_json(path) if path.exists() else {}
  seen = content.get('ledger') if isinstance(content, dict) else None
  if not isinstance(seen, dict):
    return []
  entries, head = seen.get('entries', 0), seen.get('head', '')
  if type(entries) is not int or not isinstance(head, str):
    raise UserError(f'{path} does not say how many entries the ledger had; remove it.')
  anchor = Anchor(entries, head)
  ledger.check_anchor(anchor)
  return [f'The ledger goes on from the last report, which saw {anchor.entries} entries.']


def _html(config: RunConfig, report: PrivacyReport, figures: list[page.Figure]) -> str:
  return page.render(
    _TEMPLATE,
    task=config.task,
    method=config.method,
    report=report,
    claims=report.claim.guarantee is Guarantee.DIFFERENTIAL_PRIVACY,
    figures=figures,
  )
