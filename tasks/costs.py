# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""An estimate of what local training costs a client, from the sizes of its model alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# A multiply and an add for each weight and token.
_FORWARD = 2
# The gradient of what went into a matrix costs another product with it.
_FORWARD_AND_BACKWARD = 4
# And the gradient of the matrix itself a third.
_WITH_WEIGHT_GRADIENT = 6


class ModelSize(NamedTuple):
  """What of a transformer multiplies.

  Attributes:
    body_weights: entries of the matrices that every token passes; no biases, norms or look-ups.
    vocabulary_weights: entries of the matrix from hidden state to vocabulary, tied or not; 0 of a
      classifier, whose head is one of the adapters.
    layers: attention layers that a token passes.
    width: heads x head size of one attention layer.
  """

  body_weights: int
  vocabulary_weights: int
  layers: int
  width: int


def model_size(
  config: Mapping[str, Any],
  tensors: Iterable[tuple[str, Sequence[int]]],
  *,
  predicts_tokens: bool = True,
) -> ModelSize:
  """Reads the sizes of a keras-nlp backbone.

  Args:
    config: arguments of its class; `num_layers` and `hidden_dim` are read, and `vocabulary_size`
      where tokens are predicted.
    tensors: (name, shape) of its variables. Matrices are those called `kernel`, whatever the
      number of dimensions that Keras stores them in; the pooler of an encoder is not one of them,
      for nothing reads it.
    predicts_tokens: whether hidden states meet the vocabulary.

  Raises:
    KeyError: if the configuration lacks what is read.
  """
  layers, width = int(config['num_layers']), int(config['hidden_dim'])
  # ALBERT sends a token through each group of its layers several times.
  repeats = layers // int(config.get('num_groups', layers))
  body = 0
  for name, shape in tensors:
    layer, _, variable = name.partition(':')[0].rpartition('/')
    if variable == 'kernel' and layer != 'pooled_dense':
      body += math.prod(shape) * (repeats if layer.startswith('group_') else 1)
  return ModelSize(
    body_weights=body,
    vocabulary_weights=int(config['vocabulary_size']) * width if predicts_tokens else 0,
    layers=layers * int(config.get('num_inner_repetitions', 1)),
    width=width,
  )


def client_flops(
  size: ModelSize,
  *,
  tokens: int,
  predictions: int,
  sequence_length: int,
  trained: int,
  frozen: int = 0,
  full: bool = False,
) -> int:
  """Floating-point operations of one client's local training, as matrix products alone.

  With N body weights, V vocabulary weights, L positions, and a layer's attention of width d:

    adapters:  tokens (4 N + 6 trained + 4 frozen + 12 layers L d) + predictions 4 V
    full:      tokens (6 N + 12 layers L d)                        + predictions 6 V

  A weight costs 2 forward, 2 for the gradient of its input, and 2 more if it is trained (Kaplan et
  al., arXiv:2001.08361, section 2.1, without the last part for frozen weights). Attention scores
  and their use are two products of L d multiply-adds a token forward and twice that backward; the
  causal half that is masked is computed too. Only positions that carry loss meet the vocabulary.
  Norms, activations, softmax, the optimizer and the pruning penalty are left out: a few per cent;
  and so are DeBERTa's scores of positions. A classifier's head counts as an adapter of every token,
  though one token of a text passes it.
  A dense residual (stacking, FedEx-LoRA) is taken as merged into the weights that it changes.

  Args:
    size: of the backbone.
    tokens: positions that the client computes, over all local steps, padding included.
    predictions: positions among them that carry loss.
    sequence_length: L, positions of a sequence.
    trained: entries of the adapters that the client trains; not read with `full`.
    frozen: entries of the adapters that it only multiplies by, such as `a` in FFA-LoRA.
    full: whether the backbone is trained and there are no adapters.

  Returns:
    The number of operations; 0 without tokens.
  """
  attention = 3 * _FORWARD * 2 * size.layers * sequence_length * size.width
  if full:
    body = _WITH_WEIGHT_GRADIENT * size.body_weights
    vocabulary = _WITH_WEIGHT_GRADIENT * size.vocabulary_weights
  else:
    body = _FORWARD_AND_BACKWARD * (size.body_weights + frozen) + _WITH_WEIGHT_GRADIENT * trained
    vocabulary = _FORWARD_AND_BACKWARD * size.vocabulary_weights
  return tokens * (body + attention) + predictions * vocabulary
