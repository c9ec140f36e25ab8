# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a spec derives, and what it refuses."""

import dataclasses

import pytest

from privacy import skellam
from privacy.secure_sum import Rounding, SecureSumSpec
from privacy.spec import Clipping, DpSpec, Mechanism, Relation, Sampling


def _spec(**changes):
  return DpSpec(
    **{'noise_multiplier': 1.0, 'l2_clip_norm': 0.5, 'clients_per_round': 10, **changes}
  )


_POISSON = {'sampling': Sampling.POISSON, 'population_size': 100}
_SEPARATED = {'sampling': Sampling.MIN_SEPARATION, 'min_separation': 4}
_SUMS = SecureSumSpec(bits=16, largest_cohort=12, l2_clip_norm=0.5, coordinates=10_000)
_SKELLAM = {'mechanism': Mechanism.SKELLAM, 'secure_sum': _SUMS, 'smallest_cohort': 8}


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
    _spec(secure_sum=dataclasses.replace(_SUMS, rounding=Rounding.STOCHASTIC)),
    _spec(**_SKELLAM),
  ],
)
def test_json_and_back(spec):
  assert DpSpec.from_json(spec.to_json()) == spec


def test_json_of_runs_before_secure_sums_is_read():
  fields = _spec(**_POISSON).to_json()
  newer = ('secure_sum', 'smallest_cohort', 'assumed_colluders')
  older = {key: fields[key] for key in fields if key not in newer}
  assert DpSpec.from_json(older) == _spec(**_POISSON)


def test_json_that_is_no_spec_is_refused():
  fields = _spec().to_json()
  broken_sums = {**fields, 'secure_sum': {'bits': 8}}
  for broken in (
    {**fields, 'more': 1}, {**fields, 'mechanism': 'magic'}, {'l2_clip_norm': 1.0}, broken_sums,
  ):  # fmt: skip
    with pytest.raises(ValueError, match=r'spec|magic'):
      DpSpec.from_json(broken)


def test_rounding_inflates_and_the_noise_stays():
  spec = _spec(secure_sum=_SUMS)
  assert spec.noise_stddev == _spec().noise_stddev
  assert _spec().inflation == 1
  # 1 + sqrt(d) s / (2 S), s = S / 32767.
  assert spec.inflation == pytest.approx(1 + 50 / 32767)
  # Where the clip adapts, the grid is in units of the clip.
  unit = dataclasses.replace(_SUMS, l2_clip_norm=1.0, value_range=1.0)
  adaptive = _spec(clipping=Clipping.ADAPTIVE, secure_sum=unit)
  assert adaptive.inflation == pytest.approx(spec.inflation)
  assert (spec.local_variance, spec.wrap_probability) == (0, 0)


def test_shares_of_noise_add_up_in_the_smallest_cohort():
  spec = _spec(**_SKELLAM)
  assert spec.local_variance * 8 == pytest.approx((spec.noise_stddev / _SUMS.step) ** 2)
  # Those who may tell theirs do not count.
  told = _spec(**_SKELLAM, assumed_colluders=3)
  assert (told.smallest_cohort, told.noise_shares) == (8, 5)
  assert told.local_variance * 5 == pytest.approx((spec.noise_stddev / _SUMS.step) ** 2)
  # In a projection the sum has the noise of the mean of the production run.
  fewer = _spec(**_SKELLAM, noise_cohort_size=100, population_size=1000)
  assert fewer.local_variance == pytest.approx(spec.local_variance / 100)


def test_margin_holds_for_the_noise_of_the_largest_cohort():
  spec = _spec(**_SKELLAM)
  margin, variance = spec.secure_sum.noise_margin, 12 * spec.local_variance
  assert margin == skellam.wrap_margin(variance, 10_000, 1e-6)
  # 6.5 deviations for one in 2e10.
  assert 6 < margin / variance**0.5 < 7
  assert 0 < spec.wrap_probability <= 1e-6
  # A wider modulus has more room than the margin.
  wide = dataclasses.replace(_SUMS, modulus_bits=spec.secure_sum.sum_bits + 4)
  assert _spec(**{**_SKELLAM, 'secure_sum': wide}).wrap_probability < 1e-50
  assert _spec(**{**_SKELLAM, 'noise_multiplier': 0.0}).wrap_probability == 0


def test_margin_follows_the_noise():
  sums = dataclasses.replace(_SUMS, bits=11)
  little = _spec(**{**_SKELLAM, 'secure_sum': sums})
  spec = dataclasses.replace(little, noise_multiplier=50.0)
  assert spec == _spec(**{**_SKELLAM, 'secure_sum': sums, 'noise_multiplier': 50.0})
  assert spec.secure_sum.sum_bits > little.secure_sum.sum_bits
  assert spec.wrap_probability <= 1e-6
  few = dataclasses.replace(sums, modulus_bits=little.secure_sum.sum_bits)
  with pytest.raises(ValueError, match='modulus_bits'):
    _spec(**{**_SKELLAM, 'secure_sum': few, 'noise_multiplier': 50.0})


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
    ({**_SKELLAM, 'secure_sum': None}, 'secure_sum'),
    ({**_SKELLAM, 'smallest_cohort': None}, 'smallest_cohort'),
    ({**_SKELLAM, 'smallest_cohort': 0}, 'smallest_cohort'),
    ({**_SKELLAM, 'smallest_cohort': 11}, 'smallest_cohort'),
    ({**_SKELLAM, 'assumed_colluders': 8}, 'assumed_colluders'),
    ({'assumed_colluders': 1}, 'SKELLAM'),
    ({**_SKELLAM, 'noise_multiplier': 1e30}, 'take less noise'),
    ({**_SKELLAM, **_POISSON}, 'Poisson|largest_cohort'),
    ({**_SKELLAM, 'sampling': Sampling.POISSON, 'population_size': 12}, 'Poisson'),
    ({**_SKELLAM, 'amplified': True}, 'amplified'),
    ({**_SKELLAM, 'clipping': Clipping.ADAPTIVE}, 'adaptive'),
    ({**_SKELLAM, 'relation': Relation.ADD_OR_REMOVE_ONE}, 'ZERO_OUT_ONE'),
    ({'smallest_cohort': 3}, 'SKELLAM'),
    ({'secure_sum': _SUMS, 'l2_clip_norm': 1.0}, 'l2_clip_norm 1 '),
    ({'secure_sum': _SUMS, 'clipping': Clipping.ADAPTIVE}, 'l2_clip_norm 1 '),
    ({'secure_sum': SecureSumSpec(16, 12, value_range=1.0)}, 'got None'),
    ({'secure_sum': _SUMS, 'clients_per_round': 13}, 'largest_cohort of 12.*13'),
    ({'secure_sum': _SUMS, **_POISSON}, 'largest_cohort of 12.*100'),
  ],
)
def test_what_has_no_guarantee_as_claimed_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    _spec(**changes)


def test_replacing_a_field_keeps_what_was_settled():
  spec = dataclasses.replace(_spec(**_POISSON), noise_multiplier=2.0)
  assert spec.amplified is True
