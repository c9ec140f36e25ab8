# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Coefficients of banded Toeplitz matrices, whose inverses correlate noise (arXiv:2306.08153).

With `x_t` the sum of round t and `z` independent noise, what is released is `x + C^-1 z`, that is
`C^-1 (C x + z)`, where `C` is lower triangular and Toeplitz with the first column
`c_0 = 1, c_1, ..., c_(bands - 1)`. The rounds of one client are at least `bands` apart, so its
columns do not overlap: in K rounds it moves `C x` by at most `sqrt(K) ||c||` clip norms. `z` is
scaled by `||c||`, and the account is that of K rounds of independent noise, while prefix sums of
what is released have less of it.

`python -m privacy.banded` computes the table again and says how good each row is; `--write` stores
it. A run reads the stored one, so that all machines have the same noise.
"""

import functools
import hashlib
import json
import pathlib
import sys

import numpy as np
from scipy import optimize, signal

_TABLE = pathlib.Path(__file__).with_name('banded_coefficients.json')
_BANDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Over which the error is the least; it is at most an eighth above the least in 50 to 1,000 rounds.
_ROUNDS = 200


def banded_coefficients(min_separation: int) -> np.ndarray:
  """The first column of `C`, from the table: the most bands that a separation allows.

  Args:
    min_separation: least difference of two rounds with the same client, at least 1.

  Returns:
    Float64 `[bands]`, the first 1, all of them float32 numbers, with `bands <= min_separation`.

  Raises:
    ValueError: if `min_separation` is below 1, or the table is not as it was written.
  """
  if min_separation < 1:
    raise ValueError(f'`min_separation` must be at least 1, got {min_separation}.')
  bands = max(bands for bands in _BANDS if bands <= min_separation)
  return np.array(_rows()[str(bands)], np.float64)


def table_sha256() -> str:
  """The digest of all coefficients, for a report."""
  return _digest(_rows())


def sensitivity(coefficients: np.ndarray, participations: int) -> float:
  """`sqrt(K) ||c||`: how far one client moves `C x`, in clip norms.

  Args:
    coefficients: first column of `C`.
    participations: `K`, rounds of the client, each at least `len(coefficients)` after the last.
  """
  return float(np.sqrt(participations) * np.linalg.norm(coefficients))


def mean_squared_error(coefficients: np.ndarray, rounds: int) -> float:
  """Variance of the noise in a prefix sum, on the average of `rounds` of them.

  Per unit of the variance that a round of independent noise needs for the same account, which has
  `(rounds + 1) / 2`.

  Args:
    coefficients: first column of `C`.
    rounds: number of prefix sums.
  """
  return float(np.exp(_log_error(coefficients, rounds)[0]))


def optimal_coefficients(bands: int, rounds: int) -> np.ndarray:
  """Minimises `mean_squared_error` over the coefficients.

  Args:
    bands: how many, at least 1.
    rounds: that the error is averaged over.

  Returns:
    Float64 `[bands]`, the first 1.
  """

  def log_error(tail: np.ndarray) -> tuple[float, np.ndarray]:
    error, gradient = _log_error(np.concatenate([[1.0], tail]), rounds)
    return error, gradient[1:]

  # The series of 1 / sqrt(1 - x), which is near the best with as many bands as rounds.
  start = np.cumprod(1 - 0.5 / np.arange(1, bands))
  if bands == 1:
    return np.ones(1)
  options = {'maxiter': 10_000, 'ftol': 1e-15, 'gtol': 1e-10}
  found = optimize.minimize(log_error, start, jac=True, method='L-BFGS-B', options=options)
  return np.concatenate([[1.0], found.x])


def _log_error(coefficients: np.ndarray, rounds: int) -> tuple[float, np.ndarray]:
  """The logarithm of `mean_squared_error`, and its gradient, `[bands]`.

  Row t of prefix sums times `C^-1` has the first t + 1 coefficients of `w(x) = 1 / ((1 - x) c(x))`,
  and the derivative of `w` to `c_k` is `-x^k w(x) / c(x)`.
  """
  steps = np.ones(rounds)
  row = np.asarray(signal.lfilter([1.0], coefficients, steps))
  rest = 1 - np.arange(rounds) / rounds
  error = rest @ row**2
  derivative = np.asarray(signal.lfilter([1.0], coefficients, row))
  pull = 2 * rest * row
  shifts = range(min(len(coefficients), rounds))
  gradient = np.zeros(len(coefficients))
  gradient[: len(shifts)] = [-pull[shift:] @ derivative[: rounds - shift] for shift in shifts]
  squared = coefficients @ coefficients
  return float(np.log(error * squared)), gradient / error + 2 * coefficients / squared


@functools.cache
def _rows() -> dict[str, list[float]]:
  table = json.loads(_TABLE.read_text('ascii'))
  if _digest(table['coefficients']) != table['sha256']:
    raise ValueError(f'{_TABLE.name} is not as it was written.')
  return table['coefficients']


def _digest(rows: dict[str, list[float]]) -> str:
  return hashlib.sha256(json.dumps(rows, sort_keys=True).encode('ascii')).hexdigest()


def main(arguments: list[str]) -> None:
  """Computes the table, and stores it with `--write`.

  Args:
    arguments: of the command line.
  """
  # Numbers that float32 has, so that the matrix of a run is exactly the one that is accounted for.
  rows = {
    str(bands): optimal_coefficients(bands, _ROUNDS).astype(np.float32).tolist() for bands in _BANDS
  }
  for bands, row in rows.items():
    errors = [
      f'{rounds} rounds {mean_squared_error(np.array(row), rounds):.3f}'
      for rounds in (10, 50, _ROUNDS, 1000)
    ]
    print(f'{bands:>3} bands:', ', '.join(errors))
  if '--write' in arguments:
    table = {'rounds': _ROUNDS, 'coefficients': rows, 'sha256': _digest(rows)}
    _TABLE.write_text(json.dumps(table, indent=1) + '\n', 'ascii')


if __name__ == '__main__':
  main(sys.argv[1:])
