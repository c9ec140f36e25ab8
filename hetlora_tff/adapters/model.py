# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a learning process needs to know of a model: `AdapterModel`, `FullModel`, the causal one."""

import collections
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from hetlora_tff.adapters import backbone as frozen
from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters import fast_ops, injection, layers
from hetlora_tff.adapters.config import LoraConfig

Adapters = collections.OrderedDict[str, lora.Factors]
Weights = collections.OrderedDict[str, tf.Tensor]


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


LossFn = Callable[[Mapping[str, lora.Factors], Any], BatchLoss]


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


FullLossFn = Callable[[Mapping[str, tf.Tensor], Any], BatchLoss]


class FullModel(Protocol):
  """A model all of whose weights are trained.

  Attributes:
    batch_spec: as in `AdapterModel`.
  """

  batch_spec: Any

  def weight_specs(self) -> collections.OrderedDict[str, tf.TensorSpec]:
    """Shape and type of every weight by name, in a stable order."""
    ...

  def initial_weights(self) -> Weights:
    """The weights that training starts from, in the current graph or eagerly."""
    ...

  def build_full(self) -> FullLossFn:
    """Creates the model in the current graph.

    Returns:
      A function of (weights, batch) that gives the batch's `BatchLoss`; `total` can be
      differentiated once by the weights.
    """
    ...


class CausalLanguageModel:
  """Next-token prediction on a causal keras-nlp backbone: an `AdapterModel` and a `FullModel`.

  A batch is an `OrderedDict` of `token_ids` and `padding_mask`, int32 `[n, L]`, and
  `loss_weights`, float32 `[n, L]`: position `t` predicts token `t + 1`, and counts if its weight is
  not zero.
  """

  def __init__(
    self,
    backbone: frozen.FrozenBackbone,
    sequence_length: int,
    compute_dtype: str = 'float32',
  ):
    """Initializes the model.

    Args:
      backbone: a backbone whose class has a `token_embedding` that maps back to the vocabulary.
      sequence_length: `L`, static: one graph serves all batches.
      compute_dtype: what `build` rounds products with frozen weights to, their sums being float32:
        `'float32'` or `'bfloat16'`. The adapters and everything between the products are float32.

    Raises:
      ValueError: if the backbone cannot take sequences of that length, or for another type.
    """
    longest = backbone.config.get('max_sequence_length')
    if sequence_length < 2 or (longest and sequence_length > longest):
      raise ValueError(
        f'`sequence_length` must be in [2, {longest or "any"}] for {backbone.class_name}, '
        f'got {sequence_length}.'
      )
    self.backbone = backbone
    self._compute_dtype = checked_compute_dtype(compute_dtype)
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
    adapted = injection.inject_lora(
      model, config, create_variables=False, frozen_dtype=self._compute_dtype
    )
    vocabulary = fast_ops.FrozenVocabulary(model.token_embedding, self._compute_dtype)

    def loss_fn(adapters: Mapping[str, lora.Factors], batch) -> BatchLoss:
      with layers.bound(adapted, adapters):
        hidden, labels, weights = _predictions(model, batch)
      return BatchLoss(vocabulary.loss(hidden, labels, weights), tf.reduce_sum(weights))

    return loss_fn

  def weight_specs(self) -> collections.OrderedDict[str, tf.TensorSpec]:
    """See `FullModel`; the names are those of the backbone's tensors."""
    backbone = self.backbone
    return collections.OrderedDict(
      (name, tf.TensorSpec(record.shape, tf.float32))
      for name, record in zip(backbone.weight_names, backbone.tensors, strict=True)
    )

  def initial_weights(self) -> Weights:
    """See `FullModel`; mapped into memory."""
    return self.backbone.weights()

  def build_full(self) -> FullLossFn:
    """See `FullModel`.

    keras-nlp's layers compute with variables, so the weights are assigned to them and the gradients
    by the variables are handed out as those by the weights. Both are computed together, in one
    function: in a bare graph, too, it assigns before it reads.
    """
    model, variables = self.backbone.build_with_variables()

    @tf.function(autograph=False)
    def loss_and_gradients(weights, batch):
      assign(variables, weights)
      watched = list(variables.values())
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(watched)
        loss = causal_loss(model, batch)
      gradients = tape.gradient(loss.total, watched, unconnected_gradients='zero')
      # The embedding's is sparse: an optimizer would treat it otherwise, and a sum needs all of it.
      return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def loss_fn(weights: Mapping[str, tf.Tensor], batch) -> BatchLoss:
      names = list(weights)

      @tf.custom_gradient
      def loss_of(*values):
        loss, gradients = loss_and_gradients(dict(zip(names, values, strict=True)), batch)

        def gradient(total_gradient, _, variables=None):
          by_weights = [total_gradient * gradient for gradient in gradients]
          # Where TensorFlow finds the variables below, it asks for theirs; nobody uses them.
          return by_weights if variables is None else (by_weights, [None] * len(variables))

        return tuple(loss), gradient

      return BatchLoss(*loss_of(*weights.values()))

    return loss_fn


def checked_compute_dtype(compute_dtype: str) -> tf.DType:
  """The type of that name, which matrix products with frozen weights can have.

  Raises:
    ValueError: for another type.
  """
  if compute_dtype not in ('float32', 'bfloat16'):
    raise ValueError(f'`compute_dtype` must be float32 or bfloat16, got {compute_dtype!r}.')
  return tf.as_dtype(compute_dtype)


def assign(variables: Mapping[str, tf.Variable], weights: Mapping[str, tf.Tensor]) -> None:
  """Assigns weights to variables of the same names.

  Raises:
    ValueError: if the names differ.
  """
  if set(variables) != set(weights):
    odd = sorted(set(variables) ^ set(weights))
    raise ValueError(f'`weights` must be exactly those of the model; these differ: {odd}.')
  for name, variable in variables.items():
    variable.assign(weights[name])


def causal_loss(backbone: tf.keras.Model, batch: Mapping[str, tf.Tensor]) -> BatchLoss:
  """Summed cross-entropy of the next tokens.

  Only positions that carry loss meet the vocabulary: its softmax is a large share of a step.

  Args:
    backbone: a causal keras-nlp backbone, with adapters or without.
    batch: as `CausalLanguageModel` describes.

  Returns:
    Sum and number of the counted predictions.
  """
  hidden, labels, weights = _predictions(backbone, batch)
  logits = vocabulary_logits(backbone.token_embedding, hidden)
  losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
  return BatchLoss(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def _predictions(backbone: tf.keras.Model, batch: Mapping[str, tf.Tensor]):
  """Hidden state, next token and weight of each position that carries loss."""
  inputs = {'token_ids': batch['token_ids'], 'padding_mask': batch['padding_mask']}
  hidden = backbone(inputs, training=False)
  weights = batch['loss_weights'][:, :-1]
  counted = tf.not_equal(weights, 0.0)
  states, labels = hidden[:, :-1, :], batch['token_ids'][:, 1:]
  return tuple(tf.boolean_mask(tensor, counted) for tensor in (states, labels, weights))


def vocabulary_logits(embedding, hidden: tf.Tensor) -> tf.Tensor:
  """`embedding(hidden, reverse=True)` without a transposed copy of the vocabulary in every step.

  Args:
    embedding: the `token_embedding` of a causal backbone.
    hidden: float32 `[..., d]`.

  Returns:
    Float32 `[..., vocabulary]`.
  """
  if embedding.tie_weights:
    return tf.matmul(hidden, embedding.embeddings, transpose_b=True)
  return tf.matmul(hidden, embedding.reverse_embeddings)
