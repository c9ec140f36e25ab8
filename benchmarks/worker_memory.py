# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory of the worker against the number of concurrent clients, on a backbone that would show.

The backbone is mapped from files, so only the memory that is not file-backed (`RssAnon`) can grow
with the clients: it must grow by adapters and activations, not by the backbone.

    python -m benchmarks.worker_memory
"""

import json
import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import rich.console
import rich.table
from absl import logging

import hetlora_tff
from benchmarks import peak_memory, workload
from tasks.worker import LocalWorker

# Wide and with few tokens: much backbone, little activation.
_WORK = workload.Work(layers=4, width=1024, clients=8, steps=4, batch=1, length=16)
_CONCURRENCY = (1, 2, 4)


def main() -> None:
  logging.set_verbosity(logging.ERROR)
  table = rich.table.Table('concurrent clients', 'peak RssAnon, MB', box=None)
  peaks = {}
  with workload.model_of(_WORK) as model:
    backbone_mb = 4 * model.backbone.num_parameters / 1e6
    for concurrency in _CONCURRENCY:
      peaks[concurrency] = _peak_anonymous_mb(model, concurrency)
      table.add_row(str(concurrency), f'{peaks[concurrency]:.0f}')
  growth = (peaks[_CONCURRENCY[-1]] - peaks[1]) / (_CONCURRENCY[-1] - 1)
  rich.console.Console().print(table)
  print(
    json.dumps(
      {
        'backbone_mb': round(backbone_mb, 1),
        'peak_anonymous_mb': {str(k): round(v, 1) for k, v in peaks.items()},
        'growth_mb_per_client': round(growth, 1),
        'growth_over_backbone': round(growth / backbone_mb, 3),
      }
    )
  )


def _peak_anonymous_mb(model, concurrency: int) -> float:
  with LocalWorker(concurrency), peak_memory.watched() as peaks:
    process = hetlora_tff.build_hetlora_process(model, workload.lora_config(_WORK))
    state = process.initialize()
    data = workload.client_data_of(_WORK, workload.examples_of(_WORK))
    for _ in range(3):
      state = process.next(state, data).state
  return peaks.worker


if __name__ == '__main__':
  main()
