# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Held-out clients: their losses, and what is written for them or how their text is labelled."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from hetlora_tff.adapters import injection, layers
from hetlora_tff.adapters.classification import ClassificationModel
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.model import Adapters, BatchLoss, Weights, assign, causal_loss
from tasks import metrics
from tasks.backbones import BaseModel
from tasks.decoding import Decoder
from tasks.errors import UserError
from tasks.federated_text import Example, FederatedText, Kind
from tasks.packing import Packer

_ROWS_PER_BATCH = 32

# What a method trains, with arrays or tensors: adapters by module path, with a residual or without,
# or all weights of the backbone by name.
Parameters = Adapters | Weights
Rows = Mapping[str, np.ndarray]


class Measured(NamedTuple):
  """What all held-out examples came to.

  Attributes:
    losses: of each client.
    accuracy: share of each client's texts that got their label; empty where there are no labels.
  """

  losses: metrics.ClientLosses
  accuracy: Mapping[str, float]


class Written(NamedTuple):
  """What the model wrote for one example, or the label that it gave it."""

  client: str
  source: str
  reference: str
  prediction: str


class Evaluator:
  """Evaluates what a run trains on held-out clients, in this process."""

  def __init__(
    self,
    base: BaseModel,
    config: LoraConfig | None,
    data: FederatedText,
    clients: Mapping[str, Sequence[Example]],
    packer: Packer,
    *,
    examples_per_client: int,
    decode_examples: int,
    num_beams: int = 1,
  ):
    """Packs the data and builds the model once.

    Args:
      base: the base model.
      config: the adapters; None where the parameters are all weights of the backbone.
      data: of the task, which says what is learned.
      clients: held-out examples by client.
      packer: makes the rows of the task's examples.
      examples_per_client: most examples of a client; the first ones are taken.
      decode_examples: most examples to write for in all, taken from the clients in turn; running
        text has none, as there is nothing to compare with.
      num_beams: to decode with; 1 is greedy.

    Raises:
      ValueError: if labels are learned and there is no `config`.
    """
    kept = {client: examples[:examples_per_client] for client, examples in clients.items()}
    self._rows = {client: packer.rows(examples) for client, examples in kept.items()}
    self._to_write = [] if data.kind is Kind.TEXT else _in_turn(kept, decode_examples)
    examples = [example for _, example in self._to_write]
    self._model: _Writer | _Classifier
    if data.kind is Kind.LABEL:
      if config is None:
        raise ValueError('config: a classification needs adapters, its head is one of them.')
      sequence_length = next(iter(self._rows.values()))['token_ids'].shape[1]
      model = ClassificationModel(base.backbone, sequence_length, len(data.labels))
      self._model = _Classifier(model, config, data.labels, packer.rows(examples))
    else:
      self._model = _Writer(base, config, packer, examples, num_beams)

  def measure(self, parameters: Parameters) -> Measured:
    """Measures all examples.

    Raises:
      UserError: if a loss is not finite.
    """
    parameters = tf.nest.map_structure(tf.convert_to_tensor, parameters)
    clients, sums, counts, hits = [], [], [], []
    for client, rows in self._rows.items():
      for batch in _batches(rows):
        loss, right = self._model.loss(parameters, batch)
        clients.append(client)
        sums.append(float(loss.total))
        counts.append(float(loss.count))
        hits.append(right)
    if not np.isfinite(sums).all():
      raise UserError(
        'The held-out loss is not finite: training has diverged; lower --client-learning-rate, '
        '--server-learning-rate or --alpha.'
      )
    losses = metrics.client_losses(clients, sums, counts)
    if None in hits:
      return Measured(losses, {})
    right = metrics.client_losses(clients, hits, counts)
    return Measured(losses, dict(zip(right.clients, right.losses.tolist(), strict=True)))

  def losses(self, parameters: Parameters) -> metrics.ClientLosses:
    """Mean loss of each client; see `measure`."""
    return self.measure(parameters).losses

  def write(self, parameters: Parameters) -> list[Written]:
    """What the model writes for the examples chosen for it."""
    if not self._to_write:
      return []
    return [
      Written(client, _read(example), example.target, prediction)
      for (client, example), prediction in zip(
        self._to_write, self._model.write(parameters), strict=True
      )
    ]


class _Writer:
  """A causal model that is to go on with texts."""

  def __init__(
    self,
    base: BaseModel,
    config: LoraConfig | None,
    packer: Packer,
    examples: Sequence[Example],
    num_beams: int,
  ):
    model, bind = _build(base, config)

    @tf.function(reduce_retracing=True)
    def loss(parameters, batch):
      with bind(parameters):
        return causal_loss(model, batch)

    self._loss = loss
    self._tokenizer = base.tokenizer
    if examples:
      self._prompts = packer.prompts(examples)
      self._decoder = Decoder(
        model,
        max_new_tokens=packer.max_target_tokens,
        end_token_id=base.tokenizer.end_token_id,
        bind=bind,
        num_beams=num_beams,
      )

  def loss(self, parameters: Parameters, batch: Mapping[str, tf.Tensor]) -> tuple[BatchLoss, None]:
    """The loss of some rows; nothing of them is right or wrong."""
    return self._loss(parameters, batch), None

  def write(self, parameters: Parameters) -> list[str]:
    """Continuations of the examples."""
    decoded = self._decoder.decode(self._prompts, parameters)
    return [text.strip() for text in self._tokenizer.decode_batch(decoded)]


class _Classifier:
  """A model that is to label texts."""

  def __init__(
    self,
    model: ClassificationModel,
    config: LoraConfig,
    labels: Sequence[str],
    rows: Rows,
  ):
    logits_fn = model.build_logits(config)

    @tf.function(reduce_retracing=True)
    def run(parameters, batch):
      logits = logits_fn(parameters, batch)
      losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch['labels'], logits)
      return tf.reduce_sum(losses), tf.argmax(logits, axis=-1)

    self._run = run
    self._labels = np.array(labels)
    self._rows = rows

  def loss(self, parameters: Parameters, batch: Mapping[str, tf.Tensor]) -> tuple[BatchLoss, float]:
    """The loss of some rows, and how many of them got their label."""
    total, predicted = self._run(parameters, batch)
    right = np.sum(predicted.numpy() == batch['labels'].numpy())
    return BatchLoss(total, tf.cast(tf.size(predicted), tf.float32)), float(right)

  def write(self, parameters: Parameters) -> list[str]:
    """Labels of the examples."""
    parameters = tf.nest.map_structure(tf.convert_to_tensor, parameters)
    classes = [self._run(parameters, batch)[1].numpy() for batch in _batches(self._rows)]
    return self._labels[np.concatenate(classes)].tolist()


def _build(
  base: BaseModel, config: LoraConfig | None
) -> tuple[tf.keras.Model, Callable[[Any], contextlib.AbstractContextManager]]:
  """The model, and what makes it compute with the parameters of a call."""
  if config is None:
    model, variables = base.backbone.build_with_variables()

    @contextlib.contextmanager
    def bind(weights):
      assign(variables, weights)
      yield

    return model, bind
  model = base.backbone.build()
  adapted = injection.inject_lora(model, config, create_variables=False)
  return model, functools.partial(layers.bound, adapted)


def _read(example: Example) -> str:
  return '\n'.join(text for text in (example.head, example.source) if text)


def _batches(rows: Rows) -> Iterator[dict[str, tf.Tensor]]:
  for start in range(0, len(rows['token_ids']), _ROWS_PER_BATCH):
    part = slice(start, start + _ROWS_PER_BATCH)
    yield {name: tf.constant(values[part]) for name, values in rows.items()}


def _in_turn(clients: Mapping[str, Sequence[Example]], limit: int) -> list[tuple[str, Example]]:
  """One example of each client, then another of each; first ones would all open a conversation."""
  longest = max(map(len, clients.values()), default=0)
  turns = (
    (client, examples[(turn + place) % len(examples)])
    for turn in range(longest)
    for place, (client, examples) in enumerate(clients.items())
    if turn < len(examples)
  )
  return [pair for pair, _ in zip(turns, range(limit), strict=False)]
