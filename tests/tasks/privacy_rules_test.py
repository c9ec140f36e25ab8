# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What privacy demands of other settings, what it leaves out, and what it says."""

import dataclasses
import json

import pytest

from tasks import config, config_files, methods, privacy_rules
from tasks.errors import UserError

_CENTRAL = {'privacy': 'central', 'noise_multiplier': 1.0}
_DISTRIBUTED = {'privacy': 'distributed', 'noise_multiplier': 1.0}
_SECURE = {'secure_aggregation': True, 'l2_clip_norm': 2.0}
_TREE = {'privacy': 'tree', 'noise_multiplier': 1.0, 'min_separation': 3}
_BY_NORM = {**_CENTRAL, 'weights': 'module', 'weight_reference': 0.1}
_KEYS = [
  field.name
  for field in dataclasses.fields(config.RunConfig)
  if field.metadata.get('panel') == 'Privacy'
  and field.name not in ('privacy', 'l2_clip_norm', 'weight_reference')
]
_PRIVATE_METHODS = {'hetlora', 'homlora', 'naive', 'coverage', 'ffa', 'rolora', 'full'}


def _settings(method, privacy):
  by_name = {'central': _CENTRAL, 'tree': _TREE, 'distributed': _DISTRIBUTED}
  given = {'method': method, **by_name[privacy]}
  return {**given, 'rank_tiers': {4: 0.5, 32: 0.5}} if method == 'coverage' else given


@pytest.mark.parametrize('privacy', ['central', 'tree', 'distributed'])
@pytest.mark.parametrize('method', methods.METHODS)
def test_defaults_of_every_method_bound_what_a_client_changes(method, privacy):
  if method not in _PRIVATE_METHODS or (method, privacy) == ('rolora', 'tree'):
    with pytest.raises(UserError, match=rf'--privacy {privacy}: --method {method} '):
      config.RunConfig(**_settings(method, privacy))
    return
  settled = config.RunConfig(**_settings(method, privacy))
  assert settled.weights == 'uniform'
  assert settled.padding == {'homlora': 'state', 'full': 'none'}.get(method, 'update')
  assert settled.rank_dynamics == {'coverage': 'tier', 'full': None}.get(method, 'fixed')
  assert settled.distribution == 'broadcast'
  assert settled.deviation_from_exact is False
  assert (
    settled.sampling == {'central': 'poisson', 'tree': 'minsep', 'distributed': 'fixed'}[privacy]
  )
  assert settled.claim_amplification is (privacy == 'central')
  assert (settled.clip, settled.l2_clip_norm) == ('fixed', 2.0)
  assert settled.noise_matrix == {'tree': 'tree'}.get(privacy)
  assert settled.secure_aggregation is (privacy == 'distributed')
  assert (settled.weight_reference, settled.denominator) == (None, None)


def test_without_privacy_its_keys_have_no_meaning():
  settled = config.RunConfig()
  assert {key for key in _KEYS if getattr(settled, key) is not None} == {'sampling'}
  assert settled.sampling == 'fixed'


@pytest.mark.parametrize('key', _KEYS)
def test_a_key_without_privacy_is_refused_with_the_mend(key):
  kind = config.TYPES[key]
  samples = {'clip': 'fixed', 'sampling': 'minsep', 'noise_matrix': 'tree', 'denominator': 'public'}
  value = samples[key] if kind is str else {bool: False, int: 1, float: 0.5}[kind]
  with pytest.raises(UserError) as caught:
    config.RunConfig(**{key: value})
  mend = 'has no privacy mechanism; add --privacy central, or leave it out.'
  assert str(caught.value).endswith(f': --privacy none (the default here) {mend}')
  assert config.option(key)[2:] in str(caught.value).replace('--no-', '--')


@pytest.mark.parametrize(
  'given',
  [
    _CENTRAL,
    _TREE,
    {**_CENTRAL, 'noise_multiplier': 0.0},
    {**_CENTRAL, 'target_epsilon': 3.0},
    {'privacy': 'central', 'target_epsilon': 3.0},
    {**_CENTRAL, 'clip': 'adaptive'},
    {**_CENTRAL, 'sampling': 'fixed'},
    {**_CENTRAL, 'sampling': 'minsep', 'min_separation': 4, 'max_participations': 2},
    {**_CENTRAL, 'claim_amplification': False},
    {**_CENTRAL, 'noise_cohort_size': 100, 'population_size': 100},
    {**_TREE, 'noise_matrix': 'banded'},
    {**_TREE, 'tree_restart_every': 4},
    {**_BY_NORM, 'denominator': 'noised'},
    {**_CENTRAL, 'padding': 'state'},
    {**_CENTRAL, 'rank_dynamics': 'tier', 'rank_tiers': {4: 1.0}},
    {**_CENTRAL, 'insecure_seeded_noise': True, 'audit_canaries': 5, 'public_eval_clients': True},
    {**_CENTRAL, 'secure_aggregation': True},
    {**_CENTRAL, 'secure_aggregation': True, 'clip': 'adaptive'},
    {**_TREE, 'secure_aggregation': True, 'secure_threshold': 10},
    {**_DISTRIBUTED, 'assumed_colluders': 3, 'secure_bits': 12},
  ],
)
def test_what_the_program_fills_in_reads_back_the_same(given, tmp_path):
  settled = config.RunConfig(**given)
  filled = dataclasses.replace(
    settled, noise_multiplier=settled.noise_multiplier or 1.2, delta=1e-5,
    population_size=settled.population_size or 100,
    secure_coordinates=500 if settled.secure_aggregation else None,
  )  # fmt: skip
  for made in (settled, filled):
    (tmp_path / 'config.json').write_text(json.dumps(made.to_json()))
    assert config_files.from_json(tmp_path / 'config.json') == made
    assert config_files.resolve_resumed(tmp_path, None, {'rounds': 20}).rounds == 20
  assert set(privacy_rules.RESOLVED_LATER) == {
    'noise_multiplier', 'delta', 'population_size', 'secure_coordinates'
  }  # fmt: skip
  changed = {
    key for key, value in filled.to_json().items() if value != settled.to_json()[key]
  }  # fmt: skip
  assert changed <= set(privacy_rules.RESOLVED_LATER)


_REFUSED = [
  (
    {**_CENTRAL, 'upload_bits': 8},
    '--upload-bits 8: --privacy central bounds what clients send, which rounding lengthens; take'
    ' --secure-aggregation, whose --secure-bits count that, or leave it out.',
  ),
  (
    {**_DISTRIBUTED, 'upload_bits': 8},
    '--upload-bits 8: --secure-aggregation (the default here) sends integers already; give'
    ' --secure-bits, or leave it out.',
  ),
  ({'secure_aggregation': True}, '--l2-clip-norm is missing: --privacy none (the default here) '),
  ({**_SECURE, 'weights': 'model'}, '--weight-reference is missing: --l2-clip-norm 2.0 with --wei'),
  ({**_SECURE, 'rank_dynamics': 'self_pruning'}, '--rank-dynamics self_pruning: --secure-aggregat'),
  (
    {**_SECURE, 'rank_assignment': 'data_size'},
    '--rank-assignment data_size: --secure-aggregation',
  ),
  ({**_SECURE, 'distribution': 'select'}, '--distribution select: --secure-aggregation hides from'),
  ({**_SECURE, 'deviation_from_exact': True}, '--deviation-from-exact: --secure-aggregation hides'),
  ({**_SECURE, 'method': 'svd'}, '--secure-aggregation: --method svd multiplies the factors of '),
  ({**_SECURE, 'method': 'stacking'}, '--secure-aggregation: --method stacking multiplies the '),
  ({**_SECURE, 'method': 'fedex'}, '--secure-aggregation: --method fedex multiplies the factors'),
  ({**_SECURE, 'secure_rounding': 'conditional'}, '--secure-rounding conditional: --privacy none '),
  ({**_SECURE, 'assumed_colluders': 1}, '--assumed-colluders 1: --privacy none (the default here)'),
  ({**_SECURE, 'secure_coordinates': 9}, '--secure-coordinates 9: --privacy none (the default her'),
  (
    {**_SECURE, 'clients_per_round': 1},
    '--clients-per-round 1: --secure-aggregation shows the sum',
  ),
  (
    {**_SECURE, 'secure_threshold': 11},
    '--secure-threshold 11: of --clients-per-round 10 more than half must be there, and more cannot'
    ' be; take 6 to 10.',
  ),
  ({**_SECURE, 'secure_threshold': 5}, '--secure-threshold 5: of --clients-per-round 10 more than'),
  (
    {**_DISTRIBUTED, 'assumed_colluders': 4},
    '--assumed-colluders 4: with --secure-threshold 7 of --clients-per-round 10 they could have two'
    ' sums opened; take at most 3 or a higher threshold.',
  ),
  ({**_DISTRIBUTED, 'sampling': 'poisson'}, '--sampling poisson: --privacy distributed counts on '),
  ({**_DISTRIBUTED, 'clip': 'adaptive'}, '--clip adaptive: --privacy distributed adds noise on '),
  ({**_DISTRIBUTED, 'secure_aggregation': False}, '--no-secure-aggregation: --privacy distributed'),
  (
    {
      **_CENTRAL,
      'insecure_seeded_noise': True,
      'secure_aggregation': True,
      'secure_rounding': 'conditional',
    },
    '--secure-rounding conditional: --secure-aggregation with --insecure-seeded-noise repeats no ',
  ),
  ({**_DISTRIBUTED, 'insecure_seeded_noise': True}, '--insecure-seeded-noise: --privacy distribut'),
  (
    {**_CENTRAL, 'secure_aggregation': True, 'secure_threshold': 9},
    '--secure-threshold 9: --sampling poisson (the default here) draws cohorts of any size, in ',
  ),
  ({**_CENTRAL, 'secure_bits': 12}, '--secure-bits 12: --no-secure-aggregation (the default here)'),
  ({**_SECURE, 'secure_bits': 33}, '--secure-bits must be in [2, 32], got 33.'),
  ({'weight_reference': 0.5}, '--weight-reference 0.5: '),
  ({'l2_clip_norm': 2.0}, '--weight-reference is missing: --l2-clip-norm 2.0 with --weights modul'),
  ({'l2_clip_norm': 2.0, 'method': 'stacking'}, '--l2-clip-norm 2.0: --method stacking sums prod'),
  (
    {**_CENTRAL, 'noise_cohort_size': 9, 'population_size': 99, 'audit_canaries': 5},
    '--audit-canaries 5: --privacy central with --noise-cohort-size 9 guarantees nothing here',
  ),
  ({'privacy': 'central'}, '--noise-multiplier is missing: --privacy central adds noise; give it'),
  ({**_CENTRAL, 'noise_multiplier': 0.0, 'target_epsilon': 2.0}, '--target-epsilon 2.0: --noise-'),
  ({'privacy': 'tree', 'noise_multiplier': 1.0}, '--min-separation is missing: --privacy tree '),
  ({**_CENTRAL, 'weights': 'examples'}, '--weights examples: --privacy central hides how many '),
  ({**_CENTRAL, 'weights': 'module'}, '--weight-reference is missing: --privacy central with --we'),
  ({**_CENTRAL, 'weight_reference': 1.0}, '--weight-reference 1.0: --privacy central with --weig'),
  ({**_CENTRAL, 'mean_weight': 0.5}, '--mean-weight 0.5: --privacy central with --weights uniform'),
  ({**_CENTRAL, 'denominator': 'noised'}, '--denominator noised: --privacy central with --weight'),
  ({**_BY_NORM, 'clip': 'adaptive'}, '--clip adaptive: --privacy central with --weights module '),
  ({**_TREE, 'clip': 'adaptive'}, '--clip adaptive: --privacy tree adds up rounds that share one '),
  ({**_CENTRAL, 'clip_quantile': 0.5}, '--clip-quantile 0.5: --clip fixed (the default here) sta'),
  ({**_CENTRAL, 'rank_dynamics': 'self_pruning'}, '--rank-dynamics self_pruning: --privacy centr'),
  ({**_CENTRAL, 'rank_assignment': 'data_size'}, '--rank-assignment data_size: --privacy central '),
  ({**_CENTRAL, 'method': 'coverage', 'rank_dynamics': 'fixed'}, '--rank-dynamics fixed: --priva'),
  ({**_CENTRAL, 'method': 'coverage'}, '--rank-tiers is missing: '),
  ({**_CENTRAL, 'distribution': 'select'}, '--distribution select: --privacy central hides from '),
  ({**_CENTRAL, 'deviation_from_exact': True}, '--deviation-from-exact: --privacy central hides '),
  ({**_CENTRAL, 'sampling': 'fixed', 'claim_amplification': True}, '--claim-amplification: --priv'),
  ({**_TREE, 'claim_amplification': True}, '--claim-amplification: --privacy tree with --samplin'),
  ({**_TREE, 'sampling': 'poisson'}, '--sampling poisson: --privacy tree counts on a distance be'),
  ({**_CENTRAL, 'min_separation': 3}, '--min-separation 3: --privacy central with --sampling poi'),
  ({**_CENTRAL, 'max_participations': 3}, '--max-participations 3: --privacy central with --samp'),
  ({**_CENTRAL, 'noise_cohort_size': 9}, '--population-size is missing: --privacy central with -'),
  (
    {**_CENTRAL, 'noise_cohort_size': 9, 'population_size': 8},
    '--noise-cohort-size 9 is above --population-size 8.',
  ),
  ({**_CENTRAL, 'tree_restart_every': 3}, '--tree-restart-every 3: --privacy central draws noise '),
  ({**_CENTRAL, 'noise_matrix': 'tree'}, '--noise-matrix tree: --privacy central draws noise anew'),
  (
    {**_TREE, 'noise_matrix': 'banded', 'tree_restart_every': 3},
    '--tree-restart-every 3: --noise-matrix banded has no trees; take --noise-matrix tree, or ',
  ),
]


@pytest.mark.parametrize(('given', 'message'), _REFUSED)
def test_what_no_bound_is_known_for_is_refused_by_name(given, message):
  with pytest.raises(UserError) as caught:
    config.RunConfig(**given)
  assert str(caught.value).startswith(message)
  assert str(caught.value).endswith('.')
  assert '\n' not in str(caught.value)
  assert 'None' not in str(caught.value)
