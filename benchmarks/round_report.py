# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the times of rounds, bare loops, matrix products and rivals say about each other."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import rich.table

from benchmarks import load, peers

# Of losses at the same steps: those of a rounded type over float32, and those of one computation.
_MOST_LOSS_DIFFERENCE = 0.005
_MOST_LOOP_DIFFERENCE = 1e-5


class Measured(NamedTuple):
  """All measurements of one kind, one per repeat.

  Attributes:
    flops: floating-point operations that one run of it must do.
    samples: the measurements.
    loss: the mean loss of its steps, where it has one that can be compared.
  """

  flops: int
  samples: Sequence[load.Sample]
  loss: float | None = None

  @property
  def seconds(self) -> list[float]:
    """Of the clean samples, or of all if none is."""
    return [s.seconds for s in self.samples if s.is_clean] or [s.seconds for s in self.samples]

  @property
  def gflops(self) -> float:
    """Achieved, in the median."""
    return self.flops / statistics.median(self.seconds) / 1e9


def round_of(dtype: str) -> str:
  """Name of our round's measurements."""
  return f'round, {dtype}'


def loop_of(dtype: str) -> str:
  """Name of the bare loop's."""
  return f'bare loop, {dtype}'


def peak_of(dtype: str) -> str:
  """Name of the matrix products'."""
  return f'matrix products, {dtype}'


def summary(kinds: Mapping[str, Measured], dtypes: Sequence[str]) -> dict[str, Any]:
  """Figures of one size, for JSON.

  Args:
    kinds: measurements by name; `peak_of('float32')`, and per type a round and its loop.
    dtypes: that the model computes in.
  """
  result: dict[str, Any] = {
    'kinds': {
      name: {
        'median_seconds': round(statistics.median(kind.seconds), 4),
        'seconds': [round(sample.seconds, 4) for sample in kind.samples],
        'foreign_load_cores': [round(sample.foreign, 3) for sample in kind.samples],
        'gflops': round(kind.gflops, 1),
        'loss': _as_json(kind.loss),
      }
      for name, kind in kinds.items()
    },
    'off': off(kinds, dtypes),
    'ratios': ratios(kinds, dtypes),
  }
  losses = [kinds[round_of(dtype)].loss for dtype in ('float32', 'bfloat16') if dtype in dtypes]
  match losses:
    case [float(exact), float(rounded)]:
      result['loss_difference'] = round(rounded / exact - 1, 6)
      result['loss_agrees'] = abs(rounded / exact - 1) <= _MOST_LOSS_DIFFERENCE
  return result


def off(kinds: Mapping[str, Measured], dtypes: Sequence[str]) -> dict[str, str]:
  """Kinds whose loss shows that they compute something else, and what it should be.

  A bare loop takes the steps of the round of its type. A rival draws its own random model, but all
  rivals the same: theirs is held against `peers.REFERENCE`, where that was measured.
  """
  expected = {loop_of(dtype): (round_of(dtype), _MOST_LOOP_DIFFERENCE) for dtype in dtypes}
  expected |= dict.fromkeys(peers.NAMES, (peers.REFERENCE, _MOST_LOSS_DIFFERENCE))
  found = {}
  for name, (base, most) in expected.items():
    if name in kinds and base in kinds:
      loss, right = (kinds[key].loss for key in (name, base))
      # Not a number is off, whatever it is compared with.
      if loss is None or right is None or not abs(loss / right - 1) <= most:
        found[name] = f'loss {loss}, of {base} {right}'
  return found


def _as_json(loss: float | None) -> float | None:
  return loss if loss is not None and math.isfinite(loss) else None


def ratios(kinds: Mapping[str, Measured], dtypes: Sequence[str]) -> dict[str, dict[str, float]]:
  """Our rounds against everything else: median and range over the repeats."""
  wrong = off(kinds, dtypes)
  rivals = [name for name in peers.NAMES if name in kinds and name not in wrong]
  fastest = min(rivals, key=lambda name: statistics.median(kinds[name].seconds), default=None)
  result = {}
  for dtype in dtypes:
    ours, peak = kinds[round_of(dtype)], kinds[peak_of('float32')]
    result[f'{round_of(dtype)}: time over the bare loop'] = _ratio(ours, kinds[loop_of(dtype)])
    if peers.FLOWER in kinds:
      result[f'{round_of(dtype)}: time over Flower'] = _ratio(ours, kinds[peers.FLOWER])
    if fastest is not None:
      over = f'{round_of(dtype)}: time over the fastest rival ({fastest})'
      result[over] = _ratio(ours, kinds[fastest])
    scale = ours.flops / peak.flops
    result[f'{round_of(dtype)}: share of the float32 peak'] = _ratio(peak, ours, scale)
  return result


def _ratio(kind: Measured, base: Measured, scale: float = 1.0) -> dict[str, float]:
  """Of neighbours in time, so that it holds when the machine's speed drifts."""
  pairs = list(zip(kind.samples, base.samples, strict=True))
  clean = [pair for pair in pairs if all(sample.is_clean for sample in pair)]
  values = [scale * a.seconds / b.seconds for a, b in clean or pairs]
  numbers = {'median': statistics.median(values), 'min': min(values), 'max': max(values)}
  return {**{k: round(v, 3) for k, v in numbers.items()}, 'clean_repeats': len(clean)}


def tables(size: str, kinds: Mapping[str, Measured], figures: Mapping[str, Any]) -> list[Any]:
  """What is shown of one size: all kinds, then the ratios."""
  times = rich.table.Table(
    size, 'median s', 'min s', 'max s', 'GFLOP/s', 'loss', 'foreign cores', box=None
  )
  for name, kind in kinds.items():
    seconds = [f'{f(kind.seconds):.4g}' for f in (statistics.median, min, max)]
    mark = ' !' if name in figures['off'] else ''
    loss = '' if kind.loss is None else f'{kind.loss:.4f}{mark}'
    foreign = max(sample.foreign for sample in kind.samples)
    noise = f'{foreign:.2f}{"" if foreign <= load.MOST_FOREIGN else " !"}'
    times.add_row(name, *seconds, f'{kind.gflops:.0f}', loss, noise)
  compared = rich.table.Table('', 'median', 'min', 'max', 'clean repeats', box=None)
  for name, numbers in figures['ratios'].items():
    compared.add_row(name, *(f'{value}' for value in numbers.values()))
  if 'loss_difference' in figures:
    compared.add_row('loss, bfloat16 over float32', f'{100 * figures["loss_difference"]:+.3f} %')
  differences = [f'! {name}: {what}' for name, what in figures['off'].items()]
  return [times, *differences, '', compared, '']
