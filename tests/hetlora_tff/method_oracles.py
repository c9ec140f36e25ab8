# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""One round of every rival on the toy model, in float64 NumPy, each from its paper's description.

A server is `Server(adapters {path: (a, b)}, residual {path: [d_out, d_in]}, round)`; clients are
(rank, batches). Every function returns the next server. Clients without examples do not count.
"""

import dataclasses

import numpy as np

from tests.hetlora_tff import paper_oracle, toy_model

METHOD = paper_oracle.Method(scope='uniform', client_rate=0.02)
SCALING = toy_model.CONFIG.scaling


@dataclasses.dataclass(frozen=True)
class Server:
  """What the server holds."""

  adapters: dict
  residual: dict
  rounds_done: int = 0

  def update(self) -> dict:
    """What is added to each frozen weight."""
    return {path: self.residual[path] + SCALING * b @ a for path, (a, b) in self.adapters.items()}


def initial(adapters) -> Server:
  """A server with these adapters and no residual."""
  zeros = {path: np.zeros((d_out, d_in)) for path, (d_in, d_out) in toy_model.SHAPES.items()}
  return Server(paper_oracle.float64(adapters), zeros)


def _train(server, clients, trained='ab'):
  sent = [
    paper_oracle.train(
      METHOD, server.adapters, rank, batches, trained=trained, residual=server.residual
    )
    for rank, batches in clients
  ]
  return [s for s in sent if s.num_examples]


def _padded(server, sent):
  """{path: list over clients of zero-padded (a, b)}."""
  return {
    path: [
      tuple(
        paper_oracle.padded(m, full.shape) for m, full in zip(s.after[path], whole, strict=True)
      )
      for s in sent
    ]
    for path, whole in server.adapters.items()
  }


def _next(server, adapters, residual=None):
  return Server(adapters, residual or server.residual, server.rounds_done + 1)


def naive(server, clients):
  """Mean of the zero-padded factors."""
  sent = _padded(server, _train(server, clients))
  return _next(
    server,
    {
      path: (np.mean([a for a, _ in pairs], 0), np.mean([b for _, b in pairs], 0))
      for path, pairs in sent.items()
    },
  )


def homlora(server, clients):
  """Mean of factors that all have the largest rank."""
  return naive(server, [(toy_model.MAX_RANK, batches) for _, batches in clients])


def coverage(server, clients):
  """Row `j` of `a` and column `j` of `b`: the mean over the clients of a rank above `j`."""
  sent = _train(server, clients)
  result = {}
  for path, (a, b) in server.adapters.items():
    a, b = a.copy(), b.copy()
    for j in range(toy_model.MAX_RANK):
      holders = [s.after[path] for s in sent if s.rank > j]
      if holders:
        a[j] = np.mean([held[0][j] for held in holders], 0)
        b[:, j] = np.mean([held[1][:, j] for held in holders], 0)
    result[path] = (a, b)
  return _next(server, result)


def svd(server, clients):
  """The best approximation of rank R of the mean product: `b = U s`, `a = V^T`.

  Ranks that the product does not have keep the server's row of `a`, beside zeros in `b`.
  """
  result = {}
  for path, pairs in _padded(server, _train(server, clients)).items():
    u, s, vt = np.linalg.svd(np.mean([b @ a for a, b in pairs], 0), full_matrices=False)
    a, b = server.adapters[path][0].copy(), np.zeros_like(server.adapters[path][1])
    rank = min(len(s), toy_model.MAX_RANK)
    a[:rank], b[:, :rank] = vt[:rank], u[:, :rank] * s[:rank]
    result[path] = (a, b)
  return _next(server, result)


def stacking(server, clients, fresh):
  """The mean product joins the frozen weight; factors start anew with `fresh` `{path: a}`."""
  sent = _padded(server, _train(server, clients))
  residual = {
    path: server.residual[path] + SCALING * np.mean([b @ a for a, b in pairs], 0)
    for path, pairs in sent.items()
  }
  adapters = {path: (fresh[path], 0.0 * b) for path, (_, b) in server.adapters.items()}
  return _next(server, adapters, residual)


def fedex(server, clients):
  """The mean factors; what their product lacks of the mean product joins the frozen weight."""
  sent = _padded(server, _train(server, clients))
  means = naive(server, clients).adapters
  residual = {
    path: server.residual[path]
    + SCALING * (np.mean([b @ a for a, b in pairs], 0) - means[path][1] @ means[path][0])
    for path, pairs in sent.items()
  }
  return _next(server, means, residual)


def ffa(server, clients):
  """Mean of `b`; `a` never moves."""
  sent = _padded(server, _train(server, clients, trained='b'))
  return _next(
    server,
    {
      path: (server.adapters[path][0], np.mean([b for _, b in pairs], 0))
      for path, pairs in sent.items()
    },
  )


def rolora(server, clients):
  """`b` in the first round, `a` in the next, and so on."""
  name = 'ab'[(server.rounds_done + 1) % 2]
  sent = _train(server, clients, trained=name)
  result = {}
  for path, (a, b) in server.adapters.items():
    a, b = a.copy(), b.copy()
    for s in sent:
      after_a, after_b = s.after[path]
      before_a, before_b = s.before[path]
      a[: s.rank] += (after_a - before_a) / len(sent)
      b[:, : s.rank] += (after_b - before_b) / len(sent)
    result[path] = (a, b)
  return _next(server, result)


def deviation(before: Server, after: Server, exact: dict) -> float:
  """Relative distance between what the server holds and the exact mean `{path: [d_out, d_in]}`."""
  error, size = 0.0, 0.0
  for path, mean in exact.items():
    error += np.sum((after.update()[path] - before.residual[path] - SCALING * mean) ** 2)
    size += np.sum((SCALING * mean) ** 2)
  return float(np.sqrt(error / size))


def mean_product(server, clients):
  """Mean of the products of zero-padded factors."""
  sent = _padded(server, _train(server, clients))
  return {path: np.mean([b @ a for a, b in pairs], 0) for path, pairs in sent.items()}


def mean_by_row(server, clients):
  """Sum over ranks of the mean product of that rank alone, over the clients that hold it."""
  sent = _train(server, clients)
  result = {}
  for path in server.adapters:
    means = []
    for j in range(toy_model.MAX_RANK):
      held = [s.after[path] for s in sent if s.rank > j]
      means.append(np.mean([np.outer(b[:, j], a[j]) for a, b in held], 0))
    result[path] = np.sum(means, 0)
  return result
