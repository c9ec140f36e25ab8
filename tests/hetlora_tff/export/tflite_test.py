# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.export import tflite
from hetlora_tff.export.merged import ExportError, MergedModel
from tests.hetlora_tff.export import merged_models

# One that is all built in, one that needs select ops, one with a head.
_QUICK = ('GPT2', 'Mistral', 'Bert')
_SLOW = tuple(f for f in (*merged_models.CAUSAL, *merged_models.ENCODERS) if f not in _QUICK)


@pytest.mark.parametrize(
  'family', [*_QUICK, *(pytest.param(f, marks=pytest.mark.slow) for f in _SLOW)]
)
def test_interpreter_gives_the_logits_for_texts_of_any_length(tmp_path, family):
  case = merged_models.make(family, tmp_path / 'backbone')
  (tmp_path / 'lite').mkdir()
  tflite.save_tflite(tmp_path / 'lite', case.merged)
  assert [path.name for path in (tmp_path / 'lite').iterdir()] == [tflite.MODEL_FILE]
  interpreter = tf.lite.Interpreter(str(tmp_path / 'lite' / tflite.MODEL_FILE))
  run = interpreter.get_signature_runner('serving_default')
  for batch, wanted in zip(case.batches, case.logits, strict=True):
    np.testing.assert_allclose(run(**batch._asdict())['logits'], wanted, atol=1e-4)


class _Huge(MergedModel):
  num_bytes = 5 * 2**30


def test_model_that_the_format_cannot_hold_is_refused_before_any_work(tmp_path):
  with pytest.raises(ExportError, match=r'less than 2 GiB, and this model has 5\.0 GiB'):
    tflite.save_tflite(tmp_path, _Huge(None, {}, None))
  assert not any(tmp_path.iterdir())
