# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The sentences of a privacy report: what a specification means, for people who sign off."""

import math
from collections.abc import Mapping

from privacy.spec import Clipping, DpSpec, Mechanism, Relation, Sampling

_CENTRAL = (
  'Central: the server is trusted. Updates are clipped to a norm and reach it in the clear; it adds'
  ' them up, with the noise below.'
)
_CENTRAL_INTEGERS = (
  'Central: the server is trusted. Updates are clipped to a norm and rounded to integers, as a'
  ' protocol for secure aggregation takes them; it adds the noise below to their sum. The sum is'
  ' simulated: the integers reach the server in the clear.'
)
_DISTRIBUTED = (
  'Central trust, noise of clients: each client clips its update, rounds it to integers and adds a'
  ' share of the noise below before they are summed. The sum is simulated: the server is trusted,'
  ' since each update reaches it under that share alone, which hides little. The figures would hold'
  ' against a server that only sees the sum, as under a real protocol.'
)
AGAINST = (
  'The guarantee is against those who see what the server releases. It is none against the server,'
  ' its operators and its memory.'
)
_NUMERICS = (
  'The noise is drawn in 32-bit floating point by a counter-based generator (Philox). Its keys of'
  ' 122 bits come from the operating system as they are drawn and are stored nowhere outside the'
  ' secret files of the run. The accounting assumes exact real numbers and ideal randomness: Philox'
  ' is no cryptographic generator, floating-point Gaussian noise has known attacks (Jin et al.,'
  ' arXiv:2112.05307), and the rounding of a clipped update can exceed the clip norm by a relative'
  ' error of the order of 1e-7. None of this is in the figures.'
)
_INTEGER_NUMERICS = (
  'The noise of a client is the difference of two Poisson draws, integers, by a counter-based'
  ' generator (Philox) with a key of 122 bits from the operating system of the client. The'
  ' accounting assumes ideal Poisson draws and ideal randomness; Philox is no cryptographic'
  ' generator. The norm of an update is enforced on the integers: no rounding is left out of the'
  ' figures.'
)
_SEEDED = 'The noise was drawn from a seed of the configuration: whoever knows it can subtract it.'
NO_NOISE = 'No noise was added.'
NO_SETTING = 'The server received the update of each client in the clear and added no noise.'
NOTHING_CLAIMED = (
  'Whatever the training released may tell what single clients contributed, word by word: the model'
  ' may have memorised it.'
)
LIMITS = (
  'This is no protection against the server itself, and none of what is true of many clients. What'
  ' must hold for it, and what it does not cover, is listed below.'
)
NOTHING_STARTED = 'No round has been started: no client has contributed anything yet.'
AUDIT = (
  'Clients with planted updates of known direction took part; the bound below is what their traces'
  ' in the model prove. An audit can refute a claim and cannot certify one: a low bound says that'
  ' these traces were not found.'
)
_ACCOUNTANTS = (
  (
    'PLD',
    'privacy loss distributions, discretised so that the figure is no smaller than the true one;'
    ' Gaussian noise without amplification by its closed form',
  ),
  ('RDP', 'Renyi differential privacy: a second bound, by other means and looser'),
  ('zCDP', 'rho of zero-concentrated differential privacy, which has no useful amplified form'),
)
_SKELLAM_ACCOUNTANTS = (
  (
    'RDP',
    'Renyi differential privacy, by the bound of Agarwal et al. (arXiv:2110.04995, Cor. 3.6) for'
    ' integers under Skellam noise; there is no second accountant for it here',
  ),
)
NOT_COVERED = (
  'What is true of many clients: the model is meant to learn it, and it may say something about a'
  ' client who took no part.',
  'The server and everyone with access to it: it sees single updates, without noise or with no more'
  ' than a share of it.',
  'How long a round took, and other side channels of the machines and the network.',
  'The choice of the settings: runs made on the same clients to choose them are not counted.',
  'Changes of the ledger after its last anchor, and a ledger rewritten as a whole together with'
  ' checkpoints and reports: the chain of hashes does not show them.',
  'The gap between real numbers and floating point, see numerics and randomness.',
)

_RELATIONS: Mapping[Relation | None, str] = {
  None: 'None: no mechanism bounds what one client changes.',
  Relation.ADD_OR_REMOVE_ONE: (
    'Add or remove one client: the figures compare a run with the run in which one client does not'
    ' exist. A figure for replacing a client is larger; do not compare the two as they stand.'
  ),
  Relation.ZERO_OUT_ONE: (
    'Zero out one client: the figures compare a run with the run in which one client sends zeros'
    ' whenever it takes part. Who took part, and when, may be known. A figure for replacing a'
    ' client is larger; do not compare the two as they stand.'
  ),
  Relation.REPLACE_ONE: (
    'Replace one client: the figures compare a run with the run in which one client has any other'
    ' data. A sum of updates clipped to S can move by 2 S, which is accounted for.'
  ),
}
_WITHOUT: Mapping[Relation | None, str] = {
  Relation.ADD_OR_REMOVE_ONE: 'without that client',
  Relation.ZERO_OUT_ONE: 'if that client had sent zeros',
  Relation.REPLACE_ONE: 'if that client had had any other data',
}
_QUESTION: Mapping[Relation | None, str] = {
  Relation.ADD_OR_REMOVE_ONE: 'whether the client was there',
  Relation.ZERO_OUT_ONE: "whether the client's updates or zeros went in",
  Relation.REPLACE_ONE: "which of two sets of data was the client's",
}
# Above it, odds are written as a power.
_LARGEST_ODDS = 14


def bound(value: float) -> str:
  """Returns an upper bound with three digits, rounded up, such as '1.88', '96.1' or '6.4e-3'."""
  if value == 0:
    return '0'
  exponent = math.floor(math.log10(value))
  # In steps of the third digit; the small term forgives the error of the division itself.
  digits = math.ceil(value / 10.0 ** (exponent - 2) - 1e-9)
  if digits == 1000:
    digits, exponent = 100, exponent + 1
  if -3 < exponent < 7:
    return f'{digits * 10.0 ** (exponent - 2):,.{max(0, 2 - exponent)}f}'
  mantissa = f'{digits / 100:.2f}'.rstrip('0').rstrip('.')
  return f'{mantissa}e{exponent}'


def setting(spec: DpSpec) -> str:
  """Returns who is trusted with what."""
  if spec.mechanism is Mechanism.SKELLAM:
    return _DISTRIBUTED
  return _CENTRAL if spec.secure_sum is None else _CENTRAL_INTEGERS


def numerics(spec: DpSpec) -> str:
  """Returns what of noise and rounding is in the figures, and what is not."""
  if spec.noise_multiplier == 0:
    return NO_NOISE
  if spec.insecure_seed is not None:
    return _SEEDED
  return _INTEGER_NUMERICS if spec.mechanism is Mechanism.SKELLAM else _NUMERICS


def accountants(spec: DpSpec) -> tuple[tuple[str, str], ...]:
  """Returns by which means the figures are found, as (name, meaning) rows."""
  return _SKELLAM_ACCOUNTANTS if spec.mechanism is Mechanism.SKELLAM else _ACCOUNTANTS


def relation(value: Relation | None) -> str:
  """Returns what two neighbouring runs are; None stands for no mechanism."""
  return _RELATIONS[value]


def protection(epsilon: float, delta: float, neighbours: Relation | None) -> list[str]:
  """Returns what (epsilon, delta) means, exactly, and what it is worth to an adversary.

  The last is the largest share of right answers, (e^epsilon + delta) / (e^epsilon + 1), of any test
  between two runs that are equally likely; Kairouz, Oh, Viswanath, arXiv:1311.0776.
  """
  shown = bound(epsilon)
  odds = '' if epsilon > _LARGEST_ODDS else f' = {bound(math.exp(float(shown)))}'
  right = (1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon))
  percent = math.ceil(1000 * right - 1e-9) / 10
  most = f'at most {percent:g} % of' if percent < 100 else 'nearly all'
  sentences = [
    'Take any one client and all that it sent, in all rounds together. The probability of any'
    f' outcome of the training is at most e^{shown}{odds} times what it would be'
    f' {_WITHOUT[neighbours]}, plus {bound(delta)}; and the other way round.',
    'Somebody who sees all that is released, knows the data of all other clients and has to tell'
    f' {_QUESTION[neighbours]}, with both as likely beforehand, is right in {most}'
    ' cases. Guessing gives 50 %.',
  ]
  if epsilon > 10:
    sentences.append(
      'This is weak: an epsilon above 10 rules out so little that the figure alone is no reason to'
      ' call the release private.'
    )
  return sentences


def if_draws_are_known(epsilon: float) -> str:
  """Returns what is left of an amplified claim, by its epsilon without amplification."""
  return (
    'The figure counts on it that who was drawn stays secret. Against those who learn it, epsilon'
    f' is {bound(epsilon)}.'
  )


def conditions(spec: DpSpec) -> list[str]:
  """Returns what must be true for the figures to hold, beside a server that does its work."""
  texts = [
    'The server does what its code says.',
    'The directory secrets stays secret, with keys and cohorts'
    + (', and with checkpoints, which tell noise.' if spec.is_correlated else '.'),
  ]
  if spec.mechanism is Mechanism.SKELLAM:
    texts.append(
      f'At least {spec.noise_shares} clients whose noise nobody else knows are in each sum that'
      ' is released: as many as the protocol needs, less those that work together with the server.'
      ' More only add noise.'
    )
  if spec.sampling is Sampling.POISSON and spec.amplified:
    texts.append(
      'Who was drawn stays secret. Against those who know it the larger figure without'
      ' amplification holds, and only for what a client sent.'
    )
  if spec.is_correlated or spec.sampling is Sampling.MIN_SEPARATION:
    texts.append(f'No client takes part {_participation_limit(spec)}.')
  return texts


def projected(spec: DpSpec) -> str:
  """Returns which run a projected figure is about."""
  return (
    'The projected figures are about another run: the same rounds, settings and sampling scheme'
    f' with {spec.noise_cohort_size:,} clients in a round out of {spec.population_size:,}, whose'
    ' noise was scaled down to the clients of this simulation. For such a run:'
  )


def way(accountant: str, amplified: bool) -> str:
  """Returns how an epsilon was found."""
  return f'{accountant.upper()}, {"with" if amplified else "without"} amplification by sampling'


def beside(delta: float, population: int | None) -> str:
  """Returns how a delta compares with one over the population."""
  if population is None:
    return 'the ledger knows no population to hold it against'
  if delta < 1 / population:
    return f'below one over the {population:,} clients'
  return (
    f'NOT below one over the {population:,} clients: publishing the data of one of them would'
    ' satisfy it'
  )


def unobserved(spec: DpSpec) -> str:
  """Returns why a report does not tell who took part how often."""
  if spec.relation is not Relation.ZERO_OUT_ONE:
    return 'not reported: who was drawn is to stay secret'
  return 'unknown: the draws are not at hand'


def participation(spec: DpSpec) -> str:
  """Returns how clients come to take part."""
  of = 'Of the projected run: ' if spec.is_projection else ''
  count = spec.noise_cohort_size or spec.clients_per_round
  if spec.sampling is Sampling.POISSON:
    return (
      f'{of}Poisson sampling. In each round every client takes part by itself with probability'
      f' {spec.sampling_probability:.4g}, so that cohorts vary in size and may be empty.'
    )
  if spec.sampling is Sampling.FIXED:
    return f'{of}{count:,g} clients in each round, without replacement.'
  return (
    f'{of}{count:,g} clients in each round. The sampler lets no client take part'
    f' {_participation_limit(spec)}.'
  )


def use_of_participation(spec: DpSpec) -> str:
  """Returns what the figures make of how clients come to take part."""
  if spec.amplified:
    return 'The figures with amplification count on this; those without do not.'
  if spec.sampling is Sampling.MIN_SEPARATION:
    return 'The figures count on this, and on no chance: it may be known who took part when.'
  return (
    'The figures make no use of the sampling: a client may take part in every round, and it may be'
    ' known when.'
  )


def _participation_limit(spec: DpSpec) -> str:
  most = spec.max_participations
  often = '' if most is None else f'more than {most} {"time" if most == 1 else "times"}'
  apart = spec.min_separation or 1
  near = (
    ''
    if apart == 1
    else f'twice within fewer than {apart} rounds (round y may follow round x if y - x >= {apart})'
  )
  return ' or '.join(filter(None, (often, near))) or 'more than once in a round'


def mechanism(spec: DpSpec) -> list[tuple[str, str]]:
  """Returns what is done to the updates, as (name, value) rows."""
  clip = f'{spec.l2_clip_norm:g} in L2 norm, over all modules of a client together'
  if spec.clipping is Clipping.ADAPTIVE:
    clip = (
      f'starts at {clip}; then follows the noised {spec.clip_quantile:g} quantile of the norms'
      f' (rate {spec.clip_learning_rate:g}), whose noise is part of the noise multiplier'
    )
  rows = [
    ('Noise', _NOISE[spec.mechanism]),
    ('Clip norm S', clip),
    ('Noise multiplier z', f'{spec.noise_multiplier:g}'),
    ('Standard deviation', f'{spec.noise_stddev:.4g} {_NOISED[spec.mechanism]}'),
    ('Divided by', f'{spec.clients_per_round:g}, a public constant, not the clients that came'),
    *_secure_sum(spec),
  ]
  if spec.restart_every:
    rows.append(('Tree restarts', f'after every {spec.restart_every} rounds'))
  if spec.is_projection:
    rows.append(
      (
        'Noise cohort',
        f'{spec.noise_cohort_size:,} of {spec.population_size:,} clients in a round: the noise is'
        ' that of such a run, scaled down to the clients of this one',
      )
    )
  return rows


def _secure_sum(spec: DpSpec) -> list[tuple[str, str]]:
  sums = spec.secure_sum
  if sums is None:
    return []
  unit = '' if spec.clipping is Clipping.FIXED else ' clip norms'
  rows = [
    (
      'Rounding',
      f'{sums.rounding.value}, to {sums.bits} bits a number, steps of {sums.step:.4g}{unit}',
    ),
    (
      'Norm after rounding',
      # Rounded up.
      f'at most {math.ceil(1e5 * spec.inflation) / 1e5:g} times the clip norm, in at most'
      f' {sums.coordinates:,} numbers; the figures count on this norm',
    ),
    ('Modulus', f'2^{sums.sum_bits}, for up to {sums.largest_cohort:,} clients'),
  ]
  if spec.mechanism is not Mechanism.SKELLAM:
    return [*rows, ('Wrap-around', 'impossible: no sum reaches the modulus')]
  return [
    *rows,
    (
      'Wrap-around',
      f'with probability at most {bound(spec.wrap_probability)} in a round, over all numbers; it'
      ' spoils the round and no privacy',
    ),
    ('Fewest shares of noise', f'{spec.noise_shares}, which make up the standard deviation'),
  ]


_NOISE = {
  Mechanism.GAUSSIAN: 'Gaussian, independent in each round',
  Mechanism.TREE: 'Gaussian, correlated over rounds by a binary tree',
  Mechanism.BANDED: 'Gaussian, correlated over rounds by a banded Toeplitz matrix',
  Mechanism.SKELLAM: 'Skellam, integers that the clients add, independent in each round',
}
_NOISED = {
  Mechanism.GAUSSIAN: 'on the sum of the updates',
  Mechanism.TREE: 'on each node of the tree, a sum of updates',
  Mechanism.BANDED: 'before the matrix, whose columns have norm 1',
  Mechanism.SKELLAM: 'on the sum of the updates, from the fewest shares that are released',
}
