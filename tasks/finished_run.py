# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a finished run says of itself, read from its directory; no TensorFlow."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tasks import plots
from tasks.errors import UserError
from tasks.files import read_json


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """A run with a result.

  Attributes:
    directory: of the run.
    config: all its settings.
    inputs: digests of its backbone and data.
    base_loss: held-out loss of the untuned base, nats per token.
    final_loss: that of the tuned model.
    base_rouge_l: RougeL of what the untuned base writes, or None without decoding.
    final_rouge_l: that of the tuned model, or None.
    metrics: columns of `metrics.csv`, float64 `[rounds + 1]`; NaN where nothing was measured.
    epsilon: that its privacy report guarantees, or None without a guarantee.
    projected_epsilon: that the report projects to a production run, or None.
  """

  directory: pathlib.Path
  config: Mapping[str, Any]
  inputs: Mapping[str, str]
  base_loss: float
  final_loss: float
  base_rouge_l: float | None
  final_rouge_l: float | None
  metrics: plots.Table
  epsilon: float | None = None
  projected_epsilon: float | None = None

  @classmethod
  def read(cls, directory: pathlib.Path) -> 'FinishedRun':
    """Reads a run's files.

    Raises:
      UserError: naming the directory that holds no finished run, or the file that is malformed.
    """
    check_finished(directory)
    config = _read_object(directory / 'config.json')
    summary = _read_object(directory / 'summary.json')
    base, final = (_object(summary.get(name)) for name in ('base', 'final'))
    try:
      metrics = plots.read_table(directory / 'metrics.csv', ['round'])
    except ValueError as error:
      raise UserError(str(error)) from error
    # A budget may have ended the run before its time.
    planned = _finite(summary.get('rounds', config.get('rounds')))
    last = metrics['round'].max(initial=0)
    if planned is not None and last != planned:
      raise UserError(
        f'{directory} holds {last:.0f} of {planned:.0f} rounds; {_how_to_finish(directory)}'
      )
    return cls(
      directory=directory,
      config={'method': 'hetlora', **config},
      inputs=_inputs(directory),
      base_loss=_loss(directory, base),
      final_loss=_loss(directory, final),
      base_rouge_l=_finite(base.get('rouge_l')),
      final_rouge_l=_finite(final.get('rouge_l')),
      metrics=metrics,
      **_epsilons(directory),
    )

  @property
  def method(self) -> str:
    """The method's name, as on the command line."""
    return str(self.config['method'])

  @property
  def is_private(self) -> bool:
    """Whether it has a privacy mechanism, with a guarantee or without."""
    return self.config.get('privacy', 'none') != 'none'

  @property
  def seed(self) -> Any:
    """The seed of its splits, ranks, cohorts and initial adapters."""
    return self.config.get('seed')

  def per_round(self, column: str) -> np.ndarray | None:
    """A column over the rounds that trained, or None if a round lacks it: a sum would be short."""
    trained = self.metrics['round'] > 0
    values = self.metrics.get(column)
    if values is None or not trained.any() or not np.isfinite(values[trained]).all():
      return None
    return values[trained]

  def mean(self, column: str) -> float | None:
    """The mean of a column over the rounds that have it, or None without any."""
    _, values = plots.measured(self.metrics, column)
    return float(values.mean()) if len(values) else None

  def median(self, column: str) -> float | None:
    """The median of a column over the rounds that have it, or None without any."""
    _, values = plots.measured(self.metrics, column)
    return float(np.median(values)) if len(values) else None

  def messages(self) -> float:
    """Clients times rounds that trained."""
    rounds = int((self.metrics['round'] > 0).sum())
    return rounds * (_finite(self.config.get('clients_per_round')) or math.nan)


def check_finished(directory: pathlib.Path) -> None:
  """Checks that a directory holds a run which came to its end.

  Raises:
    UserError: that says how to finish it.
  """
  if not (directory / 'config.json').is_file():
    raise UserError(f'{directory} holds no run (no config.json).')
  if not (directory / 'summary.json').is_file():
    raise UserError(
      f'{directory} holds an unfinished run (no summary.json); {_how_to_finish(directory)}'
    )


def _how_to_finish(directory: pathlib.Path) -> str:
  return f'finish it with hetlora train --resume --output-dir {directory}.'


def _read_object(path: pathlib.Path) -> Mapping[str, Any]:
  content = read_json(path)
  if not isinstance(content, dict):
    raise UserError(f'{path} must hold a JSON object.')
  return content


def _object(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, dict) else {}


def _finite(value: Any) -> float | None:
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    return None
  return float(value)


def _loss(directory: pathlib.Path, record: Mapping[str, Any]) -> float:
  loss = _finite(record.get('loss'))
  if loss is None:
    raise UserError(f'{directory / "summary.json"} has no held-out loss before and after tuning.')
  return loss


def _epsilons(directory: pathlib.Path) -> dict[str, float | None]:
  path = directory / 'privacy_report.json'
  headline = _object(_read_object(path).get('headline')) if path.is_file() else {}
  return {name: _finite(headline.get(name)) for name in ('epsilon', 'projected_epsilon')}


def _inputs(directory: pathlib.Path) -> Mapping[str, str]:
  inputs: dict[str, str] = {}
  for path in (directory / 'environment.json', directory / 'secrets' / 'inputs.json'):
    if path.is_file():
      inputs |= _object(_read_object(path).get('inputs'))
  if not {'data_sha256', 'backbone_sha256'} <= set(inputs):
    raise UserError(
      f'{directory} does not say which data and backbone it used (inputs in environment.json);'
      ' run it again.'
    )
  return inputs
