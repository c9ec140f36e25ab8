# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A plan for a million devices: bytes, server seconds, memory and time, and what they rest on.

Measured here: ranks and cohorts of all devices by their ids, seconds and memory, as a run draws
them; and the aggregation of some hundred updates of full size in a TFF worker. Counted: bytes of a
message, operations of a local step. Supposed, and a flag each: the devices, how fast they compute
and are connected, and how many of them answer. A round waits for the first `clients_per_round`
answers, and is aggregated then.

    python -m benchmarks.million_devices [--devices 1000000] [--clients-per-round 1000]
      [--updates 300] [--output FILE.json]
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np
import rich.console
import rich.table

import hetlora_tff
from benchmarks import device_plan, growth, peak_memory, server_round
from benchmarks.device_plan import Assumptions, Device, Server
from hetlora_tff import aggregation
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.adapters.model import ModuleShape
from privacy.spec import Sampling
from tasks import costs, participation, plots, samplers
from tasks.config import RunConfig
from tasks.rank_assignment import assign_ranks
from tasks.worker import LocalWorker

_SEED = 0
# A simulated round is as good as another.
_SIMULATED_ROUNDS = 100


def main() -> None:
  assumed, updates, output = _arguments()
  ranks, draws = _measure_draws(assumed)
  server = _measure_server(assumed, updates)
  device = device_costs(assumed)
  generator = np.random.default_rng(_SEED)
  answers = device_plan.update_seconds(assumed, device, ranks, generator)
  rounds = []
  for number in range(1, _SIMULATED_ROUNDS + 1):
    cohort = participation.cohort(assumed.devices, assumed.asked, _SEED, number)
    rounds.append(device_plan.round_seconds(assumed, answers[cohort], generator))
  document = {
    'assumptions': dataclasses.asdict(assumed),
    'measured': {'draws': draws, 'server': server._asdict(), 'cores': _cores()},
    'plan': device_plan.plan(assumed, server, device, ranks, np.array(rounds)),
  }
  console = rich.console.Console()
  for name, numbers in {**document, 'measured': _flat(document['measured'])}.items():
    console.print(_table(name, numbers))
  if output:
    output.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')


def _arguments() -> tuple[Assumptions, int, pathlib.Path | None]:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  for field in dataclasses.fields(Assumptions):
    kind: Any = {'type': field.type}
    if field.type is bool:
      kind = {'action': argparse.BooleanOptionalAction}
    help_text = f'{field.metadata["help"]} (default: {field.default})'
    flag = '--' + field.name.replace('_', '-')
    parser.add_argument(flag, default=field.default, help=help_text.replace('%', '%%'), **kind)
  parser.add_argument('--updates', type=int, default=300, help='most that are aggregated here')
  parser.add_argument('--output', type=pathlib.Path, help='file for all numbers, as JSON')
  given = vars(parser.parse_args())
  updates, output = given.pop('updates'), given.pop('output')
  if updates < 4:
    parser.error(f'--updates {updates}: a line takes 4 or more.')
  try:
    return Assumptions(**given), updates, output
  except ValueError as error:
    sys.exit(str(error))


def _cores() -> int:
  return len(os.sched_getaffinity(0))


def _layout(assumed: Assumptions) -> AdapterLayout:
  """Query and value of every layer."""
  shape = ModuleShape(assumed.width, assumed.width)
  shapes = collections.OrderedDict((f'module_{k}', shape) for k in range(2 * assumed.layers))
  config = hetlora_tff.LoraConfig(assumed.max_rank, alpha=2.0 * assumed.max_rank)
  return AdapterLayout(shapes, config)


def device_costs(assumed: Assumptions) -> Device:
  """Counted: operations and bytes by rank."""
  layout = _layout(assumed)
  message_type = layout.adapters_type(assumed.max_rank)
  sizes = hetlora_tff.MessageSizes(
    layout,
    layout.server_type,
    message_type,
    selects_rank=assumed.selects_rank,
    upload_bits=assumed.upload_bits,
    upload_scales=aggregation.num_scales(message_type) if assumed.is_quantized else 0,
  )
  model = costs.ModelSize(
    body_weights=12 * assumed.layers * assumed.width**2,
    vocabulary_weights=assumed.vocabulary * assumed.width,
    layers=assumed.layers,
    width=assumed.width,
  )
  tokens = assumed.local_steps * assumed.batch_size * assumed.sequence_length

  def flops(rank: int) -> int:
    return costs.client_flops(
      model,
      tokens=tokens,
      predictions=tokens,
      sequence_length=assumed.sequence_length,
      trained=sizes.trained_parameters(rank),
    )

  table = (flops, sizes.download, sizes.upload)
  return Device(*(device_plan.by_rank(cost, assumed.max_rank) for cost in table))


def _measure_draws(assumed: Assumptions) -> tuple[np.ndarray, dict[str, Any]]:
  """Ranks of all devices, and what drawing them and cohorts takes."""
  clients = {f'device-{number:08d}': 1 for number in range(assumed.devices)}
  config = RunConfig(
    min_rank=assumed.min_rank, max_rank=assumed.max_rank, rank_exponent=assumed.rank_exponent
  )
  assigned, ranks_cost = _cost(lambda: assign_ranks(config, clients, _SEED))
  ranks = np.fromiter(assigned.values(), np.int32, assumed.devices)
  found = {'ranks': ranks_cost}
  asked = assumed.asked
  _, found['cohort'] = _cost(lambda: participation.cohort(assumed.devices, asked, _SEED, 1))
  for sampling in Sampling:
    separation = {}
    if sampling is Sampling.MIN_SEPARATION:
      separation['min_separation'] = max(1, assumed.devices // asked // 2)
    with tempfile.TemporaryDirectory() as folder:
      draws = pathlib.Path(folder) / 'draws.jsonl'

      def draw(sampling=sampling, separation=separation, draws=draws):
        sampler = samplers.build_sampler(
          sampling, assumed.devices, asked, key=b'plan', draws=draws, **separation
        )
        return sampler.draw(1, 0)

      _, found[f'cohort_{sampling.name.lower()}'] = _cost(draw)
  return ranks, found


def _cost(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
  """Result, seconds, and the most memory beside what was there; done twice."""
  started = time.perf_counter()
  result = run()
  seconds = time.perf_counter() - started
  # Not while the clock runs: tracing takes its time.
  tracemalloc.start()
  run()
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  return result, {'seconds': round(seconds, 4), 'peak_mb': round(peak / 1e6, 1)}


def _measure_server(assumed: Assumptions, updates: int) -> Server:
  """Aggregates some updates of full size: the line through seconds and memory by their number."""
  layout = _layout(assumed)
  modules = len(layout.shapes)
  update = server_round.random_update(modules, assumed.width, assumed.max_rank)
  weight = collections.OrderedDict((path, np.float32(1)) for path in layout.shapes)
  sums = aggregation.QuantizedSumFactory(assumed.upload_bits) if assumed.is_quantized else None
  rounds = {
    'aggregated': server_round.build(update, aggregation.SparsityWeightedMeanFactory(sums), weight),
    'made': server_round.build(update),
  }
  numbers = [updates // 4, updates // 2, updates]
  seconds: dict[str, list[float]] = {name: [] for name in rounds}
  memory = []
  for number in numbers:
    ranks = [np.int32(assumed.max_rank)] * number
    with LocalWorker(_cores()), peak_memory.watched() as peaks:
      for name, run in rounds.items():
        run(ranks)
        started = time.perf_counter()
        run(ranks)
        seconds[name].append(time.perf_counter() - started)
    memory.append(peaks.driver + peaks.worker)
  aggregated, made = (growth.fit(numbers, seconds[name]).slope for name in rounds)
  held = growth.fit(numbers, memory)
  # That updates are made here, too, is no part of a server.
  return Server(max(0.0, aggregated - made), held.slope, held.intercept)


def _flat(measured: dict[str, Any]) -> dict[str, Any]:
  """One level instead of two or three."""
  flat = {}
  for name, value in measured.items():
    inner = _flat(value) if isinstance(value, dict) else None
    flat |= {name: value} if inner is None else {f'{name} {k}': v for k, v in inner.items()}
  return flat


def _table(title: str, numbers: dict[str, Any]) -> rich.table.Table:
  table = rich.table.Table(title, '', box=None)
  for name, value in numbers.items():
    table.add_row(name.replace('_', ' '), _text(name, value))
  return table


def _text(name: str, value: Any) -> str:
  if 'bytes' in name:
    return plots.format_bytes(value)
  if isinstance(value, float):
    return f'{value:,.4g}' if abs(value) < 1000 else f'{value:,.0f}'
  return f'{value:,}'


if __name__ == '__main__':
  main()
