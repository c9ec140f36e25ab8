# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""TFF types of what the aggregators take: LoRA factors by module, and weights."""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora


class FactorShape(NamedTuple):
  """Shape of one module's factors: `a [rank, d_in]` and `b [d_out, rank]`."""

  rank: int
  d_in: int
  d_out: int


FactorShapes = collections.OrderedDict[str, FactorShape]


def factor_shapes(value_type: tff.Type, others: tuple[str, ...] = ()) -> FactorShapes:
  """The shapes of a structure of factors by module.

  Args:
    value_type: named entries with the members `a` and `b`, in this order, in any container.
    others: names of further members that an entry may have after these.

  Raises:
    TypeError: naming the entry that is not a pair of float factors of one known rank.
  """
  if not isinstance(value_type, tff.StructType) or not len(value_type):
    raise TypeError(f'Values must be LoRA factors by module, got {value_type}.')
  shapes = collections.OrderedDict()
  for name, entry in tff.structure.iter_elements(value_type):
    members = tff.structure.iter_elements(entry) if isinstance(entry, tff.StructType) else ()
    members = {key: member for key, member in members if key not in others}
    if name is None or list(members) != ['a', 'b'] or not tff.types.is_structure_of_floats(entry):
      raise TypeError(f'Module {name!r} must have float factors `a` and `b`, got {entry}.')
    a, b = (tuple(getattr(member, 'shape', None) or ()) for member in members.values())
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or None in a + b:
      raise TypeError(f'Module {name!r} needs `a [rank, d_in]`, `b [d_out, rank]`, got {entry}.')
    shapes[name] = FactorShape(rank=a[0], d_in=a[1], d_out=b[0])
  return shapes


def factors_of(entry: Any) -> lora.LoraFactors:
  """The factors of one module, out of whichever container TFF hands over."""
  if isinstance(entry, Mapping):
    return lora.LoraFactors(entry['a'], entry['b'])
  return lora.LoraFactors(entry.a, entry.b)


def check_scalar_weight(weight_type: tff.Type) -> None:
  """Checks that there is one float weight per client.

  Raises:
    TypeError: if not.
  """
  is_float = tff.types.is_structure_of_floats(weight_type)
  if not (is_float and isinstance(weight_type, tff.TensorType) and weight_type.shape == ()):
    raise TypeError(f'The weight must be a float scalar, got {weight_type}.')
