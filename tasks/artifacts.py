# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves to be used: `adapter/`, and `model/` where the base itself was changed.

| method                 | `adapter/`            | `model/`                          |
| ---------------------- | --------------------- | --------------------------------- |
| most                   | the factors           | -                                 |
| stacking, FedEx-LoRA   | the factors, on model/ | the base plus the residual       |
| full fine-tuning       | -                     | the base with all weights trained |
"""

import collections
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

import hetlora_tff
from hetlora_tff.adapters import peft
from hetlora_tff.adapters.factors import CorrectedFactors
from hetlora_tff.adapters.model import Adapters
from tasks.errors import UserError
from tasks.evaluator import Evaluator, Parameters
from tasks.experiment import LABELS, Experiment
from tasks.files import replace_file
from tasks.merged_model import load_merged_model, residual_changes, save_merged_model

ADAPTER, MODEL = 'adapter', 'model'
OWN_NAMES = peft.OWN_NAMES


def as_arrays(parameters: Mapping[str, Any]) -> Parameters:
  """Adapters or weights as NumPy arrays, whatever container the runtime returned."""
  return collections.OrderedDict((name, _arrays(value)) for name, value in parameters.items())


def _arrays(value: Any) -> Any:
  if hasattr(value, 'residual'):
    return CorrectedFactors(*map(np.asarray, (value.a, value.b, value.residual)))
  if hasattr(value, 'a'):
    return hetlora_tff.LoraFactors(np.asarray(value.a), np.asarray(value.b))
  return np.asarray(value)


def save(root: pathlib.Path, experiment: Experiment, parameters: Mapping[str, Any]) -> str | None:
  """Writes both directories of a run, as far as its method has them.

  Args:
    root: of the run.
    experiment: that it belongs to.
    parameters: what the server holds, as arrays.

  Returns:
    Whose module names the adapter has (see `save_peft_adapter`); None without an adapter.
  """
  base, config = experiment.base, experiment.lora_config
  if config is None:
    save_merged_model(root / MODEL, base, parameters)
    return None
  merged = _has_residual(parameters)
  if merged:
    save_merged_model(root / MODEL, base, residual_changes(base.backbone, config, parameters))
  names = peft.save_peft_adapter(
    root / ADAPTER,
    {path: hetlora_tff.LoraFactors(f.a, f.b) for path, f in parameters.items()},
    config,
    base_model_name_or_path=MODEL if merged else '',
    architecture=base.backbone.class_name,
    num_heads=base.backbone.num_heads,
  )
  if experiment.data.labels:  # Without them, nobody knows what the classifier's numbers mean.
    labels = json.dumps(experiment.data.labels, indent=1, ensure_ascii=False)
    replace_file(root / ADAPTER / LABELS, labels.encode())
  return names


def untuned(experiment: Experiment) -> tuple[Evaluator, Parameters]:
  """What evaluates the model that a run began with, and what to give it."""
  if experiment.lora_config is None:
    return experiment.evaluator(), experiment.base.backbone.weights()
  if experiment.initial_adapters is not None:
    return experiment.evaluator(), experiment.initial_adapters
  zeros: Adapters = collections.OrderedDict()
  for path, shape in experiment.shapes.items():
    zeros[path] = hetlora_tff.LoraFactors(_zeros(1, shape.d_in), _zeros(shape.d_out, 1))
  return experiment.evaluator(), zeros


def load(root: pathlib.Path, experiment: Experiment) -> tuple[Evaluator, Parameters]:
  """What evaluates the result of a run, and what to give it.

  Raises:
    UserError: naming the file that is missing, damaged or of another run.
  """
  base = experiment.base
  if experiment.lora_config is None:
    base = base._replace(backbone=load_merged_model(root / MODEL, base))
    return experiment.evaluator(base), base.backbone.weights()
  try:
    adapter = peft.load_peft_adapter(root / ADAPTER)
    experiment.check_adapters(adapter.factors)
  except ValueError as error:
    raise UserError(str(error)) from error
  if adapter.config['base_model_name_or_path'] == MODEL:
    base = base._replace(backbone=load_merged_model(root / MODEL, base))
  return experiment.evaluator(base), adapter.factors


def _has_residual(parameters: Mapping[str, Any]) -> bool:
  return isinstance(next(iter(parameters.values())), CorrectedFactors)


def _zeros(*shape: int) -> np.ndarray:
  return np.zeros(shape, np.float32)
