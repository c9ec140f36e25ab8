# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The work that the benchmarks share: clients, shapes and a random backbone."""

import collections
import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

import keras_nlp
import numpy as np
import tensorflow as tf

import hetlora_tff
from hetlora_tff.clients.data import pack_client_data

VOCABULARY = 8192


@dataclasses.dataclass(frozen=True)
class Work:
  """One round: `clients` times `steps` steps of SGD on `[batch, length]` tokens, all predicted."""

  layers: int = 4
  width: int = 256
  clients: int = 16
  steps: int = 4
  batch: int = 8
  length: int = 64
  max_rank: int = 8


@contextlib.contextmanager
def model_of(work: Work) -> Iterator[hetlora_tff.CausalLanguageModel]:
  """A GPT-2 of the work's shape with random weights, stored for as long as the context lasts."""
  tf.keras.utils.set_random_seed(0)
  backbone = keras_nlp.models.GPT2Backbone(
    vocabulary_size=VOCABULARY,
    num_layers=work.layers,
    num_heads=4,
    hidden_dim=work.width,
    intermediate_dim=4 * work.width,
    max_sequence_length=work.length,
  )
  with tempfile.TemporaryDirectory() as directory:
    frozen = hetlora_tff.FrozenBackbone.save(backbone, pathlib.Path(directory) / 'backbone')
    yield hetlora_tff.CausalLanguageModel(frozen, work.length)


def lora_config(work: Work) -> hetlora_tff.LoraConfig:
  """Adapters on query and value."""
  return hetlora_tff.LoraConfig(max_rank=work.max_rank, alpha=2.0 * work.max_rank)


def examples_of(work: Work) -> list[tf.data.Dataset]:
  """Random tokens, a dataset of batches per client."""
  generator = np.random.default_rng(0)
  shape = [work.steps, work.batch, work.length]
  loss_weights = np.ones(shape, np.float32)
  loss_weights[..., -1] = 0
  return [
    tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(
        token_ids=generator.integers(0, VOCABULARY, shape, np.int32),
        padding_mask=np.ones(shape, np.int32),
        loss_weights=loss_weights,
      )
    )
    for _ in range(work.clients)
  ]


def rank_of(work: Work, client: int) -> int:
  """Ranks 1 to `max_rank` in turn."""
  return 1 + client % work.max_rank


def client_data_of(work: Work, examples: list[tf.data.Dataset]):
  """The clients' input to the process."""
  return [pack_client_data(rank_of(work, k), e) for k, e in enumerate(examples)]
