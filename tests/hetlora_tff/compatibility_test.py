# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
import tensorflow_federated as tff

from hetlora_tff import aggregation, process
from hetlora_tff.adapters.layout import AdapterLayout, TrainedFactors
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.training import LocalTraining
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.compatibility import resolve_training
from hetlora_tff.distribution.select import RankSelect
from tests.hetlora_tff import toy_model

NEEDS = [
  (aggregation.SparsityWeightedMeanFactory(), Padding.STATE, ClientWeighting.MODULE),
  (aggregation.ZeroPadMeanFactory(), Padding.STATE, ClientWeighting.UNIFORM),
  (aggregation.RankCoverageMeanFactory(), Padding.UPDATE, ClientWeighting.COVERAGE),
  (aggregation.ProductSvdFactory(), Padding.NONE, ClientWeighting.UNIFORM),
  (aggregation.StackingFactory(), Padding.NONE, ClientWeighting.UNIFORM),
  (aggregation.ResidualCorrectedMeanFactory(), Padding.NONE, ClientWeighting.UNIFORM),
  (tff.aggregators.MeanFactory(), Padding.STATE, ClientWeighting.MODEL),
  (tff.aggregators.UnweightedMeanFactory(), Padding.STATE, ClientWeighting.UNIFORM),
]


@pytest.mark.parametrize(('aggregator', 'padding', 'weights'), NEEDS)
def test_an_aggregator_alone_decides_padding_and_weights(aggregator, padding, weights):
  resolved = resolve_training(LocalTraining(), aggregator)
  assert (resolved.padding, resolved.weights) == (padding, weights)
  assert resolve_training(resolved, aggregator) == resolved


@pytest.mark.parametrize(
  ('aggregator', 'asked', 'message'),
  [
    (
      aggregation.StackingFactory(),
      {'padding': Padding.STATE},
      r'needs Padding\.NONE, not .*STATE',
    ),
    (aggregation.RankCoverageMeanFactory(), {'padding': Padding.STATE}, r'needs Padding\.UPDATE'),
    (aggregation.ZeroPadMeanFactory(), {'padding': Padding.NONE}, r'STATE or Padding\.UPDATE'),
    (
      aggregation.ZeroPadMeanFactory(),
      {'weights': ClientWeighting.MODULE},
      'one weight per client',
    ),
    (aggregation.ZeroPadMeanFactory(), {'weights': ClientWeighting.COVERAGE}, 'go together'),
    (aggregation.RankCoverageMeanFactory(), {'weights': ClientWeighting.UNIFORM}, 'go together'),
    (
      tff.aggregators.SumFactory(),
      {'weights': ClientWeighting.EXAMPLES},
      'drop `examples` weights',
    ),
    (
      aggregation.ProductSvdFactory(),
      {'trained': TrainedFactors.B, 'prune_decay': 1.0},
      r'not TrainedFactors\.B',
    ),
    (
      aggregation.RankCoverageMeanFactory(),
      {'trained': TrainedFactors.ALTERNATING, 'prune_decay': 1.0},
      r'not TrainedFactors\.ALTERNATING',
    ),
  ],
)
def test_what_does_not_fit_is_refused_by_name(aggregator, asked, message):
  with pytest.raises(ValueError, match=message):
    resolve_training(LocalTraining(**asked), aggregator)


def _build(**kwargs):
  kwargs.setdefault('training', LocalTraining(prune_decay=1.0))
  return process.build_hetlora_process(toy_model.LinearModel(), toy_model.CONFIG, **kwargs)


def _select():
  layout = AdapterLayout(toy_model.LinearModel().module_shapes(toy_model.CONFIG), toy_model.CONFIG)
  return RankSelect(layout.adapters_type(toy_model.MAX_RANK), toy_model.CONFIG)


_SGD = tff.learning.optimizers.build_sgdm(1.0)
_DP = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(1.0, 10.0, 1.0)
_ALTERNATING = LocalTraining(prune_decay=1.0, trained=TrainedFactors.ALTERNATING)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'aggregator': aggregation.StackingFactory(), 'server_optimizer': _SGD}, 'products'),
    (
      {
        'aggregator': aggregation.ZeroPadMeanFactory(),
        'training': _ALTERNATING,
        'server_optimizer': _SGD,
      },
      'alternating factors',
    ),
    (
      {'aggregator': aggregation.StackingFactory(), 'max_residual_bytes': 99},
      r'residual of 2 modules has 100 bytes.* limit is 99 \(`max_residual_bytes`\)',
    ),
    ({'aggregator': aggregation.StackingFactory(), 'distributor': _select()}, 'no residual'),
    ({'aggregator': aggregation.ZeroPadMeanFactory(), 'training': _ALTERNATING,
      'distributor': _select()}, 'slices of both factors'),
    (
      {
        'training': LocalTraining(padding=Padding.UPDATE),
        'distributor': _select(),
        'measures_deviation': True,
      },
      'needs whole broadcasts',
    ),
  ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_by_name(kwargs, message):
  with pytest.raises(ValueError, match=message):
    _build(**kwargs)


@pytest.mark.parametrize('aggregator', [aggregation.StackingFactory, 'svd'])
def test_what_is_no_factory_is_said_to_be_none(aggregator):
  with pytest.raises(TypeError, match='must be a TFF aggregation factory such as'):
    _build(aggregator=aggregator)


def test_self_pruning_needs_both_factors():
  with pytest.raises(ValueError, match=r'TrainedFactors\.B, `prune_decay` must be 1'):
    LocalTraining(trained=TrainedFactors.B)


@pytest.mark.parametrize(
  ('aggregator', 'name'),
  [
    (_DP, 'DifferentiallyPrivateFactory'),
    (aggregation.ZeroPadMeanFactory(value_sum_factory=_DP), 'DifferentiallyPrivateFactory'),
    (
      aggregation.RankCoverageMeanFactory(weight_sum_factory=tff.aggregators.SecureSumFactory(1.0)),
      'SecureSumFactory',
    ),
    # These hold what they wrap where nobody can look.
    (tff.learning.dp_aggregator(0.3, 50.0), 'UnweightedRobustFactory'),
    (tff.learning.ddp_secure_aggregator(0.3, 50, zeroing=False), ''),
    (tff.aggregators.add_measurements(_DP, client_measurement_fn=lambda _: {}), ''),
  ],
)
def test_clients_are_not_measured_beside_what_may_hide_them(aggregator, name):
  with pytest.raises(ValueError, match=f'differential privacy and secure .*not beside {name}'):
    _build(aggregator=aggregator, measures_deviation=True)
