# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Distribution by broadcast: every client downloads `max_rank` and cuts to its own rank.

It lowers to `DistributeAggregateForm`, and the server learns no client's rank. The cut itself is
the first step of the client work, the one place that knows the client's rank.
"""

import tensorflow_federated as tff


def build_truncating_broadcast(
  weights_type: tff.StructWithPythonType,
) -> tff.learning.templates.DistributionProcess:
  """Builds the distributor.

  `next` has the type `(<()@SERVER, W@SERVER> -> <state=()@SERVER, result=W@CLIENTS, ...>)`.

  Args:
    weights_type: `ModelWeights` of the server's adapters.
  """
  return tff.learning.templates.build_broadcast_process(weights_type)
