# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import keras_nlp
import numpy as np
import pytest

from hetlora_tff.export.merged import ExportError, MergedModel
from hetlora_tff.export.preset import save_preset
from tests.hetlora_tff.export import merged_models

_QUICK = ('GPT2', 'Llama')
_SLOW = tuple(family for family in merged_models.CAUSAL if family not in _QUICK)


@pytest.mark.parametrize(
  'family', [*_QUICK, *(pytest.param(f, marks=pytest.mark.slow) for f in _SLOW)]
)
def test_keras_nlp_loads_it(tmp_path, family):
  case = merged_models.make(family, tmp_path / 'backbone')
  (tmp_path / 'preset').mkdir()
  save_preset(tmp_path / 'preset', case.merged)
  loaded = getattr(keras_nlp.models, f'{family}Backbone').from_preset(str(tmp_path / 'preset'))
  for batch, wanted in zip(case.batches, case.logits, strict=True):
    found = loaded.token_embedding(loaded(batch._asdict()), reverse=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_head_is_refused(tmp_path):
  head = np.ones([merged_models.NUM_CLASSES, merged_models.WIDTH], np.float32)
  with pytest.raises(ExportError, match='no place for a classification head'):
    save_preset(tmp_path, MergedModel(None, {}, head))
