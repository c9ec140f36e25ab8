# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What all our HTML pages share: templates that stand alone, figures inside, numbers as text."""

import base64
import json
import math
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

_TEMPLATES = 'templates'
_MINUS, _SPACE = '\N{MINUS SIGN}', '\N{NO-BREAK SPACE}'


class Figure(NamedTuple):
  """A figure of a page, inside it.

  Attributes:
    name: of the plot.
    caption: what it shows; also its text where it cannot be seen.
    light: data URI of the PNG for a light page.
    dark: the same for a dark one.
    width: pixels.
    height: pixels.
  """

  name: str
  caption: str
  light: str
  dark: str
  width: int
  height: int


def render(template: str, **values: Any) -> str:
  """Fills a template of `templates/`; texts are escaped and nothing may be left undefined."""
  loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent / _TEMPLATES)
  templates = jinja2.Environment(
    loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  return templates.get_template(template).render(**values)


def figures(
  light: Mapping[str, bytes], dark: Mapping[str, bytes], captions: Mapping[str, str]
) -> list[Figure]:
  """Returns the figures of plots that were drawn for both appearances.

  Args:
    light: PNG images by name.
    dark: the same plots, for a dark page.
    captions: by name.
  """
  return [
    Figure(name, captions[name], _data_uri(image), _data_uri(dark[name]), *_png_size(image))
    for name, image in light.items()
  ]


def number(value: Any) -> float | None:
  """Returns a finite number, or None for anything else: files of other versions may lack it."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    return None
  return float(value)


def value_text(value: Any) -> str:
  """Returns a value of a JSON file as a reader would write it."""
  if isinstance(value, str):
    return value
  if isinstance(value, list) and not any(isinstance(x, list | dict) for x in value):
    return ', '.join(map(value_text, value))
  return json.dumps(value, ensure_ascii=False)


def flat(record: Mapping[str, Any], prefix: str = '') -> list[tuple[str, str]]:
  """Returns (name, value) pairs, with nested names joined by dots."""
  pairs: list[tuple[str, str]] = []
  for name, value in record.items():
    if isinstance(value, Mapping) and value:
      pairs += flat(value, f'{prefix}{name}.')
    else:
      pairs.append((f'{prefix}{name}', value_text(value)))
  return pairs


def signed(value: float, decimals: int) -> str:
  """Returns a change, with its sign."""
  return f'{value:+.{decimals}f}'.replace('-', _MINUS)


def percent_change(fraction: float) -> str:
  """Returns a relative change, with its sign, in per cent."""
  return f'{signed(100 * fraction, 1)}{_SPACE}%'


def duration(seconds: float) -> str:
  """Returns a time in the unit that suits it."""
  if seconds < 120:
    return f'{seconds:.3g} s'
  if seconds < 7200:
    return f'{seconds / 60:.3g} min'
  return f'{seconds / 3600:.3g} h'


def count(value: float) -> str:
  """Returns a large number with three digits and a word for the rest, such as '1.23 million'."""
  for word, size in (('trillion', 1e12), ('billion', 1e9), ('million', 1e6)):
    if value >= size:
      return f'{value / size:.3g} {word}'
  return f'{value:,.0f}'


def column(values: Sequence[float | None]) -> list[str]:
  """Returns a column of a table with as many decimals as its numbers need, empty for None.

  Raises:
    ValueError: if every value is None.
  """
  known = [x for x in values if x is not None]
  largest = max(map(abs, known))
  decimals = 0 if all(x.is_integer() for x in known) else 3 if largest < 1000 else 1
  return ['' if x is None else f'{x:,.{decimals}f}' for x in values]


def _data_uri(png: bytes) -> str:
  return 'data:image/png;base64,' + base64.b64encode(png).decode('ascii')


def _png_size(png: bytes) -> tuple[int, int]:
  # The first chunk, after 8 bytes of signature and 8 of its own head, begins with both.
  width, height = struct.unpack('>II', png[16:24])
  return width, height
