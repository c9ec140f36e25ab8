# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA layers around frozen Keras `Dense` and `EinsumDense` layers.

A `LoraLayer` takes the place of its base layer and computes (Hu et al. 2021, arXiv:2106.09685)

    activation(base_linear(x) + scaling * (x @ a^T) @ b^T)

with `a [rank, d_in]` and `b [d_out, rank]`. The product `b @ a` is never formed. The factors are
the layer's own variables (`create_variables`) or tensors lent by the caller (`bind`), whose rank
may be known only at run time. Lent `CorrectedFactors` add `x @ residual^T`, too.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import tensorflow as tf

from hetlora_tff.adapters import factors as factors_lib
from hetlora_tff.adapters.einsum import einsum_axes
from hetlora_tff.adapters.fast_ops import cheap_activation

CorrectedFactors = factors_lib.CorrectedFactors
Factors = factors_lib.Factors
LoraFactors = factors_lib.LoraFactors


class _Binding:
  """Holds lent tensors where Keras does not track them."""

  def __init__(self):
    self.factors: Factors | None = None
    self.base: _FrozenBase | None = None


class _FrozenBase(NamedTuple):
  """What a frozen layer computes with, read once: `activation(x @ matrix + bias)`."""

  matrix: tf.Tensor
  bias: tf.Tensor | None
  activation: Callable[[tf.Tensor], tf.Tensor]


class LoraLayer(tf.keras.layers.Layer):
  """A frozen linear layer plus a low-rank update of its kernel.

  Without variables and without bound factors the layer computes exactly what its base computes.
  The low-rank path runs in float32; its result is cast to the dtype of the base's output.

  Attributes:
    base: the wrapped layer, frozen.
    scaling: the factor of `b @ a`; the same for every rank.
    d_in: number of inputs of the linear map, all contracted axes together.
    d_out: number of outputs of the linear map, all new axes together.
  """

  def __init__(self, base: tf.keras.layers.Layer, scaling: float, d_in: int, d_out: int):
    """Wraps `base`; `wrap` chooses the subclass and reads the sizes.

    Args:
      base: a built layer with a kernel.
      scaling: positive factor of `b @ a`.
      d_in: inputs of the linear map.
      d_out: outputs of the linear map.
    """
    # Autocasting here would round a float32 input before the base layer sees it.
    super().__init__(name=base.name, dtype='float32', autocast=False)
    self.base = base
    self.scaling = float(scaling)
    self.d_in = d_in
    self.d_out = d_out
    self.lora_a = None
    self.lora_b = None
    self.supports_masking = base.supports_masking
    self._binding = _Binding()
    self.built = True

  @property
  def kernel(self):
    """The base layer's kernel; some Keras code reads it from the layer."""
    return self.base.kernel

  @property
  def bias(self):
    """The base layer's bias or None."""
    return self.base.bias

  def create_variables(self, max_rank: int, seed: int) -> None:
    """Adds the layer's own trainable factors.

    `lora_a [max_rank, d_in]` is Gaussian with standard deviation `1 / sqrt(d_in)`, so that
    `x @ a^T` has the scale of `x` whatever the rank; `lora_b [d_out, max_rank]` is zero, so that
    the model starts as its base.

    Args:
      max_rank: rank of the factors, at least 1.
      seed: seed of the Gaussian.

    Raises:
      ValueError: if the layer has variables already.
    """
    if self.lora_a is not None:
      raise ValueError(f'Layer {self.name!r} has LoRA variables already.')
    gaussian = tf.keras.initializers.RandomNormal(stddev=1.0 / math.sqrt(self.d_in), seed=seed)
    self.lora_a = self.add_weight(
      name='lora_a',
      shape=(max_rank, self.d_in),
      initializer=gaussian,
      dtype='float32',
      trainable=True,
    )
    self.lora_b = self.add_weight(
      name='lora_b',
      shape=(self.d_out, max_rank),
      initializer='zeros',
      dtype='float32',
      trainable=True,
    )

  def bind(self, factors: Factors | None) -> None:
    """Lends the layer factors to use instead of its variables.

    Works eagerly and inside graphs, functions and loops. Gradients flow to the bound tensors. A
    symbolic tensor is only usable in the graph that made it: bind `None` when done there, or use
    `bound`.

    Args:
      factors: `a [rank, d_in]`, `b [d_out, rank]` and perhaps `residual [d_out, d_in]`, float32,
        the rank static or not; None goes back to the variables, or to the plain base where there
        are none.

    Raises:
      ValueError: if shape or dtype do not fit this layer.
    """
    if factors is not None:
      kind = CorrectedFactors if len(factors) == 3 else LoraFactors
      factors = kind(*(tf.convert_to_tensor(factor) for factor in factors))
      self._check(factors)
    self._binding.factors = factors

  def freeze_base(self, dtype: tf.DType) -> None:
    """Reads the base once, for this graph, to compute it as one matrix product from now on.

    What would be done to the base's kernel in every call is done here: a layout of `[d_in, d_out]`
    and the conversion to `dtype`.

    Args:
      dtype: float32, or bfloat16 where that is faster: the product sums in float32, and its
        result is rounded to it. The low-rank path stays in float32.

    Raises:
      ValueError: if the base does not compute in float32.
    """
    if self.base.compute_dtype != 'float32':
      raise ValueError(f'Layer {self.name!r} computes in {self.base.compute_dtype}, not float32.')
    bias = None if self.bias is None else tf.convert_to_tensor(self.bias)
    matrix = tf.cast(self._as_matrix(tf.convert_to_tensor(self.kernel)), dtype)
    self._binding.base = _FrozenBase(matrix, bias, cheap_activation(self.base.activation))

  @property
  def factors(self) -> Factors | None:
    """The factors that a call uses now: the bound ones, else the variables, else None."""
    if self._binding.factors is not None:
      return self._binding.factors
    if self.lora_a is None:
      return None
    return LoraFactors(self.lora_a, self.lora_b)

  def call(self, inputs):
    """Applies the adapted layer.

    Args:
      inputs: what the base takes, its last axes `d_in` numbers together.

    Returns:
      What the base returns, in its shape and dtype.
    """
    factors, frozen = self.factors, self._binding.base
    if frozen is not None:
      outputs = self._frozen_linear(inputs, frozen)
      if factors is not None:
        outputs += self._update(inputs, factors, outputs)
      return frozen.activation(outputs)
    if factors is None:
      return self.base(inputs)
    if _is_linear(self.base.activation):
      outputs = self.base(inputs)
      return outputs + self._update(inputs, factors, outputs)
    outputs = self._base_linear(tf.cast(inputs, self.base.compute_dtype))
    return self.base.activation(outputs + self._update(inputs, factors, outputs))

  def compute_output_shape(self, input_shape):
    """The base's output shape."""
    return self.base.compute_output_shape(input_shape)

  def kernel_update(self, factors: Factors) -> tf.Tensor:
    """The dense update `residual + scaling * b @ a` in the kernel's layout, to merge it.

    Args:
      factors: factors of any rank, with a residual or without.

    Returns:
      A float32 tensor of the kernel's shape.
    """
    update = self.scaling * tf.matmul(factors.b, factors.a)
    if isinstance(factors, CorrectedFactors):
      update += factors.residual
    return self._as_kernel(update)

  def _as_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
    """A matrix `[d_out, d_in]` in the layout of the base's kernel."""
    raise NotImplementedError

  def _as_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
    """The kernel as `[d_in, d_out]`."""
    raise NotImplementedError

  def _output_shape(self, inputs: tf.Tensor) -> tf.Tensor:
    """Of the base, for these inputs."""
    raise NotImplementedError

  def _base_linear(self, inputs: tf.Tensor) -> tf.Tensor:
    """The base's output before its activation."""
    raise NotImplementedError

  def _frozen_linear(self, inputs: tf.Tensor, frozen: _FrozenBase) -> tf.Tensor:
    """`_base_linear` of a frozen base."""
    rows = tf.reshape(tf.cast(inputs, frozen.matrix.dtype), [-1, self.d_in])
    outputs = tf.cast(tf.matmul(rows, frozen.matrix), tf.float32)
    outputs = tf.reshape(outputs, self._output_shape(inputs))
    return outputs if frozen.bias is None else outputs + frozen.bias

  def _update(self, inputs, factors: Factors, outputs) -> tf.Tensor:
    """`scaling * (x @ a^T) @ b^T [+ x @ residual^T]` in the shape and dtype of `outputs`."""
    # One matrix: a batched matmul would sum the factors' gradients over the batch afterwards.
    rows = tf.reshape(tf.cast(inputs, tf.float32), [-1, self.d_in])
    hidden = tf.matmul(rows, factors.a, transpose_b=True) * self.scaling
    update = tf.matmul(hidden, factors.b, transpose_b=True)
    if isinstance(factors, CorrectedFactors):
      update += tf.matmul(rows, factors.residual, transpose_b=True)
    return tf.cast(tf.reshape(update, tf.shape(outputs)), outputs.dtype)

  def _check(self, factors: Factors) -> None:
    a, b = factors.a, factors.b
    for name, factor in factors._asdict().items():
      if factor.dtype != tf.float32:
        raise ValueError(f'Factor `{name}` for {self.name!r} must be float32, got {factor.dtype}.')
    if not a.shape.is_compatible_with([None, self.d_in]):
      raise ValueError(f'Factor `a` for {self.name!r} must be [rank, {self.d_in}], got {a.shape}.')
    if not b.shape.is_compatible_with([self.d_out, None]):
      raise ValueError(f'Factor `b` for {self.name!r} must be [{self.d_out}, rank], got {b.shape}.')
    if isinstance(factors, CorrectedFactors):
      shape = factors.residual.shape
      if not shape.is_compatible_with([self.d_out, self.d_in]):
        raise ValueError(
          f'The residual for {self.name!r} must be [{self.d_out}, {self.d_in}], got {shape}.'
        )
    if a.shape.rank and b.shape.rank and not a.shape[:1].is_compatible_with(b.shape[1:]):
      raise ValueError(
        f'Factors for {self.name!r} must share their rank, got {a.shape[0]} and {b.shape[1]}.'
      )


class LoraDense(LoraLayer):
  """`LoraLayer` around a `Dense` layer: kernel `[d_in, d_out]`."""

  def __init__(self, base: tf.keras.layers.Dense, scaling: float):
    d_in, d_out = _kernel_shape(base)
    super().__init__(base, scaling, d_in, d_out)

  def _as_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
    return tf.transpose(matrix)

  def _as_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
    return kernel

  def _output_shape(self, inputs: tf.Tensor) -> tf.Tensor:
    return tf.concat([tf.shape(inputs)[:-1], [self.d_out]], 0)

  def _base_linear(self, inputs: tf.Tensor) -> tf.Tensor:
    outputs = tf.tensordot(inputs, self.base.kernel, [[-1], [0]])
    return outputs if self.base.bias is None else outputs + self.base.bias


class LoraEinsumDense(LoraLayer):
  """`LoraLayer` around an `EinsumDense` layer.

  The linear map is read off the equation: input axes that the output lacks are contracted and
  make up `d_in`, output axes that the input lacks are new and make up `d_out`. Both must be the
  last axes of their tensor, as in every attention and feed-forward layer of keras-nlp; several
  axes are flattened in the order of the input respectively the output.
  """

  def __init__(self, base: tf.keras.layers.EinsumDense, scaling: float):
    """Wraps `base`.

    Args:
      base: a built `EinsumDense`.
      scaling: positive factor of `b @ a`.

    Raises:
      ValueError: if the layer is not built or its equation is not such a linear map.
    """
    axes = einsum_axes(base.name, base.equation)
    size = dict(zip(axes.kernel, _kernel_shape(base), strict=True))
    d_in = math.prod(size[label] for label in axes.contracted)
    d_out = math.prod(size[label] for label in axes.new)
    super().__init__(base, scaling, d_in, d_out)
    self._axes = axes
    self._sizes = size

  def _as_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
    axes, size = self._axes, self._sizes
    unfolded = tf.reshape(matrix, [size[label] for label in axes.new + axes.contracted])
    return tf.einsum(f'{axes.new}{axes.contracted}->{axes.kernel}', unfolded)

  def _as_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
    axes = self._axes
    if axes.kernel != axes.contracted + axes.new:
      kernel = tf.einsum(f'{axes.kernel}->{axes.contracted}{axes.new}', kernel)
    return tf.reshape(kernel, [self.d_in, self.d_out])

  def _output_shape(self, inputs: tf.Tensor) -> tf.Tensor:
    new = [self._sizes[label] for label in self._axes.new]
    return tf.concat([tf.shape(inputs)[: -len(self._axes.contracted)], new], 0)

  def _base_linear(self, inputs: tf.Tensor) -> tf.Tensor:
    outputs = tf.einsum(self.base.equation, inputs, self.base.kernel)
    return outputs if self.base.bias is None else outputs + self.base.bias


def wrap(base: tf.keras.layers.Layer, scaling: float) -> LoraLayer:
  """Wraps a built `Dense` or `EinsumDense` layer.

  Args:
    base: the layer; it is not changed.
    scaling: positive factor of `b @ a`.

  Returns:
    A `LoraDense` or `LoraEinsumDense` without variables.

  Raises:
    ValueError: if the layer is of another kind, not built, or its equation is not supported.
  """
  if isinstance(base, tf.keras.layers.EinsumDense):
    return LoraEinsumDense(base, scaling)
  if isinstance(base, tf.keras.layers.Dense):
    return LoraDense(base, scaling)
  raise ValueError(
    f'Layer {base.name!r} is a {type(base).__name__}; adapters need Dense or EinsumDense.'
  )


@contextlib.contextmanager
def bound(layers: Mapping[str, LoraLayer], factors: Mapping[str, Factors]) -> Iterator[None]:
  """Binds factors to layers for the length of a `with` block, then restores what was bound.

  Args:
    layers: module path to layer, as `injection.inject_lora` returns it.
    factors: module path to factors, for every path of `layers`.

  Yields:
    Nothing.

  Raises:
    ValueError: if the paths differ or a factor does not fit.
  """
  if set(layers) != set(factors):
    odd = sorted(set(layers) ^ set(factors))
    raise ValueError(f'`factors` must cover exactly the adapted modules; these differ: {odd}.')
  before = {path: layer._binding.factors for path, layer in layers.items()}
  try:
    for path, layer in layers.items():
      layer.bind(factors[path])
    yield
  finally:
    for path, layer in layers.items():
      layer._binding.factors = before[path]


def _kernel_shape(base: tf.keras.layers.Layer) -> list[int]:
  if not base.built:
    raise ValueError(f'Layer {base.name!r} is not built: call the model once before adapting it.')
  return base.kernel.shape.as_list()


def _is_linear(activation) -> bool:
  return activation is None or activation is tf.keras.activations.linear
