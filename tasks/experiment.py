# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run works on, made from its configuration: model, data, ranks and the process."""

import collections
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_federated as tff

import hetlora_tff
from hetlora_tff.adapters.adapter_types import adapters_type
from hetlora_tff.adapters.model import Adapters
from hetlora_tff.clients.data import pack_client_data
from hetlora_tff.distribution import RankSelect
from tasks import backbones, participation, registry, text
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.evaluator import Evaluator

# Held-out clients draw their ranks apart from those that train.
_HELD_OUT_RANKS = 1


class Experiment:
  """Everything of a run that its configuration determines.

  Attributes:
    config: the configuration.
    base: backbone and tokenizer.
    lora_config: the adapters.
    model: the causal model that clients train.
    shapes: the adapted modules by path.
    data: the task's clients.
    client_ids: the clients that train, sorted.
    initial_ranks: int32 `[clients]`, their ranks before the first round.
  """

  def __init__(self, config: RunConfig):
    """Loads model and data.

    Raises:
      UserError: naming the option that cannot be met.
    """
    self.config = config
    cache = backbones.cache_directory()
    task = registry.find_task(config.task)
    self.base = backbones.load_base_model(config.backbone, cache)
    self.lora_config = hetlora_tff.LoraConfig(
      max_rank=config.max_rank,
      alpha=config.alpha,
      targets=config.targets,
      init_seed=config.seed,
    )
    try:
      self.model = hetlora_tff.CausalLanguageModel(self.base.backbone, config.sequence_length)
    except ValueError as error:
      raise UserError(f'--sequence-length: {error}') from error
    try:
      self.shapes = self.model.module_shapes(self.lora_config)
    except ValueError as error:
      raise UserError(f'--targets: {error}') from error
    try:
      self.data = task.load(cache / 'data', config.seed)
    except ValueError as error:
      raise UserError(f'--task {config.task}: {error}') from error
    if not self._held_out():
      raise UserError(f'--eval-split {config.eval_split}: {config.task} has no such clients.')
    self.client_ids = sorted(self.data.train)
    if config.clients_per_round > len(self.client_ids):
      raise UserError(
        f'--clients-per-round {config.clients_per_round}: {config.task} has only '
        f'{len(self.client_ids)} clients that train.'
      )
    self.initial_ranks = self._draw_ranks(self.client_ids, config.seed)
    self._packed: dict[int, collections.OrderedDict[str, np.ndarray]] = {}

  def build_process(self) -> hetlora_tff.HetLoraProcess:
    """The learning process."""
    config = self.config
    distributor = None
    if config.distribution == 'select':
      distributor = RankSelect(adapters_type(self.shapes, config.max_rank), self.lora_config)
    return hetlora_tff.build_hetlora_process(
      self.model,
      self.lora_config,
      training=hetlora_tff.LocalTraining(
        prune_decay=config.prune_decay,
        prune_weight=config.prune_weight,
        min_rank=config.min_rank,
        padding=hetlora_tff.Padding(config.padding),
        weights=hetlora_tff.ClientWeighting(config.weights),
      ),
      client_optimizer=_optimizer(config.client_optimizer, config.client_learning_rate),
      distributor=distributor,
      server_optimizer=_optimizer(config.server_optimizer, config.server_learning_rate),
    )

  def cohort(self, round_number: int) -> list[int]:
    """Indices of the clients that train in a round."""
    config = self.config
    return participation.cohort(
      len(self.client_ids), config.clients_per_round, config.seed, round_number
    )

  def client_data(
    self, cohort: Sequence[int], ranks: np.ndarray, round_number: int
  ) -> list[collections.OrderedDict[str, Any]]:
    """The cohort's input to the process."""
    return [
      pack_client_data(
        ranks[index],
        participation.local_batches(
          self._pack(index),
          batch_size=self.config.batch_size,
          local_steps=self.config.local_steps,
          seed=[self.config.seed, index, round_number],
        ),
      )
      for index in cohort
    ]

  def evaluator(self) -> Evaluator:
    """The evaluation on held-out clients."""
    config = self.config
    return Evaluator(
      self.base,
      self.lora_config,
      self._held_out(),
      sequence_length=config.sequence_length,
      examples_per_client=config.eval_examples_per_client,
      decode_examples=config.decode_examples,
    )

  def evaluate_tiers(self, adapters: Adapters) -> list[dict[str, Any]]:
    """Federated evaluation on held-out clients, each at the rank that its device would have.

    Returns:
      Tiers in ascending order, without those in which no client has a finite loss.
    """
    config = self.config
    clients = self._held_out()
    bounds = _tiers(config.min_rank, config.max_rank)
    process = hetlora_tff.build_hetlora_eval_process(self.model, self.lora_config, tiers=bounds)
    weights = tff.learning.models.ModelWeights(adapters, ())
    state = process.set_model_weights(process.initialize(), weights)
    ranks = self._draw_ranks(sorted(clients), [config.seed, _HELD_OUT_RANKS])
    data = []
    for client, rank in zip(sorted(clients), ranks, strict=True):
      examples = clients[client][: config.eval_examples_per_client]
      packed = text.pack(examples, self.base.tokenizer, config.sequence_length)
      batches = participation.in_order(packed, config.batch_size)
      data.append(pack_client_data(rank, batches))
    sums = process.next(state, data).metrics
    return [
      {'rank_up_to': bound, 'clients': int(n), 'loss': float(loss / count)}
      for bound, n, loss, count in zip(
        bounds, sums['clients'], sums['loss'], sums['predictions'], strict=True
      )
      if count
    ]

  def inputs(self) -> dict[str, str]:
    """Digests of what the configuration names but does not hold."""
    return {'backbone_sha256': self.base.backbone.sha256, 'data_sha256': self.data.sha256}

  def check_inputs(self, recorded: Mapping[str, str]) -> None:
    """Checks that a run goes on with the model and the data that it began with.

    Args:
      recorded: what `inputs` was then.

    Raises:
      UserError: naming what has changed.
    """
    names = {
      'backbone_sha256': f'backbone {self.config.backbone}',
      'data_sha256': f'data of task {self.config.task}',
    }
    for key, now in self.inputs().items():
      if recorded.get(key, now) != now:
        raise UserError(f'The {names[key]} has changed since this run began; start a new run.')

  def check_adapters(self, adapters: Adapters) -> None:
    """Checks that adapters from a file belong to this run.

    Raises:
      ValueError: naming a module that is missing or has another shape.
    """
    if set(adapters) != set(self.shapes):
      raise ValueError(f'The adapter is for {", ".join(adapters)}, not {", ".join(self.shapes)}.')
    for path, shape in self.shapes.items():
      a, b = adapters[path]
      if (a.shape[1], b.shape[0]) != tuple(shape):
        raise ValueError(f'The adapter of {path} does not fit the backbone of this run.')

  def concurrent_clients(self) -> int:
    """Clients that train at the same time."""
    return self.config.concurrent_clients or len(os.sched_getaffinity(0))

  def _held_out(self):
    return getattr(self.data, self.config.eval_split)

  def _draw_ranks(self, client_ids: Sequence[str], seed: Any) -> np.ndarray:
    config = self.config
    ranks = hetlora_tff.truncated_power_law_ranks(
      client_ids, config.min_rank, config.max_rank, exponent=config.rank_exponent, seed=seed
    )
    return np.array([ranks[client_id] for client_id in client_ids], np.int32)

  def _pack(self, index: int) -> collections.OrderedDict[str, np.ndarray]:
    if index not in self._packed:
      self._packed[index] = text.pack(
        self.data.train[self.client_ids[index]], self.base.tokenizer, self.config.sequence_length
      )
    return self._packed[index]


def _optimizer(name: str, learning_rate: float) -> tff.learning.optimizers.Optimizer:
  build = {
    'adam': tff.learning.optimizers.build_adam,
    'sgd': tff.learning.optimizers.build_sgdm,
  }
  return build[name](learning_rate)


def _tiers(min_rank: int, max_rank: int) -> list[int]:
  """Upper bounds of about four tiers, evenly spaced in the logarithm of the rank."""
  bounds = np.geomspace(min_rank, max_rank, 5)[1:]
  return sorted({int(bound) for bound in np.rint(bounds)} | {max_rank})
