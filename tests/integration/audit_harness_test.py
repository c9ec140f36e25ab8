# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The private aggregation, audited: it keeps its claim, and bugs planted in its parts do not.

In every audit, 1,000 canaries each take part in one of four rounds, and every round's release is
seen. The claim is what the accountant says of that run. The noise and the canaries' directions
follow from the number of the audit.
"""

import collections
import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from hetlora_tff.aggregation import WeightInsideFactory, weights_inside
from hetlora_tff.aggregation.padded_mean import by_entry
from hetlora_tff.clients.canaries import canary_direction
from privacy import accounting, events
from privacy.aggregators import build_dp_aggregator
from privacy.audit import epsilon_lower_bound
from privacy.clipping import clip_by_joint_norm, clip_to_norm
from privacy.noise import SeedChain
from privacy.queries import GaussianQuery
from privacy.spec import DpSpec, Sampling
from tasks.audit import canary_scores

pytestmark = pytest.mark.usefixtures('tff_runtime')

_ROUNDS, _CANARIES_PER_ROUND, _HELD_OUT_PER_ROUND = 4, 250, 5000
_CANARIES = _ROUNDS * _CANARIES_PER_ROUND
_FIRST_HELD_OUT = 10**9
_CLIP, _REFERENCE, _DELTA = 0.5, 2.0, 1e-3
_SPEC = DpSpec(
  noise_multiplier=1.835,
  l2_clip_norm=_CLIP,
  clients_per_round=_CANARIES_PER_ROUND,
  sampling=Sampling.MIN_SEPARATION,
  min_separation=_ROUNDS,
  max_participations=1,
  insecure_seed=0,
)


class _QueryFactory(tff.aggregators.UnweightedAggregationFactory):
  """`build_dp_aggregator(_SPEC)`, part by part, so that the parts can be swapped."""

  def __init__(self, query_class=GaussianQuery, stddev=_SPEC.noise_stddev):
    self._query_class = query_class
    self._stddev = stddev

  def create(self, value_type):
    specs = tff.types.type_to_tf_tensor_specs(value_type)
    query = self._query_class(specs, _CLIP, self._stddev, SeedChain((0, 0)))
    query = tfp.NormalizedQuery(query, float(_CANARIES_PER_ROUND))
    return tff.aggregators.DifferentiallyPrivateFactory(query).create(value_type)


def _clip_by_module(value):
  return collections.OrderedDict(
    (path, clip_by_joint_norm(part, _CLIP)[0]) for path, part in value.items()
  )


class _ClipsByModule(GaussianQuery):
  def preprocess_record_impl(self, params, record):
    return _clip_by_module(record), tf.linalg.global_norm(tf.nest.flatten(record))


class _ClipsNothing(GaussianQuery):
  def preprocess_record_impl(self, params, record):
    return record, tf.linalg.global_norm(tf.nest.flatten(record))


def _uncut(value, weight, normaliser, clip, per_entry):
  share = tf.nest.map_structure(lambda w: w / normaliser, weight)
  return by_entry(tf.multiply, clip(value), share, per_entry), share


def _weigh_inside(inner, clip=None):
  return WeightInsideFactory(inner, _REFERENCE, clip or clip_to_norm(_CLIP))


# The joint clip stands twice, before the weight and in the query: each mends a fault in the other,
# so that the last two bugs are planted in both places.
_SYSTEMS = {
  'correct': lambda: _weigh_inside(build_dp_aggregator(_SPEC)),
  'no noise': lambda: _weigh_inside(_QueryFactory(stddev=0.0)),
  'half the noise': lambda: _weigh_inside(_QueryFactory(stddev=_SPEC.noise_stddev / 2)),
  'clip by module': lambda: _weigh_inside(_QueryFactory(_ClipsByModule), _clip_by_module),
  'weight above 1': lambda: _weigh_inside(_QueryFactory(_ClipsNothing)),
}


class _Systems:
  """Private aggregations of the same messages, of clients that are canaries of these modules."""

  def __init__(self, processes, specs):
    @tff.tensorflow.computation(np.int64)
    def send(number):
      direction = canary_direction(specs, number)
      update = tf.nest.map_structure(lambda part: 100 * _CLIP * part, direction)
      weights = ((path, tf.constant(100 * _REFERENCE)) for path in specs)
      return update, collections.OrderedDict(weights)

    @tff.federated_computation
    def initialize():
      return tff.federated_zip([process.initialize() for process in processes])

    @tff.federated_computation(
      initialize.type_signature.result, tff.FederatedType(np.int64, tff.CLIENTS)
    )
    def one_round(states, numbers):
      update, weight = tff.federated_map(send, numbers)
      outputs = [process.next(states[i], update, weight) for i, process in enumerate(processes)]
      return (
        tff.federated_zip([output.state for output in outputs]),
        [output.result for output in outputs],
      )

    self._initial_states = initialize()
    self._one_round = one_round

  def releases(self, audit):
    """What all rounds of one audit show, by system."""
    states = tf.nest.map_structure(
      # The one leaf of this shape is the state of the seeds.
      lambda leaf: np.array([audit, 0]) if np.shape(leaf) == (2,) else leaf,
      self._initial_states,
    )
    rounds = []
    for round_number in range(_ROUNDS):
      states, shown = self._one_round(states, list(_planted(audit, round_number)))
      rounds.append(shown)
    return list(zip(*rounds, strict=True))


def _process(name, specs, monkeypatch):
  weight_type = tff.to_type(collections.OrderedDict((path, np.float32) for path in specs))
  with monkeypatch.context() as patch:
    if name == 'weight above 1':
      patch.setattr(weights_inside, 'weighted_inside', _uncut)
    return _SYSTEMS[name]().create(tff.types.tensorflow_to_type(specs), weight_type)


def _planted(audit, round_number):
  first = audit * _CANARIES + round_number * _CANARIES_PER_ROUND
  return range(first, first + _CANARIES_PER_ROUND)


def _bounds(releases):
  """The bounds on epsilon by (system, audit), as `releases`, which are lists over the rounds."""
  scores = {key: ([], []) for key in releases}
  audits = range(1 + max(audit for _, audit in releases))
  for round_number in range(_ROUNDS):
    first = _FIRST_HELD_OUT + round_number * _HELD_OUT_PER_ROUND
    numbers = [*range(first, first + _HELD_OUT_PER_ROUND)]
    for audit in audits:
      numbers += _planted(audit, round_number)
    columns = canary_scores([shown[round_number] for shown in releases.values()], numbers).T
    for (name, audit), column in zip(releases, columns, strict=True):
      held_out, *planted = np.split(
        column, range(_HELD_OUT_PER_ROUND, len(numbers), _CANARIES_PER_ROUND)
      )
      scores[name, audit][0].append(planted[audit])
      scores[name, audit][1].append(held_out)
  return {
    key: epsilon_lower_bound(*map(np.concatenate, pair), _DELTA).epsilon
    for key, pair in scores.items()
  }


def _audit(monkeypatch, systems, numbers, audits):
  """Lower bounds by system, over all audits, of a message of so many numbers."""
  specs = collections.OrderedDict((f'module_{i}', tf.TensorSpec([numbers // 5])) for i in range(5))
  running = _Systems([_process(name, specs, monkeypatch) for name in systems], specs)
  releases = {}
  for audit in range(audits):
    for name, shown in zip(systems, running.releases(audit), strict=True):
      releases[name, audit] = shown
  bounds = _bounds(releases)
  return {name: [bounds[name, audit] for audit in range(audits)] for name in systems}


@functools.cache
def _claimed():
  event = events.run_event(_SPEC, _ROUNDS, amplified=False)
  claimed = accounting.epsilon(event, _DELTA, relation=_SPEC.relation)
  assert 1.4 < claimed <= 1.5
  return claimed


def test_the_swapped_parts_are_those_of_the_product(monkeypatch):
  specs = collections.OrderedDict((f'module_{i}', tf.TensorSpec([50])) for i in range(5))
  monkeypatch.setitem(_SYSTEMS, 'swapped', lambda: _weigh_inside(_QueryFactory()))
  both = _Systems([_process(name, specs, monkeypatch) for name in ('correct', 'swapped')], specs)
  product, swapped = both.releases(3)
  tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), product, swapped)
  other, _ = both.releases(4)
  assert not np.allclose(product[0]['module_0'], other[0]['module_0'])
  assert not np.allclose(product[0]['module_0'], product[1]['module_0'])


def test_one_audit_tells_half_the_noise_from_all_of_it(monkeypatch):
  bounds = _audit(monkeypatch, ['correct', 'half the noise'], numbers=10_000, audits=1)
  assert bounds['correct'][0] <= _claimed()
  assert bounds['half the noise'][0] > _claimed()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_audits_tell_every_bug_from_the_product(monkeypatch):
  bounds = _audit(monkeypatch, _SYSTEMS, numbers=100_000, audits=20)
  for name, found in bounds.items():
    print(f'{name}: {sum(b > _claimed() for b in found)} of {len(found)} above', np.round(found, 2))
  assert all(bound <= _claimed() for bound in bounds.pop('correct'))
  assert all(sum(bound > _claimed() for bound in found) >= 19 for found in bounds.values())
