# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run works on, made from its configuration: model, data, ranks and the process."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import hetlora_tff
from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.adapters.model import Adapters
from hetlora_tff.clients.data import pack_client_data
from hetlora_tff.message_sizes import MessageSizes
from tasks import backbones, costs, dp_settings, method_parts, participation, registry, text
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.evaluator import Evaluator
from tasks.rank_assignment import assign_ranks, tier_bounds

# Held-out clients draw their ranks apart from those that train.
_HELD_OUT_RANKS = 1


class Experiment:
  """Everything of a run that its configuration determines.

  Attributes:
    config: the configuration, with what only the data could settle.
    base: backbone and tokenizer.
    lora_config: the adapters; None where all weights are trained.
    model: the causal model that clients train.
    shapes: the adapted modules by path; none where all weights are trained.
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
    self.lora_config = method_parts.lora_config(config)
    try:
      self.model = hetlora_tff.CausalLanguageModel(self.base.backbone, config.sequence_length)
    except ValueError as error:
      raise UserError(f'--sequence-length: {error}') from error
    self.shapes = self._module_shapes()
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
    self.initial_ranks = self._ranks(self.data.train, config.seed, 'refuse')
    coordinates = method_parts.coordinates(config, self.model, self.shapes, self.initial_ranks)
    self.config = dp_settings.settle(config, len(self.client_ids), coordinates)
    self._packed: dict[int, collections.OrderedDict[str, np.ndarray]] = {}

  def build_process(self) -> hetlora_tff.HetLoraProcess:
    """The learning process."""
    try:
      return method_parts.build_process(self.config, self.model, self.shapes, self.initial_ranks)
    except ValueError as error:
      mend = '' if self.lora_config is None else ' Take fewer --targets or another method.'
      raise UserError(f'--method {self.config.method}: {error}{mend}') from error

  def client_data(
    self, cohort: Sequence[int], ranks: np.ndarray, round_number: int
  ) -> list[collections.OrderedDict[str, Any]]:
    """The cohort's input to the process; indices from the number of clients on are canaries."""
    num_clients = len(self.client_ids)
    clients = [
      self._client_data(index, ranks[index], round_number)
      if index < num_clients
      else self._canary_data(ranks)
      for index in cohort
    ]
    if self.config.audit_canaries:
      for index, client in zip(cohort, clients, strict=True):
        number = np.int64(max(-1, index - num_clients))
        client['canary'] = tf.data.Dataset.from_tensors(number)
    return clients

  def _client_data(self, index: int, rank: int, round_number: int):
    # By its name and not its place: who else is there must not change what a client does.
    name = hashlib.sha256(self.client_ids[index].encode()).digest()
    batches = participation.local_batches(
      self._pack(index),
      batch_size=self.config.batch_size,
      local_steps=self.config.local_steps,
      seed=[self.config.seed, int.from_bytes(name), round_number],
    )
    return pack_client_data(rank, batches)

  def _canary_data(self, ranks: np.ndarray):
    """A device of the largest tier without text; what it sends does not depend on either."""
    batches = participation.in_order(self._pack(0), self.config.batch_size)
    return pack_client_data(int(max(ranks)), batches.take(0))

  def evaluator(self, base: backbones.BaseModel | None = None) -> Evaluator:
    """The evaluation on held-out clients, of this base model or of what a run made of it."""
    config = self.config
    return Evaluator(
      base or self.base,
      self.lora_config,
      self._held_out(),
      sequence_length=config.sequence_length,
      examples_per_client=config.eval_examples_per_client,
      decode_examples=config.decode_examples,
    )

  def evaluate_tiers(self, adapters: Adapters) -> list[dict[str, Any]]:
    """Federated evaluation on held-out clients, each at the rank that its device would have.

    Returns:
      Tiers in ascending order, without those in which no client has a finite loss; none where
      there are no ranks.
    """
    if self.lora_config is None:
      return []
    config, clients = self.config, self._held_out()
    bounds = tier_bounds(config)
    carries = isinstance(next(iter(adapters.values())), lora.CorrectedFactors)
    process = hetlora_tff.build_hetlora_eval_process(
      self.model, self.lora_config, tiers=bounds, carries_residual=carries
    )
    layout = AdapterLayout(self.shapes, self.lora_config, carries_residual=carries)
    state = process.set_model_weights(process.initialize(), layout.weights(adapters))
    ranks = self._ranks(clients, [config.seed, _HELD_OUT_RANKS], 'draw')
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

  def flops(
    self, cohort: Sequence[int], ranks: np.ndarray, predictions: int, sizes: MessageSizes
  ) -> int | None:
    """Estimated operations of a round's local training; None for a model of unknown size.

    Args:
      cohort: indices of its clients.
      ranks: int32 `[clients]`, of all devices in that round.
      predictions: tokens that carried loss in that round.
      sizes: of the process.
    """
    config, backbone = self.config, self.base.backbone
    try:
      size = costs.model_size(backbone.config, ((r.name, r.shape) for r in backbone.tensors))
    except KeyError:
      return None
    total = costs.client_flops(
      size, tokens=0, predictions=predictions, sequence_length=config.sequence_length, trained=0,
      full=self.lora_config is None,
    )  # fmt: skip
    for index in cohort:
      rows = min(config.batch_size, len(self.data.train[self.client_ids[index]]))
      trained = sizes.trained_parameters(int(ranks[index]))
      total += costs.client_flops(
        size,
        tokens=config.local_steps * rows * config.sequence_length,
        predictions=0,
        sequence_length=config.sequence_length,
        trained=trained,
        frozen=sizes.held_parameters(int(ranks[index])) - trained,
        full=self.lora_config is None,
      )
    return total

  def inputs(self) -> dict[str, str]:
    """Digests of what the configuration names but does not hold."""
    digests = {'backbone_sha256': self.base.backbone.sha256, 'data_sha256': self.data.sha256}
    if self.config.rank_file:
      content = pathlib.Path(self.config.rank_file).read_bytes()
      digests['rank_file_sha256'] = hashlib.sha256(content).hexdigest()
    return digests

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
      'rank_file_sha256': f'rank file {self.config.rank_file}',
    }
    for key, now in self.inputs().items():
      if recorded.get(key, now) != now:
        raise UserError(f'The {names[key]} has changed since this run began; start a new run.')

  def check_adapters(self, adapters: Mapping[str, lora.Factors]) -> None:
    """Checks that adapters from a file belong to this run.

    Raises:
      ValueError: naming a module that is missing or has another shape.
    """
    if set(adapters) != set(self.shapes):
      raise ValueError(f'The adapter is for {", ".join(adapters)}, not {", ".join(self.shapes)}.')
    for path, shape in self.shapes.items():
      factors = adapters[path]
      if (factors.a.shape[1], factors.b.shape[0]) != tuple(shape):
        raise ValueError(f'The adapter of {path} does not fit the backbone of this run.')

  def concurrent_clients(self) -> int:
    """Clients that train at the same time."""
    return self.config.concurrent_clients or len(os.sched_getaffinity(0))

  def _held_out(self):
    return getattr(self.data, self.config.eval_split)

  def _module_shapes(self):
    if self.lora_config is None:
      return collections.OrderedDict()
    try:
      shapes = self.model.module_shapes(self.lora_config)
    except ValueError as error:
      raise UserError(f'--targets: {error}') from error
    try:
      AdapterLayout(shapes, self.lora_config)
    except ValueError as error:
      raise UserError(f'--rank-pattern: {error}') from error
    return shapes

  def _ranks(self, clients: Mapping[str, Sequence[Any]], seed: Any, unlisted) -> np.ndarray:
    """Ranks of clients, in the order of their sorted ids."""
    sizes = {client: len(examples) for client, examples in clients.items()}
    ranks = assign_ranks(self.config, sizes, seed, unlisted=unlisted)
    return np.array([ranks[client] for client in sorted(clients)], np.int32)

  def _pack(self, index: int) -> collections.OrderedDict[str, np.ndarray]:
    if index not in self._packed:
      self._packed[index] = text.pack(
        self.data.train[self.client_ids[index]], self.base.tokenizer, self.config.sequence_length
      )
    return self._packed[index]
