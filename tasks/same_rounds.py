# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a deployed process does the same rounds as the one that it was made of.

Both start from one state, with the same clients. Without chance both must end in the same state to
the last bit. With noise or random rounding, each does some rounds: numbers that never change must
be equal, the others must spread as much in both, and the means of both must differ by as much as
such means do. Equal means would be wrong, too: then the draws are the same. What is rounded by
chance may stay still in both at another value each, but repeats itself far more often. Beside
that, the noise must be as large as the mechanism states.

The clients of these rounds hold random tokens: an export says nothing of anybody's data.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import hetlora_tff
from hetlora_tff import deployment
from hetlora_tff.clients.data import pack_client_data
from tasks import participation
from tasks.experiment import Experiment
from tasks.packing import Packed

# How many standard deviations of a statistic are still by chance: about one in 10^6 exports.
_DEVIATIONS = 5.0


class Statistics(NamedTuple):
  """Of repeated draws of the same numbers from two sources.

  Attributes:
    noisy: how many numbers are not the same in all draws.
    jumps: those that are in either source, but not in both.
    repeats: those that are the same in some draws of a source and not in all.
    variance_ratio: the variance within the second source over that within the first.
    mean_ratio: squared differences of the means over what these variances let expect.
    tolerance: how far the logarithms of both may be from 0.
  """

  noisy: int
  jumps: int
  repeats: int
  variance_ratio: float
  mean_ratio: float
  tolerance: float

  @property
  def is_same(self) -> bool:
    """Whether both sources may have one distribution."""
    ratios = (self.variance_ratio, self.mean_ratio)
    close = all(0 < r < math.inf and abs(math.log(r)) <= self.tolerance for r in ratios)
    return close and self.jumps <= self.repeats


def compare(
  process: hetlora_tff.HetLoraProcess,
  deployed: deployment.DeployedProcess,
  client_data: Sequence[Any],
  *,
  repeats: int,
) -> Mapping[str, Any]:
  """Does rounds with both and compares what they end in.

  Args:
    process: what was deployed.
    deployed: what was loaded again.
    client_data: of the clients of each round.
    repeats: rounds of each; 1 where nothing is drawn by chance.

  Returns:
    For the manifest: `result`, and what it rests on.

  Raises:
    ValueError: if they differ.
  """
  start = deployed.initial_state()
  ours, theirs = [], []
  for _ in range(repeats):
    ours.append(_numbers(deployed, process.next(start, client_data).state, repeats == 1))
    theirs.append(_numbers(deployed, deployed.next(start, client_data)[0], repeats == 1))
  facts = {'clients': len(client_data), 'rounds': repeats, 'numbers': int(ours[0].size)}
  if repeats == 1 or not np.any(np.ptp([*ours, *theirs], axis=0)):
    if not np.array_equal(ours[0], theirs[0], equal_nan=True):
      raise ValueError('a round of the export ends in another state than one of the run.')
    return {'result': 'equal states', **facts}
  found = statistics(np.stack(ours), np.stack(theirs))
  if not found.is_same:
    raise ValueError(
      'rounds of the export and of the run end in weights of other distributions: ratio of'
      f' variances {found.variance_ratio:.3g}, of means {found.mean_ratio:.3g}.'
    )
  return {'result': 'equal in distribution', **facts, **found._asdict()}


def random_clients(experiment: Experiment, number: int) -> list[collections.OrderedDict[str, Any]]:
  """Clients of random tokens, in turn of the smallest and the largest rank of the settings.

  Args:
    experiment: whose shapes they have.
    number: of clients.
  """
  config = experiment.config
  largest = config.max_rank or 1
  ranks = (config.min_rank or min(config.rank_tiers or [largest]), largest)
  rng = np.random.default_rng()
  return [_random_client(experiment, rng, ranks[place % 2]) for place in range(number)]


def _random_client(experiment: Experiment, rng: np.random.Generator, rank: int):
  config, labels = experiment.config, experiment.data.labels
  shape = (config.batch_size, config.sequence_length)
  rows: Packed = collections.OrderedDict(
    token_ids=rng.integers(experiment.base.tokenizer.vocabulary_size, size=shape, dtype=np.int32),
    padding_mask=np.ones(shape, np.int32),
  )
  if labels:
    rows['labels'] = rng.integers(len(labels), size=shape[0], dtype=np.int32)
  else:
    rows['loss_weights'] = np.ones(shape, np.float32)
    rows['loss_weights'][:, -1] = 0.0
  batches = participation.local_batches(
    rows, batch_size=config.batch_size, local_steps=config.local_steps, seed=[0]
  )
  return pack_client_data(rank, batches)


def noise_ratio(
  deployed: deployment.DeployedProcess,
  client_data: Sequence[Any],
  stddev: float,
  *,
  rounding: float = 0.0,
  draws: int = 3,
) -> float:
  """The standard deviation of the noise in the weights, over the one that is stated.

  Args:
    deployed: a private process.
    client_data: of the clients of each round, the same ones.
    stddev: that the mechanism gives every weight that it noises.
    rounding: variance that random rounding adds at most.
    draws: rounds, each from a state of its own: correlated noise follows from it.

  Raises:
    ValueError: if they differ.
  """
  rounds = (deployed.next(deployed.initial_state(), client_data)[0] for _ in range(draws))
  weights = np.stack([_numbers(deployed, state, whole=False) for state in rounds])
  noisy = weights[:, np.ptp(weights, axis=0) > 0].astype(np.float64)
  ratio = float(np.mean(np.var(noisy, axis=0, ddof=1))) / stddev**2 if noisy.size else 0.0
  # As in `statistics`.
  tolerance = _DEVIATIONS * math.sqrt(2 / max(1, noisy.size - noisy.shape[1]))
  if not -tolerance <= math.log(ratio or 1e-300) <= tolerance + math.log1p(rounding / stddev**2):
    raise ValueError(
      f'the noise in a round of the export is {math.sqrt(ratio):.3g} times what the mechanism'
      ' states.'
    )
  return math.sqrt(ratio)


def statistics(first: np.ndarray, second: np.ndarray) -> Statistics:
  """Compares the spread and the means of two sources.

  Args:
    first: float `[draws, numbers]`, two draws or more.
    second: the same of another source.
  """
  noisy = np.ptp(np.concatenate([first, second]), axis=0) > 0
  first, second = (source[:, noisy].astype(np.float64) for source in (first, second))
  draws, numbers = first.shape
  still = [np.ptp(source, axis=0) == 0 for source in (first, second)]
  repeated = [np.any(np.diff(np.sort(source, 0), axis=0) == 0, 0) for source in (first, second)]
  variances = [np.mean(np.var(source, axis=0, ddof=1)) for source in (first, second)]
  expected = sum(variances) / draws
  between = np.mean(np.square(first.mean(0) - second.mean(0)))
  return Statistics(
    noisy=numbers,
    jumps=int(np.sum(still[0] & still[1])),
    repeats=int(np.sum((repeated[0] & ~still[0]) | (repeated[1] & ~still[1]))),
    variance_ratio=_ratio(variances[1], variances[0]),
    mean_ratio=_ratio(between, expected),
    # Of Gaussians: the logarithm of a variance of n degrees of freedom deviates by sqrt(2 / n).
    tolerance=_DEVIATIONS * math.sqrt(2 / numbers + 2 / (numbers * (draws - 1))),
  )


def _ratio(over: float, under: float) -> float:
  return float(over / under) if under > 0 else math.inf


def _numbers(deployed: deployment.DeployedProcess, state: Any, whole: bool) -> np.ndarray:
  """A state as one vector: all of it, or the weights, the only part that is told in any run."""
  numbers = deployed.tensors(state) if whole else deployed.model_weights(state)
  return np.concatenate([np.ravel(value) for value in numbers.values()])
