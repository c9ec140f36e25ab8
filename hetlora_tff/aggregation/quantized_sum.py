# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums of numbers that leave clients as few bits (as QSGD, arXiv:1610.02132, has them)."""

import collections
import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.finite import all_finite, zero_unless

_INTEGERS = {4: tf.int8, 8: tf.int8, 16: tf.int16}


class QuantizedSumFactory(tff.aggregators.UnweightedAggregationFactory):
  """Sums values that clients send as integers of 4, 8 or 16 bits; the server sums float32.

  For the place of the plain sum in the means here (`value_sum_factory`), which weigh before it.

  A number `x` is sent as one of the two multiples of `scale / levels` around it, `levels` being
  `2^(bits - 1) - 1`, by chance so that the mean is `x`: it moves by less than `scale / levels`, and
  0 stays 0. A matrix has a scale, its largest absolute value, for each of its rows or of its
  columns, whichever are fewer: of LoRA factors below full rank one per rank, since ranks that a
  client lacks or has just begun differ in size from others. Any other tensor has the scales of its
  shortest axis, a vector has one.

  The chance is drawn from the numbers themselves: a client that does the same again sends the same.
  It hides nothing from anybody.

  A message is two tensors, whatever the value: integers (of 4 bits two in a byte) and float32
  scales. Each client's is decoded where it is added, which takes a `federated_aggregate`: a
  `MapReduceForm` has that, a `DistributeAggregateForm` has not.

  `next` has the type `(<()@SERVER, {V}@CLIENTS> -> <state=()@SERVER, result=V@SERVER,
  measurements=()@SERVER>)`.

  Edge cases:
    a client whose value has a NaN or an infinity sends zeros;
    no client at all: zeros.
  """

  def __init__(self, bits: int):
    """Initializes the factory.

    Args:
      bits: of a number, 4, 8 or 16.

    Raises:
      ValueError: if they are others.
    """
    if bits not in _INTEGERS:
      raise ValueError(f'`bits` must be one of {", ".join(map(str, _INTEGERS))}, got {bits}.')
    self._bits = bits

  def create(self, value_type: tff.Type) -> tff.templates.AggregationProcess:
    """Creates the process.

    Args:
      value_type: a float tensor or a structure of such, of known shapes.

    Raises:
      TypeError: if it is of another kind.
    """
    specs = _specs(value_type)
    message = build_message(value_type, self._bits)

    @tff.tensorflow.computation
    def zero():
      return tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs)

    @tff.tensorflow.computation(value_type, message.type_signature.result)
    def accumulate(total, message):
      return tf.nest.map_structure(tf.add, total, decode(message, specs, self._bits))

    @tff.tensorflow.computation(value_type, value_type)
    def merge(total, more):
      return tf.nest.map_structure(tf.add, total, more)

    @tff.tensorflow.computation(value_type)
    def report(total):
      return total

    @tff.federated_computation
    def initialize():
      return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
      initialize.type_signature.result, tff.FederatedType(value_type, tff.CLIENTS)
    )
    def next_fn(state, value):
      sent = tff.federated_map(message, value)
      total = tff.federated_aggregate(sent, zero(), accumulate, merge, report)
      return tff.templates.MeasuredProcessOutput(state, total, tff.federated_value((), tff.SERVER))

    return tff.templates.AggregationProcess(initialize, next_fn)


def build_message(value_type: tff.Type, bits: int) -> tff.Computation:
  """What a client does: `(V -> <integers, scales=float32[S]>)`.

  The integers of `n` numbers are uint8 `[ceil(n / 2)]` (4 bits), int8 `[n]` or int16 `[n]`.

  Args:
    value_type: see `QuantizedSumFactory.create`.
    bits: of a number, 4, 8 or 16.

  Raises:
    TypeError: see `QuantizedSumFactory.create`.
  """
  _specs(value_type)
  return tff.tensorflow.computation(lambda value: encode(value, bits), value_type)


def num_scales(value_type: tff.Type) -> int:
  """How many scales there are beside the integers of a value.

  Raises:
    TypeError: see `QuantizedSumFactory.create`.
  """
  return sum(_num_scales(spec.shape) for spec in tf.nest.flatten(_specs(value_type)))


def encode(value: Any, bits: int) -> collections.OrderedDict[str, tf.Tensor]:
  """A client's message, see `build_message`."""
  tensors = [tf.cast(t, tf.float32) for t in tf.nest.flatten(value)]
  tensors = zero_unless(all_finite(tensors), tensors)
  scales = [tf.reduce_max(tf.abs(t), _scaled_together(t.shape), keepdims=True) for t in tensors]
  # The division first: the largest number is then on the grid whatever the rounding of floats.
  steps = [
    tf.math.divide_no_nan(t, scale) * _levels(bits)
    for t, scale in zip(tensors, scales, strict=True)
  ]
  integers = tf.cast(_rounded_by_chance(_flat(steps)), _INTEGERS[bits])
  return collections.OrderedDict(
    integers=_two_in_a_byte(integers) if bits == 4 else integers, scales=_flat(scales)
  )


def decode(message: collections.OrderedDict[str, tf.Tensor], specs: Any, bits: int) -> Any:
  """The numbers of a message.

  Args:
    message: of `encode`.
    specs: structure of `tf.TensorSpec`s, of the value.
    bits: of a number.
  """
  shapes = [spec.shape for spec in tf.nest.flatten(specs)]
  integers, sizes = message['integers'], [math.prod(shape) for shape in shapes]
  if bits == 4:
    integers = _out_of_bytes(integers)[: sum(sizes)]
  shares = tf.split(tf.cast(integers, tf.float32) / _levels(bits), sizes)
  scales = tf.split(message['scales'], [_num_scales(shape) for shape in shapes])
  values = [
    tf.reshape(share, shape) * tf.reshape(scale, _shape_of_scales(shape))
    for share, scale, shape in zip(shares, scales, shapes, strict=True)
  ]
  packed = tf.nest.pack_sequence_as(specs, values)
  return tf.nest.map_structure(lambda t, spec: tf.cast(t, spec.dtype), packed, specs)


def _levels(bits: int) -> int:
  return 2 ** (bits - 1) - 1


def _rounded_by_chance(steps: tf.Tensor) -> tf.Tensor:
  below = tf.floor(steps)
  # A seed from the numbers: what TensorFlow draws without one no run repeats.
  digest = tf.raw_ops.Fingerprint(data=steps[tf.newaxis], method='farmhash64')
  seed = tf.stack([tf.bitcast(digest[0], tf.int64), 0])
  uniform = tf.random.stateless_uniform(steps.shape, seed, alg='philox')
  # A difference and not `floor(steps + uniform)`, which rounds and leaves grid points at times.
  return below + tf.cast(uniform < steps - below, tf.float32)


def _two_in_a_byte(integers: tf.Tensor) -> tf.Tensor:
  """`[n]` of -8 to 7 to uint8 `[ceil(n / 2)]`."""
  halves = tf.cast(integers + 8, tf.uint8)
  pairs = tf.reshape(tf.pad(halves, [[0, halves.shape[0] % 2]]), [-1, 2])
  return tf.bitwise.bitwise_or(tf.bitwise.left_shift(pairs[:, 0], 4), pairs[:, 1])


def _out_of_bytes(pairs: tf.Tensor) -> tf.Tensor:
  """The inverse, with the number that may fill up the last byte; int8."""
  halves = tf.stack([tf.bitwise.right_shift(pairs, 4), tf.bitwise.bitwise_and(pairs, 15)], 1)
  return tf.cast(tf.reshape(halves, [-1]), tf.int8) - 8


def _flat(tensors: list[tf.Tensor]) -> tf.Tensor:
  return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)


def _shape_of_scales(shape: tf.TensorShape) -> list[int]:
  """That of a tensor, with 1 for the axes that share a scale."""
  together = _scaled_together(shape)
  return [1 if axis in together else size for axis, size in enumerate(shape)]


def _scaled_together(shape: tf.TensorShape) -> list[int]:
  """All axes of a vector; all but the shortest of what has more."""
  own = None if len(shape) < 2 else int(np.argmin(shape))
  return [axis for axis in range(len(shape)) if axis != own]


def _num_scales(shape: tf.TensorShape) -> int:
  return math.prod(_shape_of_scales(shape))


def _specs(value_type: tff.Type) -> Any:
  """Structure of `tf.TensorSpec`s."""
  known = tff.types.is_structure_of_floats(value_type) and tff.types.contains_only(
    value_type,
    lambda t: not isinstance(t, tff.TensorType) or tff.types.is_shape_fully_defined(t.shape),
  )
  if not known:
    raise TypeError(f'Values must be a structure of floats of known shapes, got {value_type}.')
  return tff.types.type_to_tf_tensor_specs(value_type)
