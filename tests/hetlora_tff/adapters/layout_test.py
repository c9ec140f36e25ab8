# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors, adapters_type
from tests.hetlora_tff import toy_model

CONFIG = dataclasses.replace(toy_model.CONFIG, rank_pattern={'second': 2})
SHAPES = toy_model.LinearModel().module_shapes(CONFIG)
FLOAT = tff.TensorType(np.float32).dtype


def build(trained=TrainedFactors.BOTH, **kwargs):
  return AdapterLayout(SHAPES, CONFIG, trained, **kwargs)


def adapters(residual=False):
  drawn = toy_model.random_adapters(3)
  cut = {
    p: (f.a[: CONFIG.module_rank(p)], f.b[:, : CONFIG.module_rank(p)]) for p, f in drawn.items()
  }
  if not residual:
    return {path: LoraFactors(*pair) for path, pair in cut.items()}
  return {p: CorrectedFactors(a, b, b @ a + 1.0) for p, (a, b) in cut.items()}


@pytest.mark.parametrize(
  ('layout', 'held'),
  [
    (build(), adapters()),
    (build(carries_residual=True), adapters(residual=True)),
    (build(TrainedFactors.ALTERNATING), adapters()),
  ],
)
def test_adapters_and_weights_are_inverses_and_of_the_stated_type(layout, held):
  weights = layout.weights(held)
  compute = tff.tensorflow.computation(lambda: layout.weights(held))
  assert compute.type_signature.result.is_equivalent_to(layout.server_type)
  for path, factors in layout.adapters(weights).items():
    assert type(factors) is type(held[path])
    for now, before in zip(factors, held[path], strict=True):
      np.testing.assert_array_equal(now, before)


def test_b_alone_is_kept_and_a_is_always_the_initial_one():
  layout = build(TrainedFactors.B)
  weights = layout.weights(adapters())
  assert set(weights.trainable) == set(SHAPES)
  for path, factors in layout.adapters(weights).items():
    np.testing.assert_array_equal(factors.a, layout.initial_a()[path])
    np.testing.assert_array_equal(factors.b, adapters()[path].b)


def test_factors_without_a_residual_get_one_of_zeros():
  weights = build(carries_residual=True).weights(adapters())
  assert all(not np.any(value) for value in weights.non_trainable.values())


def test_initial_weights_leave_the_model_as_it_is():
  for layout in (build(), build(TrainedFactors.B), build(carries_residual=True)):
    for path, factors in layout.adapters(layout.initial_weights()).items():
      assert factors.a.shape == (CONFIG.module_rank(path), SHAPES[path].d_in)
      assert not np.any(factors.b)
      assert not np.any(getattr(factors, 'residual', 0.0))


def test_every_draw_and_every_module_is_another():
  layout = AdapterLayout(SHAPES, toy_model.CONFIG)
  draws = [layout.initial_a(number)[path].numpy() for number in range(3) for path in SHAPES]
  flat = [np.ravel(draw)[:8] for draw in draws]
  assert len({tuple(numbers) for numbers in flat}) == len(flat)
  np.testing.assert_array_equal(layout.initial_a(tf.constant(2))['first'], draws[4])


def test_ranks_of_modules_bound_those_of_clients():
  assert CONFIG.module_rank('first') == toy_model.MAX_RANK
  type_ = build().adapters_type(3)
  assert type_ == adapters_type(SHAPES, {'first': 3, 'second': 2})
  assert build().server_type.trainable == adapters_type(SHAPES, {'first': 4, 'second': 2})


def test_the_turn_alternates_and_b_begins():
  layout = build(TrainedFactors.ALTERNATING)
  turns = [bool(layout.trains_b(layout.weights(adapters(), done))) for done in range(4)]
  assert turns == [True, False, True, False]


def test_a_pattern_that_matches_nothing_is_refused():
  config = dataclasses.replace(toy_model.CONFIG, rank_pattern={'third': 2})
  with pytest.raises(
    ValueError, match=r"'third' matches none of the adapted modules first, second"
  ):
    AdapterLayout(SHAPES, config)


def test_a_residual_needs_both_factors():
  with pytest.raises(ValueError, match=r'TrainedFactors\.BOTH'):
    build(TrainedFactors.B, carries_residual=True)
