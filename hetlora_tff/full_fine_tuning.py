# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Full fine-tuning of a small model, the upper bound that adapters are compared with.

Federated averaging (McMahan et al. 2017, arXiv:1602.05629) in the socket of `process`: the server's
state and every message hold all weights of the model.
"""

from collections.abc import Callable
from typing import Any

import tensorflow_federated as tff

from hetlora_tff import compatibility
from hetlora_tff.adapters.model import FullModel
from hetlora_tff.aggregation import ZeroPadMeanFactory
from hetlora_tff.clients.full_training import build_train_full_on_client, full_weights_type
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.clients.work import ClientSums
from hetlora_tff.message_sizes import MessageSizes, num_bytes
from hetlora_tff.process import (
  HetLoraProcess,
  Parts,
  build_work,
  compose,
  create_aggregation,
)

_MAX_BYTES = 256 * 2**20


def build_full_process(
  model: FullModel,
  *,
  weights: ClientWeighting = ClientWeighting.UNIFORM,
  client_optimizer: tff.learning.optimizers.Optimizer | None = None,
  aggregator: Any = None,
  server_optimizer: tff.learning.optimizers.Optimizer | None = None,
  client_sums: ClientSums | None = None,
  wrap_client: Callable[[tff.Computation], tff.Computation] | None = None,
  max_bytes: int = _MAX_BYTES,
) -> HetLoraProcess:
  """Composes federated fine-tuning of all weights of a model.

  Clients bring a rank in their data as everywhere; it changes nothing and is handed back.

  Args:
    model: the model; its weights are where training starts from.
    weights: `UNIFORM` or `EXAMPLES`.
    client_optimizer: Adam at 1e-3 by default.
    aggregator: any TFF aggregation factory, weighted or (with uniform weights) unweighted; the
      plain mean by default.
    server_optimizer: SGD at 1.0 by default, which puts the mean of the clients in their place.
    client_sums: see `build_hetlora_process`.
    wrap_client: likewise.
    max_bytes: the largest model. Every client of a round downloads, trains and uploads all of it,
      and the server's state is one message: Protocol Buffers end at 2 GiB.

  Raises:
    ValueError: if the model is larger, or the weights and the aggregator do not fit.
  """
  weights_type = full_weights_type(model)
  size = num_bytes(weights_type)
  if size > max_bytes:
    raise ValueError(
      f'Full fine-tuning sends all weights to every client: {size:,} bytes, more than the '
      f'{max_bytes:,} of `max_bytes`. Use adapters for a model of this size.'
    )
  aggregator = ZeroPadMeanFactory() if aggregator is None else aggregator
  weights = compatibility.resolve_weighting(weights, aggregator)
  client_optimizer = client_optimizer or tff.learning.optimizers.build_adam(1e-3)
  train = build_train_full_on_client(model, weights, client_optimizer)
  work = build_work(train, client_sums, wrap_client)
  parts = Parts(
    tff.tensorflow.computation(
      lambda: tff.learning.models.ModelWeights(model.initial_weights(), ())
    ),
    tff.learning.templates.build_broadcast_process(weights_type),
    work,
    create_aggregation(aggregator, work),
    tff.learning.templates.build_apply_optimizer_finalizer(
      server_optimizer or tff.learning.optimizers.build_sgdm(1.0), weights_type
    ),
  )
  sizes = MessageSizes(None, weights_type, work.message_type)
  return HetLoraProcess(*compose(parts), None, sizes)
