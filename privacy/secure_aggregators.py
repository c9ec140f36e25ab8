# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums of which a server with a protocol for secure sums learns nothing but the total.

TFF has the operator, and no protocol: its runtimes add in the open, and a deployment brings its
own (`privacy.secagg`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from privacy.noise import FreshSeeds
from privacy.quantization import decode, encode, wrap
from privacy.secure_sum import SecureSumSpec


def build_secure_aggregator(
  spec: SecureSumSpec,
) -> tff.aggregators.UnweightedAggregationFactory:
  """The sum of values over clients, through one secure sum modulo `spec.modulus`.

  `create(V)` has the type `(<()@SERVER, {V}@CLIENTS> -> <state=()@SERVER, result=V@SERVER,
  measurements=()>)`, `V` a structure of float and signed integer tensors of known shapes.

  Floats are rounded to the grid of `spec`, which moves a sum by at most `spec.error_of_sum`;
  integers are summed exactly. Each client's numbers are cut to `spec.value_range`, and clipped to
  the joint norm `spec.l2_clip_norm` where there is one. Up to `spec.largest_cohort` clients no sum
  wraps around; with more it may, unnoticed.

  Edge cases:
    a value with a NaN or an infinity counts as zeros;
    no client at all: zeros.

  Args:
    spec: grid and modulus; all constants, since a protocol has to know them beforehand.

  Raises:
    TypeError: at `create`, if `V` is of another kind.
    ValueError: at `create`, if `V` has integers and `spec` is not made for them.
  """
  return _SecureSumFactory(spec)


class _SecureSumFactory(tff.aggregators.UnweightedAggregationFactory):
  """See `build_secure_aggregator`."""

  def __init__(self, spec: SecureSumSpec):
    if not isinstance(spec, SecureSumSpec):
      raise TypeError(f'`spec` must be a SecureSumSpec, got {spec!r}.')
    self._spec = spec

  def create(self, value_type: tff.Type) -> tff.templates.AggregationProcess:
    spec = self._spec
    _check_type(value_type, spec)
    like, seeds = tff.types.type_to_tf_tensor_specs(value_type), FreshSeeds()
    return modular_sum_process(
      value_type,
      lambda value: wrap(encode(value, spec, seeds), spec),
      lambda total: (decode(total, spec, like), ()),
      spec.modulus,
    )


def modular_sum_process(
  value_type: tff.Type,
  to_residues: Callable[[Any], Any],
  to_output: Callable[[Any], tuple[Any, Any]],
  modulus: int,
) -> tff.templates.AggregationProcess:
  """A process without state around one secure sum.

  Args:
    value_type: of a client's value.
    to_residues: what a client sends: a structure of int64 in [0, modulus).
    to_output: result and measurements from the sum of that, modulo `modulus`.
    modulus: a power of two up to 2^62.
  """
  message = tff.tensorflow.computation(to_residues, value_type)
  output = tff.tensorflow.computation(to_output, message.type_signature.result)

  @tff.federated_computation
  def initialize():
    return tff.federated_value((), tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result, tff.FederatedType(value_type, tff.CLIENTS)
  )
  def next_fn(state, value):
    # A Python number would become int32.
    total = tff.backends.mapreduce.federated_secure_modular_sum(
      tff.federated_map(message, value), np.int64(modulus)
    )
    result, measurements = tff.federated_map(output, total)
    return tff.templates.MeasuredProcessOutput(state, result, measurements)

  return tff.templates.AggregationProcess(initialize, next_fn)


def _check_type(value_type: tff.Type, spec: SecureSumSpec) -> None:
  if not isinstance(value_type, tff.Type):
    raise TypeError(f'Values must have a type of TFF, got {value_type!r}.')

  def is_number(member: tff.Type) -> bool:
    if not isinstance(member, tff.TensorType):
      return isinstance(member, tff.StructType)
    number = issubclass(np.dtype(member.dtype).type, (np.floating, np.signedinteger))
    return number and tff.types.is_shape_fully_defined(member.shape)

  tensors = tff.types.count(value_type, lambda member: isinstance(member, tff.TensorType))
  if not tensors or not tff.types.contains_only(value_type, is_number):
    raise TypeError(
      f'Values must be float or signed integer tensors of known shapes, got {value_type}.'
    )
  for tensor in tf.nest.flatten(tff.types.type_to_tf_tensor_specs(value_type)):
    if tensor.dtype.is_integer:
      _check_integers(tensor.dtype, spec)


def _check_integers(dtype: tf.DType, spec: SecureSumSpec) -> None:
  """Raises `ValueError` unless integers of this dtype, and their sums, fit."""
  most = spec.value_range or 0.0
  if spec.l2_clip_norm is not None:
    raise ValueError('Integers are summed as they are: a spec with an `l2_clip_norm` is of floats.')
  if most != int(most):
    raise ValueError(f'Integers need a whole `value_range`, got {most:g}.')
  if most > spec.levels:
    raise ValueError(
      f'Integers up to the `value_range` {most:g} need `bits` {int(most).bit_length() + 1}, got '
      f'{spec.bits}.'
    )
  if spec.largest_cohort * most > dtype.max:
    raise ValueError(
      f'A sum of {spec.largest_cohort} integers up to {most:g} may pass what {dtype.name} holds.'
    )
