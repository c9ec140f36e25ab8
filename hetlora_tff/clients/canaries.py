# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Canary clients, whose traces in the model test a privacy claim (arXiv:2302.03098).

A canary sends a random direction that is far longer than any clip, in every module, with far more
than full weight: it gets as much as the mechanism lets one client do, and more where a clip or a
weight does not hold. Its direction follows from its number alone, so that whoever sees the model
can look for it.
"""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.finite import zero_unless

# Second half of every seed: keeps directions apart from other draws of small seeds, such as the
# initial `a`.
_STREAM = 0x63616E617279


def canary_direction(like: Mapping[str, Any], number: int | tf.Tensor) -> Mapping[str, Any]:
  """The direction of a canary: of norm 1 and uniformly distributed in every module.

  Args:
    like: a client's message, `{path: structure of tensors}`, or arrays or `tf.TensorSpec`s of the
      same shapes in the same order.
    number: the canary's, int64.

  Returns:
    float32 tensors of the structure of `like`.
  """
  direction = collections.OrderedDict()
  for index, (path, entry) in enumerate(like.items()):
    shapes = [tf.TensorShape(part.shape) for part in tf.nest.flatten(entry)]
    sizes = [shape.num_elements() for shape in shapes]
    seed = tf.stack([tf.cast(number, tf.int64), tf.constant(_STREAM + index, tf.int64)])
    # The algorithm by name: the device and whoever looks for its trace must draw the same.
    draw = tf.random.stateless_normal([sum(sizes)], seed, alg='philox')
    parts = tf.split(draw / tf.norm(draw), sizes)
    parts = [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
    direction[path] = tf.nest.pack_sequence_as(entry, parts)
  return direction


def plant_canaries(train_on_client: tff.Computation, norm: float, weight: float) -> tff.Computation:
  """Lets clients be canaries: their data has one more sequence, `canary=int64*`, of one number.

  A negative number is an ordinary client, whose output is that of `train_on_client`. Another one is
  a canary: its update is `norm` times its direction in every module, all its weights are `weight`
  and its `stats` are zero. Its rank is handed back; it trains like others, so it best has no
  examples.

  Args:
    train_on_client: see `build_train_on_client`; its messages are float32.
    norm: of the update in every module; at least 100 times the clip, to be cut by it for certain.
    weight: at least 100 times the one that counts as 1, likewise.

  Raises:
    ValueError: if `norm` or `weight` is not positive.
  """
  for name, value in (('norm', norm), ('weight', weight)):
    if not 0 < value < float('inf'):
      raise ValueError(f'`{name}` must be finite and > 0, got {value}.')
  received_type, data_type = train_on_client.type_signature.parameter
  message = tff.types.type_to_tf_tensor_specs(train_on_client.type_signature.result.update)
  elements = tff.structure.to_elements(data_type)
  names = [name for name, _ in elements]
  data_type = tff.to_type(collections.OrderedDict(elements, canary=tff.SequenceType(np.int64)))

  @tff.tensorflow.computation(received_type, data_type)
  def train_or_plant(received, client_data):
    number = _checked_number(client_data['canary'])
    ordinary = collections.OrderedDict((name, client_data[name]) for name in names)
    output = train_on_client(received, ordinary)
    is_canary = number >= 0

    def planted():
      direction = canary_direction(message, number)
      return (
        tf.nest.map_structure(lambda part: norm * part, direction),
        tf.nest.map_structure(lambda w: tf.fill(tf.shape(w), weight), output.update_weight),
      )

    update, update_weight = tf.cond(
      is_canary, planted, lambda: (output.update, output.update_weight)
    )
    return output._replace(
      update=update,
      update_weight=update_weight,
      stats=zero_unless(tf.logical_not(is_canary), output.stats),
    )

  return train_or_plant


def _checked_number(numbers: tf.data.Dataset) -> tf.Tensor:
  """The one number that the sequence must hold."""
  zero = tf.constant(0, tf.int64)
  count, number = numbers.reduce((zero, zero), lambda state, number: (state[0] + 1, number))
  message = 'Client data must hold exactly one canary number, negative for an ordinary client.'
  with tf.control_dependencies(
    [tf.debugging.assert_equal(count, tf.constant(1, tf.int64), message)]
  ):
    return tf.identity(number)
