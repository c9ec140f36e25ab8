# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one place where a HetLoRA learning process is composed.

    server                                       client k of rank r_k
    a [R, d_in], b [d_out, R]  --distributor-->  a[:r_k], b[:, :r_k]
                                                 local steps, self-pruning r_k -> q_k
    sum_k w_k pad(...)         <--aggregator---  pad to R, weight w_k = ||b_k a_k||_F
    server optimizer (finalizer)                 keeps q_k: device state

Every part is a TFF process of its own and passes alone through
`tff.learning.templates.compose_learning_process`; stock parts drop into this one.
"""

import collections
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.adapters import factors as lora
from hetlora_tff.adapters.adapter_types import adapters_type, model_weights_type
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.model import AdapterModel, Adapters, ModuleShape
from hetlora_tff.aggregation.padded_mean import SparsityWeightedMeanFactory
from hetlora_tff.clients.training import (
  LocalTraining,
  Padding,
  build_train_on_client,
)
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.clients.work import HetLoraClientWork
from hetlora_tff.distribution.broadcast import build_truncating_broadcast
from hetlora_tff.distribution.select import RankSelect

_FLOAT_BYTES = 4


class HetLoraOutput(NamedTuple):
  """Result of `HetLoraProcess.next`.

  Attributes:
    state: `tff.learning.templates.LearningAlgorithmState` at the server.
    metrics: at the server, by part: `distributor`, `client_work`, `aggregator`, `finalizer`.
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
    module_shapes: the adapted modules by path.
  """

  def __init__(
    self,
    initialize: tff.Computation,
    next_fn: tff.Computation,
    module_shapes: collections.OrderedDict[str, ModuleShape],
    config: LoraConfig,
    selects_rank: bool,
  ):
    """Not called by users: see `build_hetlora_process`."""
    self.initialize = initialize
    self.next = next_fn
    self.module_shapes = module_shapes
    self._config = config
    self._selects_rank = selects_rank

  def get_model_weights(self, state) -> Adapters:
    """The server's adapters, `LoraFactors` of `max_rank` by module path."""
    return state.global_model_weights.trainable

  def trained_parameters(self, rank: int) -> int:
    """Numbers that a client of `rank` trains: `rank (d_in + d_out)` per module."""
    return sum(shape.num_trained(rank) for shape in self.module_shapes.values())

  def download_bytes(self, rank: int) -> int:
    """Bytes of adapters that one client of `rank` downloads under this distributor."""
    return self.slice_bytes(rank if self._selects_rank else self._config.max_rank)

  def upload_bytes(self, rank: int) -> int:
    """Bytes of padded update that one client uploads: the same for every rank."""
    del rank  # Padding hides it.
    return self.slice_bytes(self._config.max_rank)

  def slice_bytes(self, rank: int) -> int:
    """Bytes of the adapters of one rank, whoever moves them."""
    return _FLOAT_BYTES * self.trained_parameters(rank)

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
) -> HetLoraProcess:
  """Composes HetLoRA (arXiv:2401.06432) for a model.

  Args:
    model: the frozen model.
    config: its adapters.
    training: pruning, padding and weights; the paper's by default.
    client_optimizer: Adam at 1e-3 by default.
    distributor: `build_truncating_broadcast` by default; `RankSelect` sends slices instead.
    aggregator: any TFF aggregation factory, weighted or (with uniform weights) unweighted; the
      sparsity-weighted mean by default.
    finalizer: the stock one with `server_optimizer` by default.
    server_optimizer: SGD at 1.0 by default, which makes `STATE` padding the paper's equation
      exactly; not together with a finalizer of your own.

  Raises:
    ValueError: if weights and aggregator, distributor and aggregator, or finalizer and server
      optimizer do not fit.
  """
  if finalizer is not None and server_optimizer is not None:
    raise ValueError('Give `finalizer` or `server_optimizer`, not both.')
  training = training or LocalTraining()
  aggregator = SparsityWeightedMeanFactory() if aggregator is None else aggregator
  weighting = resolve_weighting(training.weights, aggregator)
  shapes = model.module_shapes(config)
  weights_type = model_weights_type(adapters_type(shapes, config.max_rank))
  work = HetLoraClientWork(
    build_train_on_client(
      model,
      config,
      training,
      weighting,
      client_optimizer or tff.learning.optimizers.build_adam(1e-3),
    )
  )
  parts = _Parts(
    distributor or build_truncating_broadcast(weights_type),
    work,
    _create_aggregator(aggregator, work),
    finalizer
    or tff.learning.templates.build_apply_optimizer_finalizer(
      server_optimizer or tff.learning.optimizers.build_sgdm(1.0), weights_type
    ),
  )
  selects_rank = isinstance(parts.distributor, RankSelect)
  if selects_rank and training.padding is Padding.STATE:
    _check_is_mean(aggregator)
    parts = parts._replace(absent_rows=_AbsentRows(weights_type, work, aggregator))
  initialize = _build_initialize(initial_weights_computation(shapes, config), parts)
  return HetLoraProcess(initialize, _build_next(initialize, parts), shapes, config, selects_rank)


def _check_is_mean(aggregator: Any) -> None:
  if not isinstance(aggregator, SparsityWeightedMeanFactory | tff.aggregators.MeanFactory):
    raise ValueError(
      f'`RankSelect` with Padding.STATE needs a weighted mean, not {type(aggregator).__name__}: '
      'the share of clients without a row goes through the same aggregator. Use Padding.UPDATE.'
    )


def resolve_weighting(weighting: ClientWeighting | None, aggregator: Any) -> ClientWeighting:
  """The weights that an aggregator is sent; the default where none is asked for.

  Raises:
    ValueError: if the aggregator cannot use them.
  """
  if isinstance(aggregator, tff.aggregators.UnweightedAggregationFactory):
    if weighting not in (None, ClientWeighting.UNIFORM):
      raise ValueError(
        f'{type(aggregator).__name__} is unweighted and would drop `{weighting.value}` weights in '
        'silence; use ClientWeighting.UNIFORM or a weighted aggregator.'
      )
    return ClientWeighting.UNIFORM
  takes_modules = isinstance(aggregator, SparsityWeightedMeanFactory)
  if weighting is None:
    return ClientWeighting.MODULE if takes_modules else ClientWeighting.MODEL
  if weighting.per_module and not takes_modules:
    raise ValueError(
      f'{type(aggregator).__name__} takes one weight per client; use ClientWeighting.MODEL.'
    )
  return weighting


def initial_weights_computation(
  shapes: collections.OrderedDict[str, ModuleShape], config: LoraConfig
) -> tff.Computation:
  """`( -> ModelWeights)`: `a` Gaussian with standard deviation `1 / sqrt(d_in)`, `b` zero."""

  @tff.tensorflow.computation
  def initial_weights():
    adapters = collections.OrderedDict()
    for index, (path, shape) in enumerate(shapes.items()):
      noise = tf.random.stateless_normal([config.max_rank, shape.d_in], [config.init_seed, index])
      adapters[path] = lora.LoraFactors(
        noise / tf.sqrt(float(shape.d_in)), tf.zeros([shape.d_out, config.max_rank])
      )
    return tff.learning.models.ModelWeights(adapters, ())

  return initial_weights


class _Parts(NamedTuple):
  distributor: Any
  work: HetLoraClientWork
  aggregator: tff.templates.AggregationProcess
  finalizer: tff.learning.templates.FinalizerProcess
  absent_rows: Any = None


class _AbsentRows:
  """Restores `STATE` padding when clients received slices.

  A client that never saw the rows above its rank cannot subtract them from the zeros that it sends
  for them. With `m_j` the weighted share of clients without row `j`, the mean of the updates
  lacks `m_j` times the server's row `j`.
  """

  def __init__(self, weights_type, work: HetLoraClientWork, aggregator: Any):
    max_rank = work.max_rank
    data_type = work.next.type_signature.parameter[2].member
    names = [name for name, _ in tff.structure.iter_elements(weights_type.trainable)]
    result_type = work.process.next.type_signature.result.result.member

    @tff.tensorflow.computation(data_type['rank'])
    def mask(ranks):
      rank = ranks.reduce(tf.constant(0), lambda _, rank: rank)
      absent = 1.0 - tf.sequence_mask(rank, max_rank, tf.float32)
      return collections.OrderedDict((name, absent) for name in names)

    @tff.tensorflow.computation(weights_type, weights_type.trainable, mask.type_signature.result)
    def correct(weights, update, absent):
      return collections.OrderedDict(
        (
          name,
          lora.LoraFactors(
            update[name].a + absent[name][:, tf.newaxis] * weights.trainable[name].a,
            update[name].b + absent[name][tf.newaxis, :] * weights.trainable[name].b,
          ),
        )
        for name in names
      )

    self.mask, self.correct = mask, correct
    self.mean = _create(aggregator, mask.type_signature.result, result_type.update_weight)


def _create(aggregator, value_type, weight_type) -> tff.templates.AggregationProcess:
  if isinstance(aggregator, tff.aggregators.UnweightedAggregationFactory):
    # Its weights are uniform, save that a client without an update counts as one that sent zeros.
    aggregator = tff.aggregators.as_weighted_aggregator(aggregator)
  return aggregator.create(value_type, weight_type)


def _create_aggregator(aggregator, work: HetLoraClientWork) -> tff.templates.AggregationProcess:
  result_type = work.process.next.type_signature.result.result.member
  return _create(aggregator, result_type.update, result_type.update_weight)


def _build_initialize(initial_weights: tff.Computation, parts: _Parts) -> tff.Computation:
  distributor = parts.distributor

  @tff.federated_computation
  def initialize():
    if isinstance(distributor, RankSelect):
      distributor_state = tff.federated_value((), tff.SERVER)
    else:
      distributor_state = distributor.initialize()
    aggregator_state = parts.aggregator.initialize()
    weights = tff.federated_eval(initial_weights, tff.SERVER)
    return tff.federated_zip(
      tff.learning.templates.LearningAlgorithmState(
        weights,
        distributor_state,
        parts.work.process.initialize(),
        aggregator_state,
        parts.finalizer.initialize(),
      )
    )

  return initialize


def _build_next(initialize: tff.Computation, parts: _Parts) -> tff.Computation:
  state_type = initialize.type_signature.result
  data_type = parts.work.next.type_signature.parameter[2]
  distribute = _build_distribute(parts.distributor)
  restore = _build_restore(parts.absent_rows)

  @tff.federated_computation(state_type, data_type)
  def next_fn(state, client_data):
    server_weights = state.global_model_weights
    distributed = distribute(state.distributor, server_weights, client_data)
    work = parts.work.next(state.client_work, distributed.result, client_data)
    aggregated = parts.aggregator.next(
      state.aggregator, work['result'].update, work['result'].update_weight
    )
    update = restore(server_weights, aggregated.result, work['result'].update_weight, client_data)
    finalized = parts.finalizer.next(state.finalizer, server_weights, update)
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
    return HetLoraOutput(
      tff.federated_zip(new_state), tff.federated_zip(metrics), work['device_state']
    )

  return next_fn


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


def _build_restore(absent_rows: _AbsentRows | None):
  def restore(weights, update, update_weight, client_data):
    if absent_rows is None:
      return update
    masks = tff.federated_map(absent_rows.mask, client_data['rank'])
    absent = absent_rows.mean.next(absent_rows.mean.initialize(), masks, update_weight)
    return tff.federated_map(absent_rows.correct, (weights, update, absent.result))

  return restore
