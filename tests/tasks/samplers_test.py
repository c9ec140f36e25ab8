# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Samplers: the distributions that accounting counts on, and that kills do not change them.

Keys are fixed, so that statistics that pass always pass.
"""

import contextlib
import itertools
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from scipy import stats

from privacy.spec import Sampling
from tasks import samplers
from tasks.errors import UserError

_KEY = bytes(range(32))


@pytest.fixture(name='build')
def build_fixture(tmp_path, monkeypatch):
  """Makes samplers on the same file of draws."""
  monkeypatch.setattr('os.fsync', lambda unused_descriptor: None)

  def build(sampling, num_clients, clients_per_round, key=_KEY, name='draws', **options):
    return samplers.build_sampler(
      sampling, num_clients, clients_per_round, key=key, draws=tmp_path / name, **options
    )

  return build


def _drawn(sampler, attempts):
  return [sampler.draw(attempt + 1, attempt) for attempt in range(attempts)]


def _members(cohorts, num_clients):
  members = np.zeros((len(cohorts), num_clients), bool)
  for row, cohort in zip(members, cohorts, strict=True):
    row[cohort] = True
  return members


def test_poisson_cohorts_are_independent_coins(build):
  members = _members(_drawn(build(Sampling.POISSON, 40, 8), 1500), 40)
  q, n = 0.2, len(members)
  counts = members.sum(axis=0)
  chi_square = ((counts - n * q) ** 2 / (n * q * (1 - q))).sum()
  assert 0.001 < stats.chi2.sf(chi_square, 40) < 0.999
  # Sizes are binomial: a fixed size, or a client drawn along with another, would change them.
  sizes = members.sum(axis=1)
  expected = stats.binom.pmf(np.arange(41), 40, q) * n
  kept = expected > 5
  observed = np.bincount(sizes, minlength=41)
  chi_square = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
  assert 0.001 < stats.chi2.sf(chi_square, kept.sum() - 1) < 0.999
  # Neither clients nor attempts know of each other.
  both = np.corrcoef(members.T)[np.triu_indices(40, 1)] * np.sqrt(n)
  assert stats.kstest(both, 'norm').pvalue > 0.001
  after = [np.corrcoef(members[:-1, i], members[1:, i])[0, 1] for i in range(40)]
  assert stats.kstest(np.array(after) * np.sqrt(n), 'norm').pvalue > 0.001


def test_poisson_cohorts_may_be_empty_or_everybody(build):
  assert [] in _drawn(build(Sampling.POISSON, 3, 1), 30)
  assert _drawn(build(Sampling.POISSON, 3, 3, name='all'), 5) == [[0, 1, 2]] * 5


def test_fixed_cohorts_are_uniform_subsets(build):
  drawn = _drawn(build(Sampling.FIXED, 6, 3), 2000)
  counts = dict.fromkeys(itertools.combinations(range(6), 3), 0)
  for cohort in drawn:
    counts[tuple(cohort)] += 1
  assert 0.001 < stats.chisquare(list(counts.values())).pvalue < 0.999
  pairs = np.array([[drawn[i] == drawn[i + 1]] for i in range(1999)])
  assert 0.02 < pairs.mean() < 0.08  # 1 / 20.


@pytest.mark.parametrize('sampling', [Sampling.POISSON, Sampling.FIXED])
def test_keys_and_attempts_decide_and_rounds_do_not(build, sampling):
  sampler = build(sampling, 100, 20)
  first = sampler.draw(1, 0)
  assert build(sampling, 100, 20, name='b').draw(7, 0) == first
  assert build(sampling, 100, 20, key=bytes(32), name='c').draw(1, 0) != first
  assert sampler.draw(1, 1) != first  # The same round again: another attempt.


@hypothesis.given(
  n=strategies.integers(1, 5),
  b=strategies.integers(1, 6),
  spare=strategies.integers(0, 9),
  cap=strategies.integers(1, 3),
  seed=strategies.binary(min_size=32, max_size=32),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_separated_cohorts_keep_distance_and_cap_and_use_all_there_is(n, b, spare, cap, seed):
  num_clients = n * b + spare
  cohort = samplers._separated(num_clients, n, b, cap, seed)
  attempts = []
  with contextlib.suppress(samplers.SamplingError):
    for attempt in range(1000):
      attempts.append(samplers.Draw(attempt + 1, attempt, cohort(attempt)))
  found = samplers.observed(attempts)
  assert found.max_participations <= cap
  assert found.min_separation is None or found.min_separation >= b
  assert (found.smallest_cohort, found.largest_cohort) == (n, n)
  # It ends where some group has less than a cohort left, and not before.
  used = sum(len(draw.clients) for draw in attempts)
  assert used > cap * num_clients - b * (n + cap)
  assert all(len(set(draw.clients)) == n for draw in attempts)


def test_without_a_cap_participations_stay_level(build):
  drawn = _drawn(build(Sampling.MIN_SEPARATION, 23, 3, min_separation=4), 400)
  counts = _members(drawn, 23).sum(axis=0)
  assert counts.min() >= 0.8 * counts.max()
  again = _drawn(
    build(Sampling.MIN_SEPARATION, 23, 3, min_separation=4, key=bytes(32), name='b'), 4
  )
  assert again != drawn[:4]


def test_kills_and_resumes_change_nothing(build, tmp_path):
  """Whatever a kill leaves of the file, resumed draws are those of a run without kills."""
  options = {'min_separation': 4, 'max_participations': 6}
  undisturbed = _drawn(build(Sampling.MIN_SEPARATION, 20, 3, name='b', **options), 30)
  generator = np.random.default_rng(5)
  path = tmp_path / 'draws'
  drawn, attempt = [], 0
  while attempt < 30:
    sampler = build(Sampling.MIN_SEPARATION, 20, 3, **options)
    for _ in range(int(generator.integers(1, 4))):
      cohort = sampler.draw(attempt + 1, attempt)
      if generator.random() < 0.6:  # Else killed before the ledger has it: the same once more.
        drawn.append(cohort)
        attempt += 1
    if drawn and drawn[-1] != cohort and generator.random() < 0.5:
      path.write_bytes(path.read_bytes()[:-5])
  assert drawn[:30] == undisturbed
  found = samplers.observed(samplers.read_draws(path))
  assert found.max_participations <= 6
  assert found.min_separation >= 4


def test_a_draw_is_on_disk_once_and_can_be_repeated(build, tmp_path):
  sampler = build(Sampling.POISSON, 50, 10)
  first = sampler.draw(1, 0)
  assert sampler.draw(1, 0) == first
  second = sampler.draw(1, 1)
  lines = [json.loads(line) for line in (tmp_path / 'draws').read_text().splitlines()]
  assert lines == [
    {'round_number': 1, 'attempt': 0, 'clients': first},
    {'round_number': 1, 'attempt': 1, 'clients': second},
  ]
  assert (tmp_path / 'draws').stat().st_mode & 0o777 == 0o600
  resumed = build(Sampling.POISSON, 50, 10)
  assert resumed.repeat(1) == second
  with pytest.raises(samplers.SamplingError, match='no clients of round 2'):
    resumed.repeat(2)


def test_draws_of_another_key_or_population_are_refused(build):
  build(Sampling.FIXED, 50, 10).draw(1, 0)
  for changed in ({'key': bytes(32)}, {'num_clients': 49}):
    values = {'num_clients': 50, 'clients_per_round': 10, **changed}
    with pytest.raises(samplers.SamplingError, match='another key or from other clients'):
      build(Sampling.FIXED, **values)


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    ((Sampling.POISSON, 5, 6), '--clients-per-round 6: there are only 5'),
    ((Sampling.FIXED, 5, 6), '--clients-per-round 6: there are only 5'),
    ((Sampling.MIN_SEPARATION, 11, 3, 4), '--min-separation 4: 11 .* at most 3 rounds apart'),
    ((Sampling.MIN_SEPARATION, 12, 3, 4, 2, 9), '--max-participations 2: .* last for 9 rounds'),
  ],
)
def test_populations_that_cannot_serve_are_refused(values, said):
  sampling, num_clients, size, *others = values
  names = ('min_separation', 'max_participations', 'rounds')
  options = {'rounds': 1, **dict(zip(names, others, strict=False))}
  with pytest.raises(samplers.SamplingError, match=said) as caught:
    samplers.check_serves(sampling, num_clients, size, **options)
  assert '\n' not in str(caught.value)


def test_the_last_rounds_of_every_group_are_checked():
  """With groups of three and two clients, the second is used up first."""
  options = {'min_separation': 2, 'max_participations': 5}
  samplers.check_serves(Sampling.MIN_SEPARATION, 5, 1, rounds=20, **options)
  for rounds in (22, 23):
    with pytest.raises(samplers.SamplingError, match='do not last for 22 rounds'):
      samplers.check_serves(Sampling.MIN_SEPARATION, 5, 1, rounds=rounds, **options)


@pytest.mark.parametrize(
  'line', ['3', '{}', '{"round_number": 1, "attempt": 0, "clients": ["a"]}', '[1, 2, [3]]',
           '{"round_number": 1, "attempt": 0, "clients": null}'],
)  # fmt: skip
def test_malformed_draws_are_named(tmp_path, line):
  (tmp_path / 'draws').write_text(line + '\n')
  with pytest.raises(UserError, match='draws, line 1: no draw'):
    samplers.read_draws(tmp_path / 'draws')


def test_observed_counts_an_attempt_once():
  draws = [
    samplers.Draw(1, 0, [0, 1]),
    samplers.Draw(2, 1, [2]),
    samplers.Draw(2, 1, [2]),
    samplers.Draw(2, 3, [1, 2, 3]),
  ]
  assert samplers.observed(draws) == samplers.Observed(3, 2, 2, 1, 3)
  assert samplers.observed([]) == samplers.Observed(0, 0, None, 0, 0)
