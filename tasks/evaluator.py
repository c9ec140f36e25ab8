# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Held-out clients: their losses and what the model writes for them."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from hetlora_tff.adapters import injection, layers
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.model import Adapters, Weights, assign, causal_loss
from tasks import metrics, text
from tasks.backbones import BaseModel
from tasks.decoding import GreedyDecoder
from tasks.errors import UserError
from tasks.federated_text import Example

_ROWS_PER_BATCH = 32

# What a method trains, with arrays or tensors: adapters by module path, with a residual or without,
# or all weights of the backbone by name.
Parameters = Adapters | Weights


class Written(NamedTuple):
  """What the model wrote for one example."""

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
    clients: Mapping[str, Sequence[Example]],
    *,
    sequence_length: int,
    examples_per_client: int,
    decode_examples: int,
  ):
    """Packs the data and builds the model once.

    Args:
      base: the base model.
      config: the adapters; None where the parameters are all weights of the backbone.
      clients: held-out examples by client.
      sequence_length: tokens per example.
      examples_per_client: most examples of a client; the first ones are taken.
      decode_examples: most examples to decode in all, taken from the clients in turn.
    """
    kept = {client: examples[:examples_per_client] for client, examples in clients.items()}
    self._packed = {
      client: text.pack(examples, base.tokenizer, sequence_length)
      for client, examples in kept.items()
    }
    self._to_decode = _in_turn(kept, decode_examples)
    self._prompts = text.prompts(
      [example for _, example in self._to_decode], base.tokenizer, sequence_length
    )
    self._tokenizer = base.tokenizer
    model, bind = _build(base, config)

    @tf.function(reduce_retracing=True)
    def batch_loss(parameters, batch):
      with bind(parameters):
        return causal_loss(model, batch)

    self._batch_loss = batch_loss
    self._decoder = GreedyDecoder(
      model,
      max_new_tokens=text.max_target_tokens(sequence_length),
      end_token_id=base.tokenizer.end_token_id,
      bind=bind,
    )

  def losses(self, parameters: Parameters) -> metrics.ClientLosses:
    """Mean loss of each client's targets.

    Raises:
      UserError: if a loss is not finite.
    """
    parameters = tf.nest.map_structure(tf.convert_to_tensor, parameters)
    clients, sums, counts = [], [], []
    for client, packed in self._packed.items():
      num_rows = len(packed['token_ids'])
      for start in range(0, num_rows, _ROWS_PER_BATCH):
        rows = slice(start, start + _ROWS_PER_BATCH)
        loss = self._batch_loss(parameters, {k: tf.constant(v[rows]) for k, v in packed.items()})
        clients.append(client)
        sums.append(float(loss.total))
        counts.append(float(loss.count))
    if not np.isfinite(sums).all():
      raise UserError(
        'The held-out loss is not finite: training has diverged; lower --client-learning-rate, '
        '--server-learning-rate or --alpha.'
      )
    return metrics.client_losses(clients, sums, counts)

  def write(self, parameters: Parameters) -> list[Written]:
    """Greedy continuations of the examples chosen for decoding."""
    if not self._to_decode:
      return []
    decoded = self._decoder.decode(self._prompts, parameters)
    predictions = self._tokenizer.decode_batch(decoded)
    return [
      Written(client, example.source, example.target, prediction.strip())
      for (client, example), prediction in zip(self._to_decode, predictions, strict=True)
    ]


def rouge_l_by_client(written: Sequence[Written]) -> dict[str, float]:
  """Mean RougeL of each client."""
  scores = metrics.rouge_l([w.reference for w in written], [w.prediction for w in written])
  return metrics.client_means([w.client for w in written], scores)


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


def _in_turn(clients: Mapping[str, Sequence[Example]], limit: int) -> list[tuple[str, Example]]:
  longest = max(map(len, clients.values()), default=0)
  turns = (
    (client, examples[turn])
    for turn in range(longest)
    for client, examples in clients.items()
    if turn < len(examples)
  )
  return [pair for pair, _ in zip(turns, range(limit), strict=False)]
