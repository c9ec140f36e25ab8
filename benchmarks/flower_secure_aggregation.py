# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Flower's SecAgg+ alone, without training: CPU seconds and bytes of each stage, one JSON line.

Runs in an environment of its own, with `flwr==1.41.0`; `benchmarks.secure_aggregation --flower`
prints what comes out beside ours. All parties run one after another in this process, and a client
"trains" by handing out a stored random vector.

    python benchmarks/flower_secure_aggregation.py --clients 16 --coordinates 32768 --shares 16
      --threshold 9 >> FILE
"""

# pyright: reportMissingImports=false

import argparse
import collections
import copy
import json
import logging
import statistics
import time

import flwr
import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
  Code,
  FitRes,
  Status,
  ndarrays_to_parameters,
  parameters_to_ndarrays,
)
from flwr.common.serde import message_to_proto
from flwr.compat.common import recorddict_compat
from flwr.server import LegacyContext, ServerConfig
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity

_STAGES = ('setup', 'share_keys', 'collect', 'unmask')


def _context() -> Context:
  """Of a run that nothing else is known about."""
  return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})


def _size(message: Message) -> int:
  """Bytes on the wire."""
  message.metadata.__dict__.setdefault('_message_id', '')
  return message_to_proto(message).ByteSize()


class _Grid:
  """Calls the clients one after another, with clocks for both sides."""

  def __init__(self, vectors, dropped):
    self.vectors, self.dropped = vectors, dropped
    self.contexts = [_context() for _ in vectors]
    self.stage = 0
    self.client_s = collections.defaultdict(float)
    self.server_s = collections.defaultdict(float)
    self.up, self.down = collections.Counter(), collections.Counter()
    self.replies = collections.Counter()
    self.left = time.process_time()

  def call_next(self, message, _):
    started = time.process_time()
    vector = self.vectors[message.metadata.dst_node_id]
    result = FitRes(Status(Code.OK, ''), ndarrays_to_parameters([vector]), 32, {})
    reply = Message(recorddict_compat.fitres_to_recorddict(result, False), reply_to=message)
    self.excluded += time.process_time() - started
    return reply

  def send_and_receive(self, messages, **_):
    messages = list(messages)
    self.server_s[self.stage] += time.process_time() - self.left
    name = _STAGES[self.stage]
    replies = []
    for message in messages:
      k = message.metadata.dst_node_id
      self.down[name] += _size(message)
      message.metadata._src_node_id = 99
      if name == 'collect' and k in self.dropped:
        replies.append(Message(Error(code=0, reason='gone'), reply_to=message))
        continue
      delivered = copy.deepcopy(message)
      self.excluded = 0.0
      started = time.process_time()
      reply = secaggplus_mod(delivered, self.contexts[k], self.call_next)
      self.client_s[name] += time.process_time() - started - self.excluded
      self.up[name] += _size(reply)
      self.replies[name] += 1
      replies.append(reply)
    self.stage += 1
    self.left = time.process_time()
    return replies


def _run(arguments, seed) -> dict:
  """One session."""
  generator = np.random.default_rng(seed)
  vectors = [
    generator.uniform(-1, 1, arguments.coordinates).astype(np.float32)
    for _ in range(arguments.clients)
  ]
  dropped = set(range(round(arguments.dropout * arguments.clients)))
  grid = _Grid(vectors, dropped)
  manager = SimpleClientManager()
  for k in range(arguments.clients):
    manager.register(GridClientProxy(node_id=k, grid=grid, run_id=1))
  initial = ndarrays_to_parameters([np.zeros(arguments.coordinates, np.float32)])
  strategy = FedAvg(
    fraction_fit=1.0,
    min_fit_clients=1,
    min_available_clients=1,
    inplace=False,
    fraction_evaluate=0.0,
  )
  legacy = LegacyContext(_context(), ServerConfig(num_rounds=1), strategy, manager)
  legacy.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
  legacy.state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(
    initial, True
  )
  workflow = SecAggPlusWorkflow(arguments.shares, arguments.threshold)
  grid.left = started = time.process_time()
  workflow(grid, legacy)
  last = time.process_time() - grid.left
  total = time.process_time() - started
  kept = [v for k, v in enumerate(vectors) if k not in dropped]
  result = recorddict_compat.arrayrecord_to_parameters(
    legacy.state.array_records[MAIN_PARAMS_RECORD], True
  )
  got = parameters_to_ndarrays(result)[0]
  n = arguments.clients
  # What the server does before a stage's messages go out is that stage's; the rest is unmasking.
  server = {_STAGES[i]: s for i, s in grid.server_s.items()}
  server['unmask'] += last
  return {
    'total_s': total,
    'client_s': {s: grid.client_s[s] / grid.replies[s] for s in _STAGES},
    'server_s': server,
    'up_bytes': {s: grid.up[s] / grid.replies[s] for s in _STAGES},
    'down_bytes': {s: grid.down[s] / n for s in _STAGES},
    'error': float(np.abs(got - np.mean(kept, 0)).max()),
  }


def main() -> None:
  """Prints the medians of some sessions."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--clients', type=int, default=16)
  parser.add_argument('--coordinates', type=int, default=32768)
  parser.add_argument('--shares', type=int, default=16)
  parser.add_argument('--threshold', type=int, default=9)
  parser.add_argument('--dropout', type=float, default=0.0)
  parser.add_argument('--repeats', type=int, default=3)
  arguments = parser.parse_args()
  logging.getLogger('flwr').setLevel(logging.ERROR)
  # Flower's messages ask which task they belong to.
  TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
  runs = [_run(arguments, seed) for seed in range(arguments.repeats)]

  def median(key):
    first = runs[0][key]
    if isinstance(first, dict):
      return {s: statistics.median(r[key][s] for r in runs) for s in first}
    return statistics.median(r[key] for r in runs)

  print(json.dumps({
    'bench': 'flower_secagg', 'flwr': flwr.__version__,
    **vars(arguments),
    **{key: median(key) for key in runs[0]},
  }))  # fmt: skip


if __name__ == '__main__':
  main()
