# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Held-out clients as the devices that they have: by rank, and with an adapter of their own.

Federated computations, in the runtime that trains; what the server alone measures is in
`tasks.evaluator`.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import hetlora_tff
from hetlora_tff.adapters.factors import CorrectedFactors
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.adapters.model import Adapters
from hetlora_tff.clients.data import pack_client_data
from tasks import method_parts, participation, results
from tasks.experiment import Experiment
from tasks.federated_text import Example
from tasks.rank_assignment import tier_bounds

# Rounds count from 1; who trains for itself alone is in none.
_NO_ROUND = 0


def evaluate_tiers(
  experiment: Experiment, adapters: Adapters, ranks: np.ndarray
) -> list[dict[str, Any]]:
  """Evaluates held-out clients, each at the rank that its device has or would have.

  Args:
    experiment: of the run.
    adapters: what the server holds, as arrays.
    ranks: int32 `[clients]`, of the devices that train.

  Returns:
    Tiers in ascending order, without those in which no client has a finite loss; none where
    there are no ranks.
  """
  if experiment.lora_config is None:
    return []
  config, bounds = experiment.config, tier_bounds(experiment.config)
  carries = isinstance(next(iter(adapters.values())), CorrectedFactors)
  process = hetlora_tff.build_hetlora_eval_process(
    experiment.model, experiment.lora_config, tiers=bounds, carries_residual=carries
  )
  layout = AdapterLayout(experiment.shapes, experiment.lora_config, carries_residual=carries)
  state = process.set_model_weights(process.initialize(), layout.weights(adapters))
  held_out = experiment.held_out
  data = [
    pack_client_data(rank, _once(experiment, held_out[client][: config.eval_examples_per_client]))
    for client, rank in experiment.held_out_ranks(ranks).items()
  ]
  sums = process.next(state, data).metrics
  return [
    {'rank_up_to': bound, 'clients': int(n), 'loss': float(loss / count)}
    for bound, n, loss, count in zip(
      bounds, sums['clients'], sums['loss'], sums['predictions'], strict=True
    )
    if count
  ]


def personalize(
  experiment: Experiment, process: hetlora_tff.HetLoraProcess, weights: Any, ranks: np.ndarray
) -> dict[str, Any] | None:
  """Lets held-out clients train an adapter of their own, as in a round, and measures both.

  Who trains in the run, too, does so on its text there; others on the first half of their held-out
  examples, and are measured on the second.

  Args:
    experiment: of the run.
    process: that trained.
    weights: its global model weights.
    ranks: int32 `[clients]`, of the devices that train.

  Returns:
    What `results.personalization` makes of it; None where nobody is asked to.
  """
  config, layout = experiment.config, process.layout
  if layout is None or not config.personalization_clients:
    return None
  halves, left_out = _halves(experiment, config.personalization_clients)
  if not halves:
    return results.personalization([], [], left_out=left_out)
  build = method_parts.build_personalization(
    config, experiment.model, carries_residual=layout.carries_residual
  )
  by_client = experiment.held_out_ranks(ranks)
  data = []
  for client, (train, test) in halves.items():
    own = participation.local_batches(
      experiment.packer.rows(train),
      batch_size=config.batch_size,
      local_steps=config.local_steps,
      seed=experiment.order_seed(client, _NO_ROUND),
    )
    packed = pack_client_data(by_client[client], _once(experiment, test))
    data.append(collections.OrderedDict(rank=packed['rank'], train=own, test=packed['examples']))
  return results.personalization(
    list(halves), build(weights, data), left_out=left_out, tiers=tier_bounds(config)
  )


def _halves(
  experiment: Experiment, limit: int
) -> tuple[Mapping[str, tuple[Sequence[Example], Sequence[Example]]], int]:
  """What each client trains on and is measured on, and how many have too little for both."""
  halves, left_out = {}, 0
  for client, examples in experiment.held_out.items():
    if len(halves) == limit:
      break
    examples = examples[: experiment.config.eval_examples_per_client]
    if experiment.data.shares_clients and client in experiment.data.train:
      halves[client] = experiment.data.train[client], examples
    elif len(examples) > 1:
      middle = len(examples) // 2
      halves[client] = examples[:middle], examples[middle:]
    else:
      left_out += 1
  return halves, left_out


def _once(experiment: Experiment, examples: Sequence[Example]):
  """The batches of these examples, in their order."""
  return participation.in_order(experiment.packer.rows(examples), experiment.config.batch_size)
