# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How far a round is from the mean of what the clients asked for."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import LoraFactors, product_norm
from hetlora_tff.adapters.finite import all_finite, zero_unless
from hetlora_tff.aggregation.factor_types import FactorShapes, factor_shapes, factors_of
from hetlora_tff.aggregation.stacks import Rows, Stacker


def build_deviation_from_exact(
  adapters_type: tff.Type, weight_type: tff.Type, scaling: float
) -> tff.Computation:
  """Measures the distance between the product of the averages and the average of the products.

  With shares `p_k = w_k / sum_k w_k` of the clients, the exact change of a module's weight is
  `D = scaling * sum_k p_k b_k a_k`, and the deviation is, over all modules together,

      || residual' + scaling * b' a' - residual - D ||_F / || D ||_F

  where `'` is the server after the round. Where weights are per module or per row, so are shares;
  a row that no client has a weight in keeps the server's own from before the round, which is what
  a mean does there. Non-finite clients are left out, as every factory leaves them out.

  Products are compared by the Gram matrices of the stacked factors wherever that is cheaper than
  the `[d_out, d_in]` matrix, in float64; the factors are float32, so a result below about `1e-6`
  is rounding. It looks at single clients' factors, and broadcasts in the middle of the round: for
  simulations without privacy or secure aggregation only.

  Type signature: `({asked}@CLIENTS, {W}@CLIENTS, before@SERVER, after@SERVER) -> float32@SERVER`.
  `asked` is `{path: LoraFactors}` of the full rank: what a client wants the server to hold.

  Args:
    adapters_type: of the server, `{path: <a, b>}` or `{path: <a, b, residual>}`.
    weight_type: a float scalar, one per module `{path: float}`, or one per row `float[R]`.
    scaling: of the product in the effective weight.

  Returns:
    The computation; its result is 0 without clients, or where nothing is asked for.

  Raises:
    TypeError: if the types are not of those kinds.
  """
  shapes = factor_shapes(adapters_type, others=('residual',))
  _check_weight_type(weight_type, shapes)
  stacker = Stacker(shapes)
  screen, share = _build_client_side(_asked_type(shapes), weight_type, shapes, stacker)
  asked_type, rows_type = screen.type_signature.result

  @tff.tensorflow.computation(stacker.result_type, rows_type, adapters_type, adapters_type)
  def measure(stacks, totals, before, after):
    numbers = [
      _squared_norms(stacks[path], totals[path], before[path], after[path], scaling)
      for path in shapes
    ]
    missed, exact = (tf.sqrt(tf.add_n(column)) for column in zip(*numbers, strict=True))
    anyone = tf.reduce_any([tf.reduce_any(total > 0) for total in totals.values()])
    deviation = tf.cast(tf.math.divide_no_nan(missed, exact), tf.float32)
    return tf.where(anyone, deviation, 0.0)

  @tff.federated_computation(
    tff.FederatedType(asked_type, tff.CLIENTS),
    tff.FederatedType(weight_type, tff.CLIENTS),
    tff.FederatedType(adapters_type, tff.SERVER),
    tff.FederatedType(adapters_type, tff.SERVER),
  )
  def deviation_from_exact(asked, weight, before, after):
    screened = tff.federated_map(screen, (asked, weight))
    totals = tff.federated_sum(screened[1])
    everywhere = tff.federated_broadcast(totals)
    shares = tff.federated_map(share, (screened[0], screened[1], everywhere))
    return tff.federated_map(measure, (stacker.gather(shares), totals, before, after))

  return deviation_from_exact


def _asked_type(shapes: FactorShapes) -> tff.StructWithPythonType:
  """`{path: LoraFactors}` of the full rank, float32."""
  return tff.to_type(
    collections.OrderedDict(
      (
        path,
        LoraFactors(
          a=tff.TensorType(np.float32, [shape.rank, shape.d_in]),
          b=tff.TensorType(np.float32, [shape.d_out, shape.rank]),
        ),
      )
      for path, shape in shapes.items()
    )
  )


def _build_client_side(asked_type, weight_type, shapes: FactorShapes, stacker: Stacker):
  """What a client computes: `(asked, W) -> (asked, rows)`, and its share, packed."""

  @tff.tensorflow.computation(asked_type, weight_type)
  def screen(asked, weight):
    rows = _row_weights(weight, shapes)
    finite = all_finite((asked, rows, [product_norm(factors) for factors in asked.values()]))
    return zero_unless(finite, asked), zero_unless(finite, rows)

  rows_type = screen.type_signature.result[1]

  @tff.tensorflow.computation(asked_type, rows_type, rows_type)
  def share(asked, rows, totals):
    shares = {path: tf.math.divide_no_nan(rows[path], totals[path]) for path in shapes}
    return stacker.pack({path: f._replace(b=f.b * shares[path]) for path, f in asked.items()})

  return screen, share


def _squared_norms(stack: Rows, totals, before, after, scaling: float):
  """Squared norms of what one module misses, and of its exact change; float64."""
  held, new = factors_of(before), factors_of(after)
  kept = held.b * tf.cast(tf.equal(totals, 0), tf.float32)
  exact = Rows(tf.concat([stack.a, held.a], 0), tf.concat([stack.b, tf.transpose(kept)], 0))
  missed = Rows(tf.concat([exact.a, new.a], 0), tf.concat([exact.b, -tf.transpose(new.b)], 0))
  residual = _residual(after)
  if residual is not None:
    # With the sign of `missed`, which is the exact change minus the server's.
    residual = tf.cast(_residual(before), tf.float64) - tf.cast(residual, tf.float64)
  return _squared_norm(missed, scaling, residual), _squared_norm(exact, scaling, None)


def _residual(entry: Any) -> tf.Tensor | None:
  if isinstance(entry, Mapping):
    return entry.get('residual')
  return getattr(entry, 'residual', None)


def _squared_norm(rows: Rows, scaling: float, residual: tf.Tensor | None) -> tf.Tensor:
  """`|| residual + scaling * b^T a ||_F^2`."""
  a, b = tf.cast(rows.a, tf.float64), scaling * tf.cast(rows.b, tf.float64)

  def by_gram():
    gram_a, gram_b = tf.matmul(a, a, transpose_b=True), tf.matmul(b, b, transpose_b=True)
    # The trace is >= 0 in exact arithmetic; rounding may leave it a little below.
    return tf.maximum(tf.reduce_sum(gram_a * gram_b), 0.0)

  def by_product():
    product = tf.matmul(b, a, transpose_a=True)
    return tf.reduce_sum(tf.square(product if residual is None else product + residual))

  if residual is not None:
    return by_product()
  d_in, d_out = a.shape[1], b.shape[1]
  gram_is_cheaper = tf.shape(a)[0] * (d_in + d_out) <= d_in * d_out
  return tf.cond(gram_is_cheaper, by_gram, by_product)


def _row_weights(weight: Any, shapes: FactorShapes) -> collections.OrderedDict[str, tf.Tensor]:
  """The weight of every row of every module."""
  rows = collections.OrderedDict()
  for path, shape in shapes.items():
    own = weight[path] if isinstance(weight, Mapping) else weight
    own = tf.cast(own, tf.float32)
    rows[path] = own[: shape.rank] if own.shape.rank else tf.fill([shape.rank], own)
  return rows


def _check_weight_type(weight_type: tff.Type, shapes: FactorShapes) -> None:
  if not tff.types.is_structure_of_floats(weight_type):
    raise TypeError(f'Weights must be floats, got {weight_type}.')
  if isinstance(weight_type, tff.StructType):
    if [name for name, _ in tff.structure.iter_elements(weight_type)] != list(shapes):
      raise TypeError(f'Weights {weight_type} do not have the names of {list(shapes)}.')
    return
  max_rank = max(shape.rank for shape in shapes.values())
  if len(weight_type.shape) > 1 or (weight_type.shape and weight_type.shape[0] < max_rank):
    raise TypeError(f'Weights must be a scalar or one per row of {max_rank}, got {weight_type}.')
