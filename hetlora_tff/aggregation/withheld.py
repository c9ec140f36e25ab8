# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A sum that is not taken, for what must not leave clients."""

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff


class WithheldSumFactory(tff.aggregators.UnweightedAggregationFactory):
  """In place of a sum factory: the result is zero whatever clients hold, and nothing is sent.

  `next` has the type `(<()@SERVER, {V}@CLIENTS> -> <state=()@SERVER, result=V@SERVER,
  measurements=()@SERVER>)`. For the counts beside a private sum, which would have to be noised and
  accounted themselves.
  """

  def create(self, value_type: tff.Type) -> tff.templates.AggregationProcess:
    """Creates the process for any structure of numbers of known shape."""

    @tff.tensorflow.computation
    def zeros():
      return tff.types.structure_from_tensor_type_tree(
        lambda t: tf.zeros(t.shape, np.dtype(t.dtype)), value_type
      )

    @tff.federated_computation
    def initialize():
      return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
      initialize.type_signature.result, tff.FederatedType(value_type, tff.CLIENTS)
    )
    def next_fn(state, unused_value):
      return tff.templates.MeasuredProcessOutput(
        state, tff.federated_eval(zeros, tff.SERVER), tff.federated_value((), tff.SERVER)
      )

    return tff.templates.AggregationProcess(initialize, next_fn)
