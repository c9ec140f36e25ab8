# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import re

import pytest

from tasks.config import TYPES, RunConfig, option
from tasks.errors import UserError
from tasks.methods import METHODS

_ADAPTERS = [name for name in METHODS if name != 'full']

# The table of issue 3: by method, what each key may be, the default first.
_WEIGHTS = {
  **dict.fromkeys(METHODS, ('uniform', 'examples')),
  'hetlora': ('module', 'uniform', 'examples', 'model'),
  'coverage': ('uniform',),
}
_PADDING = {
  **dict.fromkeys(('hetlora', 'naive', 'ffa'), ('state', 'update')),
  'homlora': ('state',),
  'coverage': ('update',),
  'rolora': ('update', 'state'),
  **dict.fromkeys(('svd', 'stacking', 'fedex', 'full'), ('none',)),
}
_DYNAMICS = {
  **dict.fromkeys(_ADAPTERS, ('fixed',)),
  'hetlora': ('self_pruning', 'fixed'),
  **dict.fromkeys(('naive', 'coverage'), ('fixed', 'self_pruning')),
}
_ASSIGNMENT = {
  **dict.fromkeys(_ADAPTERS, ('power_law', 'data_size', 'max')),
  'homlora': ('max',),
}
_DISTRIBUTION = {
  **dict.fromkeys(METHODS, ('broadcast',)),
  **dict.fromkeys(('hetlora', 'homlora', 'naive', 'coverage', 'svd'), ('broadcast', 'select')),
}
_SERVER_OPTIMIZER = {
  **dict.fromkeys(METHODS, ('sgd', 'adam')),
  **dict.fromkeys(('svd', 'stacking', 'fedex', 'rolora'), ('sgd',)),
}
_SERVER_RATE = {
  **dict.fromkeys(METHODS, (1.0, 0.5)),
  **dict.fromkeys(('svd', 'stacking', 'fedex', 'rolora'), (1.0,)),
}
_PRIVACY = {
  **dict.fromkeys(METHODS, ('none', 'central', 'tree')),
  **dict.fromkeys(('svd', 'stacking', 'fedex'), ('none',)),
  'rolora': ('none', 'central'),
}
# What privacy needs besides.
_PRIVATE = {
  'central': {'noise_multiplier': 1.0},
  'tree': {'noise_multiplier': 1.0, 'min_separation': 2},
}
_TABLE = {
  'privacy': _PRIVACY,
  'weights': _WEIGHTS,
  'padding': _PADDING,
  'rank_dynamics': _DYNAMICS,
  'rank_assignment': _ASSIGNMENT,
  'distribution': _DISTRIBUTION,
  'server_optimizer': _SERVER_OPTIMIZER,
  'server_learning_rate': _SERVER_RATE,
}


def _made(**values):
  """A configuration, with what privacy needs besides and coverage under privacy."""
  private = _PRIVATE.get(values.get('privacy', 'none'), {})
  tiers = {'rank_tiers': {4: 1.0}} if private and values['method'] == 'coverage' else {}
  return RunConfig(**values, **private, **tiers)


@pytest.mark.parametrize('key', _TABLE)
@pytest.mark.parametrize('name', METHODS)
def test_method_allows_what_the_table_says_and_nothing_else(name, key):
  allowed = _TABLE[key].get(name, ())
  settled = getattr(RunConfig(method=name), key)
  assert settled == (allowed[0] if allowed else None)
  every = {value for values in _TABLE[key].values() for value in values}
  for value in every:
    if value in allowed:
      assert getattr(_made(method=name, **{key: value}), key) == value
      continue
    with pytest.raises(UserError) as caught:
      _made(method=name, **{key: value})
    start = re.escape(f'{option(key)} {value}: --method {name} ')
    assert re.fullmatch(rf'{start}.*; (leave it out|take .* or .*)\.', str(caught.value))


@pytest.mark.parametrize('method', METHODS.values(), ids=lambda method: method.name)
def test_method_says_what_it_is(method):
  assert METHODS[method.name] is method
  assert re.search(r'arXiv:\d{4}\.\d{5}$', method.paper)
  assert method.description.endswith('.')
  assert method.description.count('.') == 1
  assert set(method.limits) <= set(TYPES)


_EXCLUDED = [
  (
    {'method': 'stacking', 'padding': 'state'},
    '--padding state: --method stacking sums products and pads nothing; leave it out.',
  ),
  (
    {'method': 'naive', 'weights': 'module'},
    '--weights module: --method naive has no sparsity weights; take uniform or examples.',
  ),
  ({'method': 'coverage', 'padding': 'state'}, '--padding state: --method coverage '),
  ({'method': 'coverage', 'weights': 'examples'}, '--weights examples: --method coverage '),
  ({'method': 'homlora', 'padding': 'update'}, '--padding update: --method homlora '),
  ({'method': 'homlora', 'rank_dynamics': 'tier'}, '--rank-dynamics tier: --method homlora '),
  ({'method': 'homlora', 'rank_assignment': 'file'}, '--rank-assignment file: --method homlora '),
  ({'method': 'homlora', 'min_rank': 4}, '--min-rank 4: --rank-assignment max (the default here) '),
  ({'method': 'hetlora', 'padding': 'none'}, '--padding none: --method hetlora '),
  ({'method': 'svd', 'server_optimizer': 'adam'}, '--server-optimizer adam: --method svd '),
  ({'method': 'svd', 'rank_dynamics': 'self_pruning'}, '--rank-dynamics self_pruning: --method '),
  ({'method': 'fedex', 'server_learning_rate': 0.5}, '--server-learning-rate 0.5: --method fedex '),
  ({'method': 'svd', 'upload_bits': 8}, '--upload-bits 8: --method svd multiplies the factors '),
  ({'method': 'rolora', 'server_optimizer': 'adam'}, '--server-optimizer adam: --method rolora '),
  ({'method': 'rolora', 'padding': 'none'}, '--padding none: --method rolora '),
  ({'method': 'ffa', 'distribution': 'select'}, '--distribution select: --method ffa '),
  ({'method': 'ffa', 'prune_decay': 0.9}, '--prune-decay 0.9: --rank-dynamics fixed (the default '),
  ({'method': 'full', 'max_rank': 4}, '--max-rank 4: --method full trains all weights '),
  ({'method': 'full', 'targets': ('a', 'b')}, '--targets a,b: --method full '),
  ({'method': 'full', 'rank_tiers': {4: 1.0}}, '--rank-tiers 4:1.0: --method full '),
  ({'rank_dynamics': 'fixed', 'prune_decay': 0.9}, '--prune-decay 0.9: --rank-dynamics fixed lets'),
  ({'rank_dynamics': 'fixed', 'prune_weight': 0.1}, '--prune-weight 0.1: --rank-dynamics fixed '),
  ({'rank_dynamics': 'tier', 'rank_assignment': 'max'}, '--rank-assignment max: --rank-dynamics '),
  ({'rank_tiers': {4: 1.0}}, '--rank-tiers 4:1.0: --rank-assignment power_law (the default here)'),
  ({'rank_file': 'r.csv'}, '--rank-file r.csv: --rank-assignment power_law (the default here)'),
  (
    {'rank_assignment': 'tiers', 'rank_tiers': {4: 1.0}, 'rank_exponent': 0.5},
    '--rank-exponent 0.5: --rank-assignment tiers draws from no power law',
  ),
  ({'rank_assignment': 'tiers'}, '--rank-tiers is missing: --rank-assignment tiers '),
  ({'rank_dynamics': 'tier'}, '--rank-tiers is missing: --rank-assignment tiers (the default '),
  ({'rank_assignment': 'file'}, '--rank-file is missing: --rank-assignment file '),
]


@pytest.mark.parametrize(('changes', 'message'), _EXCLUDED)
def test_options_that_exclude_each_other_are_named(changes, message):
  with pytest.raises(UserError) as caught:
    RunConfig(**changes)
  assert str(caught.value).startswith(message)
  assert '\n' not in str(caught.value)
