# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.export.merged import ExportError, ServableModel, merge
from tests.hetlora_tff.export import merged_models


@pytest.mark.parametrize(
  ('family', 'head', 'corrected'),
  [('GPT2', False, False), ('GPT2', True, True), ('Bert', True, False), ('Llama', False, True)],
)
def test_computes_what_the_adapters_beside_the_weights_do(tmp_path, family, head, corrected):
  case = merged_models.make(family, tmp_path / 'backbone', head=head, corrected=corrected)
  servable = ServableModel(case.merged)
  for batch, wanted in zip(case.batches, case.logits, strict=True):
    found = servable.logits(*batch)['logits']
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.fixture(scope='module', name='case')
def case_fixture(tmp_path_factory):
  return merged_models.make('GPT2', tmp_path_factory.mktemp('base') / 'backbone')


def test_without_adapters_the_backbone_is_the_model(case):
  merged = merge(case.frozen, None, {})
  weights = [model.build().get_weights() for model in (merged, case.frozen)]
  for found, stored in zip(*weights, strict=True):
    np.testing.assert_array_equal(found, stored)
  assert merged.num_bytes == 4 * case.frozen.num_parameters


def test_backbone_on_disk_stays_as_it_is(case):
  case.merged.build()
  # Which verifies every file.
  assert FrozenBackbone.load(case.frozen.directory) == case.frozen


def test_encoder_without_a_head_is_refused(case):
  encoder = dataclasses.replace(case.frozen, class_name='BertBackbone')
  with pytest.raises(ExportError, match='BertBackbone without a classification head'):
    merge(encoder, merged_models.CONFIG, case.adapters)


def test_foreign_adapters_are_refused(case):
  foreign = {'transformer_layer_7/x': next(iter(case.adapters.values()))}
  with pytest.raises(ValueError, match='transformer_layer_7'):
    merge(case.frozen, merged_models.CONFIG, {**case.adapters, **foreign})
