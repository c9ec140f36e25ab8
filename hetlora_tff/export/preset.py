# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A merged model as the model part of a keras-nlp preset.

keras-nlp's own `save_to_preset` refuses to work on Keras 2, although its `from_preset` does.
"""

import importlib.metadata
import json
import pathlib
import warnings
import zipfile

import keras_nlp
import tensorflow as tf

from hetlora_tff.export.merged import ExportError, MergedModel

# What keras-nlp looks for.
METADATA_FILE = 'metadata.json'
_CONFIG, _WEIGHTS = 'config.json', 'model.weights.h5'


def save_preset(directory: pathlib.Path, model: MergedModel) -> None:
  """Writes a directory for `keras_nlp.models.Backbone.from_preset`.

  The tokenizer, which a preset has beside it, is not part of this.

  Args:
    directory: an empty one; `staging.staged` gives one that is not left half full.
    model: a language model.

  Raises:
    ExportError: if it has a head, which a preset has no place for.
    OSError: if it cannot be written.
  """
  if model.classifier is not None:
    raise ExportError(
      'A preset has no place for a classification head; savedmodel, keras and tflite have one.'
    )
  merged = model.build()
  # Keras would store each weight of a frozen one twice.
  backbone = type(merged).from_config(merged.get_config())
  backbone.set_weights(merged.get_weights())
  serialized = tf.keras.saving.serialize_keras_object(backbone)
  serialized.pop('build_config', None)
  metadata = {
    'keras_version': importlib.metadata.version('keras'),
    'keras_nlp_version': keras_nlp.__version__,
    'parameter_count': backbone.count_params(),
  }
  (directory / _CONFIG).write_text(json.dumps(serialized, indent=1), 'utf-8')
  (directory / METADATA_FILE).write_text(json.dumps(metadata), 'utf-8')
  # `save_weights` lets HDF5 end the process when the disk is full; a `.keras` file is made in
  # memory and has the same weights in it.
  archive = directory / 'model.keras'
  with warnings.catch_warnings():
    # Of Keras about properties that it reads itself.
    warnings.simplefilter('ignore')
    backbone.save(archive)
  with zipfile.ZipFile(archive) as file:
    file.extract(_WEIGHTS, directory)
  archive.unlink()
