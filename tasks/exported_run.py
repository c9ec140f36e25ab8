# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A finished run as an export needs it: its model and adapters, without its data."""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import hetlora_tff
from hetlora_tff.adapters import peft
from tasks import artifacts, backbones, config_files, finished_run, method_parts
from tasks.cache import cache_directory
from tasks.config import RunConfig
from tasks.errors import UserError
from tasks.experiment import LABELS
from tasks.files import read_json


class ExportedRun(NamedTuple):
  """The result of a run.

  Attributes:
    directory: of the run.
    config: its settings, resolved.
    base: backbone and tokenizer that the result stands on: of `model/` where the method changed the
      base itself.
    lora: the adapters' configuration; None for full fine-tuning.
    adapters: float32 factors by module path; none for full fine-tuning.
    labels: of a classification, in the order of their numbers; else none.
  """

  directory: pathlib.Path
  config: RunConfig
  base: backbones.BaseModel
  lora: hetlora_tff.LoraConfig | None
  adapters: Mapping[str, hetlora_tff.LoraFactors]
  labels: tuple[str, ...]


def open_run(directory: pathlib.Path, backbone: str | None = None) -> ExportedRun:
  """Reads a finished run.

  Args:
    directory: of the run.
    backbone: where its backbone is now, as `--backbone`; None for where it was.

  Raises:
    UserError: naming what is missing, damaged, unfinished or of another model.
  """
  finished_run.check_finished(directory)
  config = config_files.from_json(directory / 'config.json')
  lora = method_parts.lora_config(config)
  labels = _labels(directory / artifacts.ADAPTER / LABELS)
  changed = directory / artifacts.MODEL
  if changed.is_dir():
    base = backbones.load_base_model(str(changed), cache_directory())
  else:
    base = load_backbone(directory, config, backbone, encoder_allowed=bool(labels))
  adapters = {}
  if lora is not None:
    try:
      adapters = peft.load_peft_adapter(directory / artifacts.ADAPTER).factors
    except ValueError as error:
      raise UserError(str(error)) from error
  return ExportedRun(directory, config, base, lora, adapters, labels)


def load_backbone(
  directory: pathlib.Path, config: RunConfig, backbone: str | None, *, encoder_allowed: bool
) -> backbones.BaseModel:
  """The backbone that a run began with, wherever it is now.

  Args:
    directory: of the run.
    config: of the run.
    backbone: where it is now, as `--backbone`; None for where it was.
    encoder_allowed: see `backbones.load_base_model`.

  Raises:
    UserError: if it is not there, or not the same.
  """
  name = backbone or config.backbone
  moved = f'if the backbone of {directory} has moved, say where it is now with --backbone.'
  if backbone is None and os.path.isabs(name) and not os.path.exists(name):
    raise UserError(f'{name} is not there; {moved}')
  try:
    base = backbones.load_base_model(name, cache_directory(), encoder_allowed=encoder_allowed)
  except UserError as error:
    raise UserError(f'{error} Or, {moved}') from error
  recorded = _recorded_sha256(directory / 'environment.json')
  if base.backbone.sha256 != recorded:
    raise UserError(
      f'--backbone {name} is not the one that {directory} began with: its sha256 is'
      f' {base.backbone.sha256[:16]}..., and that was {recorded[:16]}...'
    )
  return base


def _recorded_sha256(path: pathlib.Path) -> str:
  content = read_json(path)
  inputs = content.get('inputs') if isinstance(content, dict) else None
  sha256 = inputs.get('backbone_sha256') if isinstance(inputs, dict) else None
  if not isinstance(sha256, str):
    raise UserError(f'{path} does not say with which backbone the run began.')
  return sha256


def _labels(path: pathlib.Path) -> tuple[str, ...]:
  if not path.exists():
    return ()
  labels = read_json(path)
  if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
    raise UserError(f'{path} must hold a list of labels.')
  return tuple(labels)
