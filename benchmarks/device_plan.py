# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a deployment to many devices comes to, from what it supposes and what was measured.

NumPy only: nothing is run here, see `benchmarks.million_devices`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_MEGA, _GIGA = 1e6, 1e9
_BITS = 8
_UPLOAD_BITS = (4, 8, 16, 32)


def _supposed(default: Any, help_text: str) -> Any:
  return dataclasses.field(default=default, metadata={'help': help_text})


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """What nobody can measure here; every field is a flag of `benchmarks.million_devices`."""

  devices: int = _supposed(1_000_000, 'that may be asked')
  rounds: int = _supposed(1000, 'of the whole training')
  clients_per_round: int = _supposed(1000, 'updates that end a round')
  asked_per_update: float = _supposed(1.3, 'devices asked for each update that ends a round')
  lost_share: float = _supposed(0.1, 'of the asked, who never answer')
  layers: int = _supposed(12, 'of the base model, a GPT-2')
  width: int = _supposed(768, 'of the base model')
  vocabulary: int = _supposed(50257, 'of the base model')
  sequence_length: int = _supposed(128, 'tokens of an example')
  batch_size: int = _supposed(8, 'examples of a local step')
  local_steps: int = _supposed(5, 'of a device in a round')
  min_rank: int = _supposed(5, 'of a device')
  max_rank: int = _supposed(50, 'of a device and of the server')
  rank_exponent: float = _supposed(0.1, 'skew of the ranks: P(r) ~ r^(x - 1)')
  selects_rank: bool = _supposed(True, "a device downloads its rank's slice, not all ranks")
  upload_bits: int = _supposed(32, 'of a number that a device sends: 4, 8, 16 or 32')
  device_gflops: float = _supposed(20.0, 'GFLOP/s of the median device, sustained')
  download_mbits: float = _supposed(20.0, 'Mbit/s to the median device')
  upload_mbits: float = _supposed(5.0, 'Mbit/s from the median device')
  spread: float = _supposed(0.7, 'standard deviation of the logarithm of each of these speeds')
  updates_in_memory: int = _supposed(100, 'that the server aggregates at a time, in partial sums')

  def __post_init__(self):
    if self.upload_bits not in _UPLOAD_BITS:
      raise ValueError(f'--upload-bits {self.upload_bits}: must be one of 4, 8, 16 or 32.')
    if not 0 <= self.lost_share < 1:
      raise ValueError(f'--lost-share {self.lost_share}: must be in [0, 1).')
    if self.asked_per_update * (1 - self.lost_share) < 1:
      raise ValueError(
        f'--asked-per-update {self.asked_per_update}: too few answer where {self.lost_share:.0%} '
        'are lost.'
      )
    if self.asked > self.devices:
      raise ValueError(f'--devices {self.devices}: a round asks {self.asked}.')

  @property
  def asked(self) -> int:
    """Devices that are asked in a round."""
    return round(self.asked_per_update * self.clients_per_round)

  @property
  def is_quantized(self) -> bool:
    """Whether a device sends integers instead of float32."""
    return self.upload_bits < max(_UPLOAD_BITS)


class Server(NamedTuple):
  """What an aggregation was measured to take on one machine.

  Attributes:
    seconds_per_update: of one update more.
    mb_per_update: likewise, memory of the TFF worker while it holds the update.
    mb: memory of driver and worker without any update.
  """

  seconds_per_update: float
  mb_per_update: float
  mb: float


class Device(NamedTuple):
  """What a round asks of a device of a rank, as arrays by rank from 0.

  Attributes:
    flops: of the local training.
    download: bytes.
    upload: bytes.
  """

  flops: np.ndarray
  download: np.ndarray
  upload: np.ndarray


def by_rank(cost: Callable[[int], float], max_rank: int) -> np.ndarray:
  """`cost(rank)` at each rank up to `max_rank`; 0 at 0, which no device has."""
  return np.array([0.0, *(float(cost(rank)) for rank in range(1, max_rank + 1))])


def update_seconds(
  assumed: Assumptions, device: Device, ranks: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
  """Seconds `[devices]` until each would have answered; speeds do not depend on the rank."""
  speeds = np.array(
    [
      _GIGA * assumed.device_gflops,
      _MEGA / _BITS * assumed.download_mbits,
      _MEGA / _BITS * assumed.upload_mbits,
    ]
  )
  work = np.stack([cost[ranks] for cost in device])
  drawn = speeds[:, np.newaxis] * generator.lognormal(0.0, assumed.spread, work.shape)
  return np.sum(work / drawn, axis=0)


def round_seconds(
  assumed: Assumptions, answers: np.ndarray, generator: np.random.Generator
) -> float:
  """Seconds until enough of the asked have answered.

  Args:
    assumed: of the plan.
    answers: seconds of each asked device, if it is not lost.
    generator: of who is lost.

  Returns:
    Infinity where too many are lost: the round is given up.
  """
  heard = np.sort(answers[generator.random(len(answers)) >= assumed.lost_share])
  wanted = assumed.clients_per_round
  return float(heard[wanted - 1]) if len(heard) >= wanted else float('inf')


def plan(
  assumed: Assumptions, server: Server, device: Device, ranks: np.ndarray, rounds: np.ndarray
) -> dict[str, float]:
  """The figures of the deployment.

  Args:
    assumed: of it.
    server: as measured.
    device: of each rank.
    ranks: int `[devices]`.
    rounds: seconds of some rounds until enough have answered.
  """
  waited = rounds[np.isfinite(rounds)]
  down = assumed.asked * float(device.download[ranks].mean())
  up = assumed.clients_per_round * float(device.upload[ranks].mean())
  seconds = assumed.clients_per_round * server.seconds_per_update
  waiting = float(np.median(waited)) if len(waited) else float('inf')
  in_memory = min(assumed.updates_in_memory, assumed.clients_per_round)
  return {
    'mean_rank': float(ranks.mean()),
    'device_download_bytes_median': float(np.median(device.download[ranks])),
    'device_upload_bytes_median': float(np.median(device.upload[ranks])),
    'device_gflop_median': float(np.median(device.flops[ranks])) / _GIGA,
    'turns_of_a_device': assumed.rounds * assumed.asked / assumed.devices,
    'round_download_bytes': down,
    'round_upload_bytes': up,
    'total_bytes': assumed.rounds * (down + up),
    'waiting_seconds': waiting,
    'rounds_given_up': float(np.mean(~np.isfinite(rounds))),
    'server_seconds': seconds,
    'server_mbits': _BITS * (down + up) / waiting / _MEGA,
    'server_mb': server.mb + in_memory * server.mb_per_update,
    'server_mb_all_at_once': server.mb + assumed.clients_per_round * server.mb_per_update,
    'round_seconds': waiting + seconds,
    'total_hours': assumed.rounds * (waiting + seconds) / 3600,
  }
