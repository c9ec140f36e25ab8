# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What privacy and secure sums demand of the other settings, and what they demand of them.

The defaults under privacy are those under which a bound on what one client changes is simplest:
uniform weights, updates, ranks that stay.
"""

from collections.abc import Mapping
from typing import Any

from tasks.options import AllBut, Anything, Limit, Rule

# Keys that the program fills in where they were left open, once it knows clients and model.
RESOLVED_LATER = ('noise_multiplier', 'delta', 'population_size', 'secure_coordinates')
_PRIVATE = {'privacy': ('central', 'tree', 'distributed')}
_IN_THE_OPEN = {'privacy': ('none',)}
_SECURE = {'secure_aggregation': (True,)}
_SUMMED_IN_THE_CLEAR = {'secure_aggregation': (False,)}
_CLIPPED = {'l2_clip_norm': AllBut(None)}
_BY_NORM = {'weights': ('module', 'model')}
_NOT_BY_NORM = {'weights': ('uniform', 'examples')}
_KEYS = (
  'noise_multiplier', 'clip', 'clip_quantile', 'target_epsilon', 'delta', 'claim_amplification',
  'min_separation', 'max_participations', 'noise_cohort_size', 'population_size', 'noise_matrix',
  'tree_restart_every', 'mean_weight', 'denominator', 'public_eval_clients', 'audit_canaries',
  'insecure_seeded_noise',
)  # fmt: skip
_SECURE_KEYS = ('secure_bits', 'secure_rounding', 'secure_threshold', 'secure_coordinates')
_NO_MECHANISM = ('has no privacy mechanism', 'add --privacy central')
_NO_SECURE_SUM = ('sums in the clear', 'add --secure-aggregation')
_NO_TREE = ('draws noise anew in every round', 'take --privacy tree')
_NO_SEPARATION = ('keeps no distance between the turns of a client', 'take --sampling minsep')
_NO_NORM_WEIGHTS = ('weighs no client by the norm of what it learned', 'take --weights module')

# What hides clients from the server, by noise or in a sum, makes the same demands.
_HIDING = tuple(
  rule
  for hides in (_PRIVATE, _SECURE)
  for rule in (
    # It decides the default alone, and refuses nothing.
    Rule('padding', Limit(('update', 'state', 'none'), 'bounds updates'), hides),
    Rule('rank_assignment',
         Limit(('power_law', 'tiers', 'file', 'max', None), 'hides how many examples a client has'),
         hides),
    Rule('distribution',
         Limit(('broadcast',), 'hides from the server what single devices ask for'), hides),
    Rule('deviation_from_exact', Limit((False,), 'hides what single clients learned'), hides),
  )
)  # fmt: skip

RULES = (
  Rule('secure_aggregation', Limit((True,), 'lets clients add noise that only a sum has enough of'),
       {'privacy': ('distributed',)}),
  Rule('weights', Limit(('uniform', 'module', 'model'), 'hides how many examples a client has'),
       _PRIVATE),
  Rule('weights', Limit(('uniform', 'examples', 'module', 'model'), 'bounds weights'), _SECURE),
  *_HIDING,
  Rule('upload_bits', Limit((None,), 'sends integers already', 'give --secure-bits'), _SECURE),
  Rule('upload_bits',
       Limit((None,), 'bounds what clients send, which rounding lengthens',
             'take --secure-aggregation, whose --secure-bits count that'), _PRIVATE),
  Rule('rank_dynamics', Limit(('tier',), 'counts the devices of a rank, which public tiers tell'),
       {**_PRIVATE, 'method': ('coverage',)}),
  Rule('rank_dynamics',
       Limit(('fixed', 'tier', None), 'sends noise, next to which all ranks would be pruned'),
       _PRIVATE),
  Rule('rank_dynamics',
       Limit(('fixed', 'tier', None), 'hides which ranks single devices give up'), _SECURE),
  *(Rule(key, Limit((None,), *_NO_MECHANISM), _IN_THE_OPEN) for key in _KEYS),
  Rule('sampling', Limit(('fixed',), *_NO_MECHANISM), _IN_THE_OPEN),
  Rule('sampling', Limit(('minsep',), 'counts on a distance between the turns of a client'),
       {'privacy': ('tree',)}),
  Rule('sampling', Limit(('fixed', 'minsep'), 'counts on a number of clients that add noise'),
       {'privacy': ('distributed',)}),
  Rule('l2_clip_norm', Limit((), 'rounds to a grid as wide as the largest update'),
       {**_IN_THE_OPEN, **_SECURE}),
  Rule('l2_clip_norm', Limit(Anything(None), 'clips what it is told to'), _IN_THE_OPEN),
  Rule('deviation_from_exact', Limit((False,), 'keeps clients from what they ask for'),
       {**_IN_THE_OPEN, **_CLIPPED}),
  Rule('clip', Limit(('fixed',), 'adds up rounds that share one clip'), {'privacy': ('tree',)}),
  Rule('clip', Limit(('fixed',), 'adds noise on clients that share one clip'),
       {'privacy': ('distributed',)}),
  Rule('clip', Limit(('fixed',), 'bounds weighed updates by one clip for all rounds'),
       {**_PRIVATE, **_BY_NORM}),
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
  Rule('insecure_seeded_noise', Limit((False,), 'draws noise on devices, which no seed repeats'),
       {'privacy': ('distributed',)}),
  *(Rule(key, Limit((None,), *_NO_TREE), {'privacy': ('central', 'distributed')})
    for key in ('noise_matrix', 'tree_restart_every')),
  Rule('tree_restart_every', Limit((None,), 'has no trees', 'take --noise-matrix tree'),
       {'noise_matrix': ('banded',)}),
  Rule('weight_reference', Limit((None,), 'bounds nothing', 'add --l2-clip-norm'),
       {'l2_clip_norm': (None,)}),
  *(Rule('weight_reference', Limit((), 'needs the norm that counts in full'), {**when, **_BY_NORM})
    for when in (_PRIVATE, _CLIPPED)),
  *(Rule(key, Limit((None,), *_NO_NORM_WEIGHTS), {**when, **_NOT_BY_NORM})
    for key, when in (
      ('weight_reference', _PRIVATE), ('weight_reference', _CLIPPED),
      ('mean_weight', _PRIVATE), ('denominator', _PRIVATE))),
  *(Rule(key, Limit((None,), *_NO_SECURE_SUM), _SUMMED_IN_THE_CLEAR) for key in _SECURE_KEYS),
  Rule('secure_rounding',
       Limit(('conditional', 'stochastic', 'nearest'), 'counts what rounding adds to a norm'),
       {**_PRIVATE, **_SECURE}),
  Rule('secure_rounding', Limit(('nearest',), 'repeats no draw of a rounding'),
       {**_SECURE, 'insecure_seeded_noise': (True,)}),
  # Weights far below their reference leave most numbers below half a step, and nearest at 0.
  Rule('secure_rounding',
       Limit(('stochastic', 'nearest'), 'bounds no norm that a rounding could be held to'),
       {**_IN_THE_OPEN, **_SECURE, **_BY_NORM}),
  Rule('secure_rounding',
       Limit(('nearest', 'stochastic'), 'bounds no norm that a rounding could be held to'),
       {**_IN_THE_OPEN, **_SECURE}),
  Rule('secure_threshold', Limit((None,), 'draws cohorts of any size, in secret'),
       {'sampling': ('poisson',)}),
  Rule('secure_coordinates', Limit((None,), *_NO_MECHANISM), _IN_THE_OPEN),
  Rule('assumed_colluders',
       Limit((None,), 'adds no noise on clients', 'take --privacy distributed'),
       {'privacy': AllBut('distributed')}),
)  # fmt: skip


def has_threshold(settled: Mapping[str, Any]) -> bool:
  """Whether a round's sum stays closed where too few clients are in it."""
  return settled['secure_aggregation'] and settled['sampling'] != 'poisson'


def problem(settled: Mapping[str, Any]) -> str | None:
  """What two keys of a settled configuration say against each other, with the mend; or None."""
  if settled['secure_aggregation']:
    problem = _cohort_problem(settled)
    if problem:
      return problem
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


def _cohort_problem(settled: Mapping[str, Any]) -> str | None:
  clients, threshold = settled['clients_per_round'], settled['secure_threshold']
  if clients < 2:
    return (
      f'--clients-per-round {clients}: --secure-aggregation shows the sum of all clients, which is'
      ' the client where there is one; take at least 2.'
    )
  if threshold is None:
    return None
  least = clients // 2 + 1
  if not least <= threshold <= clients:
    needed = f'{clients}' if least == clients else f'{least} to {clients}'
    return (
      f'--secure-threshold {threshold}: of --clients-per-round {clients} more than half must be'
      f' there, and more cannot be; take {needed}.'
    )
  colluders, most = settled['assumed_colluders'] or 0, 2 * threshold - clients - 1
  if colluders > most:
    # Two sets of survivors, in both of which colluders are, must not both reach the threshold.
    return (
      f'--assumed-colluders {colluders}: with --secure-threshold {threshold} of --clients-per-round'
      f' {clients} they could have two sums opened; take at most {most} or a higher threshold.'
    )
  return None
