# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How an aggregate becomes the server's weights, where it is no gradient for a server optimizer.

All are `tff.learning.templates.FinalizerProcess`es of the type
`(<S@SERVER, ModelWeights@SERVER, aggregate@SERVER> -> <state=S@SERVER, result=ModelWeights@SERVER,
measurements=()@SERVER>)`.
"""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.layout import AdapterLayout
from hetlora_tff.clients.messages import unpack_alternating

FinalizerProcess = tff.learning.templates.FinalizerProcess


def build_replacing_finalizer(
  layout: AdapterLayout, aggregate_type: tff.StructWithPythonType
) -> FinalizerProcess:
  """The aggregate's factors replace the server's; its residual, times the scale, adds to theirs.

  For `ProductSvdFactory` and `ResidualCorrectedMeanFactory`. A module whose aggregate is all zero
  is what an empty cohort gives: it keeps the server's. Where only a row of `a` is zero (a product
  of a rank below the server's), the server's row stays beside the zeros in `b`: with zeros in both,
  no gradient would ever move that rank again.

  Args:
    layout: of the server's weights.
    aggregate_type: `{path: LoraFactors}`, or `{path: CorrectedFactors}` if the layout carries a
      residual.
  """

  @tff.tensorflow.computation(layout.server_type, aggregate_type)
  def replace(weights, aggregate):
    result = collections.OrderedDict()
    for path, held in layout.adapters(weights).items():
      new = aggregate[path]
      rows = tf.reduce_any(tf.not_equal(new.a, 0.0), 1)
      factors = held._replace(
        a=tf.where(rows[:, tf.newaxis], new.a, held.a),
        b=tf.where(tf.reduce_any(rows), new.b, held.b),
      )
      if isinstance(factors, lora.CorrectedFactors):
        residual = factors.residual + layout.config.scaling * new.residual
        factors = factors._replace(residual=residual)
      result[path] = factors
    return layout.weights(result)

  return _stateless(replace)


def build_merging_finalizer(
  layout: AdapterLayout, aggregate_type: tff.StructWithPythonType
) -> FinalizerProcess:
  """FLoRA (arXiv:2409.05976): the mean product goes into the residual, and the factors start anew.

  For `StackingFactory`. In round `t` the new `a` is draw `t` of the initial Gaussian and `b` is
  zero, so the merge leaves the model exactly at `W + residual`. The state is `t`.

  Args:
    layout: of the server's weights; must carry a residual.
    aggregate_type: `{path: [d_out, d_in]}`.
  """
  weights_type = layout.server_type

  @tff.tensorflow.computation(np.int32, weights_type, aggregate_type)
  def merge(rounds_done, weights, aggregate):
    rounds_done += 1
    fresh = layout.initial_a(rounds_done)
    result = collections.OrderedDict()
    for path, held in layout.adapters(weights).items():
      residual = weights.non_trainable[path] + layout.config.scaling * aggregate[path]
      result[path] = lora.CorrectedFactors(fresh[path], tf.zeros_like(held.b), residual)
    return rounds_done, layout.weights(result)

  @tff.federated_computation
  def initialize():
    return tff.federated_value(0, tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(weights_type, tff.SERVER),
    tff.FederatedType(aggregate_type, tff.SERVER),
  )
  def next_fn(state, weights, aggregate):
    merged = tff.federated_map(merge, (state, weights, aggregate))
    return tff.templates.MeasuredProcessOutput(
      merged[0], merged[1], tff.federated_value((), tff.SERVER)
    )

  return FinalizerProcess(initialize, next_fn)


def build_alternating_finalizer(
  layout: AdapterLayout, aggregate_type: tff.StructWithPythonType
) -> FinalizerProcess:
  """RoLoRA (arXiv:2502.01755): updates the round's factor and passes the turn to the other.

  Args:
    layout: of the server's weights, `ALTERNATING`.
    aggregate_type: `{path: [R_l, max(d_in, d_out)]}`, see `pack_alternating`.
  """

  @tff.tensorflow.computation(layout.server_type, aggregate_type)
  def step(weights, aggregate):
    trains_b = layout.trains_b(weights)
    result = collections.OrderedDict()
    for path, held in layout.adapters(weights).items():
      update = unpack_alternating(aggregate[path], trains_b, *layout.shapes[path])
      result[path] = lora.LoraFactors(held.a - update.a, held.b - update.b)
    return layout.weights(result, weights.non_trainable + 1)

  return _stateless(step)


def _stateless(apply: tff.Computation) -> FinalizerProcess:
  """A finalizer of one `(weights, aggregate) -> weights`."""
  weights_type, aggregate_type = apply.type_signature.parameter

  @tff.federated_computation
  def initialize():
    return tff.federated_value((), tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(weights_type, tff.SERVER),
    tff.FederatedType(aggregate_type, tff.SERVER),
  )
  def next_fn(state, weights, aggregate):
    return tff.templates.MeasuredProcessOutput(
      state,
      tff.federated_map(apply, (weights, aggregate)),
      tff.federated_value((), tff.SERVER),
    )

  return FinalizerProcess(initialize, next_fn)
