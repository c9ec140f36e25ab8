# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a built-in task needs of a run, and what has no meaning in it; anybody else's is free."""

from tasks import methods
from tasks.built_in import BUILT_IN, DATA_KEYS
from tasks.options import AllBut, Limit, Rule

_PRIVATE = AllBut('none')
_LABELLED = {'task': ('text_classification',)}
_RUNNING_TEXT = (
  {'task': ('stackoverflow',)},
  {'task': ('text_jsonl',), 'text_field': AllBut(None)},
)
_OWN_HEAD = Limit(
  tuple(name for name in methods.METHODS if name not in ('full', 'stacking', 'fedex')),
  'trains a head as one more adapter, which has no place in a base model',
)
_SHARES_CLIENTS = tuple(name for name, task in BUILT_IN.items() if task.shares_clients)


def _needed(key: str) -> Rule:
  tasks = tuple(name for name, task in BUILT_IN.items() if key in task.needs)
  return Rule(key, Limit((), 'reads it'), {'task': tasks})


def _unread(key: str) -> Rule:
  tasks = tuple(name for name, task in BUILT_IN.items() if key not in task.reads)
  off = False if key == 'skip_bad_records' else None
  return Rule(key, Limit((off,), 'does not read it'), {'task': tasks})


_NEEDED = sorted({key for task in BUILT_IN.values() for key in task.needs})

RULES = (
  Rule('method', _OWN_HEAD, _LABELLED),
  *(_needed(key) for key in _NEEDED),
  *(_unread(key) for key in DATA_KEYS),
  *(
    Rule(key, Limit((), 'reads it', 'give --text-field for running text'),
         {'task': ('text_jsonl',), 'text_field': (None,)})
    for key in ('source_field', 'target_field')
  ),
  *(
    Rule(key, Limit((None,), 'learns running text, all of it'),
         {'task': ('text_jsonl',), 'text_field': AllBut(None)})
    for key in ('source_field', 'target_field')
  ),
  Rule('labels', Limit((), 'must not take the labels from its clients', 'list them'),
       {**_LABELLED, 'privacy': _PRIVATE}),
  Rule('public_eval_clients', Limit((False,), 'holds out later text of clients that train'),
       {'task': _SHARES_CLIENTS, 'privacy': _PRIVATE}),
  *(
    Rule(key, Limit((None,), 'has no targets to write'), when)
    for key in ('max_target_tokens', 'num_beams')
    for when in (_LABELLED, *_RUNNING_TEXT)
  ),
  *(Rule('truncate_source', Limit((None,), 'has no sources'), when) for when in _RUNNING_TEXT),
  Rule('personalization_clients', Limit((0,), 'has no adapters'), {'method': ('full',)}),
  Rule('personalization_clients',
       Limit((0,), 'keeps what single held-out clients gain secret', 'add --public-eval-clients'),
       {'privacy': _PRIVATE, 'public_eval_clients': (False,)}),
)  # fmt: skip
