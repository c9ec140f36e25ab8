# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Puts LoRA layers into a keras-nlp backbone, in place.

keras-nlp's own `Backbone.enable_lora` freezes everything and adds nothing under Keras 2; here a
target that matches no layer is an error.
"""

import collections
import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence

import tensorflow as tf

from hetlora_tff.adapters import config as config_lib
from hetlora_tff.adapters import layers as layers_lib

_LAYER_INDEX = re.compile(r'(?<=_)\d+(?=[_/]|$)')
_AFFIXES = ('_layer', '_dense', '_proj', '_projection', '_projector')

# Lends factors to what `inject_lora` returns for the length of a `with` block.
bound = layers_lib.bound


class TargetNotFoundError(ValueError):
  """A target matches no layer that can carry an adapter."""


@dataclasses.dataclass(frozen=True)
class _Site:
  """One place in the model that holds a linear layer."""

  path: str
  layer: tf.keras.layers.Layer
  parent: tf.keras.layers.Layer
  attribute: str
  index: int | None

  def put(self, layer: tf.keras.layers.Layer) -> None:
    if self.index is None:
      setattr(self.parent, self.attribute, layer)
      return
    # Keras marks a tracked list that was changed in place as impossible to checkpoint.
    values = list(getattr(self.parent, self.attribute))
    values[self.index] = layer
    setattr(self.parent, self.attribute, values)


def inject_lora(
  backbone: tf.keras.Model,
  config: config_lib.LoraConfig,
  *,
  create_variables: bool = True,
  seed: int | None = None,
  frozen_dtype: tf.DType | None = None,
) -> collections.OrderedDict[str, layers_lib.LoraLayer]:
  """Replaces the targeted `Dense` and `EinsumDense` layers by LoRA layers and freezes the rest.

  Afterwards `backbone.trainable_variables` are exactly the adapters' variables. With freshly made
  variables, or with none, the outputs are what they were.

  A module path is made of the name of the layer in the backbone and the names of the attributes
  below it, without leading underscores and without endings such as `_layer` and `_dense`:
  `transformer_layer_0/self_attention/query`. It does not depend on how many layers the process
  has made before. A target matches a path if it equals its last segment or segments (`query`,
  `_query_dense`, `self_attention/query`) or is a regular expression for the whole path.

  `Dense` layers that the backbone's functional graph applies directly (poolers, embedding
  projections) cannot be replaced in place and are no candidates. Works eagerly and inside a
  graph that is being built. Either all targets are replaced or the model is left as it was.

  Args:
    backbone: a built keras-nlp backbone (or any functional model of composite layers).
    config: ranks, scale and targets.
    create_variables: whether the layers get trainable factors of the config's ranks; without,
      bind factors before each call.
    seed: seed of the Gaussian factors, mixed with each path; None takes `config.init_seed`.
    frozen_dtype: None leaves what is frozen to Keras. A dtype has all linear layers, targeted or
      not, compute their frozen part as `LoraLayer.freeze_base` says, in the graph that is built
      now and in no other.

  Returns:
    Module path to LoRA layer, in the order of the model's layers.

  Raises:
    TargetNotFoundError: if a target matches nothing; lists the paths there are.
    ValueError: if the backbone has adapters already, a target is not a valid regular expression,
      or a targeted layer cannot be adapted.
  """
  sites, applied_directly = _find_sites(backbone)
  chosen = _select(sites, applied_directly, config.targets)
  adapters = collections.OrderedDict()
  by_layer = {}
  for site in chosen:
    if id(site.layer) not in by_layer:
      layer = _wrap(site, config.scaling)
      if create_variables:
        seed_here = config.init_seed if seed is None else seed
        layer.create_variables(config.module_rank(site.path), _seed_for(site.path, seed_here))
      adapters[site.path] = by_layer[id(site.layer)] = layer
  if frozen_dtype is not None:
    others = [site for site in sites if id(site.layer) not in by_layer]
    by_layer |= _wrapped(others, config.scaling)
    for layer in by_layer.values():
      layer.freeze_base(frozen_dtype)
  done = []
  try:
    for site in [site for site in sites if id(site.layer) in by_layer]:
      done.append(site)
      site.put(by_layer[id(site.layer)])
  except Exception:
    for site in done:
      site.put(site.layer)
    raise
  backbone.trainable = True
  _freeze(backbone)
  return adapters


def adaptable_paths(backbone: tf.keras.Model) -> list[str]:
  """Module paths of all layers that `inject_lora` can adapt, in the order of the model."""
  return list(dict.fromkeys(site.path for site in _find_sites(backbone)[0]))


def _find_sites(backbone: tf.keras.Model) -> tuple[list[_Site], list[str]]:
  sites, applied_directly = [], []
  for layer in backbone.layers:
    if _is_linear_layer(layer):
      applied_directly.append(layer.name)
    else:
      sites.extend(_walk(layer, layer.name, frozenset()))
  paths = {}
  for site in sites:
    paths.setdefault(id(site.layer), site.path)
  # A layer shared by several parents is one module: its first path names it.
  shared = [dataclasses.replace(site, path=paths[id(site.layer)]) for site in sites]
  return shared, applied_directly


def _walk(parent, path: str, above: frozenset) -> Iterator[_Site]:
  for name, attribute, index, child in _children(parent):
    child_path = f'{path}/{name}'
    if isinstance(child, layers_lib.LoraLayer):
      raise ValueError(
        f'The backbone has adapters already ({child_path}): build a fresh one to inject again.'
      )
    if _is_linear_layer(child):
      yield _Site(child_path, child, parent, attribute, index)
    elif id(child) not in above:
      yield from _walk(child, child_path, above | {id(parent)})


def _children(parent):
  """Yields (name, attribute, index or None, sublayer) for the sublayers `parent` holds."""
  if getattr(parent, '_is_graph_network', False):
    # Its functional graph calls its layers by itself: only what lies within them can be replaced.
    composite = [layer for layer in parent.layers if not _is_linear_layer(layer)]
    yield from ((layer.name, layer.name, None, layer) for layer in composite)
    return
  tracked = {id(value) for value in getattr(parent, '_self_tracked_trackables', ())}
  held = [(key, value) for key, value in vars(parent).items() if id(value) in tracked]
  short = collections.Counter(_short_name(attribute) for attribute, _ in held)
  for attribute, value in held:
    name = _short_name(attribute)
    if short[name] > 1:
      name = attribute
    if isinstance(value, tf.keras.layers.Layer):
      yield name, attribute, None, value
    elif isinstance(value, Sequence):
      for index, item in enumerate(value):
        if isinstance(item, tf.keras.layers.Layer):
          yield f'{name}_{index}', attribute, index, item


def _select(sites: list[_Site], applied_directly: list[str], targets: Sequence[str]) -> list[_Site]:
  for target in targets:
    if any(_matches(target, site.path) for site in sites):
      continue
    direct = [path for path in applied_directly if _matches(target, path)]
    if direct:
      raise TargetNotFoundError(
        f'Target {target!r} only matches {_summary(direct)}, which the backbone applies directly'
        ' and which cannot carry an adapter.'
      )
    raise TargetNotFoundError(
      f'Target {target!r} matches no layer of the backbone; there are:'
      f' {_summary([site.path for site in sites]) or "no Dense or EinsumDense layers"}.'
    )
  return [site for site in sites if any(_matches(target, site.path) for target in targets)]


def _matches(target: str, path: str) -> bool:
  *parents, last = target.strip('/').split('/')
  wanted = '/'.join([*parents, _short_name(last)])
  if path == wanted or path.endswith('/' + wanted):
    return True
  try:
    return re.fullmatch(target, path) is not None
  except re.error as error:
    raise ValueError(
      f'Target {target!r} is neither a module name nor a regular expression: {error}.'
    ) from None


def _summary(paths: list[str]) -> str:
  return ', '.join(dict.fromkeys(_LAYER_INDEX.sub('*', path) for path in paths))


def _short_name(attribute: str) -> str:
  name = attribute.lstrip('_')
  for affix in _AFFIXES:
    name = name.removesuffix(affix)
  return name or attribute


def _is_linear_layer(layer) -> bool:
  return isinstance(layer, (tf.keras.layers.Dense, tf.keras.layers.EinsumDense))


def _wrap(site: _Site, scaling: float) -> layers_lib.LoraLayer:
  try:
    return layers_lib.wrap(site.layer, scaling)
  except ValueError as error:
    raise ValueError(f'{site.path} cannot carry an adapter: {error}') from error


def _wrapped(sites: list[_Site], scaling: float) -> dict[int, layers_lib.LoraLayer]:
  """Every layer that can be wrapped, by the id of what it wraps."""
  wrapped = {}
  for site in sites:
    # One that cannot carry an adapter need not: Keras goes on to compute it.
    with contextlib.suppress(ValueError):
      wrapped[id(site.layer)] = layers_lib.wrap(site.layer, scaling)
  return wrapped


def _seed_for(path: str, seed: int) -> int:
  # Layers of one shape would start from equal factors under one seed.
  digest = hashlib.sha256(f'{seed}/{path}'.encode()).digest()
  return int.from_bytes(digest[:4], 'big') & 0x7FFFFFFF


def _freeze(layer: tf.keras.layers.Layer) -> bool:
  """Freezes all but the adapters at and below `layer`; returns whether there are any."""
  if isinstance(layer, layers_lib.LoraLayer):
    layer.base.trainable = False
    return True
  children = layer._flatten_layers(recursive=False, include_self=False)
  adapted = [_freeze(child) for child in children]
  if not any(adapted):
    layer.trainable = False
    return False
  # `trainable = False` here would hide the adapters below, so a layer's own weights move instead.
  layer._non_trainable_weights.extend(layer._trainable_weights)
  layer._trainable_weights.clear()
  return True
