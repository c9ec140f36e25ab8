# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora export` of whole models: the merged one with its tokenizer and its labels."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping

from hetlora_tff import staging
from hetlora_tff.export import keras_file, preset, saved_model, tflite
from hetlora_tff.export.merged import ExportError, MergedModel, merge
from tasks import backbones
from tasks.errors import UserError
from tasks.experiment import LABELS
from tasks.exported_run import ExportedRun


def export_saved_model(run: ExportedRun, output_dir: pathlib.Path) -> str:
  """Writes a TensorFlow SavedModel.

  Args:
    run: what it is made of.
    output_dir: where to; must not exist or be empty.

  Returns:
    What was written, in a sentence.

  Raises:
    UserError: if the form cannot hold the model, or it cannot be written.
  """
  _export(run, output_dir, saved_model.save_saved_model)
  return (
    f'{output_dir} is a SavedModel whose serving_default gives {_logits(run)}; '
    'tf.saved_model.load loads it.'
  )


def export_keras_file(run: ExportedRun, output_dir: pathlib.Path) -> str:
  """Writes a `.keras` file of plain tf-keras layers; as `export_saved_model`."""
  _export(run, output_dir, keras_file.save_keras_file)
  return (
    f'{output_dir / keras_file.MODEL_FILE} gives {_logits(run)}; '
    'tf_keras.models.load_model loads it, on TensorFlow 2.14 and later.'
  )


def export_preset(run: ExportedRun, output_dir: pathlib.Path) -> str:
  """Writes a keras-nlp preset, its tokenizer included; as `export_saved_model`."""

  def save(directory: pathlib.Path, model: MergedModel) -> None:
    preset.save_preset(directory, model)
    # keras-nlp looks for the tokenizer beside the model.
    tokenizer = directory / backbones.TOKENIZER
    backbones.save_tokenizer(run.base.tokenizer.keras_tokenizer, tokenizer)
    shutil.copytree(
      tokenizer, directory, ignore=lambda *_: [preset.METADATA_FILE], dirs_exist_ok=True
    )
    shutil.rmtree(tokenizer)

  _export(run, output_dir, save, tokenizer_within=True)
  return (
    f'{output_dir} is a preset of keras-nlp; '
    f'keras_nlp.models.{run.base.backbone.class_name}.from_preset loads it.'
  )


def export_tflite(run: ExportedRun, output_dir: pathlib.Path) -> str:
  """Writes a `.tflite` file; as `export_saved_model`."""
  _export(run, output_dir, tflite.save_tflite)
  path = output_dir / tflite.MODEL_FILE
  return (
    f'{path} ({path.stat().st_size / 1e6:.1f} MB) gives {_logits(run)}; '
    'a tf.lite.Interpreter that has the select ops runs it.'
  )


EXPORTS: Mapping[str, Callable[[ExportedRun, pathlib.Path], str]] = {
  'savedmodel': export_saved_model,
  'keras': export_keras_file,
  'preset': export_preset,
  'tflite': export_tflite,
}


def _export(
  run: ExportedRun,
  output_dir: pathlib.Path,
  save: Callable[[pathlib.Path, MergedModel], None],
  *,
  tokenizer_within: bool = False,
) -> None:
  try:
    model = merge(run.base.backbone, run.lora, run.adapters)
  except ValueError as error:
    raise UserError(f'Cannot export {run.directory}: {error}') from error
  try:
    with staging.staged(output_dir, 'an export', ExportError) as draft:
      save(draft, model)
      if not tokenizer_within:
        tokenizer = run.base.tokenizer.keras_tokenizer
        backbones.save_tokenizer(tokenizer, draft / backbones.TOKENIZER)
      if run.labels:
        (draft / LABELS).write_text(json.dumps(run.labels, indent=1), 'utf-8')
  except ExportError as error:
    raise UserError(f'Cannot export {run.directory}: {error}') from error


def _logits(run: ExportedRun) -> str:
  outputs = 'each label in labels.json' if run.labels else 'every next token'
  return f'the logits of {outputs} for token_ids and padding_mask, of the tokenizer in tokenizer/'
