# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the adapters lie in TFF's `ModelWeights`: at the server and in what it sends.

| layout           | trainable            | non_trainable                    |
| ---------------- | -------------------- | -------------------------------- |
| BOTH             | `{path: a, b}`       | nothing                          |
| BOTH + residual  | `{path: a, b}`       | `{path: residual [d_out, d_in]}` |
| B                | `{path: b}`          | nothing: `a` comes from a seed   |
| ALTERNATING      | `{path: a, b}`       | the number of rounds done        |
"""

import collections
import enum
import functools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.config import LoraConfig, matches
from hetlora_tff.adapters.model import Adapters, ModuleShape

ModelWeights = tff.learning.models.ModelWeights
ModuleShapes = collections.OrderedDict[str, ModuleShape]


class TrainedFactors(enum.Enum):
  """Which of the two factors clients train.

  BOTH: `a` and `b` in every round.
  B: `b` only; `a` stays at its initial value, so that the mean of `b` is the mean of the products
    (FFA-LoRA, arXiv:2403.12313).
  ALTERNATING: `b` in the first round, `a` in the second, and so on (RoLoRA, arXiv:2502.01755).
  """

  BOTH = 'both'
  B = 'b'
  ALTERNATING = 'alternating'


class AdapterLayout:
  """The layout of one method on one model.

  Attributes:
    shapes: the adapted modules by path.
    config: the adapters.
    trained: which factors are trained.
    carries_residual: whether every module has a dense residual.
  """

  def __init__(
    self,
    shapes: ModuleShapes,
    config: LoraConfig,
    trained: TrainedFactors = TrainedFactors.BOTH,
    *,
    carries_residual: bool = False,
  ):
    """Initializes the layout.

    Raises:
      ValueError: if a rank pattern matches no module, or a residual is asked for where not both
        factors are trained.
    """
    for pattern in config.rank_pattern:
      if not any(matches(pattern, path) for path in shapes):
        raise ValueError(
          f'`rank_pattern` {pattern!r} matches none of the adapted modules {", ".join(shapes)}.'
        )
    if carries_residual and trained is not TrainedFactors.BOTH:
      raise ValueError('A residual needs TrainedFactors.BOTH.')
    self.shapes = shapes
    self.config = config
    self.trained = trained
    self.carries_residual = carries_residual

  def adapters_type(self, rank: int | None) -> tff.StructWithPythonType:
    """TFF type of `{path: LoraFactors}` at a client's rank; None for one known at run time only."""
    ranks = {path: self.config.module_rank(path) for path in self.shapes}
    cut = {path: None if rank is None else min(rank, held) for path, held in ranks.items()}
    return adapters_type(self.shapes, cut)

  @property
  def server_type(self) -> tff.StructWithPythonType:
    """TFF type of the server's `ModelWeights`."""
    return self.weights_type(self.config.max_rank)

  def weights_type(self, rank: int | None) -> tff.StructWithPythonType:
    """TFF type of `ModelWeights` at a client's rank; None for one known at run time only."""
    trainable, non_trainable = self.adapters_type(rank), ()
    if self.trained is TrainedFactors.B:
      trainable = collections.OrderedDict((path, trainable[path].b) for path in self.shapes)
    if self.trained is TrainedFactors.ALTERNATING:
      non_trainable = tff.TensorType(np.int32)
    if self.carries_residual:
      non_trainable = collections.OrderedDict(
        (path, tff.TensorType(np.float32, [shape.d_out, shape.d_in]))
        for path, shape in self.shapes.items()
      )
    return tff.to_type(ModelWeights(trainable, non_trainable))

  def initial_weights(self) -> ModelWeights:
    """The server's weights before the first round, as tensors of the current graph."""
    return self.weights(
      collections.OrderedDict(
        (path, lora.LoraFactors(a, tf.zeros([self.shapes[path].d_out, tf.shape(a)[0]])))
        for path, a in self.initial_a().items()
      )
    )

  def initial_a(self, draw: int | tf.Tensor = 0) -> collections.OrderedDict[str, tf.Tensor]:
    """`a [R_l, d_in]` of every module, Gaussian with standard deviation `1 / sqrt(d_in)`.

    Args:
      draw: number of the draw, 0 for the one that a run starts from.
    """
    result = collections.OrderedDict()
    for index, (path, shape) in enumerate(self.shapes.items()):
      seed = [self.config.init_seed, draw * len(self.shapes) + index]
      # The algorithm by name: server and device must draw the same.
      noise = tf.random.stateless_normal(
        [self.config.module_rank(path), shape.d_in], seed, alg='philox'
      )
      # No division: a graph may replace it by this product, and then rounds another way.
      result[path] = noise * shape.d_in**-0.5
    return result

  def adapters(self, weights: ModelWeights) -> Adapters:
    """The factors of every module, with its residual where there is one.

    Args:
      weights: in this layout, at the rank of the server or of a slice.
    """
    if self.trained is TrainedFactors.B:
      initial = self.initial_a()
      return collections.OrderedDict(
        (path, lora.LoraFactors(initial[path], weights.trainable[path])) for path in self.shapes
      )
    result: Adapters = collections.OrderedDict()
    for path in self.shapes:
      a, b = weights.trainable[path]
      result[path] = lora.LoraFactors(a, b)
      if self.carries_residual:
        result[path] = lora.CorrectedFactors(a, b, weights.non_trainable[path])
    return result

  def weights(
    self, adapters: Mapping[str, lora.Factors], rounds_done: int | tf.Tensor = 0
  ) -> ModelWeights:
    """The weights that hold these adapters; the inverse of `adapters`.

    Args:
      adapters: factors of the server's rank; one without a residual counts as one of zeros.
      rounds_done: what an ALTERNATING layout keeps beside them.
    """
    trainable = collections.OrderedDict(
      (path, lora.LoraFactors(adapters[path].a, adapters[path].b)) for path in self.shapes
    )
    if self.trained is TrainedFactors.B:
      return ModelWeights(collections.OrderedDict((p, f.b) for p, f in trainable.items()), ())
    if self.trained is TrainedFactors.ALTERNATING:
      return ModelWeights(trainable, tf.convert_to_tensor(rounds_done, tf.int32))
    if not self.carries_residual:
      return ModelWeights(trainable, ())
    residual = collections.OrderedDict(
      (path, getattr(adapters[path], 'residual', tf.zeros([shape.d_out, shape.d_in])))
      for path, shape in self.shapes.items()
    )
    return ModelWeights(trainable, residual)

  def trains_b(self, weights: ModelWeights) -> tf.Tensor:
    """Whether `b` is the factor of the round; for ALTERNATING only."""
    return tf.equal(weights.non_trainable % 2, 0)


def adapters_type(
  shapes: ModuleShapes, rank: int | Mapping[str, int | None] | None
) -> tff.StructWithPythonType:
  """TFF type of the adapters of all modules.

  Args:
    shapes: the adapted modules.
    rank: of all modules or of each; None for one that is known at run time only.
  """
  matrix = functools.partial(tff.TensorType, np.float32)
  ranks = rank if isinstance(rank, Mapping) else dict.fromkeys(shapes, rank)
  return tff.to_type(
    collections.OrderedDict(
      (path, lora.LoraFactors(matrix([ranks[path], s.d_in]), matrix([s.d_out, ranks[path]])))
      for path, s in shapes.items()
    )
  )


def model_weights_type(adapters_type: tff.Type) -> tff.StructWithPythonType:
  """TFF's `ModelWeights` with the adapters as the trainable part and nothing else."""
  return tff.to_type(ModelWeights(trainable=adapters_type, non_trainable=()))
