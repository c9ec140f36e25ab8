# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one place where a HetLoRA learning process is composed.

    server                                       client k of rank r_k
    a [R, d_in], b [d_out, R]  --distributor-->  a[:r_k], b[:, :r_k]
                                                 local steps, self-pruning r_k -> q_k
    sum_k w_k pad(...)         <--aggregator---  pad to R, weight w_k = ||b_k a_k||_F
    server optimizer (finalizer)                 keeps q_k: device state

Every part is a TFF process of its own and passes alone through
`tff.learning.templates.compose_learning_process`; stock parts drop into this one. The rivals are
other parts in the same places: an aggregator, the finalizer that it needs, and what clients train.
"""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow_federated as tff

from hetlora_tff import compatibility, finalizers
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors
from hetlora_tff.adapters.model import AdapterModel
from hetlora_tff.aggregation import (
  ProductAggregationFactory,
  ResidualCorrectedMeanFactory,
  SparsityWeightedMeanFactory,
  StackingFactory,
  ZeroPadMeanFactory,
)
from hetlora_tff.aggregation.exactness import build_deviation_from_exact
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining, build_train_on_client
from hetlora_tff.clients.work import ClientSums, HetLoraClientWork
from hetlora_tff.distribution.absent_rows import AbsentRows
from hetlora_tff.distribution.broadcast import build_truncating_broadcast
from hetlora_tff.distribution.select import RankSelect
from hetlora_tff.message_sizes import MessageSizes, num_bytes

_MAX_RESIDUAL_BYTES = 1_000_000_000


class HetLoraOutput(NamedTuple):
  """Result of `HetLoraProcess.next`.

  Attributes:
    state: `tff.learning.templates.LearningAlgorithmState` at the server.
    metrics: at the server, by part: `distributor`, `client_work`, `aggregator`, `finalizer`, and
      `deviation_from_exact` where it is measured.
    device_state: `<rank=int32>` at the clients, in the order of the client data: the rank that the
      device has from now on.
  """

  state: Any
  metrics: Any
  device_state: Any


class HetLoraProcess:
  """A federated learning process whose clients have ranks of their own.

  Attributes:
    initialize: `( -> S@SERVER)`, `S` being TFF's `LearningAlgorithmState`.
    next: `(<S@SERVER, {<rank=int32*, examples=batch*>}@CLIENTS> -> <state=S@SERVER,
      metrics=M@SERVER, device_state={<rank=int32>}@CLIENTS>)`. The caller gives each device its new
      rank back as the `rank` of its next round.
    layout: where the adapters lie in the state; None where the whole model is trained.
    sizes: bytes and numbers of a client by its rank.
  """

  def __init__(
    self,
    initialize: tff.Computation,
    next_fn: tff.Computation,
    layout: AdapterLayout | None,
    sizes: MessageSizes,
  ):
    """Not called by users: see `build_hetlora_process`."""
    self.initialize = initialize
    self.next = next_fn
    self.layout = layout
    self.sizes = sizes

  def get_model_weights(self, state) -> Any:
    """What the server has learned: adapters of the server's rank by module path.

    `LoraFactors`, or `CorrectedFactors` where the method carries a residual; where the whole model
    is trained, its weights by name.
    """
    weights = state.global_model_weights
    return self.layout.adapters(weights) if self.layout else weights.trainable

  def as_learning_process(self) -> tff.learning.templates.LearningProcess:
    """The process without device state, for TFF's own loops.

    A client then trains at the rank that its data carries, in every round anew.
    """
    state_type, data_type = self.next.type_signature.parameter

    @tff.federated_computation(state_type, data_type)
    def next_fn(state, client_data):
      output = self.next(state, client_data)
      return tff.learning.templates.LearningProcessOutput(output.state, output.metrics)

    @tff.tensorflow.computation(state_type.member)
    def get_model_weights(state):
      return state.global_model_weights

    @tff.tensorflow.computation(state_type.member, state_type.member.global_model_weights)
    def set_model_weights(state, weights):
      return tff.learning.templates.LearningAlgorithmState(
        weights, state.distributor, state.client_work, state.aggregator, state.finalizer
      )

    return tff.learning.templates.LearningProcess(
      self.initialize, next_fn, get_model_weights, set_model_weights
    )


def build_hetlora_process(
  model: AdapterModel,
  config: LoraConfig,
  *,
  training: LocalTraining | None = None,
  client_optimizer: tff.learning.optimizers.Optimizer | None = None,
  distributor: tff.learning.templates.DistributionProcess | RankSelect | None = None,
  aggregator: Any = None,
  finalizer: tff.learning.templates.FinalizerProcess | None = None,
  server_optimizer: tff.learning.optimizers.Optimizer | None = None,
  client_sums: ClientSums | None = None,
  measures_deviation: bool = False,
  wrap_client: Callable[[tff.Computation], tff.Computation] | None = None,
  max_residual_bytes: int = _MAX_RESIDUAL_BYTES,
) -> HetLoraProcess:
  """Composes HetLoRA (arXiv:2401.06432), or one of its rivals, for a model.

  Args:
    model: the frozen model.
    config: its adapters.
    training: pruning, padding, weights and trained factors; the paper's by default.
    client_optimizer: Adam at 1e-3 by default.
    distributor: `build_truncating_broadcast` by default; `RankSelect` sends slices instead.
    aggregator: any TFF aggregation factory, weighted or (with uniform weights) unweighted; the
      sparsity-weighted mean by default. `hetlora_tff.aggregation` has those of the rivals; FFA-LoRA
      and RoLoRA are `ZeroPadMeanFactory` with another `training.trained`.
    finalizer: the one that the aggregator or the trained factors need by default, else the stock
      one with `server_optimizer`.
    server_optimizer: SGD at 1.0 by default, which makes `STATE` padding the paper's equation
      exactly; only for the stock finalizer.
    client_sums: what of the clients is measured and how it is summed, see `HetLoraClientWork`; by
      default everything, neither noised nor secured: not where clients are to be protected.
    measures_deviation: whether the metrics have `deviation_from_exact` (see
      `build_deviation_from_exact`), which looks at single clients: for simulations. It compares
      weights after the finalizer, so another server step than the default is part of it.
    wrap_client: what becomes of the local computation, for example `plant_canaries`.
    max_residual_bytes: the largest residual that a method may carry in state and broadcast.

  Raises:
    TypeError: if the aggregator is no aggregation factory.
    ValueError: if parts do not fit together, or a residual is too large.
  """
  aggregator = SparsityWeightedMeanFactory() if aggregator is None else aggregator
  compatibility.check_is_factory(aggregator)
  training = compatibility.resolve_training(training or LocalTraining(), aggregator)
  layout = AdapterLayout(
    model.module_shapes(config),
    config,
    training.trained,
    carries_residual=isinstance(aggregator, StackingFactory | ResidualCorrectedMeanFactory),
  )
  _check_residual(layout, max_residual_bytes)
  train = build_train_on_client(
    model,
    layout,
    training,
    client_optimizer or tff.learning.optimizers.build_adam(1e-3),
    shows_asked=measures_deviation,
  )
  work = build_work(train, client_sums, wrap_client)
  aggregation = create_aggregation(aggregator, work)
  parts = Parts(
    tff.tensorflow.computation(layout.initial_weights),
    distributor or build_truncating_broadcast(layout.server_type),
    work,
    aggregation,
    _finalizer(finalizer, server_optimizer, layout, aggregator, aggregation),
  )
  if isinstance(distributor, RankSelect):
    parts = parts._replace(restore=_build_restore(layout, training, aggregator, work))
  if measures_deviation:
    compatibility.check_measurable(aggregator)
    if isinstance(distributor, RankSelect) and training.padding is Padding.UPDATE:
      raise ValueError('`measures_deviation` with Padding.UPDATE needs whole broadcasts.')
    parts = parts._replace(measure=_build_measure(layout, work))
  initialize, next_fn = compose(parts)
  sizes = MessageSizes(
    layout, layout.server_type, work.message_type, isinstance(distributor, RankSelect)
  )
  return HetLoraProcess(initialize, next_fn, layout, sizes)


def build_work(
  train_on_client: tff.Computation,
  client_sums: ClientSums | None,
  wrap_client: Callable[[tff.Computation], tff.Computation] | None,
) -> HetLoraClientWork:
  """The client work of a local computation; see `build_hetlora_process`."""
  train = wrap_client(train_on_client) if wrap_client else train_on_client
  return HetLoraClientWork(train, client_sums)


def create_aggregation(
  aggregator: Any, work: HetLoraClientWork, value_type: tff.Type | None = None
):
  """The aggregation process of the client work's messages, or of other values with its weights."""
  if isinstance(aggregator, tff.aggregators.UnweightedAggregationFactory):
    # Its weights are uniform, save that a client without an update counts as one that sent zeros.
    aggregator = tff.aggregators.as_weighted_aggregator(aggregator)
  return aggregator.create(value_type or work.message_type, work.weight_type)


def _check_residual(layout: AdapterLayout, max_bytes: int) -> None:
  if not layout.carries_residual:
    return
  size = num_bytes(layout.server_type.non_trainable)
  if size > max_bytes:
    raise ValueError(
      f'The dense residual of {len(layout.shapes)} modules has {size:,} bytes, which every client '
      f'would download in every round; the limit is {max_bytes:,} (`max_residual_bytes`).'
    )


def _finalizer(finalizer, server_optimizer, layout: AdapterLayout, aggregator, aggregation):
  alternates = layout.trained is TrainedFactors.ALTERNATING
  takes_gradients = not alternates and not isinstance(aggregator, ProductAggregationFactory)
  if server_optimizer is not None and (finalizer is not None or not takes_gradients):
    raise ValueError(
      '`server_optimizer` needs the stock finalizer and an aggregate that is an update: not with a '
      '`finalizer` of your own, alternating factors or an aggregator of products.'
    )
  if finalizer is not None:
    return finalizer
  result_type = aggregation.next.type_signature.result.result.member
  if alternates:
    return finalizers.build_alternating_finalizer(layout, result_type)
  if isinstance(aggregator, StackingFactory):
    return finalizers.build_merging_finalizer(layout, result_type)
  if isinstance(aggregator, ProductAggregationFactory):
    return finalizers.build_replacing_finalizer(layout, result_type)
  return tff.learning.templates.build_apply_optimizer_finalizer(
    server_optimizer or tff.learning.optimizers.build_sgdm(1.0), layout.server_type
  )


class Parts(NamedTuple):
  """The parts of a process.

  Attributes:
    initial_weights: `( -> ModelWeights)`.
    distributor: how weights reach clients.
    work: what clients do.
    aggregator: how messages become one.
    finalizer: how that becomes weights.
    restore: completes the aggregate, of (weights, aggregate, client weights, client data).
    measure: the deviation from an exact aggregate, of (weights before, after, output of the work).
  """

  initial_weights: tff.Computation
  distributor: Any
  work: HetLoraClientWork
  aggregator: tff.templates.AggregationProcess
  finalizer: tff.learning.templates.FinalizerProcess
  restore: Callable[..., Any] | None = None
  measure: Callable[..., Any] | None = None


def compose(parts: Parts) -> tuple[tff.Computation, tff.Computation]:
  """`initialize` and `next` of a process; see `HetLoraProcess`."""
  initialize = _build_initialize(parts)
  state_type = initialize.type_signature.result
  data_type = parts.work.next.type_signature.parameter[2]
  distribute = _build_distribute(parts.distributor)

  @tff.federated_computation(state_type, data_type)
  def next_fn(state, client_data):
    server_weights = state.global_model_weights
    distributed = distribute(state.distributor, server_weights, client_data)
    work = parts.work.next(state.client_work, distributed.result, client_data)
    update, update_weight = work['result'].update, work['result'].update_weight
    aggregated = parts.aggregator.next(state.aggregator, update, update_weight)
    aggregate = aggregated.result
    if parts.restore:
      aggregate = parts.restore(server_weights, aggregate, update_weight, client_data)
    finalized = parts.finalizer.next(state.finalizer, server_weights, aggregate)
    new_state = tff.learning.templates.LearningAlgorithmState(
      finalized.result,
      distributed.state,
      work['state'],
      aggregated.state,
      finalized.state,
    )
    metrics = collections.OrderedDict(
      distributor=distributed.measurements,
      client_work=work['measurements'],
      aggregator=aggregated.measurements,
      finalizer=finalized.measurements,
    )
    if parts.measure:
      metrics['deviation_from_exact'] = parts.measure(server_weights, finalized.result, work)
    return HetLoraOutput(
      tff.federated_zip(new_state), tff.federated_zip(metrics), work['device_state']
    )

  return initialize, next_fn


def _build_initialize(parts: Parts) -> tff.Computation:
  @tff.federated_computation
  def initialize():
    if isinstance(parts.distributor, RankSelect):
      distributor_state = tff.federated_value((), tff.SERVER)
    else:
      distributor_state = parts.distributor.initialize()
    return tff.federated_zip(
      tff.learning.templates.LearningAlgorithmState(
        tff.federated_eval(parts.initial_weights, tff.SERVER),
        distributor_state,
        parts.work.process.initialize(),
        parts.aggregator.initialize(),
        parts.finalizer.initialize(),
      )
    )

  return initialize


def _build_distribute(distributor):
  """One signature for both kinds of distributor."""

  def distribute(state, weights, client_data):
    if not isinstance(distributor, RankSelect):
      return distributor.next(state, weights)
    return tff.templates.MeasuredProcessOutput(
      state,
      distributor.next(weights, client_data['rank']),
      tff.federated_value((), tff.SERVER),
    )

  return distribute


def _build_restore(layout: AdapterLayout, training: LocalTraining, aggregator: Any, work):
  """What a mean of slices lacks under `STATE` padding; None where it lacks nothing."""
  if layout.trained is not TrainedFactors.BOTH or layout.carries_residual:
    raise ValueError('`RankSelect` sends slices of both factors and no residual.')
  if training.padding is not Padding.STATE:
    return None
  means = SparsityWeightedMeanFactory | ZeroPadMeanFactory | tff.aggregators.MeanFactory
  if not isinstance(aggregator, means):
    raise ValueError(
      f'`RankSelect` with Padding.STATE needs a weighted mean, not {type(aggregator).__name__}: '
      'the share of clients without a row goes through the same aggregator. Use Padding.UPDATE.'
    )
  rows = AbsentRows(layout)
  mean = create_aggregation(aggregator, work, rows.mask.type_signature.result)

  def restore(weights, update, update_weight, client_data):
    masks = tff.federated_map(rows.mask, client_data['rank'])
    absent = mean.next(mean.initialize(), masks, update_weight)
    return tff.federated_map(rows.correct, (weights, update, absent.result))

  return restore


def _build_measure(layout: AdapterLayout, work: HetLoraClientWork):
  read = tff.tensorflow.computation(layout.adapters, layout.server_type)
  deviation = build_deviation_from_exact(
    read.type_signature.result, work.weight_type, layout.config.scaling
  )

  def measure(before, after, work_output):
    return deviation(
      work_output['asked'],
      work_output['result'].update_weight,
      tff.federated_map(read, before),
      tff.federated_map(read, after),
    )

  return measure
