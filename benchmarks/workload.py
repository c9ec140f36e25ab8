# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The work that the benchmarks share: clients, shapes, tokens and a random backbone."""

import collections
import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

import keras_nlp
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

import hetlora_tff
from hetlora_tff.clients.data import pack_client_data
from tasks import costs

LEARNING_RATE = 0.1
_TARGETS = ('query', 'key', 'value')


@dataclasses.dataclass(frozen=True)
class Work:
  """One round on a GPT-2: `clients` times `steps` steps of SGD on `[batch, length]` tokens.

  All tokens but the first of a sequence are predicted. Every client has rank `max_rank`, on query,
  key and value of all layers.
  """

  vocabulary: int = 8192
  layers: int = 4
  heads: int = 4
  width: int = 256
  clients: int = 16
  steps: int = 4
  batch: int = 8
  length: int = 64
  max_rank: int = 8


# GPT-2 base takes a minute a round even with few clients.
SIZES = {
  'tiny': Work(vocabulary=256, layers=2, heads=2, width=64, length=16),
  'small': Work(),
  'gpt2-base': Work(vocabulary=50257, layers=12, heads=12, width=768, length=128, clients=4),
}


def save_backbone(work: Work, directory: pathlib.Path) -> hetlora_tff.FrozenBackbone:
  """Stores a GPT-2 of the work's shape with random weights."""
  tf.keras.utils.set_random_seed(0)
  backbone = keras_nlp.models.GPT2Backbone(
    vocabulary_size=work.vocabulary,
    num_layers=work.layers,
    num_heads=work.heads,
    hidden_dim=work.width,
    intermediate_dim=4 * work.width,
    max_sequence_length=work.length,
  )
  return hetlora_tff.FrozenBackbone.save(backbone, directory)


@contextlib.contextmanager
def model_of(work: Work) -> Iterator[hetlora_tff.CausalLanguageModel]:
  """A model of the work's shape with random weights, stored for as long as the context lasts."""
  with tempfile.TemporaryDirectory() as directory:
    frozen = save_backbone(work, pathlib.Path(directory) / 'backbone')
    yield hetlora_tff.CausalLanguageModel(frozen, work.length)


def lora_config(work: Work) -> hetlora_tff.LoraConfig:
  """The adapters."""
  return hetlora_tff.LoraConfig(work.max_rank, alpha=2.0 * work.max_rank, targets=_TARGETS)


def build_process(
  work: Work, model: hetlora_tff.CausalLanguageModel, *, measures_deviation: bool = False
) -> hetlora_tff.HetLoraProcess:
  """Rounds of SGD without a penalty, which is no part of the steps that others take."""
  return hetlora_tff.build_hetlora_process(
    model,
    lora_config(work),
    training=hetlora_tff.LocalTraining(prune_decay=1.0),
    client_optimizer=tff.learning.optimizers.build_sgdm(LEARNING_RATE),
    measures_deviation=measures_deviation,
  )


def tokens_of(work: Work, client: int, seed: int = 0) -> np.ndarray:
  """Int32 `[steps, batch, length]`: a client's tokens, the frequent ones small, as in a text.

  The rivals in `benchmarks.peers` draw the same.
  """
  uniform = np.random.default_rng([seed, 7919, client]).random(
    [work.steps, work.batch, work.length]
  )
  tokens = (np.power(work.vocabulary, uniform) - 1).astype(np.int32)
  return np.minimum(tokens, work.vocabulary - 1)


def examples_of(work: Work) -> list[tf.data.Dataset]:
  """A dataset of batches per client."""
  loss_weights = np.ones([work.steps, work.batch, work.length], np.float32)
  loss_weights[..., -1] = 0
  return [
    tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(
        token_ids=tokens,
        padding_mask=np.ones_like(tokens),
        loss_weights=loss_weights,
      )
    )
    for tokens in (tokens_of(work, client) for client in range(work.clients))
  ]


def client_data_of(work: Work, examples: list[tf.data.Dataset]):
  """The clients' input to the process."""
  return [pack_client_data(work.max_rank, e) for e in examples]


def step_flops(work: Work) -> int:
  """Floating-point operations of one local step that nobody can leave out.

  Those of the matrix products alone: forward, back to the activations, and the adapters'
  gradients, as `tasks.costs.client_flops` says; the gradient of what enters the first layer's
  adapted projections is nobody's input, and is not computed.
  """
  width, tokens = work.width, work.batch * work.length
  size = costs.ModelSize(
    body_weights=12 * width**2 * work.layers,
    vocabulary_weights=work.vocabulary * width,
    layers=work.layers,
    width=width,
  )
  flops = costs.client_flops(
    size,
    tokens=tokens,
    predictions=work.batch * (work.length - 1),
    sequence_length=work.length,
    trained=len(_TARGETS) * work.layers * 2 * width * work.max_rank,
  )
  return flops - 2 * tokens * len(_TARGETS) * width * (width + work.max_rank)


def round_flops(work: Work) -> int:
  """`step_flops` over all clients and their steps."""
  return work.clients * work.steps * step_flops(work)
