# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import collections
import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from privacy.noise import FreshSeeds, GaussianNoise, SeedChain, skellam
from tasks.worker import LocalWorker
from tests.privacy.scale import check_scale, check_uncorrelated

SPECS = collections.OrderedDict(a=tf.TensorSpec([80, 50]), b=[tf.TensorSpec([80, 50])])


def _draw(noise, state):
  value, state = noise.next(state)
  assert list(value) == ['a', 'b']
  return np.stack([value['a'], value['b'][0]]), state


@pytest.mark.parametrize('seeds', [FreshSeeds(), SeedChain(None), SeedChain((5, 0))])
def test_scale_and_independence(seeds):
  noise = GaussianNoise(SPECS, 3.0, seeds)
  first, state = _draw(noise, noise.initialize())
  second, _ = _draw(noise, state)
  check_scale(first, 3.0)
  check_scale(second, 3.0)
  check_uncorrelated(first, second)
  check_uncorrelated(first[0], first[1])


def test_fresh_seeds_never_repeat():
  noise = GaussianNoise(SPECS, 1.0, FreshSeeds())
  state = noise.initialize()
  assert state == ()
  check_uncorrelated(_draw(noise, state)[0], _draw(noise, state)[0])


def test_a_graph_does_not_fix_the_seed():
  noise = GaussianNoise(SPECS, 1.0, FreshSeeds())
  graph = tf.function(lambda: noise.next(())[0]['a'])
  check_uncorrelated(graph().numpy(), graph().numpy())


def test_a_chain_repeats_from_its_state_and_starts_anew_elsewhere():
  noise = GaussianNoise(SPECS, 1.0, SeedChain(None))
  state = noise.initialize()
  np.testing.assert_array_equal(_draw(noise, state)[0], _draw(noise, state)[0])
  check_uncorrelated(_draw(noise, state)[0], _draw(noise, noise.initialize())[0])


def test_an_insecure_seed_repeats():
  draws = []
  for seed in ((5, 0), (5, 0), (5, 1)):
    noise = GaussianNoise(SPECS, 1.0, SeedChain(seed))
    draws.append(_draw(noise, noise.initialize())[0])
  np.testing.assert_array_equal(draws[0], draws[1])
  check_uncorrelated(draws[0], draws[2])


@pytest.mark.parametrize('build', [lambda: FreshSeeds().next(())[0], SeedChain(None).initialize])
def test_a_graph_does_not_tell_its_seeds(build, monkeypatch):
  # Nothing drawn while the graph is made, and nothing from TensorFlow's generators.
  monkeypatch.setattr(
    tf.raw_ops, 'NonDeterministicInts', lambda shape, dtype: tf.ones(shape, dtype)
  )
  graph, same = tf.function(build), tf.function(build)
  assert _definition(graph) == _definition(same)
  seeds = np.array([graph() for _ in range(200)])
  assert len(set(map(tuple, seeds))) == 200
  # 63 bits in each half, 0 and 1 about equally often.
  bits = np.unpackbits(seeds.view(np.uint8)).reshape(200, 2, 64)
  means = np.sort(bits.mean(0).ravel())
  np.testing.assert_array_equal(means[:2], [0, 0])
  assert np.all(np.abs(means[2:] - 0.5) < 0.25)


def _definition(graph):
  # Without `f`: the name of a function counts up.
  nodes = graph.get_concrete_function().graph.as_graph_def().node
  return [(n.op, sorted((k, str(v)) for k, v in n.attr.items() if k != 'f')) for n in nodes]


def test_two_seeds_of_one_graph_differ():
  # An optimizer of graphs would merge equal operations that have no state.
  seeds = FreshSeeds()
  first, second = tf.function(lambda: (seeds.next(())[0], seeds.next(())[0]))()
  assert len({*first.numpy(), *second.numpy()}) == 4


def test_a_worker_and_another_never_repeat_noise(tff_runtime):
  noise = GaussianNoise(SPECS, 1.0, FreshSeeds())
  draw = tff.tensorflow.computation(lambda: (noise.next(())[0], SeedChain(None).initialize()))
  draws = [draw() for _ in range(2)]
  with LocalWorker(1):
    draws.append(draw())
  for one, other in itertools.combinations(draws, 2):
    check_uncorrelated(np.asarray(one[0]['a']), np.asarray(other[0]['a']))
    assert not set(one[1]) & set(other[1])


def test_skellam_noise_has_its_variance_and_no_mean():
  for variance in (0.0, 0.3, 50.0):
    noise = np.float64(skellam([30_000], variance, tf.constant([3, 4], tf.int64)))
    assert abs(np.mean(noise)) <= 5 * np.sqrt(variance / noise.size)
    # The fourth moment of Skellam noise is 3 v^2 + v.
    tolerance = 5 * np.sqrt((2 * variance**2 + variance) / noise.size)
    assert abs(np.var(noise) - variance) <= tolerance


def test_noise_reaches_twice_as_far_as_one_draw(monkeypatch):
  # The largest number that TensorFlow draws.
  monkeypatch.setattr(
    tf.random, 'stateless_normal', lambda shape, *unused, **also_unused: tf.fill(shape, 5.67)
  )
  generator = GaussianNoise(tf.TensorSpec([3]), 2.0, FreshSeeds())
  drawn, _ = generator.next(generator.initialize())
  np.testing.assert_allclose(drawn, np.full(3, 2 * 2.0 * 5.67), rtol=1e-6)
