# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The equation of an `EinsumDense` layer, read as a linear map."""

from typing import NamedTuple


class EinsumAxes(NamedTuple):
  """Labels of a kernel's axes in order, of those contracted and of those new."""

  kernel: str
  contracted: str
  new: str


def einsum_axes(name: str, equation: str) -> EinsumAxes:
  """Reads an equation such as `abc,cde->abde`.

  Args:
    name: of the layer, for the error.
    equation: of inputs and kernel.

  Raises:
    ValueError: if contracted or new axes are not the last ones of their tensor.
  """
  operands, result = equation.replace(' ', '').split('->')
  inputs, kernel = operands.split(',')
  contracted = ''.join(label for label in inputs if label in kernel and label not in result)
  new = ''.join(label for label in result if label in kernel and label not in inputs)
  # Equal rests leave both groups of axes at the end: a rest that still held one of them could not
  # equal the other. The map is then `[n, d_in] -> [n, d_out]` after a plain reshape.
  fits = (
    contracted
    and new
    and sorted(kernel) == sorted(contracted + new)
    and inputs.removesuffix(contracted) == result.removesuffix(new)
  )
  if not fits:
    raise ValueError(
      f'Layer {name!r} has the einsum equation {equation!r}; an adapter needs the contracted axes'
      ' last in the input and the new axes last in the output, such as "abc,cde->abde".'
    )
  return EinsumAxes(kernel, contracted, new)
