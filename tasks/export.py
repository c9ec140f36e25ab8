# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora export`: what a run has made, in the form that others load; no TensorFlow before."""

import enum
import pathlib
from collections.abc import Callable

from tasks.errors import UserError
from tasks.program_loader import import_program


class Format(enum.Enum):
  """The forms of an export.

  PEFT: an adapter of Hugging Face PEFT.
  SAVEDMODEL: the merged model as a TensorFlow SavedModel.
  KERAS: the merged model as one `.keras` file of plain tf-keras layers.
  PRESET: the merged model as a keras-nlp preset.
  TFLITE: the merged model for TensorFlow Lite.
  DAF: the learning process as a `DistributeAggregateForm`.
  """

  PEFT = 'peft'
  SAVEDMODEL = 'savedmodel'
  KERAS = 'keras'
  PRESET = 'preset'
  TFLITE = 'tflite'
  DAF = 'daf'


def export(
  directory: pathlib.Path,
  form: Format,
  output_dir: pathlib.Path,
  say: Callable[[str], None],
  *,
  backbone: str | None = None,
) -> str:
  """Writes what a finished run has made.

  Args:
    directory: of the run.
    form: of the export.
    output_dir: where to; must be new or empty.
    say: tells the user how far it is, and what is left out.
    backbone: where the run's backbone is now; None for where it was.

  Returns:
    What was written, in a sentence.

  Raises:
    UserError: naming what is in the way.
  """
  if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
    raise UserError(f'--output-dir {output_dir} exists and is not an empty directory.')
  import_program()
  from tasks import deployable, exported_run, model_exports, peft_export

  if form is Format.DAF:
    return deployable.export_daf(directory, output_dir, say, backbone=backbone)
  run = exported_run.open_run(directory, backbone)
  if form is Format.PEFT:
    return peft_export.export_peft(run, output_dir)
  return model_exports.EXPORTS[form.value](run, output_dir)
