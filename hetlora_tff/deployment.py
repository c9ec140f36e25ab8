# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A learning process as files that a production pipeline runs.

`save_daf` compiles a process to TFF's `DistributeAggregateForm`, the five computations that a
pipeline takes (prepare, broadcast, client work, aggregation, result), and to its `MapReduceForm`
where it has one. The frozen backbone is not in them: graphs name its tensors, and `load_daf` puts
in where they lie on this machine, once their sha256 are those of the export.

    initialize.pb                      ( -> S)
    distribute_aggregate_form/*.pb     <S@SERVER, {D*}@CLIENTS> -> <S, M>@SERVER, in five parts
    map_reduce_form/*.pb               the same, in ten
    model_weights.safetensors          where the model stands
    manifest.json                      what all this is, for people and programs

The digests tell a damaged export from a whole one, not who made it: an export is code, and whoever
may write it may change them too.
"""

import collections
import os
import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import google.protobuf.message
import numpy as np
import safetensors
import safetensors.numpy
import tensorflow_federated as tff

# TFF has no public name for the message that `tff.framework.serialize_computation` returns.
from tensorflow_federated.proto.v0 import computation_pb2

from hetlora_tff import deployment_manifest as manifests
from hetlora_tff import graph_files, staging
from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.deployment_manifest import DeploymentError

_INITIALIZE, _WEIGHTS = 'initialize.pb', 'model_weights.safetensors'
# The part of TFF's `LearningAlgorithmState` that is the model.
_MODEL = 'global_model_weights'
_DAF, _MRF = 'distribute_aggregate_form', 'map_reduce_form'
# The parts of each form, by the names that TFF's constructors give them.
_PARTS = {
  _DAF: (
    'server_prepare', 'server_to_client_broadcast', 'client_work', 'client_to_server_aggregation',
    'server_result',
  ),
  _MRF: (
    'prepare', 'work', 'zero', 'accumulate', 'merge', 'report', 'secure_sum_bitwidth',
    'secure_sum_max_input', 'secure_modular_sum_modulus', 'update',
  ),
}  # fmt: skip
# How a stored graph names the n-th tensor of the backbone, wherever that lies.
_PLACEHOLDER = 'backbone:'


class DeployedProcess:
  """A learning process from an export; see `load_daf`.

  Attributes:
    manifest: what `manifest.json` says.
    form: the `tff.backends.mapreduce.DistributeAggregateForm`.
    map_reduce_form: the `tff.backends.mapreduce.MapReduceForm`; None where there is none.
    initialize: `( -> S)`, the state before the first round.
    next: `(<S@SERVER, {D*}@CLIENTS> -> <S@SERVER, M@SERVER>)`, one round, composed of `form`.

  Structures with names come back as `OrderedDict`s: an export knows no Python classes.
  """

  def __init__(
    self,
    manifest: dict[str, Any],
    initialize: tff.Computation,
    form: tff.backends.mapreduce.DistributeAggregateForm,
    map_reduce_form: tff.backends.mapreduce.MapReduceForm | None,
    model_weights: Any,
  ):
    """Not called by users: see `load_daf`."""
    self.manifest = manifest
    self.initialize = initialize
    self.form = form
    self.map_reduce_form = map_reduce_form
    self.next = tff.backends.mapreduce.get_computation_for_distribute_aggregate_form(form)
    self._model_weights = model_weights

  def initial_state(self) -> Any:
    """The state to go on from: that of `initialize`, with the exported model weights, if any.

    Whose turn it is where factors alternate is part of the weights. All else is new: what an
    aggregator or an optimizer had gathered stayed with the run.
    """
    state = self.initialize()
    if self._model_weights is None:
      return state
    return collections.OrderedDict(state, **{_MODEL: self._model_weights})

  def model_weights(self, state: Any) -> collections.OrderedDict[str, np.ndarray]:
    """The model in a state: arrays by name, as in `model_weights.safetensors`."""
    state_type = self.initialize.type_signature.result
    weights = manifests.element(state, _MODEL)
    return manifests.flatten(state_type[_MODEL], weights)

  def tensors(self, state: Any) -> collections.OrderedDict[str, np.ndarray]:
    """All of a state: arrays by name."""
    return manifests.flatten(self.initialize.type_signature.result, state)


def save_daf(
  directory: str | os.PathLike,
  learning_process: tff.learning.templates.LearningProcess,
  *,
  backbone: FrozenBackbone | None = None,
  model_weights: Any = None,
  notes: Sequence[str] = (),
  privacy: Mapping[str, Any] | None = None,
  requires: Mapping[str, Any] | None = None,
  verify: Callable[[DeployedProcess], Mapping[str, Any]] | None = None,
) -> DeployedProcess:
  """Compiles a learning process for deployment and writes it, all of it or nothing.

  Args:
    directory: where to; must not exist or be empty.
    learning_process: for example `HetLoraProcess.as_learning_process()`.
    backbone: that its graphs map into memory; None if they map none.
    model_weights: `tff.learning.models.ModelWeights` of arrays, to go on from; None for none.
    notes: sentences on what the export leaves out or replaces.
    privacy: the mechanism inside, for those who account for the pipeline's rounds; as JSON.
    requires: what a pipeline has to keep to: cohorts, sampling, normalisers; as JSON.
    verify: looks at the export as it was loaded again; what it returns becomes the `check` of the
      manifest, and where it raises, nothing is left.

  Returns:
    The export, as loaded again.

  Raises:
    DeploymentError: if the process has no such form, its graphs hold what cannot be moved, or the
      directory is in use or cannot be written.
    ValueError: if the weights do not fit.
  """
  initialize, form, map_reduce_form = _lower(learning_process)
  parts = _parts(_DAF, form)
  computations = {_INITIALIZE: initialize, **parts}
  if not isinstance(map_reduce_form, str):
    computations |= _parts(_MRF, map_reduce_form)
  state_type = learning_process.initialize.type_signature.result.member
  files = {name: _portable(c, backbone).SerializeToString() for name, c in computations.items()}
  if model_weights is not None:
    arrays = manifests.flatten(state_type[_MODEL], model_weights)
    files[_WEIGHTS] = safetensors.numpy.save(arrays)
  manifest = manifests.describe(initialize, form, parts, map_reduce_form, backbone)
  manifest |= {'privacy': privacy, 'requires': requires, 'notes': list(notes), 'check': None}
  manifest['files'] = {name: manifests.digest(data) for name, data in files.items()}
  with staging.staged(directory, 'an export', DeploymentError) as draft:
    for name, data in files.items():
      (draft / name).parent.mkdir(exist_ok=True)
      manifests.write_synced(draft / name, data)
    manifests.write(draft, manifest)
    deployed = load_daf(draft, backbone and backbone.directory)
    if verify:
      deployed.manifest['check'] = dict(verify(deployed))
      manifests.write(draft, deployed.manifest)
  return deployed


def load_daf(
  directory: str | os.PathLike, backbone_dir: str | os.PathLike | None = None
) -> DeployedProcess:
  """Loads what `save_daf` wrote, on any machine that has its backbone.

  Args:
    directory: of the export.
    backbone_dir: where its backbone lies now; all its tensors are read and verified. None if the
      process has none.

  Raises:
    DeploymentError: naming the file that is missing, malformed or altered, the version that does
      not fit, or the backbone that is wanted.
    BackboneError: naming the backbone's file that is missing or altered.
  """
  root = pathlib.Path(directory).absolute()
  manifest = manifests.read(root)
  has_map_reduce = manifest['map_reduce_form'] is True
  forms = [_DAF, _MRF] if has_map_reduce else [_DAF]
  wanted = [_INITIALIZE, *(f'{form}/{part}.pb' for form in forms for part in _PARTS[form])]
  optional = [_WEIGHTS] if _WEIGHTS in manifest['files'] else []
  files = {name: manifests.read_file(root, manifest, name) for name in wanted + optional}
  backbone = _load_backbone(root, manifest['backbone'], backbone_dir)
  computations = {name: _local(root / name, files[name], backbone) for name in wanted}
  initialize = computations[_INITIALIZE]
  try:
    form = _assemble(_DAF, computations, initialize, tff.backends.mapreduce.DistributeAggregateForm)
    map_reduce_form = None
    if has_map_reduce:
      map_reduce_form = _assemble(
        _MRF, computations, initialize, tff.backends.mapreduce.MapReduceForm
      )
  except (TypeError, ValueError, AttributeError) as error:
    raise DeploymentError(f'The parts in {root} do not fit together: {_line(error)}.') from error
  weights = None
  if optional:
    weights_type = initialize.type_signature.result[_MODEL]
    weights = _load_weights(root / _WEIGHTS, files[_WEIGHTS], weights_type)
  return DeployedProcess(manifest, initialize, form, map_reduce_form, weights)


def _lower(process: tff.learning.templates.LearningProcess):
  """Initialisation and both forms; in the place of a `MapReduceForm` why there is none."""
  mapreduce = tff.backends.mapreduce
  try:
    initialize = mapreduce.get_state_initialization_computation(process.initialize)
    form = mapreduce.get_distribute_aggregate_form_for_computation(process.next)
  except (TypeError, ValueError) as error:
    raise DeploymentError(
      'The process has no DistributeAggregateForm: that takes a broadcast to all clients before'
      f' their work and sums of it behind. TFF says: {_line(error)}'
    ) from error
  try:
    map_reduce_form = mapreduce.get_map_reduce_form_for_computation(process.next)
  except (TypeError, ValueError) as error:
    map_reduce_form = _line(error)
  return initialize, form, map_reduce_form


def _parts(form_name: str, form: Any) -> dict[str, tff.Computation]:
  return {f'{form_name}/{part}.pb': getattr(form, part) for part in _PARTS[form_name]}


def _assemble(form_name: str, computations, initialize, form_class):
  """A form from its parts; the type of the whole round follows from theirs."""
  parts = {part: computations[f'{form_name}/{part}.pb'] for part in _PARTS[form_name]}
  state_type = tff.FederatedType(initialize.type_signature.result, tff.SERVER)
  if form_name == _DAF:
    data_type = parts['client_work'].type_signature.parameter[0]
    result_type = parts['server_result'].type_signature.result
  else:
    data_type = tff.FederatedType(parts['work'].type_signature.parameter[0], tff.CLIENTS)
    result = parts['update'].type_signature.result
    result_type = tff.StructType([tff.FederatedType(member, tff.SERVER) for member in result])
  return form_class(tff.FunctionType(tff.StructType([state_type, data_type]), result_type), **parts)


def _portable(computation: tff.Computation, backbone: FrozenBackbone | None):
  """A computation as a message whose graphs name no file of this machine."""
  places = {path: name for name, path in _tensor_files(backbone).items()}

  def rename(path: str) -> str:
    if path not in places:
      raise DeploymentError(
        f'The process maps {path} into memory, which is not in the given backbone.'
      )
    return places[path]

  message = tff.framework.serialize_computation(computation)
  graph_files.rename_files(message, rename)
  return message


def _tensor_files(backbone: FrozenBackbone | None) -> dict[str, str]:
  """Where the tensors of the backbone lie, by what a stored graph calls them."""
  if backbone is None:
    return {}
  return {
    f'{_PLACEHOLDER}{place}': os.path.join(backbone.directory, record.file)
    for place, record in enumerate(backbone.tensors)
  }


def _local(path: pathlib.Path, data: bytes, backbone: FrozenBackbone | None) -> tff.Computation:
  """The computation in a file, with its graphs on the backbone of this machine."""
  paths = _tensor_files(backbone)

  def rename(name: str) -> str:
    if name not in paths:
      raise DeploymentError(
        f'{path} maps {name!r} into memory, which is no tensor of the backbone.'
      )
    return paths[name]

  try:
    message = computation_pb2.Computation.FromString(data)  # pyright: ignore
    graph_files.rename_files(message, rename)
    return tff.framework.deserialize_computation(message)
  except DeploymentError:
    raise
  except (google.protobuf.message.DecodeError, TypeError, ValueError, NotImplementedError) as error:
    raise DeploymentError(f'{path} holds no computation: {_line(error)}.') from error


def _load_backbone(
  root: pathlib.Path, wanted: Mapping[str, Any] | None, directory: str | os.PathLike | None
) -> FrozenBackbone | None:
  if wanted is None:
    return None
  described = f'{wanted["class"]} of sha256 {wanted["sha256"]}'
  if directory is None:
    raise DeploymentError(f'{root} needs its backbone, {described}: give `backbone_dir`.')
  backbone = FrozenBackbone.load(directory)
  if backbone.sha256 != wanted['sha256']:
    raise DeploymentError(
      f'{root} needs {described}; {backbone.directory} holds {backbone.class_name} of sha256 '
      f'{backbone.sha256}.'
    )
  return backbone


def _load_weights(path: pathlib.Path, data: bytes, weights_type: tff.Type) -> Any:
  try:
    return manifests.unflatten(weights_type, safetensors.numpy.load(data))
  except (safetensors.SafetensorError, ValueError) as error:
    raise DeploymentError(f'{path} holds no weights of this model: {_line(error)}.') from error


def _line(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  return textwrap.shorten(text.splitlines()[0], 200, placeholder=' ...').rstrip('.')
