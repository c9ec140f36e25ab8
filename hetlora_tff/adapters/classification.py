# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Classification of text on a frozen backbone: the head is one more adapted module.

A head of its own would be a second kind of weights, without a rank, for every aggregator and every
privacy mechanism to know. Here its frozen weight is zero and its factors are all there is of it:

    logits = scaling * b (a h),    a [rank, d],  b [num_classes, rank]

so it is sliced, pruned, aggregated, clipped and exported as the other modules are.
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import keras_nlp
import tensorflow as tf

from hetlora_tff.adapters import backbone as frozen
from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters import injection, layers
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.model import BatchLoss, LossFn, ModuleShape, checked_compute_dtype

# Module path of the head.
CLASSIFIER = 'classifier'
# What is pretrained to hold a text in its first token.
ENCODERS = frozenset(
  f'{family}Backbone'
  for family in ('Albert', 'Bert', 'DebertaV3', 'DistilBert', 'Electra', 'Roberta', 'XLMRoberta')
)

LogitsFn = Callable[[Mapping[str, lora.Factors], Mapping[str, tf.Tensor]], tf.Tensor]


def is_causal(class_name: str) -> bool:
  """Whether keras-nlp predicts next tokens with a class such as `'GPT2Backbone'`."""
  family = class_name.removesuffix('Backbone')
  return family not in ('', class_name) and hasattr(keras_nlp.models, f'{family}CausalLM')


class ClassificationModel:
  """One label of a text, on an encoder or a causal backbone: an `AdapterModel`.

  A batch is an `OrderedDict` of `token_ids` and `padding_mask`, int32 `[n, L]`, padded at the end,
  and `labels`, int32 `[n]`. The text is what the backbone makes of its first token (encoders, whose
  texts begin with one for that) or of its last one (causal backbones, where it alone has seen all).
  """

  def __init__(
    self,
    backbone: frozen.FrozenBackbone,
    sequence_length: int,
    num_classes: int,
    compute_dtype: str = 'float32',
  ):
    """Initializes the model.

    Args:
      backbone: of one of `ENCODERS`, or causal.
      sequence_length: `L`, static: one graph serves all batches.
      num_classes: number of labels, at least 2.
      compute_dtype: as `CausalLanguageModel` takes it.

    Raises:
      ValueError: if the backbone is of another kind or cannot take sequences of that length, or
        there is nothing to tell apart.
    """
    longest = backbone.config.get('max_sequence_length')
    if sequence_length < 2 or (longest and sequence_length > longest):
      raise ValueError(
        f'`sequence_length` must be in [2, {longest or "any"}] for {backbone.class_name}, '
        f'got {sequence_length}.'
      )
    if num_classes < 2:
      raise ValueError(f'`num_classes` must be at least 2, got {num_classes}.')
    if backbone.class_name not in ENCODERS and not is_causal(backbone.class_name):
      raise ValueError(
        f'{backbone.class_name} is neither a causal backbone nor one of {sorted(ENCODERS)}.'
      )
    self.backbone = backbone
    self.num_classes = num_classes
    self._compute_dtype = checked_compute_dtype(compute_dtype)
    tokens = tf.TensorSpec([None, sequence_length], tf.int32)
    self.batch_spec = collections.OrderedDict(
      token_ids=tokens, padding_mask=tokens, labels=tf.TensorSpec([None], tf.int32)
    )

  def module_shapes(self, config: LoraConfig) -> collections.OrderedDict[str, ModuleShape]:
    """See `AdapterModel`; the head is the last one."""
    with frozen.keras_classes_restored(), tf.Graph().as_default():
      _, adapted = self._adapted(config)
    return collections.OrderedDict(
      (path, ModuleShape(layer.d_in, layer.d_out)) for path, layer in adapted.items()
    )

  def build(self, config: LoraConfig) -> LossFn:
    """See `AdapterModel`; an example is one prediction."""
    logits_fn = self._logits_fn(*self._adapted(config, self._compute_dtype))

    def loss_fn(adapters: Mapping[str, lora.Factors], batch) -> BatchLoss:
      losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=batch['labels'], logits=logits_fn(adapters, batch)
      )
      return BatchLoss(tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32))

    return loss_fn

  def build_logits(self, config: LoraConfig) -> LogitsFn:
    """Creates the model in the current graph or eagerly.

    Returns:
      A function of (adapters of any rank, batch) that gives float32 `[n, num_classes]`; it does not
      read the labels.
    """
    return self._logits_fn(*self._adapted(config))

  def _logits_fn(self, model: tf.keras.Model, adapted: Mapping[str, layers.LoraLayer]) -> LogitsFn:
    class_name = self.backbone.class_name

    def logits_fn(adapters: Mapping[str, lora.Factors], batch) -> tf.Tensor:
      with layers.bound(adapted, adapters):
        return adapted[CLASSIFIER](text_states(class_name, model, batch))

    return logits_fn

  def _adapted(
    self, config: LoraConfig, dtype: tf.DType | None = None
  ) -> tuple[tf.keras.Model, collections.OrderedDict[str, layers.LoraLayer]]:
    model = self.backbone.build()
    adapted = injection.inject_lora(model, config, create_variables=False, frozen_dtype=dtype)
    head = tf.keras.layers.Dense(
      self.num_classes, use_bias=False, kernel_initializer='zeros', trainable=False
    )
    head.build(_sequence_output(model.output).shape)
    adapted[CLASSIFIER] = layers.wrap(head, config.scaling)
    return model, adapted


def text_states(
  class_name: str, model: tf.keras.Model, batch: Mapping[str, tf.Tensor]
) -> tf.Tensor:
  """What a backbone makes of texts, for a head to read.

  Args:
    class_name: of the backbone.
    model: the backbone, with adapters or without.
    batch: `token_ids` and `padding_mask` as `ClassificationModel` describes.

  Returns:
    Float32 `[n, d]`.
  """
  hidden = _sequence_output(model(_inputs(model, batch), training=False))
  return hidden[:, 0, :] if class_name in ENCODERS else _last_token(hidden, batch['padding_mask'])


def _inputs(model: tf.keras.Model, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """What the backbone asks for of a batch; a text is all one segment."""
  segments = {'segment_ids': tf.zeros_like(batch['token_ids'])}
  return {name: {**segments, **batch}[name] for name in model.input}


def _sequence_output(output: Any) -> Any:
  """The hidden states `[n, L, d]`; some encoders give a pooled output beside them."""
  return output['sequence_output'] if isinstance(output, Mapping) else output


def _last_token(hidden: tf.Tensor, padding_mask: tf.Tensor) -> tf.Tensor:
  last = tf.maximum(tf.reduce_sum(padding_mask, axis=1) - 1, 0)
  return tf.gather(hidden, last, axis=1, batch_dims=1)
