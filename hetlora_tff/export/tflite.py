# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A merged model for TensorFlow Lite."""

import pathlib
import tempfile

import tensorflow as tf

from hetlora_tff.export.merged import ExportError, MergedModel
from hetlora_tff.export.saved_model import save_saved_model

MODEL_FILE = 'model.tflite'
# FlatBuffers address their content by 31 bits.
_MAX_BYTES = 2**31 - 1


def save_tflite(directory: pathlib.Path, model: MergedModel) -> None:
  """Writes `model.tflite`: float32, any number of texts of any length.

  Its signature `serving_default` is `ServableModel.logits`. What TensorFlow Lite lacks it takes
  from TensorFlow: for some families the runtime needs the select ops (flex) library.

  Args:
    directory: an empty one; `staging.staged` gives one that is not left half full.
    model: the model.

  Raises:
    ExportError: if it is too large for the format or cannot be converted.
    OSError: if it cannot be written.
  """
  if model.num_bytes > _MAX_BYTES:
    raise ExportError(
      f'A .tflite file holds less than 2 GiB, and this model has {model.num_bytes / 2**30:.1f} GiB.'
    )
  with tempfile.TemporaryDirectory(dir=directory) as scratch:
    save_saved_model(pathlib.Path(scratch), model)
    converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
    converter.target_spec.supported_ops = [
      tf.lite.OpsSet.TFLITE_BUILTINS,
      tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    try:
      content = converter.convert()
    except Exception as error:  # The converter raises whatever comes.
      reason = str(error).partition('\n')[0]
      raise ExportError(
        f'TensorFlow Lite does not convert a {model.backbone.class_name}: {reason}'
      ) from error
  (directory / MODEL_FILE).write_bytes(content)
