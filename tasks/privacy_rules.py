# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a privacy mechanism demands of the other settings, and what they demand of it.

The defaults under privacy are those under which a bound on what one client changes is simplest:
uniform weights, updates, ranks that stay.
"""

from collections.abc import Mapping
from typing import Any

from tasks.options import AllBut, Limit, Rule

# Keys that the program fills in where they were left open, once it knows the clients.
RESOLVED_LATER = ('noise_multiplier', 'delta', 'population_size')
_MECHANISMS = ('central', 'tree')
_PRIVATE = {'privacy': _MECHANISMS}
_BY_NORM = {**_PRIVATE, 'weights': ('module', 'model')}
_UNIFORM = {**_PRIVATE, 'weights': ('uniform',)}
_KEYS = (
  'noise_multiplier', 'l2_clip_norm', 'clip', 'clip_quantile', 'target_epsilon', 'delta',
  'claim_amplification', 'min_separation', 'max_participations', 'noise_cohort_size',
  'population_size', 'noise_matrix', 'tree_restart_every', 'weight_reference', 'mean_weight',
  'denominator', 'public_eval_clients', 'audit_canaries', 'insecure_seeded_noise',
)  # fmt: skip
_NO_MECHANISM = ('has no privacy mechanism', 'add --privacy central')
_NO_TREE = ('draws noise anew in every round', 'take --privacy tree')
_NO_SEPARATION = ('keeps no distance between the turns of a client', 'take --sampling minsep')
_NO_NORM_WEIGHTS = ('weighs no client by the norm of what it learned', 'take --weights module')

RULES = (
  Rule('weights', Limit(('uniform', 'module', 'model'), 'hides how many examples a client has'),
       _PRIVATE),
  # It decides the default alone, and refuses nothing.
  Rule('padding', Limit(('update', 'state', 'none'), 'bounds updates'), _PRIVATE),
  Rule('rank_dynamics', Limit(('tier',), 'counts the devices of a rank, which public tiers tell'),
       {**_PRIVATE, 'method': ('coverage',)}),
  Rule('rank_dynamics',
       Limit(('fixed', 'tier', None), 'sends noise, next to which all ranks would be pruned'),
       _PRIVATE),
  Rule('rank_assignment',
       Limit(('power_law', 'tiers', 'file', 'max', None), 'hides how many examples a client has'),
       _PRIVATE),
  Rule('distribution', Limit(('broadcast',), 'hides from the server what single devices ask for'),
       _PRIVATE),
  Rule('deviation_from_exact', Limit((False,), 'hides what single clients learned'), _PRIVATE),
  *(Rule(key, Limit((None,), *_NO_MECHANISM), {'privacy': ('none',)}) for key in _KEYS),
  Rule('sampling', Limit(('fixed',), *_NO_MECHANISM), {'privacy': ('none',)}),
  Rule('sampling', Limit(('minsep',), 'counts on a distance between the turns of a client'),
       {'privacy': ('tree',)}),
  Rule('clip', Limit(('fixed',), 'adds up rounds that share one clip'), {'privacy': ('tree',)}),
  Rule('clip', Limit(('fixed',), 'bounds weighed updates by one clip for all rounds'), _BY_NORM),
  Rule('clip_quantile', Limit((None,), 'stays as it is', 'take --clip adaptive'),
       {'clip': ('fixed',)}),
  Rule('claim_amplification', Limit((False,), 'draws clients in dependence of each other'),
       {**_PRIVATE, 'sampling': AllBut('poisson')}),
  *(Rule(key, Limit((None,), *_NO_SEPARATION), {**_PRIVATE, 'sampling': AllBut('minsep')})
    for key in ('min_separation', 'max_participations')),
  Rule('min_separation',
       Limit((), 'keeps the turns of a client apart (by at most clients / --clients-per-round)'),
       {**_PRIVATE, 'sampling': ('minsep',)}),
  Rule('population_size', Limit((), 'stands for a production run, whose clients have a number'),
       {**_PRIVATE, 'noise_cohort_size': AllBut(None)}),
  Rule('audit_canaries', Limit((0,), 'guarantees nothing here that canaries could test'),
       {**_PRIVATE, 'noise_cohort_size': AllBut(None)}),
  *(Rule(key, Limit((None,), *_NO_TREE), {'privacy': ('central',)})
    for key in ('noise_matrix', 'tree_restart_every')),
  Rule('tree_restart_every', Limit((None,), 'has no trees', 'take --noise-matrix tree'),
       {'noise_matrix': ('banded',)}),
  Rule('weight_reference', Limit((), 'needs the norm that counts in full'), _BY_NORM),
  *(Rule(key, Limit((None,), *_NO_NORM_WEIGHTS), _UNIFORM)
    for key in ('weight_reference', 'mean_weight', 'denominator')),
)  # fmt: skip


def problem(settled: Mapping[str, Any]) -> str | None:
  """What two keys of a settled configuration say against each other, with the mend; or None."""
  if settled['privacy'] == 'none':
    return None
  noise, target = settled['noise_multiplier'], settled['target_epsilon']
  if noise is None and target is None:
    return (
      f'--noise-multiplier is missing: --privacy {settled["privacy"]} adds noise; give it, or give'
      ' --target-epsilon that decides it.'
    )
  if noise == 0 and target is not None:
    return (
      f'--target-epsilon {target}: --noise-multiplier 0 keeps to no budget; leave one of them out.'
    )
  cohort, population = settled['noise_cohort_size'], settled['population_size']
  if cohort is not None and cohort > population:
    return f'--noise-cohort-size {cohort} is above --population-size {population}.'
  return None
