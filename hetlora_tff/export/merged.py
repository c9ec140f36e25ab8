# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The model that training has made, as one model without adapters."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from hetlora_tff.adapters import classification
from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters import model as model_lib
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.merge import merged_kernels


class ExportError(ValueError):
  """A model that a format cannot hold, or a place that cannot be written to."""


@dataclasses.dataclass(frozen=True, eq=False)
class MergedModel:
  """A backbone with the adapters in its weights; make one with `merge`.

  Attributes:
    backbone: its class, configuration and the weights that are as they were.
    kernels: the weights that are not, float32 by their names in `backbone.weight_names`.
    classifier: the head of a classification, float32 `[num_classes, d]`; None for a language model.
  """

  backbone: FrozenBackbone
  kernels: Mapping[str, np.ndarray]
  classifier: np.ndarray | None

  def build(self) -> tf.keras.Model:
    """Creates the keras-nlp backbone with these weights, eagerly."""
    model, variables = self.backbone.build_with_variables()
    for name, kernel in self.kernels.items():
      variables[name].assign(kernel)
    return model

  @property
  def num_bytes(self) -> int:
    """Size of all weights in float32."""
    head = 0 if self.classifier is None else self.classifier.size
    return 4 * (self.backbone.num_parameters + head)


def merge(
  backbone: FrozenBackbone, config: LoraConfig | None, adapters: Mapping[str, lora.Factors]
) -> MergedModel:
  """Writes adapters into the weights of their backbone.

  Args:
    backbone: what they were trained on.
    config: the adapters; None for a backbone whose own weights were trained.
    adapters: factors of any rank by module path, with a residual or without; none if `config` is
      None.

  Raises:
    ExportError: if what comes of it has no logits.
    ValueError: if the adapters are not those of the modules.
  """
  modules = dict(adapters)
  head = modules.pop(classification.CLASSIFIER, None)
  if head is None and not classification.is_causal(backbone.class_name):
    raise ExportError(f'{backbone.class_name} without a classification head gives no logits.')
  kernels = {} if config is None else merged_kernels(backbone, config, modules)
  classifier = None
  if head is not None:
    if config is None:
      raise ValueError('`config` must say how a head is scaled.')
    # It stands alone: there is no frozen weight that it would be added to.
    classifier = np.float32(config.scaling) * np.matmul(head.b, head.a, dtype=np.float32)
    if isinstance(head, lora.CorrectedFactors):
      classifier += head.residual
  return MergedModel(backbone, kernels, classifier)


class ServableModel(tf.Module):
  """A merged model as one TensorFlow function; Keras and keras-nlp only trace it.

  Attributes:
    logits: `(token_ids int32 [n, L], padding_mask int32 [n, L]) -> {'logits': float32}`, `[n, L,
      vocabulary]` of a language model and `[n, num_classes]` of a classification; any `n` and `L`
      that the backbone takes.
  """

  def __init__(self, merged: MergedModel):
    """Builds the model eagerly: all weights are in memory then."""
    super().__init__(name='merged')
    model = merged.build()
    # Keras objects held here would be saved, too, and be asked for when it is loaded.
    self.weights = list(model.weights)
    if merged.classifier is not None:
      self.weights.append(tf.Variable(merged.classifier, trainable=False, name='classifier'))
    class_name, head = merged.backbone.class_name, merged.classifier is not None
    ids = tf.TensorSpec([None, None], tf.int32)

    @tf.function(input_signature=[ids, ids], autograph=False)
    def logits(token_ids, padding_mask):
      batch = {'token_ids': token_ids, 'padding_mask': padding_mask}
      if head:
        states = classification.text_states(class_name, model, batch)
        return {'logits': tf.matmul(states, self.weights[-1], transpose_b=True)}
      hidden = model(batch, training=False)
      return {'logits': model_lib.vocabulary_logits(model.token_embedding, hidden)}

    self.logits = logits
