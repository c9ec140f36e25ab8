# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run works on, made from its configuration: model, data, ranks and the process."""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import hetlora_tff
from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters import peft
from hetlora_tff.adapters.initial_adapters import initial_adapters
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.adapters.model import Adapters
from hetlora_tff.clients.data import pack_client_data
from hetlora_tff.message_sizes import MessageSizes
from tasks import (
  backbones,
  costs,
  dp_settings,
  federated_text,
  method_parts,
  participation,
  registry,
)
from tasks.cache import cache_directory
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.evaluator import Evaluator
from tasks.files import read_json
from tasks.kept import kept
from tasks.packing import Packed, Packer
from tasks.rank_assignment import assign_ranks
from tasks.task import Request

# Independent streams of one seed: held-out clients, and their ranks.
_HELD_OUT_RANKS, _HELD_OUT = 1, 2
# Beside an adapter of a classifier: what its numbers stand for.
LABELS = 'labels.json'
# Keys that have no part in the process.
_NOT_OF_PROCESS = frozenset({
  'rounds', 'concurrent_clients', 'decode_examples', 'eval_clients', 'eval_every',
  'eval_examples_per_client', 'eval_split', 'num_beams', 'personalization_clients',
})  # fmt: skip
# Of so many clients rows are kept; of a larger cohort of all: a round asks for them repeatedly.
_PACKED_CLIENTS = 512


class Experiment:
  """Everything of a run that its configuration determines.

  Attributes:
    config: the configuration, with what only the data could settle.
    data: the task's clients.
    base: backbone and tokenizer.
    packer: makes rows of examples.
    lora_config: the adapters; None where all weights are trained.
    model: the model that clients train.
    shapes: the adapted modules by path; none where all weights are trained.
    client_ids: the clients that train, sorted.
    held_out: the clients that are evaluated.
    initial_ranks: int32 `[clients]`, their ranks before the first round.
    initial_adapters: what training begins with; None where the seed draws it.
  """

  def __init__(self, config: RunConfig, say: Callable[[str], None] = lambda text: None):
    """Loads data and model.

    Args:
      config: of the run.
      say: tells the user how far loading is, and what of the data is left out.

    Raises:
      UserError: naming the option that cannot be met.
    """
    self.config = config
    cache = cache_directory()
    self.data = load_data(config, cache, say)
    self.client_ids = sorted(self.data.train)
    if config.clients_per_round > len(self.client_ids):
      raise UserError(
        f'--clients-per-round {config.clients_per_round}: {config.task} has only '
        f'{len(self.client_ids)} clients that train.'
      )
    self.held_out = self._drawn_held_out()
    labelled = self.data.kind is federated_text.Kind.LABEL
    self.base = backbones.load_base_model(config.backbone, cache, encoder_allowed=labelled)
    self.lora_config = method_parts.lora_config(config)
    self.model, self.packer = self._model(), self._packer()
    self.shapes = self._module_shapes()
    self.initial_ranks = self._ranks(self.data.train, config.seed, 'refuse')
    self.initial_adapters = self._initial_adapters()
    coordinates = method_parts.coordinates(config, self.model, self.shapes, self.initial_ranks)
    self.config = dp_settings.settle(config, len(self.client_ids), coordinates)
    self._most_clients = participation.most_clients(self.config, len(self.client_ids))
    self._pack = functools.lru_cache(max(_PACKED_CLIENTS, self._most_clients))(self._pack)

  def build_process(self) -> hetlora_tff.HetLoraProcess:
    """The learning process; without privacy, one that an earlier run has built will do."""
    if dp_settings.is_private(self.config):
      # There is no chance in it; but a guarantee must not hang on the parts below being all.
      return self._built_process()
    config = {k: v for k, v in self.config.to_json().items() if k not in _NOT_OF_PROCESS}
    ranks = hashlib.sha256(self.initial_ranks.tobytes()).hexdigest()
    parts = [config, *self._model_parts(), len(self.data.labels), ranks]
    return kept('process', parts, self._built_process)

  def _built_process(self) -> hetlora_tff.HetLoraProcess:
    try:
      return method_parts.build_process(self.config, self.model, self.shapes, self.initial_ranks)
    except ValueError as error:
      mend = '' if self.lora_config is None else ' Take fewer --targets or another method.'
      raise UserError(f'--method {self.config.method}: {error}{mend}') from error

  def _model_parts(self) -> list[str]:
    """What a graph on the backbone depends on: it names the files."""
    backbone = self.base.backbone
    return [backbone.directory, backbone.sha256, *(record.file for record in backbone.tensors)]

  def initial_state(self, process: hetlora_tff.HetLoraProcess) -> Any:
    """The server's state before the first round."""
    state = process.initialize()
    if self.initial_adapters is None or process.layout is None:
      return state
    weights = process.layout.weights(self.initial_adapters)
    return state._replace(global_model_weights=tf.nest.map_structure(np.asarray, weights))

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

  def longest_first(self, cohort: Sequence[int]) -> list[int]:
    """The cohort with those first who have most to do, so that no core waits for one at the end."""
    return sorted(cohort, key=self._rows_of_a_batch, reverse=True)

  def _rows_of_a_batch(self, index: int) -> int:
    """What tells clients' work apart: all take the same number of steps; canaries none."""
    if index >= len(self.client_ids):
      return 0
    return min(self.config.batch_size, len(self._pack(index)['token_ids']))

  def _client_data(self, index: int, rank: int, round_number: int):
    batches = participation.local_batches(
      self._pack(index),
      batch_size=self.config.batch_size,
      local_steps=self.config.local_steps,
      seed=self.order_seed(self.client_ids[index], round_number),
    )
    return pack_client_data(rank, batches)

  def order_seed(self, client: str, round_number: int) -> list[int]:
    """The seed of the order in which a client meets its examples in a round."""
    # By its name and not its place: who else is there must not change what a client does.
    name = hashlib.sha256(client.encode()).digest()
    return [self.config.seed, int.from_bytes(name), round_number]

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
      self.data,
      self.held_out,
      self.packer,
      examples_per_client=config.eval_examples_per_client,
      decode_examples=config.decode_examples,
      num_beams=config.num_beams or 1,
    )

  def held_out_ranks(self, ranks: np.ndarray) -> dict[str, int]:
    """The rank of each held-out client: its device's if that trains, else one drawn for it.

    Args:
      ranks: int32 `[clients]`, of the devices that train.
    """
    drawn = self._ranks(self.held_out, [self.config.seed, _HELD_OUT_RANKS], 'draw')
    by_client = dict(zip(sorted(self.held_out), drawn.tolist(), strict=True))
    if self.data.shares_clients:
      places = {client: place for place, client in enumerate(self.client_ids)}
      by_client |= {c: int(ranks[places[c]]) for c in by_client if c in places}
    return by_client

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
      size = costs.model_size(
        backbone.config,
        ((r.name, r.shape) for r in backbone.tensors),
        predicts_tokens=self.data.kind is not federated_text.Kind.LABEL,
      )
    except KeyError:
      return None
    total = costs.client_flops(
      size, tokens=0, predictions=predictions, sequence_length=config.sequence_length, trained=0,
      full=self.lora_config is None,
    )  # fmt: skip
    for index in cohort:
      rows = self._rows_of_a_batch(index)
      trained = sizes.trained_parameters(int(ranks[index]))
      total += costs.client_flops(
        size, tokens=config.local_steps * rows * config.sequence_length, predictions=0,
        sequence_length=config.sequence_length, trained=trained,
        frozen=sizes.held_parameters(int(ranks[index])) - trained, full=self.lora_config is None,
      )  # fmt: skip
    return total

  def inputs(self) -> dict[str, str]:
    """Digests of what the configuration names but does not hold."""
    digests = {'backbone_sha256': self.base.backbone.sha256, 'data_sha256': self.data.sha256}
    if self.config.rank_file:
      digests['rank_file_sha256'] = _sha256(pathlib.Path(self.config.rank_file))
    if self.config.initial_adapter:
      weights = pathlib.Path(self.config.initial_adapter, peft.WEIGHTS_FILE)
      digests['initial_adapter_sha256'] = _sha256(weights)
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
      'initial_adapter_sha256': f'initial adapter {self.config.initial_adapter}',
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
    """Clients that train at the same time: never more than a round has."""
    wanted = self.config.concurrent_clients or len(os.sched_getaffinity(0))
    return min(wanted, self._most_clients)

  def _drawn_held_out(self) -> dict[str, Sequence[federated_text.Example]]:
    config, clients = self.config, self.data.split(self.config.eval_split)
    if not clients:
      raise UserError(
        f'--eval-split {config.eval_split}: {config.task} has no such clients; it takes three or '
        'more to hold some out.'
      )
    names = sorted(clients)
    # In an order of chance: where only the first ones are decoded, they are like all.
    order = np.random.default_rng([config.seed, _HELD_OUT]).permutation(len(names))
    return {names[place]: clients[names[place]] for place in order[: config.eval_clients]}

  def _model(self) -> hetlora_tff.CausalLanguageModel | hetlora_tff.ClassificationModel:
    backbone, length = self.base.backbone, self.config.sequence_length
    dtype = self.config.compute_dtype
    try:
      if self.data.kind is federated_text.Kind.LABEL:
        return hetlora_tff.ClassificationModel(backbone, length, len(self.data.labels), dtype)
      return hetlora_tff.CausalLanguageModel(backbone, length, dtype)
    except ValueError as error:
      raise UserError(f'--sequence-length: {error}') from error

  def _packer(self) -> Packer:
    config = self.config
    try:
      return Packer(
        self.base.tokenizer,
        kind=self.data.kind,
        sequence_length=config.sequence_length,
        max_target_tokens=config.max_target_tokens,
        truncate_source=config.truncate_source or 'end',
        labels=self.data.labels,
      )
    except ValueError as error:
      raise UserError(f'--sequence-length or --max-target-tokens: {error}') from error

  def _module_shapes(self):
    config, length = self.lora_config, self.config.sequence_length
    if config is None:
      return collections.OrderedDict()
    parts = [*self._model_parts(), length, len(self.data.labels), dataclasses.asdict(config)]
    try:
      shapes = kept('shapes', parts, lambda: self.model.module_shapes(config))
    except ValueError as error:
      raise UserError(f'--targets: {error}') from error
    try:
      AdapterLayout(shapes, config)
    except ValueError as error:
      raise UserError(f'--rank-pattern: {error}') from error
    return shapes

  def _initial_adapters(self) -> Adapters | None:
    if self.config.initial_adapter is None or self.lora_config is None:
      return None
    directory = pathlib.Path(self.config.initial_adapter)
    labels = directory / LABELS
    if labels.exists() and read_json(labels) != list(self.data.labels):
      raise UserError(f'--initial-adapter: {labels} lists other labels than this task has.')
    try:
      return initial_adapters(directory, self.lora_config, self.base.backbone, self.shapes)
    except ValueError as error:
      raise UserError(f'--initial-adapter: {error}') from error

  def _ranks(self, clients: Mapping[str, Sequence[Any]], seed: Any, unlisted) -> np.ndarray:
    """Ranks of clients, in the order of their sorted ids."""
    ranks = assign_ranks(self.config, federated_text.sizes(clients), seed, unlisted=unlisted)
    return np.array([ranks[client] for client in sorted(clients)], np.int32)

  def _pack(self, index: int) -> Packed:
    """The rows of a client that trains; its text is read now."""
    return self.packer.rows(self.data.train[self.client_ids[index]])


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def load_data(
  config: RunConfig, cache: pathlib.Path, say: Callable[[str], None]
) -> federated_text.FederatedText:
  """Loads the task of a run and says what of its data is left out.

  Args:
    config: of the run.
    cache: where data are kept, in a directory of their own.
    say: tells the user; a private run says nothing that depends on single clients.

  Raises:
    UserError: naming the option, file or line that cannot be used.
  """
  private = dp_settings.is_private(config)
  request = Request(config, cache / 'data', (lambda text: None) if private else say)
  try:
    data = registry.find_task(config.task).load(request)
  except ValueError as error:
    raise UserError(f'--task {config.task}: {error}') from error
  if private and config.public_eval_clients and data.shares_clients:
    raise UserError(
      f'--public-eval-clients: {config.task} holds out later text of clients that train; leave it '
      'out.'
    )
  if private:
    return dataclasses.replace(data, left_out=())
  if data.shares_clients:
    note = 'Held-out text is what clients that train wrote later, but for --eval-split validation.'
    data = dataclasses.replace(data, left_out=(*data.left_out, note))
  for sentence in data.left_out:
    say(sentence)
  return data
