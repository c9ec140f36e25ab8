# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The methods that `--method` names: what each is, and which options it leaves open.

No TensorFlow here: help, wrong flags and comparisons read this table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tasks.options import Limit, Rule


@dataclasses.dataclass(frozen=True)
class Method:
  """One way of training a model together.

  Attributes:
    name: value of `--method`.
    title: the name that the literature gives it.
    paper: where it comes from.
    description: one sentence for people who have not read the code.
    limits: the options that it decides or restricts; all others are free.
    usual: defaults of its own for options that it leaves free.
  """

  name: str
  title: str
  paper: str
  description: str
  limits: Mapping[str, Limit]
  usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def rules(self) -> list[Rule]:
    """The limits, in force for this method alone."""
    return [Rule(key, limit, {'method': (self.name,)}) for key, limit in self.limits.items()]


_PLAIN_WEIGHTS = {'weights': Limit(('uniform', 'examples'), 'has no sparsity weights')}
_PADDED = {'padding': Limit(('state', 'update'), 'pads what clients send to one shape')}
_PRODUCTS = {'padding': Limit(('none',), 'sums products and pads nothing')}
_PRUNING_ON_REQUEST = {
  'rank_dynamics': Limit(('fixed', 'self_pruning', 'tier'), 'starts from assigned ranks')
}
_NO_PRUNING = {'rank_dynamics': Limit(('fixed', 'tier'), 'lets no client give up ranks')}
_BROADCAST = {'distribution': Limit(('broadcast',), 'sends every client the same')}
_REPLACED = {
  key: Limit((value,), "puts the clients' result in place of what the server has")
  for key, value in (('server_optimizer', 'sgd'), ('server_learning_rate', 1.0))
}
_NOT_PRIVATE = {
  'privacy': Limit(
    ('none',), 'sums products of factors, which no clip of factors bounds', 'take --method hetlora'
  ),
  'secure_aggregation': Limit(
    (False,), 'multiplies the factors of single clients at the server', 'take --method hetlora'
  ),
  'l2_clip_norm': Limit(
    (None,), 'sums products of factors, which no clip of factors bounds', 'take --method hetlora'
  ),
}
_WHOLE_FACTORS = {
  'upload_bits': Limit(
    (None,), 'multiplies the factors themselves, which clients send whole', 'take --method hetlora'
  )
}
# What small devices lack of an adapter would be taken from the base for good.
_MERGES = {'initial_adapter': Limit((None,), 'adds to the base what devices of all ranks hold')}
_NO_ADAPTERS = dict.fromkeys(
  (
    'targets', 'alpha', 'max_rank', 'rank_pattern', 'rank_dynamics', 'rank_assignment',
    'rank_tiers', 'rank_file', 'rank_exponent', 'min_rank', 'prune_decay', 'prune_weight',
    'initial_adapter',
  ),
  Limit((None,), 'trains all weights and has no adapters'),
)  # fmt: skip

METHODS = {
  method.name: method
  for method in (
    Method(
      'hetlora',
      'HetLoRA',
      'Cho et al. 2024, arXiv:2401.06432',
      'Every client trains the first ranks of the adapters, as many as its device can hold, and '
      'gives up ranks that carry nothing; those whose adapters learned more count more.',
      _PADDED,
    ),
    Method(
      'homlora',
      'Homogeneous LoRA (FedIT)',
      'Zhang et al. 2023, arXiv:2305.05644',
      'Every client trains adapters of the same rank, and the server averages them.',
      {
        'rank_dynamics': Limit(('fixed',), 'gives every client --max-rank for good'),
        'rank_assignment': Limit(('max',), 'gives every client --max-rank'),
        **_PLAIN_WEIGHTS,
        'padding': Limit(('state',), 'gives every client --max-rank, which leaves nothing to pad'),
      },
    ),
    Method(
      'naive',
      'Zero-padded mean',
      'baseline of Cho et al. 2024, arXiv:2401.06432',
      'Clients have ranks of their own; adapters are filled up with zeros and averaged alike.',
      {**_PRUNING_ON_REQUEST, **_PLAIN_WEIGHTS, **_PADDED},
    ),
    Method(
      'coverage',
      'Rank-coverage mean (RBLA)',
      'Chen et al. 2024, arXiv:2408.08699',
      'Clients have ranks of their own; each rank is averaged over the clients that hold it.',
      {
        **_PRUNING_ON_REQUEST,
        'weights': Limit(('uniform',), 'counts every client that holds a rank alike'),
        'padding': Limit(('update',), 'leaves a rank alone that no client holds'),
      },
      # Rows that few clients hold take their steps undiluted: at 1e-2 the loss goes up again.
      {'client_learning_rate': 3e-3},
    ),
    Method(
      'svd',
      'Reconstruction and SVD (FlexLoRA)',
      'Bai et al. 2024, arXiv:2402.11505',
      "The server averages the products of the clients' factors, and splits the average into new "
      'factors by a singular value decomposition.',
      {
        **_NOT_PRIVATE,
        **_WHOLE_FACTORS,
        **_NO_PRUNING,
        **_PLAIN_WEIGHTS,
        **_PRODUCTS,
        **_REPLACED,
      },
    ),
    Method(
      'stacking',
      'Stacking (FLoRA)',
      'Wang et al. 2024, arXiv:2409.05976',
      "The server adds the average product of the clients' factors to the base model, exactly, and "
      'adapters start anew every round.',
      {
        **_NOT_PRIVATE,
        **_WHOLE_FACTORS,
        **_NO_PRUNING,
        **_MERGES,
        **_PLAIN_WEIGHTS,
        **_PRODUCTS,
        **_BROADCAST,
        **_REPLACED,
      },
    ),
    Method(
      'ffa',
      'FFA-LoRA',
      'Sun et al. 2024, arXiv:2403.12313',
      'Only the factor `b` is trained and sent; `a` stays as it was drawn, so that the mean is '
      'exact.',
      {
        **_NO_PRUNING,
        **_PLAIN_WEIGHTS,
        **_PADDED,
        **_BROADCAST,
        'initial_adapter': Limit((None,), 'keeps the factor `a` that the seed draws'),
      },
    ),
    Method(
      'rolora',
      'RoLoRA',
      'Chen et al. 2025, arXiv:2502.01755',
      'Odd rounds train the factor `b`, even rounds `a`, so that every mean is exact.',
      {
        'privacy': Limit(
          ('none', 'central', 'distributed'),
          'trains the factors in turns, and each would need a tree',
        ),
        **_NO_PRUNING,
        **_PLAIN_WEIGHTS,
        'padding': Limit(('update', 'state'), 'pads what clients send to one shape'),
        **_BROADCAST,
        **_REPLACED,
      },
    ),
    Method(
      'fedex',
      'FedEx-LoRA',
      'Singhal et al. 2024, arXiv:2410.09432',
      'The server averages the factors, and adds to the base model the difference between the '
      'average of the products and the product of the averages.',
      {
        **_NOT_PRIVATE,
        **_WHOLE_FACTORS,
        **_NO_PRUNING,
        **_MERGES,
        **_PLAIN_WEIGHTS,
        **_PRODUCTS,
        **_BROADCAST,
        **_REPLACED,
      },
    ),
    Method(
      'full',
      'Full fine-tuning (FedAvg)',
      'McMahan et al. 2017, arXiv:1602.05629',
      'Every client trains and sends all weights of the model: the upper bound, for small models.',
      {
        **_NO_ADAPTERS,
        **_PLAIN_WEIGHTS,
        'padding': Limit(('none',), 'has no adapters to pad'),
        **_BROADCAST,
        'deviation_from_exact': Limit((False,), 'has no factors whose mean could deviate'),
      },
      {'client_learning_rate': 3e-4},
    ),
  )
}
