# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a learning process needs to know of a model: `AdapterModel`, and the causal one."""

import collections
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from hetlora_tff.adapters import backbone as frozen
from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters import injection, layers
from hetlora_tff.adapters.config import LoraConfig

Adapters = collections.OrderedDict[str, lora.LoraFactors]


class ModuleShape(NamedTuple):
  """Sizes of one adapted module: `W` is `[d_out, d_in]`."""

  d_in: int
  d_out: int

  def num_trained(self, rank: int) -> int:
    """Numbers that a client of `rank` trains in this module."""
    return rank * (self.d_in + self.d_out)


class BatchLoss(NamedTuple):
  """Loss of a batch, as sums, so that batches add up.

  Attributes:
    total: float32 scalar, summed over everything that is predicted.
    count: float32 scalar, the number of predictions (tokens for a language model).
  """

  total: tf.Tensor
  count: tf.Tensor


LossFn = Callable[[Mapping[str, lora.LoraFactors], Any], BatchLoss]


class AdapterModel(Protocol):
  """A frozen model whose only trained part is its adapters.

  Attributes:
    batch_spec: structure of `tf.TensorSpec` of one batch; the first dimension is the number of
      examples.
  """

  batch_spec: Any

  def module_shapes(self, config: LoraConfig) -> collections.OrderedDict[str, ModuleShape]:
    """The adapted modules by path, in a stable order."""
    ...

  def build(self, config: LoraConfig) -> LossFn:
    """Creates the model in the current graph.

    Returns:
      A function of (adapters of any rank, batch) that gives the batch's `BatchLoss`.
    """
    ...


class CausalLanguageModel:
  """Next-token prediction on a frozen causal keras-nlp backbone.

  A batch is an `OrderedDict` of `token_ids` and `padding_mask`, int32 `[n, L]`, and
  `loss_weights`, float32 `[n, L]`: position `t` predicts token `t + 1`, and counts if its weight is
  not zero.
  """

  def __init__(self, backbone: frozen.FrozenBackbone, sequence_length: int):
    """Initializes the model.

    Args:
      backbone: a backbone whose class has a `token_embedding` that maps back to the vocabulary.
      sequence_length: `L`, static: one graph serves all batches.

    Raises:
      ValueError: if the backbone cannot take sequences of that length.
    """
    longest = backbone.config.get('max_sequence_length')
    if sequence_length < 2 or (longest and sequence_length > longest):
      raise ValueError(
        f'`sequence_length` must be in [2, {longest or "any"}] for {backbone.class_name}, '
        f'got {sequence_length}.'
      )
    self.backbone = backbone
    matrix = functools.partial(tf.TensorSpec, [None, sequence_length])
    self.batch_spec = collections.OrderedDict(
      token_ids=matrix(tf.int32), padding_mask=matrix(tf.int32), loss_weights=matrix(tf.float32)
    )

  def module_shapes(self, config: LoraConfig) -> collections.OrderedDict[str, ModuleShape]:
    """See `AdapterModel`."""
    with frozen.keras_classes_restored(), tf.Graph().as_default():
      adapted = injection.inject_lora(self.backbone.build(), config, create_variables=False)
    return collections.OrderedDict(
      (path, ModuleShape(layer.d_in, layer.d_out)) for path, layer in adapted.items()
    )

  def build(self, config: LoraConfig) -> LossFn:
    """See `AdapterModel`."""
    model = self.backbone.build()
    adapted = injection.inject_lora(model, config, create_variables=False)

    def loss_fn(adapters: Mapping[str, lora.LoraFactors], batch) -> BatchLoss:
      with layers.bound(adapted, adapters):
        return causal_loss(model, batch)

    return loss_fn


def causal_loss(backbone: tf.keras.Model, batch: Mapping[str, tf.Tensor]) -> BatchLoss:
  """Summed cross-entropy of the next tokens.

  Only positions that carry loss meet the vocabulary: its softmax is a large share of a step.

  Args:
    backbone: a causal keras-nlp backbone, with adapters or without.
    batch: as `CausalLanguageModel` describes.

  Returns:
    Sum and number of the counted predictions.
  """
  inputs = {'token_ids': batch['token_ids'], 'padding_mask': batch['padding_mask']}
  hidden = backbone(inputs, training=False)
  weights = batch['loss_weights'][:, :-1]
  counted = tf.not_equal(weights, 0.0)
  labels = tf.boolean_mask(batch['token_ids'][:, 1:], counted)
  logits = _logits(backbone.token_embedding, tf.boolean_mask(hidden[:, :-1, :], counted))
  losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
  kept = tf.boolean_mask(weights, counted)
  return BatchLoss(tf.reduce_sum(losses * kept), tf.reduce_sum(kept))


def _logits(embedding, hidden: tf.Tensor) -> tf.Tensor:
  """`embedding(hidden, reverse=True)` without a transposed copy of the vocabulary in every step."""
  if embedding.tie_weights:
    return tf.matmul(hidden, embedding.embeddings, transpose_b=True)
  return tf.matmul(hidden, embedding.reverse_embeddings)
