# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How real vectors become integers whose sum a secure protocol can take modulo a power of two.

A coordinate is rounded to a symmetric grid with 0 on it. Rounding can lengthen a vector, so the
grid and not the clip alone decides how far one client moves a sum; `SecureSumSpec` holds the bound.
"""

import dataclasses
import enum
import math
import numbers
from collections.abc import Mapping
from typing import Any

_BITS = (2, 32)
# The most that sums in 64-bit integers have room for.
_MOST_SUM_BITS = 62


class Rounding(enum.Enum):
  """How a coordinate finds its grid point.

  NEAREST takes the nearest one. STOCHASTIC takes one of the two around it by chance, so that the
  mean is right. CONDITIONAL does so until the norm keeps a bound that a draw keeps with probability
  `1 - exp(-1/2)` or more (arXiv:2102.06387, Prop. 22).
  """

  NEAREST = 'nearest'
  STOCHASTIC = 'stochastic'
  CONDITIONAL = 'conditional'


@dataclasses.dataclass(frozen=True)
class SecureSumSpec:
  """The grid and the modulus of a secure sum; all of it is public.

  Attributes:
    bits: of one client's encoded coordinate, 2 to 32: integers in [-levels, levels], with
      `levels = 2^(bits - 1) - 1`.
    largest_cohort: the most clients that one sum can have: the population under Poisson sampling.
    value_range: `R`, largest absolute value of a coordinate; None becomes `l2_clip_norm`.
    l2_clip_norm: `S`, bound of the joint L2 norm of one client's values before rounding; None where
      there is none, and then no bound after it either.
    coordinates: `d`, how many coordinates of one client may differ from zero: those of the largest
      public tier; needed with `l2_clip_norm`.
    rounding: see `Rounding`; CONDITIONAL needs an `l2_clip_norm`.
    noise_margin: how far noise that clients add may move a coordinate of the sum, in steps, before
      the sum wraps around.
    modulus_bits: of the modulus, as given; None takes as few as serve, see `sum_bits`.
  """

  bits: int
  largest_cohort: int
  value_range: float | None = None
  l2_clip_norm: float | None = None
  coordinates: int | None = None
  rounding: Rounding = Rounding.NEAREST
  noise_margin: int = 0
  modulus_bits: int | None = None

  def __post_init__(self):
    # By name, too: a string that is no `Rounding` would be none of them, in silence.
    object.__setattr__(self, 'rounding', Rounding(self.rounding))
    self._check_counts()
    self._check_sizes()
    self._check_modulus()

  @property
  def levels(self) -> int:
    """The largest encoded value."""
    return 2 ** (self.bits - 1) - 1

  @property
  def step(self) -> float:
    """`s = R / levels`, the distance of two grid points."""
    return float(self.value_range or 0.0) / self.levels

  @property
  def sum_bits(self) -> int:
    """Bits of a coordinate of the sum, and of a masked one on its way."""
    return self.modulus_bits or _bits_of(self._span(self.bits))

  @property
  def modulus(self) -> int:
    """`2^sum_bits`; no sum of `largest_cohort` clients wraps around if the margin holds."""
    return 2**self.sum_bits

  @property
  def rounded_clip(self) -> float | None:
    """`S'`, bound of the joint L2 norm of one client's values after rounding; None without a clip.

    With `e = sqrt(d) s`: `S + e / 2` for NEAREST, `S + e` for STOCHASTIC, and for CONDITIONAL
    `sqrt(S^2 + e^2 / 4 + s (S + e / 2))`, which is less: the bound of arXiv:2102.06387, Prop. 22,
    at `beta = exp(-1/2)`, where `sqrt(2 log(1 / beta)) = 1`.
    """
    if self.l2_clip_norm is None or self.coordinates is None:
      return None
    clip, edge = self.l2_clip_norm, math.sqrt(self.coordinates) * self.step
    if self.rounding is Rounding.NEAREST:
      return clip + edge / 2
    if self.rounding is Rounding.STOCHASTIC:
      return clip + edge
    return math.sqrt(clip**2 + edge**2 / 4 + self.step * (clip + edge / 2))

  def error_of_sum(self, clients: int) -> float:
    """The most that rounding moves one coordinate of the sum of so many clients."""
    return clients * self.step * (0.5 if self.rounding is Rounding.NEAREST else 1.0)

  def to_json(self) -> dict[str, Any]:
    """All fields, as JSON has them."""
    return {**dataclasses.asdict(self), 'rounding': self.rounding.value}

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'SecureSumSpec':
    """The inverse of `to_json`.

    Raises:
      ValueError: if `fields` is no spec.
    """
    values = dict(fields)
    if 'rounding' in values:
      values['rounding'] = Rounding(values['rounding'])
    try:
      return cls(**values)
    except TypeError as error:
      raise ValueError(f'Not a spec of a secure sum: {error}.') from error

  def _check_counts(self):
    least, most = _BITS
    if not isinstance(self.bits, numbers.Integral) or not least <= self.bits <= most:
      raise ValueError(f'`bits` must be a whole number from {least} to {most}, got {self.bits}.')
    counts = {
      'largest_cohort': (self.largest_cohort, 1),
      'coordinates': (self.coordinates, 1),
      'noise_margin': (self.noise_margin, 0),
      'modulus_bits': (self.modulus_bits, 1),
    }
    for name, (value, at_least) in counts.items():
      if name != 'largest_cohort' and value is None:
        continue
      if not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(f'`{name}` must be a whole number of at least {at_least}, got {value}.')

  def _check_sizes(self):
    for name in ('value_range', 'l2_clip_norm'):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise ValueError(f'`{name}` must be a positive number, got {value}.')
    clip = self.l2_clip_norm
    if clip is None:
      if self.value_range is None:
        raise ValueError('A secure sum needs a `value_range` or an `l2_clip_norm`.')
      if self.rounding is Rounding.CONDITIONAL:
        raise ValueError(
          'CONDITIONAL rounding needs the `l2_clip_norm` that its bound starts from.'
        )
      return
    if self.coordinates is None:
      raise ValueError('`l2_clip_norm` needs `coordinates`: rounding adds to the norm by them.')
    if self.value_range is None:
      object.__setattr__(self, 'value_range', clip)
    elif self.value_range < clip:
      raise ValueError(
        f'`value_range` {self.value_range:g} is below `l2_clip_norm` {clip:g}; it needs at least'
        f' {clip:g}.'
      )

  def _check_modulus(self):
    needed = _bits_of(self._span(self.bits))
    if needed > _MOST_SUM_BITS:
      fitting = [x for x in range(_BITS[0], self.bits) if _bits_of(self._span(x)) <= _MOST_SUM_BITS]
      mend = f'`bits` {fitting[-1]} would fit' if fitting else 'no `bits` would fit'
      raise ValueError(
        f'`bits` {self.bits} with a `largest_cohort` of {self.largest_cohort} and a `noise_margin`'
        f' of {self.noise_margin} needs a modulus of {needed} bits, above {_MOST_SUM_BITS}; {mend}.'
      )
    if self.modulus_bits is not None and not needed <= self.modulus_bits <= _MOST_SUM_BITS:
      raise ValueError(
        f'`modulus_bits` {self.modulus_bits} does not serve sums of up to {self.largest_cohort}'
        f' clients of {self.bits} bits with a `noise_margin` of {self.noise_margin}; it needs'
        f' {needed} to {_MOST_SUM_BITS}.'
      )

  def _span(self, bits: int) -> int:
    """How many integers the sum of the largest cohort may need."""
    return self.largest_cohort * (2**bits - 1) + 1 + 2 * self.noise_margin


def _bits_of(span: int) -> int:
  return (span - 1).bit_length()
