# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a private run promises: mechanism, noise, sampling, relation and participation.

The unit is one client. A run's guarantee follows from these numbers and the rounds that were
started, and from nothing else; `privacy.events` turns the two into what accountants read.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

from privacy import skellam
from privacy.secure_sum import SecureSumSpec

# Standard deviation of the noise on the adaptive clip's count, per client of a round (TFF's value,
# from arXiv:1905.03871).
_COUNT_STDDEV = 0.05
# The most likely that noise of clients may make a round's sum wrap around, over all coordinates.
_WRAP_PROBABILITY = 1e-6


class Mechanism(enum.Enum):
  """What the noise of one round is, and how it goes with that of the others.

  GAUSSIAN draws it independently. TREE adds the nodes of a binary tree (DP-FTRL, arXiv:2103.00039),
  BANDED the rows of an inverse banded Toeplitz matrix (arXiv:2306.08153). SKELLAM is independent
  again, and the clients add it to their integers before a secure sum (arXiv:2110.04995).
  """

  GAUSSIAN = 'gaussian'
  TREE = 'tree'
  BANDED = 'banded'
  SKELLAM = 'skellam'


class Clipping(enum.Enum):
  """Whether the clip norm stays, or follows a noised quantile of the norms (arXiv:1905.03871)."""

  FIXED = 'fixed'
  ADAPTIVE = 'adaptive'


class Sampling(enum.Enum):
  """How a round's clients are chosen.

  POISSON takes each by itself with one probability, in secret. FIXED claims nothing.
  MIN_SEPARATION lets a client join again only `min_separation` rounds later.
  """

  POISSON = 'poisson'
  FIXED = 'fixed'
  MIN_SEPARATION = 'minsep'


class Relation(enum.Enum):
  """Which two populations must look alike: one client added or removed, zeroed, or replaced."""

  ADD_OR_REMOVE_ONE = 'add_or_remove_one'
  ZERO_OUT_ONE = 'zero_out_one'
  REPLACE_ONE = 'replace_one'


@dataclasses.dataclass(frozen=True)
class DpSpec:
  """The privacy parameters of a run.

  Attributes:
    noise_multiplier: `z`, the noise's standard deviation in clip norms, per draw: of a round's sum
      (GAUSSIAN), of a tree's node (TREE), of a row before the matrix whose columns are scaled to
      norm 1 (BANDED), of a round's sum of `noise_shares` shares (SKELLAM). 0 is allowed and
      gives no guarantee.
    l2_clip_norm: `S`, bound of the joint L2 norm of all that one client adds to a sum; the first
      one where the clip is adaptive.
    clients_per_round: public denominator of the mean; `q N` under POISSON.
    mechanism: see `Mechanism`.
    clipping: see `Clipping`; ADAPTIVE only with GAUSSIAN.
    clip_quantile: share of the clients whose norm an adaptive clip is to leave as it is, in [0, 1].
    clip_learning_rate: of the logarithm of an adaptive clip.
    sampling: see `Sampling`.
    population_size: number of clients that a round is drawn from; needed for POISSON.
    amplified: whether the guarantee relies on the sampling; None becomes True exactly for POISSON
      with GAUSSIAN, unless a client is replaced.
    relation: see `Relation`; None becomes ADD_OR_REMOVE_ONE for POISSON, else ZERO_OUT_ONE.
    min_separation: `b`, how far apart two rounds with the same client are at least, 1 for not at
      all. (TFP counts the rounds in between, one less.)
    max_participations: `K`, the most draws of one client in the run, repeated rounds included.
    restart_every: number of leaves after which a tree is replaced by a new one.
    noise_cohort_size: `n'`, clients per round of the production run that the noise is scaled to;
      `population_size` is then its population `N'`.
    insecure_seed: makes the noise repeatable, and takes the guarantee with it.
    secure_sum: how clipped values become integers for a secure sum; needed for SKELLAM, which fills
      in its `noise_margin`. Its `l2_clip_norm` is the clip, or 1 where that is adaptive: values are
      divided by the clip of the round first, so that the grid follows it.
    smallest_cohort: SKELLAM: the fewest clients whose sum is released, the protocol's threshold.
    assumed_colluders: SKELLAM: how many of them may tell others their noise.
  """

  noise_multiplier: float
  l2_clip_norm: float
  clients_per_round: float
  mechanism: Mechanism = Mechanism.GAUSSIAN
  clipping: Clipping = Clipping.FIXED
  clip_quantile: float = 0.5
  clip_learning_rate: float = 0.2
  sampling: Sampling = Sampling.FIXED
  population_size: int | None = None
  amplified: bool | None = None
  relation: Relation | None = None
  min_separation: int | None = None
  max_participations: int | None = None
  restart_every: int | None = None
  noise_cohort_size: int | None = None
  insecure_seed: int | None = None
  secure_sum: SecureSumSpec | None = None
  smallest_cohort: int | None = None
  assumed_colluders: int = 0

  def __post_init__(self):
    poisson = self.sampling is Sampling.POISSON
    if self.relation is None:
      relation = Relation.ADD_OR_REMOVE_ONE if poisson else Relation.ZERO_OUT_ONE
      object.__setattr__(self, 'relation', relation)
    can_amplify = (
      poisson and self.mechanism is Mechanism.GAUSSIAN and self.relation is not Relation.REPLACE_ONE
    )
    if self.amplified and not can_amplify:
      raise ValueError(
        '`amplified` holds only for independent noise on POISSON samples, and not when a client is '
        f'replaced; got {self.mechanism}, {self.sampling} and {self.relation}.'
      )
    if self.amplified is None:
      object.__setattr__(self, 'amplified', can_amplify)
    self._check_numbers()
    self._check_population()
    self._check_mechanism()
    self._check_participation()
    self._check_secure_sum()
    self._check_shares()
    if self.secure_sum is not None and self.mechanism is Mechanism.SKELLAM:
      margin = skellam.wrap_margin(
        self._largest_variance, self.secure_sum.coordinates or 1, _WRAP_PROBABILITY
      )
      settled = dataclasses.replace(self.secure_sum, noise_margin=margin)
      object.__setattr__(self, 'secure_sum', settled)

  @property
  def is_correlated(self) -> bool:
    """Whether the noise of a round depends on that of the rounds before."""
    return self.mechanism in (Mechanism.TREE, Mechanism.BANDED)

  @property
  def is_projection(self) -> bool:
    """Whether the noise is scaled to another run, the one that the figures are about."""
    return self.noise_cohort_size is not None

  @property
  def noise_stddev(self) -> float:
    """Standard deviation of the noise on a round's sum, in units of the sum.

    `z S`; where the clip is adaptive, before the count's part is split off; where clients add it,
    of `noise_shares` of them. A projection has the mean's noise of the production run: `z S n /
    n'` on a sum over `n` clients.
    """
    scale = 1.0
    if self.noise_cohort_size is not None:
      scale = self.clients_per_round / self.noise_cohort_size
    return self.noise_multiplier * self.l2_clip_norm * scale

  @property
  def inflation(self) -> float:
    """`S' / S`: how much further a client moves a secure sum than its clip says; 1 without one.

    The noise stays `z S`, so the multiplier that counts is `z S / S'`. The count of an adaptive
    clip is in it only if +-0.5 is encoded without error.
    """
    if self.secure_sum is None:
      return 1.0
    return (self.secure_sum.rounded_clip or 0.0) / (self.secure_sum.l2_clip_norm or 1.0)

  @property
  def noise_shares(self) -> int | None:
    """`n_min`, the fewest secret shares of noise in a sum; None where clients add none."""
    return self.smallest_cohort and self.smallest_cohort - self.assumed_colluders

  @property
  def local_variance(self) -> float:
    """Variance of one client's share of the noise, in squared steps; 0 where clients add none."""
    if self.secure_sum is None or self.noise_shares is None:
      return 0.0
    return (self.noise_stddev / self.secure_sum.step) ** 2 / self.noise_shares

  @property
  def wrap_probability(self) -> float:
    """Bound of the chance that noise makes a round's sum wrap around, in any coordinate.

    For the largest cohort, with all clients at the end of the grid. 0 where clients add no noise.
    A sum that wraps is wrong by a multiple of the modulus, and as private as any.
    """
    if self.secure_sum is None or self.local_variance == 0:
      return 0.0
    sums = self.secure_sum
    room = sums.modulus // 2 - 1 - sums.largest_cohort * sums.levels
    # A float underflows to 0, which no probability here is.
    return max(1e-300, skellam.tail_bound(self._largest_variance, sums.coordinates or 1, room))

  def adaptive_noise(self) -> tuple[float, float]:
    """Noise multiplier of the sum and standard deviation of the count's noise, where a clip adapts.

    A count of +-0.5 under noise of deviation s is a Gaussian mechanism of multiplier `2 s`; with
    `z_sum^-2 + (2 s)^-2 = z^-2` both compose to z. A simulation scales what holds for its
    production cohort.

    Raises:
      ValueError: if the count alone would need more noise than it is given.
    """
    z, cohort = self.noise_multiplier, self.noise_cohort_size or self.clients_per_round
    if z == 0:
      return 0.0, 0.0
    count_stddev = _COUNT_STDDEV * cohort
    if z >= 2 * count_stddev:
      raise ValueError(
        f'An adaptive clip needs more than 10 * noise_multiplier = {10 * z:g} clients a round, for '
        'the noise on its count not to drown the count; there are '
        f'{cohort:g}. Take more clients, less noise, or a fixed clip.'
      )
    scale = self.clients_per_round / cohort
    return (z**-2 - (2 * count_stddev) ** -2) ** -0.5 * scale, count_stddev * scale

  @property
  def sampling_probability(self) -> float | None:
    """`q = n / N`, or `q' = n' / N'` of the run that is projected to; None without a population."""
    if self.population_size is None:
      return None
    return (self.noise_cohort_size or self.clients_per_round) / self.population_size

  def guarantee_problems(self) -> list[str]:
    """Why a run with this spec has no guarantee, as sentences; empty if it has one."""
    problems = []
    if self.noise_multiplier == 0:
      problems.append('The noise multiplier is 0: nothing hides a client.')
    if self.insecure_seed is not None:
      problems.append(
        'The noise comes from a seed that is not secret: whoever knows it removes it.'
      )
    if self.is_projection:
      problems.append(
        f'The noise is that of a production run with {self.noise_cohort_size} clients per round; '
        f'this run has {self.clients_per_round:g}.'
      )
    return problems

  def to_json(self) -> dict[str, Any]:
    """All fields, as JSON has them."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    if self.secure_sum is not None:
      fields['secure_sum'] = self.secure_sum.to_json()
    return {
      key: value.value if isinstance(value, enum.Enum) else value for key, value in fields.items()
    }

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'DpSpec':
    """The inverse of `to_json`.

    Raises:
      ValueError: if `fields` is no spec.
    """
    readers = {
      'mechanism': Mechanism,
      'clipping': Clipping,
      'sampling': Sampling,
      'relation': Relation,
      'secure_sum': lambda inner: inner if inner is None else SecureSumSpec.from_json(inner),
    }
    try:
      return cls(**{key: readers.get(key, lambda kept: kept)(fields[key]) for key in fields})
    except TypeError as error:
      raise ValueError(f'Not a privacy spec: {error}.') from error

  def _check_numbers(self):
    numbers = {
      'l2_clip_norm': self.l2_clip_norm,
      'clients_per_round': self.clients_per_round,
      'clip_learning_rate': self.clip_learning_rate,
    }
    for name, value in numbers.items():
      if not 0 < value < math.inf:
        raise ValueError(f'`{name}` must be a positive number, got {value}.')
    if not 0 <= self.noise_multiplier < math.inf:
      raise ValueError(f'`noise_multiplier` must not be negative, got {self.noise_multiplier}.')
    if not 0 <= self.clip_quantile <= 1:
      raise ValueError(f'`clip_quantile` must be in [0, 1], got {self.clip_quantile}.')
    counts = {
      'population_size': self.population_size,
      'min_separation': self.min_separation,
      'max_participations': self.max_participations,
      'restart_every': self.restart_every,
      'noise_cohort_size': self.noise_cohort_size,
      'smallest_cohort': self.smallest_cohort,
    }
    for name, value in counts.items():
      if value is not None and (value != int(value) or value < 1):
        raise ValueError(f'`{name}` must be a whole number of at least 1, got {value}.')

  def _check_population(self):
    if self.sampling is Sampling.POISSON and self.population_size is None:
      raise ValueError('POISSON sampling needs a `population_size`.')
    cohort = self.noise_cohort_size or self.clients_per_round
    if self.population_size is not None and cohort > self.population_size:
      raise ValueError(
        f'A round of {cohort:g} clients needs as many in the population, which has '
        f'{self.population_size}.'
      )
    if self.is_projection and self.population_size is None:
      raise ValueError('`noise_cohort_size` needs the `population_size` that it is drawn from.')

  def _check_mechanism(self):
    if self.clipping is Clipping.ADAPTIVE and self.mechanism is not Mechanism.GAUSSIAN:
      raise ValueError(
        'An adaptive clip needs GAUSSIAN noise: correlated noise, and that of clients, has one'
        ' scale.'
      )
    if self.is_correlated and self.sampling is not Sampling.MIN_SEPARATION:
      raise ValueError(
        f'{self.mechanism} needs MIN_SEPARATION sampling, with `min_separation` 1 if every round '
        'may have the same client: its bound counts participations.'
      )
    if self.restart_every is not None and self.mechanism is not Mechanism.TREE:
      raise ValueError('`restart_every` is about a TREE.')

  def _check_participation(self):
    bounded = self.sampling is Sampling.MIN_SEPARATION
    if bounded and self.min_separation is None:
      raise ValueError('MIN_SEPARATION sampling needs a `min_separation`.')
    if not bounded and (self.min_separation, self.max_participations) != (None, None):
      raise ValueError(
        '`min_separation` and `max_participations` need MIN_SEPARATION sampling, which enforces '
        'them.'
      )
    if self.relation is Relation.ADD_OR_REMOVE_ONE and self.sampling is not Sampling.POISSON:
      # With one client more, a cohort of fixed size leaves another one out: sensitivity 2 S.
      raise ValueError(
        'ADD_OR_REMOVE_ONE needs POISSON sampling: elsewhere one client more changes who else is '
        'drawn. Take ZERO_OUT_ONE.'
      )

  def _check_secure_sum(self):
    sums = self.secure_sum
    if sums is None:
      return
    clip = 1.0 if self.clipping is Clipping.ADAPTIVE else self.l2_clip_norm
    if sums.l2_clip_norm != clip:
      raise ValueError(
        f'`secure_sum` needs the l2_clip_norm {clip:g} of the values that it sums, got'
        f' {sums.l2_clip_norm}.'
      )
    cohort = math.ceil(self.clients_per_round)
    if self.sampling is Sampling.POISSON and not self.is_projection:
      cohort = self.population_size or cohort
    if sums.largest_cohort < cohort:
      raise ValueError(
        f'`secure_sum` has a largest_cohort of {sums.largest_cohort}, but a round may have {cohort}'
        ' clients.'
      )

  def _check_shares(self):
    if self.mechanism is not Mechanism.SKELLAM:
      if (self.smallest_cohort, self.assumed_colluders) != (None, 0):
        raise ValueError('`smallest_cohort` and `assumed_colluders` are about SKELLAM noise.')
      return
    if self.secure_sum is None or self.smallest_cohort is None:
      raise ValueError('SKELLAM noise needs a `secure_sum` and a `smallest_cohort`.')
    if not 0 <= self.assumed_colluders < self.smallest_cohort <= self.clients_per_round:
      raise ValueError(
        f'`assumed_colluders` {self.assumed_colluders} must be below `smallest_cohort`'
        f' {self.smallest_cohort}, and that at most `clients_per_round` {self.clients_per_round:g}.'
      )
    if self.sampling is Sampling.POISSON:
      raise ValueError(
        'SKELLAM noise needs FIXED or MIN_SEPARATION sampling: a Poisson sample may have fewer'
        ' clients than the noise needs.'
      )
    if self.local_variance > skellam.MOST_VARIANCE:
      # A bit less doubles the step.
      bits = self.secure_sum.bits - math.ceil(
        math.log(self.local_variance / skellam.MOST_VARIANCE, 4)
      )
      mend = f'take {bits} bits or fewer' if bits > 1 else 'take less noise'
      raise ValueError(
        f"A client's share of the noise has a variance of {self.local_variance:.3g} squared steps,"
        f' above the {skellam.MOST_VARIANCE:.3g} that can be drawn faithfully: {mend}.'
      )

  @property
  def _largest_variance(self) -> float:
    """Variance of the noise of the largest cohort, in squared steps."""
    return self.local_variance * (self.secure_sum.largest_cohort if self.secure_sum else 0)
