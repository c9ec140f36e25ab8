# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""One round of HetLoRA on the toy model, in float64 NumPy.

Written from the description of the method, not from the package: truncation, local SGD with the
tail penalty, the pruning decision, weights, zero-padded separate averages, the server's step.
"""

import dataclasses
import math

import numpy as np

from tests.hetlora_tff import toy_model


@dataclasses.dataclass(frozen=True)
class Method:
  """The constants of a run."""

  scope: str = 'module'  # or 'model', 'uniform', 'examples'
  padding: str = 'state'  # or 'update'
  gamma: float = 1.0
  lam: float = 0.0
  min_rank: int = 1
  client_rate: float = 0.05
  server_rate: float = 1.0
  alpha: float = toy_model.CONFIG.alpha
  max_rank: int = toy_model.MAX_RANK


@dataclasses.dataclass
class Sent:
  """What the server would see of one client without padding, and its new rank."""

  before: dict
  after: dict
  rank: int
  num_examples: int


def float64(adapters) -> dict:
  """Adapters as `{path: (a, b)}`."""
  return {path: tuple(np.array(x, np.float64) for x in f) for path, f in adapters.items()}


def _cut(adapters, rank):
  return {path: (a[:rank].copy(), b[:, :rank].copy()) for path, (a, b) in adapters.items()}


def _tail(adapters, start):
  return sum(
    np.linalg.norm(b[:, start:]) * np.linalg.norm(a[start:, :]) for a, b in adapters.values()
  )


def _gradients(method, adapters, x, y, residual=None):
  """Of the mean squared error of `y - E2 E1 x`, `E = W + residual + alpha / R b a`."""
  scaling = method.alpha / method.max_rank
  frozen = {path: w.astype(np.float64) for path, w in toy_model.frozen_weights().items()}
  frozen = {path: w + residual[path] if residual else w for path, w in frozen.items()}
  effective = {p: frozen[p] + scaling * b @ a for p, (a, b) in adapters.items()}
  x, y = x.astype(np.float64), y.astype(np.float64)
  hidden = x @ effective['first'].T
  error = 2.0 * (hidden @ effective['second'].T - y) / len(x)
  slope = {'second': error.T @ hidden, 'first': (error @ effective['second']).T @ x}
  return {
    path: (scaling * b.T @ slope[path], scaling * slope[path] @ a.T)
    for path, (a, b) in adapters.items()
  }


def _add_penalty(gradients, adapters, start, lam):
  """Adds the gradient of `lam sum_l |b_l[:, start:]| |a_l[start:, :]|`; 0 where a norm is 0."""
  for path, (a, b) in adapters.items():
    norm_a, norm_b = np.linalg.norm(a[start:, :]), np.linalg.norm(b[:, start:])
    if norm_a > 0.0:
      gradients[path][0][start:, :] += lam * norm_b * a[start:, :] / norm_a
    if norm_b > 0.0:
      gradients[path][1][:, start:] += lam * norm_a * b[:, start:] / norm_b


def train(method, server, rank, batches, *, trained='ab', residual=None) -> Sent:
  """What a client of `rank` makes of the server's adapters, moving only the named factors."""
  received = _cut(float64(server), rank)
  current = _cut(received, rank)
  candidate = min(rank, max(method.min_rank, math.floor(method.gamma * rank)))
  for x, y in batches:
    gradients = _gradients(method, current, x, y, residual)
    if candidate < rank:
      _add_penalty(gradients, current, candidate, method.lam)
    current = {
      path: tuple(
        v - method.client_rate * g * (name in trained)
        for name, v, g in zip('ab', current[path], gradients[path], strict=True)
      )
      for path in current
    }
  prunes = candidate < rank and _tail(current, candidate) < _tail(received, candidate)
  new_rank = candidate if prunes else rank
  return Sent(received, _cut(current, new_rank), new_rank, sum(len(x) for x, _ in batches))


def weights(method, sent: Sent) -> dict:
  """`{path: w}`; a client without examples weighs nothing."""
  paths = list(sent.after)
  if sent.num_examples == 0:
    return dict.fromkeys(paths, 0.0)
  if method.scope == 'uniform':
    return dict.fromkeys(paths, 1.0)
  if method.scope == 'examples':
    return dict.fromkeys(paths, float(sent.num_examples))
  norms = {path: np.linalg.norm(b @ a) + 1e-12 for path, (a, b) in sent.after.items()}
  if method.scope == 'model':
    return dict.fromkeys(paths, math.sqrt(sum(n**2 for n in norms.values())))
  return norms


def padded(matrix, shape):
  """The matrix in the top left of zeros."""
  result = np.zeros(shape)
  result[: matrix.shape[0], : matrix.shape[1]] = matrix
  return result


def _target(method, server_matrix, before, after):
  """What one client asks the server's matrix to become."""
  if method.padding == 'state':
    return padded(after, server_matrix.shape)
  before = before[: after.shape[0], : after.shape[1]]
  return server_matrix + padded(after - before, server_matrix.shape)


def round_(method, server, clients):
  """Runs one round.

  Args:
    method: the constants.
    server: `{path: (a, b)}`.
    clients: list of (rank, batches).

  Returns:
    The server's new adapters and the clients' new ranks.
  """
  server = float64(server)
  sent = [train(method, server, rank, batches) for rank, batches in clients]
  shares = [weights(method, s) for s in sent]
  result = {}
  for path, matrices in server.items():
    total = sum(share[path] for share in shares)
    new = []
    for i, matrix in enumerate(matrices):
      mean = matrix
      if total > 0.0:
        mean = sum(
          share[path] / total * _target(method, matrix, s.before[path][i], s.after[path][i])
          for share, s in zip(shares, sent, strict=True)
        )
      new.append(matrix + method.server_rate * (mean - matrix))
    result[path] = tuple(new)
  return result, [s.rank for s in sent]
