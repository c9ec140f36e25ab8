# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""All rules together: they look backwards only, and leave every key a value."""

import contextlib
import dataclasses
import itertools

import pytest

from tasks import config, methods
from tasks.built_in import BUILT_IN
from tasks.errors import UserError
from tasks.rules import RULES

_KEYS = [field.name for field in dataclasses.fields(config.RunConfig)]


def test_rules_look_at_keys_before_their_own():
  for rule in RULES:
    assert all(_KEYS.index(key) < _KEYS.index(rule.key) for key in rule.when), rule
    open_key = config.is_open(config.RunConfig.__dataclass_fields__[rule.key])
    assert open_key or rule.key == 'method', rule


_CHOICES = {
  'method': tuple(methods.METHODS),
  'rank_dynamics': (None, 'self_pruning', 'fixed', 'tier'),
  'rank_assignment': (None, 'power_law', 'tiers', 'file', 'data_size', 'max'),
  'padding': (None, 'state', 'update', 'none'),
  'distribution': (None, 'select'),
  'server_optimizer': (None, 'adam'),
  'server_learning_rate': (None, 0.5),
}
_PRIVATE_CHOICES = {
  'method': tuple(methods.METHODS),
  'privacy': ('central', 'tree'),
  'rank_dynamics': (None, 'tier'),
  'weights': (None, 'module', 'model', 'examples'),
  'clip': (None, 'fixed', 'adaptive'),
  'sampling': (None, 'poisson', 'fixed', 'minsep'),
  'noise_cohort_size': (None, 1000),
  'noise_matrix': (None, 'tree', 'banded'),
}
_SECURE_CHOICES = {
  'method': tuple(methods.METHODS),
  'privacy': ('none', 'central', 'distributed'),
  'secure_aggregation': (None, True),
  'l2_clip_norm': (None, 1.0),
  'weights': (None, 'module', 'uniform', 'examples'),
  'padding': (None, 'state'),
  'sampling': (None, 'fixed', 'minsep'),
  'insecure_seeded_noise': (None, True),
}
_TASK_CHOICES = {
  'task': tuple(BUILT_IN),
  'method': ('hetlora', 'full'),
  'privacy': ('none', 'central'),
  'public_eval_clients': (None, True),
  'text_field': (None, 'text'),
  'labels': (None, ('yes', 'no')),
  'skip_bad_records': (None, True),
  'personalization_clients': (None, 3),
  'num_beams': (None, 2),
}


def _needed(given):
  """What has to be given along with choices."""
  if given.get('rank_assignment') == 'tiers' or given.get('rank_dynamics') == 'tier':
    yield 'rank_tiers', {4: 1.0}
  if given.get('rank_assignment') == 'file':
    yield 'rank_file', 'ranks.csv'
  if given.get('l2_clip_norm') and given['privacy'] == 'none' and given['weights'] == 'module':
    yield 'weight_reference', 0.1
  task = BUILT_IN[given.get('task', 'docstring_summarization')]
  yield from (
    (key, ('name',) if key == 'client_field' else 'name') for key in task.needs if key not in given
  )
  if given.get('task') == 'text_jsonl' and not given['text_field']:
    yield from (('source_field', 'a'), ('target_field', 'b'))
  if given.get('privacy', 'none') != 'none':
    yield 'noise_multiplier', 1.0
    if given['privacy'] == 'tree' or given.get('sampling') == 'minsep':
      yield 'min_separation', 2
    if given.get('weights') in ('module', 'model'):
      yield 'weight_reference', 0.1
    if given.get('noise_cohort_size'):
      yield 'population_size', 10**5


def test_all_that_rules_look_at_is_tried():
  tried = {*_CHOICES, *_PRIVATE_CHOICES, *_SECURE_CHOICES, *_TASK_CHOICES}
  assert {key for rule in RULES for key in rule.when} <= tried


@pytest.mark.parametrize(
  'choices',
  [_CHOICES, _PRIVATE_CHOICES, _SECURE_CHOICES, _TASK_CHOICES],
  ids=['open', 'private', 'secure', 'tasks'],
)
def test_whatever_is_allowed_for_some_keys_leaves_something_for_the_others(choices):
  """No two rules leave a key without a value, for any choice that they look at."""
  settled = 0
  for choice in itertools.product(*choices.values()):
    given = dict(zip(choices, choice, strict=True))
    with contextlib.suppress(UserError):
      made = config.RunConfig(**given, **dict(_needed(given)))
      assert dataclasses.replace(made) == made
      settled += 1
  assert settled > 80
