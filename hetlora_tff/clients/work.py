# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The local computation as a TFF `ClientWorkProcess`."""

import collections
from collections.abc import Mapping

import tensorflow_federated as tff

SUMMED = (
  'loss',
  'predictions',
  'examples',
  'steps',
  'clients',
  'trained_clients',
  'pruned_clients',
  'non_finite_clients',
  'trained_parameters',
  'rank_histogram',
)


# By the name of the measurement.
ClientSums = Mapping[str, tff.aggregators.UnweightedAggregationFactory]


class HetLoraClientWork:
  """Runs `train_on_client` on every client of a round.

  Attributes:
    process: the stock form, for `tff.learning.templates.compose_learning_process`. Its `next` is
      `(<()@SERVER, {ModelWeights}@CLIENTS, {<rank=int32*, examples=batch*>}@CLIENTS> ->
      <state=()@SERVER, result={ClientResult}@CLIENTS, measurements@SERVER>)`, where the received
      factors may have any rank from the client's own to `max_rank`.
    next: the same computation with two more results, `device_state={<rank=int32>}@CLIENTS` and
      `asked@CLIENTS` (see `ClientOutput`).
    message_type: TFF type of a client's update.
    weight_type: TFF type of its weight.

  Measurements are sums over the round's clients, plain ones by default: `loss` and `predictions`
  (their quotient is the mean training loss), `examples`, `steps`, `clients`, `trained_clients`
  (with at least one example), `pruned_clients`, `non_finite_clients` (left out),
  `trained_parameters`, and `rank_histogram` (`[max_rank]`; entry `i` counts clients of rank `i + 1`
  after pruning). What is not asked for is not summed, and so never leaves a client.
  """

  def __init__(self, train_on_client: tff.Computation, client_sums: ClientSums | None = None):
    """Initializes the work.

    Args:
      train_on_client: see `hetlora_tff.clients.training.build_train_on_client`.
      client_sums: which measurements to take, and what sums each; plain sums of all by default,
        none for clients that must not be looked at.

    Raises:
      ValueError: if a sum has a state, for which the work has no place.
    """
    if client_sums is None:
      client_sums = dict.fromkeys(SUMMED, tff.aggregators.SumFactory())
    weights_type, data_type = train_on_client.type_signature.parameter

    @tff.tensorflow.computation(weights_type, data_type)
    def train(weights, client_data):
      output = train_on_client(weights, client_data)
      result = tff.learning.templates.ClientResult(output.update, output.update_weight)
      return result, collections.OrderedDict(rank=output.rank), output.stats, output.asked

    @tff.federated_computation
    def init_fn():
      return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
      init_fn.type_signature.result,
      tff.FederatedType(weights_type, tff.CLIENTS),
      tff.FederatedType(data_type, tff.CLIENTS),
    )
    def next_with_device_state(state, weights, client_data):
      trained = tff.federated_map(train, (weights, client_data))
      return collections.OrderedDict(
        state=state,
        result=trained[0],
        measurements=_sums(trained[2], client_sums),
        device_state=trained[1],
        asked=trained[3],
      )

    @tff.federated_computation(next_with_device_state.type_signature.parameter)
    def next_fn(state, weights, client_data):
      output = next_with_device_state(state, weights, client_data)
      return tff.templates.MeasuredProcessOutput(
        output['state'], output['result'], output['measurements']
      )

    self.next = next_with_device_state
    self.process = tff.learning.templates.ClientWorkProcess(init_fn, next_fn)
    self.message_type = train_on_client.type_signature.result.update
    self.weight_type = train_on_client.type_signature.result.update_weight


def _sums(stats, client_sums: ClientSums):
  if not client_sums:
    return tff.federated_value((), tff.SERVER)
  sums = collections.OrderedDict()
  for name, factory in client_sums.items():
    process = factory.create(stats[name].type_signature.member)
    if tff.types.count(process.initialize.type_signature.result, _is_tensor):
      raise ValueError(f'The sum of {name!r} must have no state, got {factory}.')
    sums[name] = process.next(process.initialize(), stats[name]).result
  return tff.federated_zip(sums)


def _is_tensor(type_: tff.Type) -> bool:
  return isinstance(type_, tff.TensorType)
