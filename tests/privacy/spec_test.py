# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a spec derives, and what it refuses."""

import dataclasses

import pytest

from privacy.spec import Clipping, DpSpec, Mechanism, Relation, Sampling


def _spec(**changes):
  return DpSpec(
    **{'noise_multiplier': 1.0, 'l2_clip_norm': 0.5, 'clients_per_round': 10, **changes}
  )


_POISSON = {'sampling': Sampling.POISSON, 'population_size': 100}
_SEPARATED = {'sampling': Sampling.MIN_SEPARATION, 'min_separation': 4}


def test_poisson_samples_amplify_and_others_do_not():
  assert _spec(**_POISSON).amplified is True
  assert _spec(**_POISSON, relation=Relation.REPLACE_ONE).amplified is False
  assert _spec(**_POISSON, amplified=False).amplified is False
  assert _spec().amplified is False
  assert _spec(**_SEPARATED).amplified is False


def test_relation_follows_the_sampling():
  assert _spec(**_POISSON).relation is Relation.ADD_OR_REMOVE_ONE
  assert _spec().relation is Relation.ZERO_OUT_ONE
  assert _spec(**_SEPARATED, mechanism=Mechanism.TREE).relation is Relation.ZERO_OUT_ONE


def test_noise_is_relative_to_the_clip_and_scaled_to_the_production_cohort():
  assert _spec(noise_multiplier=3.0).noise_stddev == 1.5
  projected = _spec(**{**_POISSON, 'population_size': 100_000}, noise_cohort_size=1000)
  # The noise of the mean is the production run's: 0.005 / 10 = 0.5 / 1000.
  assert projected.noise_stddev == pytest.approx(0.005)
  assert projected.sampling_probability == 0.01
  assert _spec(**_POISSON).sampling_probability == 0.1
  assert _spec().sampling_probability is None


def test_guarantee_problems_name_what_takes_the_guarantee():
  assert _spec().guarantee_problems() == []
  assert len(_spec(noise_multiplier=0.0).guarantee_problems()) == 1
  assert len(_spec(insecure_seed=0).guarantee_problems()) == 1
  assert len(_spec(noise_cohort_size=20, population_size=1000).guarantee_problems()) == 1


@pytest.mark.parametrize(
  'spec',
  [
    _spec(**_POISSON),
    _spec(**_SEPARATED, mechanism=Mechanism.TREE, restart_every=8, max_participations=2),
    _spec(clipping=Clipping.ADAPTIVE, relation=Relation.REPLACE_ONE, insecure_seed=0),
  ],
)
def test_json_and_back(spec):
  assert DpSpec.from_json(spec.to_json()) == spec


def test_json_that_is_no_spec_is_refused():
  fields = _spec().to_json()
  for broken in ({**fields, 'more': 1}, {**fields, 'mechanism': 'magic'}, {'l2_clip_norm': 1.0}):
    with pytest.raises(ValueError, match=r'spec|magic'):
      DpSpec.from_json(broken)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'noise_multiplier': -1.0}, 'noise_multiplier'),
    ({'noise_multiplier': float('nan')}, 'noise_multiplier'),
    ({'noise_multiplier': float('inf')}, 'noise_multiplier'),
    ({'l2_clip_norm': 0.0}, 'l2_clip_norm'),
    ({'clients_per_round': 0}, 'clients_per_round'),
    ({'clip_quantile': 1.5}, 'clip_quantile'),
    ({**_SEPARATED, 'min_separation': 0}, 'min_separation'),
    ({**_SEPARATED, 'max_participations': 1.5}, 'max_participations'),
    ({'amplified': True}, 'amplified'),
    ({**_POISSON, 'amplified': True, 'relation': Relation.REPLACE_ONE}, 'amplified'),
    ({'sampling': Sampling.POISSON}, 'population_size'),
    ({**_POISSON, 'clients_per_round': 101}, 'population'),
    ({**_POISSON, 'noise_cohort_size': 101}, 'population'),
    ({'noise_cohort_size': 100}, 'population_size'),
    ({**_SEPARATED, 'mechanism': Mechanism.TREE, 'clipping': Clipping.ADAPTIVE}, 'adaptive'),
    ({'mechanism': Mechanism.TREE}, 'MIN_SEPARATION'),
    ({**_POISSON, 'mechanism': Mechanism.BANDED}, 'MIN_SEPARATION'),
    ({**_SEPARATED, 'restart_every': 8}, 'TREE'),
    ({**_SEPARATED, 'mechanism': Mechanism.BANDED, 'restart_every': 8}, 'TREE'),
    ({'sampling': Sampling.MIN_SEPARATION}, 'min_separation'),
    ({'max_participations': 3}, 'max_participations'),
    ({**_POISSON, 'min_separation': 3}, 'min_separation'),
    ({'relation': Relation.ADD_OR_REMOVE_ONE}, 'ZERO_OUT_ONE'),
    ({**_SEPARATED, 'relation': Relation.ADD_OR_REMOVE_ONE}, 'ZERO_OUT_ONE'),
  ],
)
def test_what_has_no_guarantee_as_claimed_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    _spec(**changes)


def test_replacing_a_field_keeps_what_was_settled():
  spec = dataclasses.replace(_spec(**_POISSON), noise_multiplier=2.0)
  assert spec.amplified is True
