# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the settings of a run restrict each other: all rules, in the order in which they count."""

from tasks import methods, privacy_rules, task_rules
from tasks.options import AllBut, Limit, Rule

_ELSEWHERE = Limit((False,), "moves the server elsewhere than to the clients' mean")
_UNPRUNED = ('lets no client give up ranks', 'take --rank-dynamics self_pruning')
_NO_PRUNING = {'rank_dynamics': ('fixed', 'tier')}
# A rule looks at keys before its own. Privacy comes first: its defaults go before a method's.
RULES = (
  *privacy_rules.RULES,
  *task_rules.RULES,
  *(rule for method in methods.METHODS.values() for rule in method.rules()),
  Rule('rank_assignment', Limit(('tiers',), 'takes the ranks of public tiers'),
       {'rank_dynamics': ('tier',)}),
  Rule('rank_tiers', Limit((), 'takes them, for example 4:0.5,8:0.3,32:0.2'),
       {'rank_assignment': ('tiers',)}),
  Rule('rank_tiers', Limit((None,), 'knows no tiers', 'add --rank-assignment tiers'),
       {'rank_assignment': AllBut('tiers')}),
  Rule('rank_file', Limit((), 'reads ranks from there'), {'rank_assignment': ('file',)}),
  Rule('rank_file', Limit((None,), 'reads no file', 'add --rank-assignment file'),
       {'rank_assignment': AllBut('file')}),
  Rule('rank_exponent', Limit((None,), 'draws from no power law'),
       {'rank_assignment': AllBut('power_law')}),
  Rule('min_rank', Limit((1,), 'needs no bound below'),
       {'rank_assignment': ('tiers', 'file', 'max'), **_NO_PRUNING}),
  Rule('prune_decay', Limit((1.0,), *_UNPRUNED), _NO_PRUNING),
  Rule('prune_weight', Limit((0.0,), *_UNPRUNED), _NO_PRUNING),
  Rule('compute_dtype', Limit(('float32',), 'freezes no weights'), {'method': ('full',)}),
  Rule('deviation_from_exact', Limit((False,), 'hides from a client the ranks it does not hold'),
       {'distribution': ('select',), 'padding': ('update',)}),
  Rule('deviation_from_exact', Limit((False,), 'divides by expected clients, not by those there'),
       {'method': ('coverage',), 'rank_dynamics': ('tier',)}),
  Rule('deviation_from_exact', _ELSEWHERE, {'server_optimizer': AllBut('sgd')}),
  Rule('deviation_from_exact', _ELSEWHERE, {'server_learning_rate': AllBut(1.0)}),
)  # fmt: skip
