# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The evaluations of a run on held-out clients, and the files of the first and the last one."""

import concurrent.futures
import functools
import time
from typing import Any

from tasks import results
from tasks.console import Progress
from tasks.evaluator import Evaluator
from tasks.experiment import Experiment
from tasks.logs import Event, RunLog
from tasks.run_directory import RunDirectory
from tasks.threads import in_thread

_BASE, _FINAL = 'evaluation_base.json', 'evaluation_final.json'


class HeldOut:
  """Evaluates what a run has learned so far."""

  def __init__(
    self,
    experiment: Experiment,
    directory: RunDirectory,
    prefix: str,
    progress: Progress,
    log: RunLog,
  ):
    """Evaluates nothing yet.

    Args:
      experiment: of the run.
      directory: of the run.
      prefix: of the files, which tell about single clients.
      progress: shows that an evaluation is under way.
      log: has its result.
    """
    self._experiment = experiment
    self._directory = directory
    self._prefix = prefix
    self._progress = progress
    self._log = log
    self._begun: concurrent.futures.Future | None = None

  @functools.cached_property
  def _evaluator(self) -> Evaluator:
    return self._experiment.evaluator()

  def begin(self, parameters: Any) -> None:
    """Evaluates what a run begins with, beside its first round; `evaluate` has the result."""
    # Made here: it takes the tokenizer and the model, which the round is about to use.
    evaluator = self._evaluator
    self._begun = in_thread(self._measure, evaluator, parameters, True)

  def evaluate(self, round_number: int, parameters: Any, *, write: bool) -> dict[str, Any]:
    """Held-out losses and, with `write`, RougeL of decoded text, kept as a file."""
    self._progress.say_busy('evaluating on held-out clients')
    begun, self._begun = self._begun, None
    measured = begun.result() if begun else self._measure(self._evaluator, parameters, write)
    evaluation: dict[str, Any] = {'round': round_number, **measured}
    fields = {'perplexity': evaluation['perplexity'], 'seconds': evaluation['seconds']}
    self._log.event(Event.EVALUATED, round=round_number, **fields)
    if write:
      self._directory.write_json(self._prefix + (_FINAL if round_number else _BASE), evaluation)
    return evaluation

  def base(self) -> dict[str, Any]:
    """What the untuned base came to."""
    return self._directory.read_json(self._prefix + _BASE)

  def final(self, round_number: int, parameters: Any) -> dict[str, Any]:
    """What the last round came to; measured now if a resumed run had no round left to do."""
    name = self._prefix + _FINAL
    if (self._directory.root / name).exists():
      evaluation = self._directory.read_json(name)
      if evaluation.get('round') == round_number:
        return evaluation
    return self.evaluate(round_number, parameters, write=True)

  def _measure(self, evaluator: Evaluator, parameters: Any, write: bool) -> dict[str, Any]:
    started = time.monotonic()
    evaluation = results.evaluate(evaluator, parameters, write=write)
    return {**evaluation, 'seconds': round(time.monotonic() - started, 3)}
