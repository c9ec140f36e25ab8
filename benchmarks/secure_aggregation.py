# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a secure sum costs a client and the server: seconds by phase, and bytes.

The state machines of all parties run one after another in this process. Seconds are of CPU, on one
core, so that other work on the machine changes them little. Clients that drop out do so before
their vector is sent, which costs the server most. `--tcp` runs one case over loopback as well.
`--flower` takes the JSON lines of Flower's runs on the same work (a whole round with and without
SecAgg+, and SecAgg+ alone) and prints both side by side.

    python -m benchmarks.secure_aggregation [--clients 10 30] [--coordinates 10000] [--dropout 0.1]
      [--neighbours 20] [--modes semi_honest] [--tcp] [--flower FILE] [--json FILE]
"""

import argparse
import asyncio
import collections
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import rich.console
import rich.table

from privacy.secagg import primitives, tcp
from privacy.secagg.client import Client
from privacy.secagg.parameters import SESSION_BYTES, Mode, Phase, ProtocolSpec
from privacy.secagg.server import Server

_CLIENTS, _COORDINATES = (10, 30, 100), (1_000, 10_000, 65_536, 1_000_000)
_MODES = tuple(mode.value for mode in Mode)
# Of a table, where the output is a file.
_WIDTH = 132
# Busier rounds of Flower, in cores that others kept busy, are left out.
_MOST_FOREIGN_LOAD = 0.15
_TCP_CLIENTS, _TCP_COORDINATES, _DEADLINE = 10, 65_536, 60.0


@dataclasses.dataclass(frozen=True)
class Case:
  """One session to run."""

  clients: int
  coordinates: int
  mode: Mode
  dropout: float
  neighbours: int | None
  modulus_bits: int

  @property
  def spec(self) -> ProtocolSpec:
    """With the smallest threshold that the mode allows."""
    holders = self.clients if self.neighbours is None else self.neighbours + 1
    least = 2 * holders // 3 + 1 if self.mode is Mode.MALICIOUS else holders // 2 + 1
    return ProtocolSpec(
      num_clients=self.clients,
      threshold=least,
      vector_length=self.coordinates,
      modulus_bits=self.modulus_bits,
      mode=self.mode,
      neighbours=self.neighbours,
    )

  def labels(self) -> tuple[str, ...]:
    """For a table."""
    mode = self.mode.value if self.neighbours is None else f'{self.mode.value}, {self.neighbours}'
    return str(self.clients), f'{self.coordinates:,}', mode, f'{self.dropout:.0%}'


class Clock:
  """Seconds and bytes of a session by phase: `client_s` and bytes are of one client, on average."""

  def __init__(self):
    self.client_s, self.server_s, self.up_bytes, self.down_bytes, self._active = (
      collections.defaultdict[Phase, float](float) for _ in range(5)
    )

  def client(self, phase: Phase, act: Callable[[], bytes]) -> bytes:
    started = time.process_time()
    message = act()
    self.client_s[phase] += time.process_time() - started
    self.up_bytes[phase] += len(message)
    self._active[phase] += 1
    return message

  def server(self, phase: Phase, act: Callable):
    started = time.process_time()
    result = act()
    self.server_s[phase] += time.process_time() - started
    return result

  def per_client(self) -> dict[str, dict[str, float]]:
    """All numbers, by phase name."""
    counters = {'client_s': self.client_s, 'up_bytes': self.up_bytes, 'down_bytes': self.down_bytes}
    means = {
      key: {p.name.lower(): counter[p] / self._active[p] for p in self._active}
      for key, counter in counters.items()
    }
    return {**means, 'server_s': {p.name.lower(): self.server_s[p] for p in self._active}}


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--clients', type=int, nargs='+', default=_CLIENTS)
  parser.add_argument('--coordinates', type=int, nargs='+', default=_COORDINATES)
  parser.add_argument('--modes', nargs='+', choices=_MODES, default=_MODES)
  parser.add_argument('--dropout', type=float, nargs='+', default=(0.0, 0.1), help='share lost')
  parser.add_argument('--neighbours', type=int, help='of the graph; semi-honest mode only')
  parser.add_argument('--modulus-bits', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=3, help='sessions of each case')
  parser.add_argument(
    '--most-work', type=float, default=1e9, help='skip cases of more clients^2 x coordinates'
  )
  parser.add_argument('--tcp', action='store_true', help='run one case over loopback, too')
  parser.add_argument('--flower', type=pathlib.Path, help="JSON lines of Flower's runs")
  parser.add_argument('--json', type=pathlib.Path, help='file for all the numbers')
  arguments = parser.parse_args()
  console = rich.console.Console(width=max(_WIDTH, rich.console.Console().width))
  results = [_measure(case, arguments.repeats) for case in _cases(arguments)]
  console.print(_table(results))
  if arguments.tcp:
    console.print(_over_tcp(arguments.repeats))
  if arguments.flower:
    lines = arguments.flower.read_text().splitlines()
    _print_beside(console, [json.loads(line) for line in lines], arguments.repeats)
  if arguments.json:
    arguments.json.write_text(json.dumps([_as_json(*result) for result in results], indent=2))


def _cases(arguments) -> list[Case]:
  product = itertools.product(
    arguments.clients, arguments.coordinates, arguments.modes, arguments.dropout
  )
  cases = []
  for clients, coordinates, mode, dropout in product:
    fits = mode == Mode.SEMI_HONEST.value and (arguments.neighbours or clients) <= clients - 2
    neighbours = arguments.neighbours if fits else None
    if clients * (neighbours or clients) * coordinates <= arguments.most_work:
      cases.append(
        Case(clients, coordinates, Mode(mode), dropout, neighbours, arguments.modulus_bits)
      )
  return cases


def _measure(case: Case, repeats: int) -> tuple[Case, list[dict]]:
  return case, [_session(case, seed).per_client() for seed in range(repeats)]


def _session(case: Case, seed: int) -> Clock:
  """Runs a session and checks its sum."""
  spec, clock, session = case.spec, Clock(), os.urandom(SESSION_BYTES)
  vectors = np.random.default_rng(seed).integers(
    0, 1 << case.modulus_bits, [case.clients, case.coordinates], np.uint64
  )
  signing, verify = _keys(case)
  clients = {
    k: Client(spec, k, session, signing_key=signing.get(k), verify_keys=verify)
    for k in range(case.clients)
  }
  server = Server(spec, session, verify_keys=verify)
  inbox = dict.fromkeys(clients, b'')
  for phase in spec.phases:
    if phase is Phase.MASKED_INPUT:
      for lost in range(round(case.dropout * case.clients)):
        del clients[lost]
    for k in inbox.keys() & clients.keys():
      act = clients[k].advertise
      if phase is not Phase.ADVERTISE_KEYS:
        act = functools.partial(tcp.answer, clients[k], inbox[k], vectors[k])
      answer = clock.client(phase, act)
      clock.server(phase, functools.partial(server.receive, k, answer))
      clock.down_bytes[phase] += len(inbox[k])
    inbox = clock.server(phase, server.close_phase)
  expected = vectors[list(server.result.clients)].sum(axis=0) % np.uint64(1 << case.modulus_bits)
  if server.result.clients != tuple(sorted(clients)) or np.any(server.result.total != expected):
    raise RuntimeError(f'{case}: the sum is wrong')
  return clock


def _keys(case: Case) -> tuple[dict[int, bytes], dict[int, bytes] | None]:
  if case.mode is not Mode.MALICIOUS:
    return {}, None
  signing = {k: primitives.new_signing_key() for k in range(case.clients)}
  return signing, {k: primitives.verify_key(key) for k, key in signing.items()}


def _median(runs: list[dict], key: str, *phases: Phase) -> float:
  """Over the sessions, of the sum over these phases, or all."""
  names = [phase.name.lower() for phase in phases]
  return statistics.median(sum(r[key][name] for name in names or r[key]) for r in runs)


def _table(results: list[tuple[Case, list[dict]]]) -> rich.table.Table:
  """Medians; `keys` are the two rounds before the vectors, `unmask` the one or two after them."""
  table = rich.table.Table(
    *('clients', 'coordinates', 'mode', 'lost', 'client ms: keys', 'mask', 'unmask'),
    *('server ms: keys', 'masked', 'unmask', 'KB up', 'x plain', 'KB down'),
    box=None,
    title='Secure sums: a client, and the server for all of them',
  )
  before = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS)
  for case, runs in results:
    after = tuple(p for p in case.spec.phases if p.value > Phase.MASKED_INPUT.value)
    seconds = [
      _median(runs, side, *phases)
      for side in ('client_s', 'server_s')
      for phases in (before, (Phase.MASKED_INPUT,), after)
    ]
    up = _median(runs, 'up_bytes')
    plain = case.coordinates * case.modulus_bits / 8
    table.add_row(
      *case.labels(),
      *(f'{1e3 * s:.1f}' for s in seconds),
      *(f'{up / 1e3:.1f}', f'{up / plain:.2f}', f'{_median(runs, "down_bytes") / 1e3:.1f}'),
    )
  return table


def _as_json(case: Case, runs: list[dict]) -> dict:
  return {**dataclasses.asdict(case), 'mode': case.mode.value, 'runs': runs}


def _over_tcp(repeats: int) -> rich.table.Table:
  """All parties in one event loop on loopback, beside the same sessions without the wire."""
  table = rich.table.Table('clients', 'coordinates', 'over', 's', 'min', 'max', box=None)
  case = Case(_TCP_CLIENTS, _TCP_COORDINATES, Mode.SEMI_HONEST, 0.0, None, 32)
  kinds = (
    ('function calls', lambda: _session(case, 0)),
    ('TCP', lambda: asyncio.run(_tcp_session(case))),
  )
  for name, run in kinds:
    seconds = []
    for _ in range(repeats):
      started = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - started)
    numbers = (f'{f(seconds):.3f}' for f in (statistics.median, min, max))
    table.add_row(str(case.clients), f'{case.coordinates:,}', name, *numbers)
  return table


async def _tcp_session(case: Case) -> None:
  vectors = np.zeros([case.clients, case.coordinates], np.uint64)
  listening = asyncio.get_running_loop().create_future()
  place = {'host': '127.0.0.1', 'deadline': _DEADLINE}
  serving = asyncio.create_task(
    tcp.serve(case.spec, port=0, on_listening=lambda _, port: listening.set_result(port), **place)
  )
  port = await listening
  await asyncio.gather(
    *(tcp.take_part(case.spec, k, v, port=port, **place) for k, v in enumerate(vectors))
  )
  await serving


def _print_beside(console: rich.console.Console, lines: list[dict], repeats: int) -> None:
  """Flower's rounds with SecAgg+ less those without; then SecAgg+ alone and ours, case by case."""
  columns = ('Flower', 'shares', 's/round', 'of it SecAgg+', 'KB up', 'KB down')
  table = rich.table.Table(*columns, box=None)
  by_kind = collections.defaultdict(list)
  sizes = {}
  for line in lines:
    if line['bench'] == 'flower':
      kind = (line['mode'], line.get('shares', 0))
      if 'bytes_per_client_round' in line:
        sizes[kind] = line['bytes_per_client_round']
      else:
        rounds = zip(line['round_s'][1:], line['foreign_load'], strict=True)
        by_kind[kind] += [seconds for seconds, load in rounds if load <= _MOST_FOREIGN_LOAD]
  plain = statistics.median(by_kind.get(('legacy', 0), [float('nan')]))
  for kind, seconds in sorted(by_kind.items()):
    own = f'{statistics.median(seconds) - plain:.2f}' if kind[0] == 'secagg' else ''
    size = sizes.get(kind, {})
    kilobytes = (f'{size[key] / 1e3:.1f}' if size else '' for key in ('up_proto', 'down_proto'))
    table.add_row(kind[0], str(kind[1] or ''), f'{statistics.median(seconds):.2f}', own, *kilobytes)
  console.print(table)
  alone = rich.table.Table(
    *('SecAgg', 'clients', 'coordinates', 'shares', 'lost', 'client ms', 'server ms', 'KB up'),
    box=None,
    title='Without training, one process',
  )
  for line in (line for line in lines if line['bench'] == 'flower_secagg'):
    _add_both(alone, line, repeats)
  console.print(alone)


def _add_both(table: rich.table.Table, line: dict, repeats: int) -> None:
  """A row of Flower's, and one of ours with as many shares per secret."""
  clients, coordinates = line['clients'], line['coordinates']
  neighbours = line['shares'] - 1 if line['shares'] < clients else None
  case = Case(clients, coordinates, Mode.SEMI_HONEST, line['dropout'], neighbours, 32)
  _, runs = _measure(case, repeats)
  for name, numbers in (('Flower', [line]), ('ours', runs)):
    milliseconds = (1e3 * _median(numbers, side) for side in ('client_s', 'server_s'))
    table.add_row(
      *(name, str(clients), f'{coordinates:,}', str(line['shares']), f'{line["dropout"]:.0%}'),
      *(f'{value:.1f}' for value in milliseconds),
      f'{_median(numbers, "up_bytes") / 1e3:.1f}',
    )


if __name__ == '__main__':
  main()
