# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What each aggregation factory must compute, once more in NumPy and float64.

A client is `(factors, weight)`: zero-padded `{path: (a [R_l, d_in], b [d_out, R_l])}`, and a weight
that is a number, `{path: number}` or `[R]`. Every oracle stands alone: none shares a formula with
another, so that a broken one cannot hide in two.
"""

import numpy as np


def sparsity_weighted_mean(clients):
  """`{path: (a, b)}`: one weight per module."""
  result = {}
  for path in clients[0][0]:
    weights = np.array([weight[path] for _, weight in clients], np.float64)
    result[path] = tuple(
      np.tensordot(weights, [factors[path][i] for factors, _ in clients], 1) / weights.sum()
      for i in range(2)
    )
  return result


def zero_pad_mean(clients):
  """`{path: (a, b)}`: one weight per client."""
  weights = [float(weight) for _, weight in clients]
  return {
    path: tuple(
      np.average([factors[path][i] for factors, _ in clients], axis=0, weights=weights)
      for i in range(2)
    )
    for path in clients[0][0]
  }


def rank_coverage_mean(clients, expected=None):
  """`{path: (a, b)}`, row by row: only clients with a weight there count; nobody's row is 0."""
  result = {}
  for path, (a, b) in clients[0][0].items():
    mean_a, mean_b = np.zeros(a.shape), np.zeros(b.shape)
    for row in range(a.shape[0]):
      holders = [(f[path], float(w[row])) for f, w in clients if w[row] > 0]
      if expected is None:
        total = sum(weight for _, weight in holders)
      else:
        holders, total = [(factors, 1.0) for factors, _ in holders], expected[row]
      for (held_a, held_b), weight in holders:
        if total > 0:
          mean_a[row] += weight / total * held_a[row]
          mean_b[:, row] += weight / total * held_b[:, row]
    result[path] = (mean_a, mean_b)
  return result


def mean_product(clients):
  """`{path: [d_out, d_in]}`, dense."""
  total = sum(weight for _, weight in clients)
  result = dict.fromkeys(clients[0][0], 0.0)
  for factors, weight in clients:
    for path, (a, b) in factors.items():
      result[path] = result[path] + float(weight) / total * (np.float64(b) @ np.float64(a))
  return result


def truncated_product(clients, rank):
  """`{path: [d_out, d_in]}`: the mean product cut to `min(rank, R_l)` singular values."""
  result = {}
  share = np.array([weight for _, weight in clients], np.float64)
  share /= share.sum()
  for path, (a, _) in clients[0][0].items():
    products = [np.float64(f[path][1]) @ np.float64(f[path][0]) for f, _ in clients]
    u, s, v = np.linalg.svd(np.einsum('k,kij->ij', share, products), full_matrices=False)
    kept = min(rank, a.shape[0])
    result[path] = (u[:, :kept] * s[:kept]) @ v[:kept]
  return result


def residual_corrected_mean(clients):
  """`{path: (a, b, residual)}`; the residual as the sum of the deviations' products."""
  weights = np.array([weight for _, weight in clients], np.float64)
  shares = weights / weights.sum()
  result = {}
  for path in clients[0][0]:
    a = sum(p * np.float64(f[path][0]) for p, (f, _) in zip(shares, clients, strict=True))
    b = sum(p * np.float64(f[path][1]) for p, (f, _) in zip(shares, clients, strict=True))
    residual = sum(
      p * (f[path][1] - b) @ (f[path][0] - a) for p, (f, _) in zip(shares, clients, strict=True)
    )
    result[path] = (a, b, residual)
  return result


def deviation_from_exact(clients, before, after, scaling):
  """The number of `build_deviation_from_exact`, dense.

  `before` and `after` are `{path: (a, b)}` or `{path: (a, b, residual)}`.
  """
  missed = exact = 0.0
  for path, (held_a, held_b, *held_residual) in before.items():
    held_a, held_b = np.float64(held_a), np.float64(held_b)
    wanted = np.zeros([held_b.shape[0], held_a.shape[1]])
    for row in range(held_a.shape[0]):
      weights = [_row_weight(weight, path, row) for _, weight in clients]
      if sum(weights) == 0:
        wanted += np.outer(held_b[:, row], held_a[row])
      for weight, (factors, _) in zip(weights, clients, strict=True):
        a, b = factors[path]
        if weight > 0:
          wanted += weight / sum(weights) * np.outer(np.float64(b[:, row]), np.float64(a[row]))
    new_a, new_b, *new_residual = after[path]
    got = scaling * (np.float64(new_b) @ np.float64(new_a))
    for sign, residuals in ((1, new_residual), (-1, held_residual)):
      got = got + sign * sum(np.float64(r) for r in residuals)
    missed += np.sum((got - scaling * wanted) ** 2)
    exact += np.sum((scaling * wanted) ** 2)
  return np.sqrt(missed / exact)


def _row_weight(weight, path, row):
  weight = weight[path] if isinstance(weight, dict) else weight
  return float(weight[row]) if np.ndim(weight) else float(weight)
