# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: which may be compared, which belong together, and what they measured."""

import collections
import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tasks import metrics
from tasks.errors import UserError
from tasks.finished_run import FinishedRun
from tasks.options import option

# What decides which text is measured, and how much of it: figures of other text say nothing here.
_SAME_KEYS = (
  'task', 'data_dir', 'client_field', 'text_field', 'source_field', 'target_field', 'label_field',
  'labels', 'min_examples', 'max_examples', 'skip_bad_records', 'eval_split', 'eval_clients',
  'eval_examples_per_client', 'decode_examples', 'num_beams', 'sequence_length',
  'max_target_tokens', 'truncate_source',
)  # fmt: skip
_LABEL_CHARACTERS = 28
_MEASURES: Mapping[str, Callable[[FinishedRun], float | None]] = collections.OrderedDict(
  base_loss=lambda run: run.base_loss,
  final_loss=lambda run: run.final_loss,
  loss_change=lambda run: run.final_loss - run.base_loss,
  base_rouge_l=lambda run: run.base_rouge_l,
  rouge_l=lambda run: run.final_rouge_l,
  rouge_l_change=lambda run: _difference(run.final_rouge_l, run.base_rouge_l),
  deviation_from_exact=lambda run: run.mean('deviation_from_exact'),
  upload_bytes=lambda run: _total(run, 'upload_bytes'),
  download_bytes=lambda run: _total(run, 'download_bytes'),
  upload_bytes_per_client=lambda run: _per_client(run, 'upload_bytes'),
  download_bytes_per_client=lambda run: _per_client(run, 'download_bytes'),
  trained_parameters_per_client=lambda run: _per_client(run, 'trained_parameters'),
  client_flops=lambda run: _total(run, 'client_flops'),
  client_flops_per_client=lambda run: _per_client(run, 'client_flops'),
  training_seconds=lambda run: _total(run, 'round_seconds'),
  round_seconds=lambda run: run.median('round_seconds'),
  epsilon=lambda run: run.epsilon,
  projected_epsilon=lambda run: run.projected_epsilon,
)


def measure(run: FinishedRun) -> dict[str, float | None]:
  """Returns a run's figures by name, None for what it did not measure.

  Losses are nats per token. Bytes, parameters and operations `_per_client` are of one client in one
  round, on average; the others are totals of the run, seconds those of the simulating machine.
  `deviation_from_exact` is the mean over the rounds that measured it, `round_seconds` the median:
  the first round may share the machine with an evaluation. `epsilon` is guaranteed,
  `projected_epsilon` would be by a production run.
  """
  return {name: value(run) for name, value in _MEASURES.items()}


class Hiding(NamedTuple):
  """How runs hide their clients, in words, or in none where a part has no meaning.

  From these words, mechanisms and secure sums have most of their other settings.
  """

  mechanism: str
  level: str
  cohort: str
  sums: str

  def words(self, parts: Collection[str]) -> str:
    """Returns those parts, in order."""
    chosen = (value for name, value in zip(self._fields, self, strict=True) if name in parts)
    return ', '.join(dict.fromkeys(value for value in chosen if value))


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in nothing but their seed.

  Attributes:
    label: the method's name and, where others have the same method, what tells them apart: how
      they hide their clients if that does, or the settings that differ if they are short, else a
      number.
    method: the method's name.
    difference: the settings that differ from others of the same method, or nothing.
    runs: sorted by seed.
  """

  label: str
  method: str
  difference: str
  runs: tuple[FinishedRun, ...]

  def interval(self, name: str, form: Callable[[float], float] = float) -> metrics.Interval | None:
    """Mean over seeds and its 95 % t interval, without bounds for a single run.

    Args:
      name: of a measure.
      form: an increasing function that mean and bounds are seen through.

    Returns:
      None if a run lacks the measure.
    """
    values = [_MEASURES[name](run) for run in self.runs]
    known = [value for value in values if value is not None]
    return _seen_through(form, known) if len(known) == len(values) else None

  def mean(self, name: str) -> float | None:
    """Mean of a measure over seeds, or None if a run lacks it."""
    found = self.interval(name)
    return None if found is None else found.mean

  @property
  def perplexity(self) -> metrics.Interval:
    """Held-out perplexity after tuning: the exponential of the loss and its interval.

    So it is averaged where its errors are symmetric, and no bound is below zero.
    """
    return _seen_through(_exp, [run.final_loss for run in self.runs])

  @property
  def change(self) -> metrics.Interval:
    """Its relative change to the untuned base, as a fraction."""
    losses = [run.final_loss - run.base_loss for run in self.runs]
    return _seen_through(lambda loss: _exp(loss) - 1, losses)

  @property
  def is_private(self) -> bool:
    """Whether its runs have a privacy mechanism, with a guarantee or without."""
    return self.runs[0].is_private

  @property
  def hiding(self) -> Hiding:
    """How private they are, and how their clients are summed."""
    noise, target, cohort, bits = (
      self.config.get(key)
      for key in ('noise_multiplier', 'target_epsilon', 'noise_cohort_size', 'secure_bits')
    )
    sums = 'in the clear' if bits is None else f'{bits} bits'
    if not self.is_private:
      words = 'not private' if bits is None else 'no noise'
      return Hiding(words, words, '', sums)
    level = f'noise {noise}' if target is None else f'epsilon {target:g}'
    members = '' if cohort is None else f'{cohort:,} a round'
    return Hiding(str(self.config['privacy']), level, members, sums)

  @property
  def seeds(self) -> list[Any]:
    """Of its runs, in order."""
    return [run.seed for run in self.runs]

  @property
  def config(self) -> Mapping[str, Any]:
    """What its runs have in common."""
    return {key: value for key, value in self.runs[0].config.items() if key != 'seed'}


def group_runs(runs: Sequence[FinishedRun], order: Sequence[str] = ()) -> list[Group]:
  """Checks that runs can be compared and puts those together that differ in the seed alone.

  Splits are drawn from the seed, so data of two seeds differ and are compared seed by seed.

  Args:
    runs: at least one.
    order: methods that come first, in this order; others follow by name.

  Returns:
    Groups, by method and then as given.

  Raises:
    UserError: naming the directory whose run has another task, backbone, data or evaluation, or is
      the same run as another.
  """
  _check_comparable(runs)
  by_config: dict[str, list[FinishedRun]] = {}
  for run in runs:
    settings = {key: value for key, value in run.config.items() if key != 'seed'}
    by_config.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
  places = {method: place for place, method in enumerate(order)}
  members = sorted(
    by_config.values(), key=lambda m: (places.get(m[0].method, len(places)), m[0].method)
  )
  groups = [Group('', m[0].method, '', tuple(sorted(m, key=_by_seed))) for m in members]
  return [_labelled(group, groups) for group in groups]


def differing_settings(groups: Sequence[Group]) -> dict[str, list[Any]]:
  """Returns the settings in which groups differ, each with its value for every group."""
  keys = dict.fromkeys(key for group in groups for key in group.config if key != 'method')
  values = {key: [group.config.get(key) for group in groups] for key in keys}
  return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def differing_hiding(groups: Sequence[Group]) -> set[str]:
  """Returns the parts of `Hiding` that differ; what privacy is made of, among private ones."""
  hidings = [group.hiding for group in groups]
  private = [group.hiding for group in groups if group.is_private]
  return {
    name
    for name in Hiding._fields
    if len({getattr(each, name) for each in (hidings if name == 'sums' else private)}) > 1
  }


def settings_in_words(group: Group, keys: Iterable[str]) -> str:
  """Returns settings with their values, without those that have no meaning there."""
  found = ((key, group.config.get(key)) for key in keys)
  return ', '.join(f'{key} {_plain(value)}' for key, value in found if value is not None)


def _seen_through(form: Callable[[float], float], values: Sequence[float]) -> metrics.Interval:
  found = metrics.mean_interval(values)
  low, high = (None if x is None else form(x) for x in (found.low, found.high))
  return metrics.Interval(form(found.mean), low, high)


def _exp(loss: float) -> float:
  return metrics.perplexity(loss, 1)


def _labelled(group: Group, groups: Sequence[Group]) -> Group:
  rivals = [other for other in groups if other.method == group.method]
  if len(rivals) == 1:
    return dataclasses.replace(group, label=group.method)
  told = _hidings(rivals)
  if len(set(told)) < len(rivals):
    told = [settings_in_words(other, differing_settings(rivals)) for other in rivals]
  # All by number if one is too long: settings of one group say nothing beside numbers of another.
  short = all(0 < len(text) <= _LABEL_CHARACTERS for text in told)
  place = next(i for i, other in enumerate(rivals) if other is group)
  name = f'({told[place]})' if short else str(place + 1)
  return dataclasses.replace(group, label=f'{group.method} {name}', difference=told[place])


def _hidings(rivals: Sequence[Group]) -> list[str]:
  """How each hides its clients, as far as they differ in it."""
  parts = differing_hiding(rivals)
  some_private = len({group.is_private for group in rivals}) > 1
  if (some_private or 'cohort' in parts) and 'mechanism' not in parts:
    parts.add('level')
  return [group.hiding.words(parts) for group in rivals]


def _plain(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def _by_seed(run: FinishedRun) -> tuple[bool, Any]:
  return (True, run.seed) if isinstance(run.seed, int) else (False, 0)


def _check_comparable(runs: Sequence[FinishedRun]) -> None:
  first = runs[0]
  seen: dict[str, FinishedRun] = {}
  data: dict[Any, FinishedRun] = {}
  for run in runs:
    for key in _SAME_KEYS:
      if run.config.get(key) != first.config.get(key):
        raise UserError(
          f'{run.directory} has {option(key)} {_plain(run.config.get(key))}, but {first.directory} '
          f'has {_plain(first.config.get(key))}; compare them apart.'
        )
    if run.inputs['backbone_sha256'] != first.inputs['backbone_sha256']:
      raise UserError(
        f'{run.directory} has another backbone than {first.directory}; compare them apart.'
      )
    same_seed = data.setdefault(run.seed, run)
    if run.inputs['data_sha256'] != same_seed.inputs['data_sha256']:
      raise UserError(
        f'{run.directory} has other data than {same_seed.directory}, though both have seed '
        f'{run.seed}.'
      )
    twin = seen.setdefault(json.dumps(run.config, sort_keys=True), run)
    if twin is not run:
      raise UserError(
        f'{run.directory} repeats {twin.directory}: the same settings and the same seed; name one.'
      )


def _difference(after: float | None, before: float | None) -> float | None:
  return None if after is None or before is None else after - before


def _total(run: FinishedRun, column: str) -> float | None:
  values = run.per_round(column)
  return None if values is None else float(values.sum())


def _per_client(run: FinishedRun, column: str) -> float | None:
  total = _total(run, column)
  messages = run.messages()
  return total / messages if total is not None and messages > 0 else None
