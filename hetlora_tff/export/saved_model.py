# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A merged model as a TensorFlow SavedModel, which needs nothing but TensorFlow."""

import pathlib

import tensorflow as tf

from hetlora_tff.export.merged import MergedModel, ServableModel


def save_saved_model(directory: pathlib.Path, model: MergedModel) -> None:
  """Writes a SavedModel whose `serving_default` is `ServableModel.logits`.

  It holds all weights in float32, also those that the backbone maps from files of its own.

  Args:
    directory: an empty one; `staging.staged` gives one that is not left half full.
    model: the model.

  Raises:
    OSError: if it cannot be written.
  """
  servable = ServableModel(model)
  try:
    tf.saved_model.save(servable, str(directory), signatures={'serving_default': servable.logits})
  except tf.errors.OpError as error:
    # The reason stands between the file, one of a draft, and the operation.
    raise OSError(error.message.rpartition('; ')[2].partition(' [Op:')[0]) from error
