# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import types

import numpy as np
import pytest

from tasks import device_evaluation, experiment
from tasks.config import RunConfig
from tasks.federated_text import Example, FederatedText


def _examples(*names):
  return tuple(Example(name, name) for name in names)


def _stub(data, held_out, **changes):
  """What the functions ask of an experiment, whose rows are the sources themselves."""

  def rows(examples):
    return collections.OrderedDict(token_ids=np.array([e.source for e in examples]))

  stub = types.SimpleNamespace(
    config=RunConfig(batch_size=2, local_steps=3, **changes),
    data=data,
    held_out=held_out,
    packer=types.SimpleNamespace(rows=rows),
    model=None,
  )
  stub.order_seed = lambda client, number: [len(client), number]
  return stub


@pytest.fixture(name='asked')
def asked_fixture(monkeypatch):
  """What the federated computation is given: (rank, training texts, test texts) of each client."""
  given = []

  def build(*unused, carries_residual):
    def compute(weights, data):
      assert weights == 'weights'
      for client in data:
        (rank,) = client['rank'].as_numpy_iterator()
        batches = [list(client[name].as_numpy_iterator()) for name in ('train', 'test')]
        texts = [[x.decode() for b in part for x in b['token_ids']] for part in batches]
        given.append((int(rank), *texts))
      one = {'loss': 1.0, 'predictions': 2.0}
      return [{'rank': rank, 'before': one, 'after': one} for rank, *_ in given]

    return compute

  monkeypatch.setattr(device_evaluation.method_parts, 'build_personalization', build)
  return given


def _personalize(stub, ranks):
  stub.held_out_ranks = lambda unused: ranks
  process = types.SimpleNamespace(layout=types.SimpleNamespace(carries_residual=False))
  return device_evaluation.personalize(stub, process, 'weights', np.array([], np.int32))


def test_others_adapt_on_the_first_half_and_are_measured_on_the_second(asked):
  held_out = {
    'b': _examples('b1', 'b2', 'b3', 'b4', 'b5'),
    'lonely': _examples('l1'),
    'c': _examples('c1', 'c2'),
    'late': _examples('x1', 'x2'),
  }
  data = FederatedText('t', {'a': _examples('a1')}, {}, held_out)
  stub = _stub(data, held_out, personalization_clients=2, eval_examples_per_client=4)
  result = _personalize(stub, {'b': 3, 'c': 5, 'lonely': 1, 'late': 1})
  (rank, train, test), (other_rank, other_train, other_test) = asked
  assert (rank, set(train), len(train), test) == (3, {'b1', 'b2'}, 6, ['b3', 'b4'])
  assert (other_rank, set(other_train), other_test) == (5, {'c1'}, ['c2'])
  assert (result['clients'], result['left_out']) == (2, 1)


def test_who_trains_in_the_run_adapts_on_that_text(asked):
  held_out = {'a': _examples('a9'), 'stranger': _examples('s1', 's2')}
  data = FederatedText('t', {'a': _examples('a1', 'a2')}, {}, held_out, shares_clients=True)
  _personalize(_stub(data, held_out), {'a': 2, 'stranger': 4})
  assert [(rank, set(train), test) for rank, train, test in asked] == [
    (2, {'a1', 'a2'}, ['a9']),
    (4, {'s1'}, ['s2']),
  ]


def test_nobody_is_asked_where_nobody_is_to_be(asked):
  held_out = {'b': _examples('b1', 'b2')}
  data = FederatedText('t', {'a': _examples('a1')}, {}, held_out)
  assert _personalize(_stub(data, held_out, personalization_clients=0), {}) is None
  assert not asked


def test_a_device_that_trains_keeps_its_rank_where_it_is_held_out():
  shared = types.SimpleNamespace(
    config=RunConfig(seed=3),
    held_out={'b': (), 'z': (), 'a': ()},
    data=types.SimpleNamespace(shares_clients=True),
    client_ids=['a', 'b', 'c'],
    _ranks=lambda clients, seed, unlisted: np.array([7, 8, 9], np.int32),
  )
  ranks = np.array([1, 2, 3], np.int32)
  found = experiment.Experiment.held_out_ranks(shared, ranks)  # pyright: ignore
  assert found == {'a': 1, 'b': 2, 'z': 9}
  shared.data.shares_clients = False
  found = experiment.Experiment.held_out_ranks(shared, ranks)  # pyright: ignore
  assert found == {'a': 7, 'b': 8, 'z': 9}


def test_held_out_clients_are_drawn_in_an_order_of_chance():
  clients = {f'{number:03d}': _examples('x') for number in range(100)}

  def drawn(**changes):
    stub = types.SimpleNamespace(
      config=RunConfig(**changes), data=types.SimpleNamespace(split=lambda name: clients)
    )
    return list(experiment.Experiment._drawn_held_out(stub))  # pyright: ignore

  some = drawn(eval_clients=20)
  assert len(set(some)) == 20
  assert some != sorted(some)
  assert max(map(int, some)) > 60 > 40 > min(map(int, some))
  assert some == drawn()[:20] == drawn(eval_clients=20)
  assert sorted(drawn()) == sorted(clients)
  assert some != drawn(eval_clients=20, seed=1)
