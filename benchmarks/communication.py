# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bytes that a client downloads and uploads in a round, by rank and way; computed, not measured.

Down: what a client of that rank downloads with `select`, whatever the server's rank, and what all
clients of a server of that rank download with `broadcast`. Up: what clients of a server of that
rank send, whatever their own: it is padded. Beside it the same adapters in Flower with PEFT, where
all clients have that rank and GPT-2's query, key and value share one factor `a`; and full
fine-tuning.

    python -m benchmarks.communication [--size small] [--ranks 1,2,4,8,16,32] [--output FILE]
"""

import argparse
import collections
import dataclasses
import json
import os
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import rich.console
import rich.table

import hetlora_tff
import privacy
from benchmarks import workload
from hetlora_tff import aggregation
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.adapters.model import ModuleShape

_FLOAT_BYTES = 4
_UPLOAD_BITS, _SECURE_BITS = (16, 8, 4), (16, 8)


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--size', choices=workload.SIZES, default='small')
  parser.add_argument('--ranks', default='1,2,4,8,16,32', help='of the server, comma-separated')
  parser.add_argument('--output', help='also write the table as JSON to this file')
  arguments = parser.parse_args()
  work = workload.SIZES[arguments.size]
  rows = [row(work, int(rank)) for rank in arguments.ranks.split(',')]
  _print(arguments.size, rows, full_bytes(work))
  if arguments.output:
    content = {'size': arguments.size, 'full': full_bytes(work), 'ranks': rows}
    with open(arguments.output, 'w', encoding='utf-8') as file:
      file.write(json.dumps(content) + '\n')


def row(work: workload.Work, rank: int) -> dict[str, int]:
  """Bytes by way, at a rank.

  Args:
    work: its model, and the clients of a round, whose sum a secure modulus has room for.
    rank: of the server; what goes down is also that of a client that selects this rank.
  """
  sizes = message_sizes(work, rank)
  scales = aggregation.num_scales(sizes.message_type)
  uploads: dict[str, dict[str, Any]] = {'up_float32': {}}
  for bits in _UPLOAD_BITS:
    uploads[f'up_{bits}_bits'] = {'upload_bits': bits, 'upload_scales': scales}
  for bits in _SECURE_BITS:
    spec = privacy.SecureSumSpec(bits, work.clients, value_range=1.0)
    uploads[f'up_secure_{bits}'] = {'upload_bits': spec.sum_bits}
  return {
    'rank': rank,
    'down': sizes.download(rank),
    **{way: dataclasses.replace(sizes, **c).upload(rank) for way, c in uploads.items()},
    'peft_each_way': peft_bytes(work, rank),
  }


def message_sizes(work: workload.Work, rank: int) -> hetlora_tff.MessageSizes:
  """Of a server of that rank that broadcasts and is sent float32."""
  config = dataclasses.replace(workload.lora_config(work), max_rank=rank)
  shapes = collections.OrderedDict(
    (f'layer_{layer}/{target}', ModuleShape(work.width, work.width))
    for layer in range(work.layers)
    for target in config.targets
  )
  layout = AdapterLayout(shapes, config)
  return hetlora_tff.MessageSizes(layout, layout.server_type, layout.adapters_type(rank))


def peft_bytes(work: workload.Work, rank: int) -> int:
  """Float32 adapters on `c_attn [width, 3 width]`, which transformers' GPT-2 has for the three."""
  return _FLOAT_BYTES * work.layers * rank * (work.width + 3 * work.width)


def full_bytes(work: workload.Work) -> int:
  """All weights of the GPT-2 in float32, with one matrix for the tokens in and out."""
  width = work.width
  # Attention and MLP have 12 width^2 and biases of 4 and 5 widths; two norms have 4.
  layer = 12 * width**2 + 13 * width
  tables = (work.vocabulary + work.length) * width
  return _FLOAT_BYTES * (tables + work.layers * layer + 2 * width)


def _print(size: str, rows: list[dict[str, int]], full: int) -> None:
  table = rich.table.Table(box=None, title=f'{size}: kB of a client in a round')
  for name in rows[0]:
    table.add_column(name.replace('_', ' '), justify='right')
  for values in rows:
    rank, *counts = values.values()
    table.add_row(str(rank), *(f'{count / 1e3:.1f}' for count in counts))
  console = rich.console.Console()
  console.print(table)
  console.print(f'Full fine-tuning: {full / 1e3:,.1f} each way.')


if __name__ == '__main__':
  main()
