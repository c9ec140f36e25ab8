# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rounds on several workers are the process's own, whatever happens to a worker meanwhile."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import types

import grpc
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import hetlora_tff
import privacy
from tasks import dp_settings, privacy_guard, remote_rounds, remote_worker, worker
from tasks.config import RunConfig
from tasks.errors import UserError
from tests.hetlora_tff import toy_model
from tests.integration import tiny_world
from tests.privacy import scale

pytestmark = [
  pytest.mark.usefixtures('tff_runtime'),
  pytest.mark.skipif(sys.platform != 'linux', reason='needs worker processes that can be stopped'),
]

_WORDS = 'a clients own words'
RANKS = [1, 4, 2, 3, 2, 4]
# One batch each.
CLIENTS = [toy_model.client_data(r, toy_model.examples(seed, 2)) for seed, r in enumerate(RANKS)]


class CountingModel(toy_model.LinearModel):
  """Leaves a file for every batch that a client trains on, named after the batch."""

  def __init__(self, directory):
    super().__init__()
    self._directory = directory

  def build(self, config):
    loss_fn = super().build(config)

    def counted(adapters, batch):
      any_number = tf.random.uniform([], maxval=2**62, dtype=tf.int64)
      name = tf.strings.format('{}/{} {}', (str(self._directory), batch['x'][0, 0], any_number))
      name = tf.strings.regex_replace(name, '"', '')
      with tf.control_dependencies([tf.io.write_file(name, '')]):
        return loss_fn(adapters, batch)

    return counted


class Fleet:
  """TFF workers by address, and a `RemoteWorker` that reaches them without a server between."""

  def __init__(self):
    self.workers = {}

  def start(self, address):
    context = tff.framework.get_context_stack().current
    self.workers[address] = worker.LocalWorker(1).__enter__()
    tff.framework.set_default_context(context)

  def signal(self, address, number):
    os.kill(self.workers[address].pid, number)

  def remote(self, address, token):
    del token

    def describe(*seconds):
      del seconds
      self.workers[address].check_running()
      return types.SimpleNamespace(max_concurrent_clients=1)

    return types.SimpleNamespace(
      describe=describe,
      connect=lambda check: worker.connect(self.workers[address].channel, check),
      close=lambda: None,
    )

  def mend(self):
    """Starts those that are not there or have ended."""
    for address in 'abc':
      if address in self.workers:
        try:
          self.workers[address].check_running()
          continue
        except UserError:
          self.workers[address]._stop()
      self.start(address)


@pytest.fixture(scope='module')
def started():
  fleet = Fleet()
  with pytest.MonkeyPatch.context() as patch:
    # Compiled once for all workers and tests.
    patch.setattr(worker, '_compile', functools.cache(worker._compile))
    patch.setattr(
      remote_rounds, 'build_split_round', functools.cache(remote_rounds.build_split_round)
    )
    patch.setattr(remote_rounds, 'RemoteWorker', fleet.remote)
    yield fleet
    for running in fleet.workers.values():
      running._stop()


@pytest.fixture
def fleet(started):
  started.mend()
  return started


@pytest.fixture(scope='module')
def counts(tmp_path_factory):
  return tmp_path_factory.mktemp('counts')


def build(model, **parts):
  return hetlora_tff.build_hetlora_process(
    model,
    toy_model.CONFIG,
    client_optimizer=tff.learning.optimizers.build_sgdm(0.05),
    **parts,
  )


@pytest.fixture(scope='module')
def process(counts):
  """Of integer sums: in whatever order, they are the same to the bit."""
  spec = privacy.SecureSumSpec(bits=16, largest_cohort=len(CLIENTS), value_range=2.0)
  return build(CountingModel(counts), aggregator=privacy.build_secure_aggregator(spec))


@pytest.fixture(scope='module')
def state(process):
  weights = process.layout.weights(toy_model.random_adapters(5))
  return process.as_learning_process().set_model_weights(process.initialize(), weights)


def remote(process, addresses, said):
  return remote_rounds.RemoteRounds(process, addresses, backbone=None, say=said.append)


def drain(directory):
  """How often each client was trained since the last call, sorted."""
  files = list(directory.iterdir())
  times = collections.Counter(file.name.split()[0] for file in files)
  for file in files:
    file.unlink()
  return sorted(times.values())


def check_equal(got, expected, **tolerance):
  tf.nest.assert_same_structure(got, expected, check_types=True)
  for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
    np.testing.assert_allclose(one, other, **(tolerance or {'rtol': 0, 'atol': 0}))


def test_is_the_processs_round_and_trains_each_client_once(fleet, process, state, counts):
  said = []
  rounds = remote(process, 'ab', said)
  expected = process.next(state, CLIENTS)
  drain(counts)
  got = rounds.next(state, CLIENTS)
  assert drain(counts) == [1] * len(CLIENTS)
  check_equal(got._replace(metrics=()), expected._replace(metrics=()))
  check_equal(got.metrics, expected.metrics, rtol=1e-5)
  # A cohort of fewer than there are workers, and nobody at all.
  check_equal(
    rounds.next(got.state, CLIENTS[:1]).device_state, process.next(got.state, CLIENTS[:1])[2]
  )
  empty = rounds.next(state, [])
  check_equal(empty[:2], tuple(process.as_learning_process().next(state, [])))
  assert empty.device_state == []
  assert said == []


def test_a_worker_that_is_killed_in_a_round_changes_nothing(fleet, process, state, counts):
  said = []
  rounds = remote(process, 'ab', said)
  expected = rounds.next(state, CLIENTS)
  drain(counts)
  fleet.signal('b', signal.SIGSTOP)
  threading.Timer(0.7, fleet.signal, ['b', signal.SIGKILL]).start()
  check_equal(rounds.next(state, CLIENTS), expected)
  assert drain(counts) == [1] * len(CLIENTS)
  assert [re.sub(r': .+\. ', ': ', line) for line in said] == [
    'Worker b is lost: Others do its part.'
  ]
  # It stays away, which is said once.
  for _ in range(2):
    check_equal(rounds.next(state, CLIENTS), expected)
  assert len(said) == 2


def test_a_slow_worker_takes_fewer_clients(fleet, process, state, monkeypatch):
  trained = []
  train = remote_rounds._Worker.train
  monkeypatch.setattr(
    remote_rounds._Worker,
    'train',
    lambda self, *arguments: trained.append(self.address) or train(self, *arguments),
  )
  said = []
  rounds = remote(process, 'ab', said)
  expected = rounds.next(state, CLIENTS)
  trained.clear()
  fleet.signal('b', signal.SIGSTOP)
  threading.Timer(1.5, fleet.signal, ['b', signal.SIGCONT]).start()
  check_equal(rounds.next(state, CLIENTS), expected)
  assert sorted(trained) == ['a', 'a', 'a', 'b']
  assert said == []


def test_without_workers_the_round_fails_and_goes_on_when_they_are_back(fleet, process, state):
  said = []
  rounds = remote(process, 'ab', said)
  expected = rounds.next(state, CLIENTS)
  for address in 'ab':
    fleet.signal(address, signal.SIGKILL)
  with pytest.raises(UserError, match=r'none is left.* --resume'):
    rounds.next(state, CLIENTS)
  assert [line[:16] for line in sorted(said)] == ['Worker a is lost', 'Worker b is lost']
  fleet.mend()
  said.clear()
  check_equal(rounds.next(state, CLIENTS), expected)
  assert 'is back' in said[0]
  check_equal(rounds.next(state, CLIENTS), expected)
  assert sorted(said) == ['Worker a is back.', 'Worker b is back.']


def test_an_error_of_the_computation_is_no_lost_worker(fleet, process, state):
  said = []
  rounds = remote(process, 'ab', said)
  broken = toy_model.client_data(toy_model.MAX_RANK + 1, toy_model.examples(9, 2))
  with pytest.raises(RuntimeError, match=r'Worker [ab] failed: '):
    rounds.next(state, [*CLIENTS[:2], broken])
  assert said == []


@contextlib.contextmanager
def _quoting(code):
  """A channel on which every request ends with a client's words."""

  class Service(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
      return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(code, _WORDS))

  server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[Service()])
  port = server.add_insecure_port('127.0.0.1:0')
  server.start()
  with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
    yield channel
  server.stop(None).wait()


@pytest.mark.parametrize('code', ['UNAVAILABLE', 'FAILED_PRECONDITION', 'INTERNAL'])
def test_what_a_worker_quotes_of_clients_is_not_said(
  fleet, process, state, tmp_path, monkeypatch, code
):
  settings = {'privacy': 'tree', 'min_separation': 4, 'noise_multiplier': 1.0}
  config = dp_settings.settle(RunConfig(clients_per_round=5, rounds=8, **settings), 40, 1000)
  guard, said = privacy_guard.build_guard(config, 40, tmp_path), []
  with _quoting(grpc.StatusCode[code]) as channel:
    stub = types.SimpleNamespace(channel=channel, check_running=lambda: None)
    monkeypatch.setitem(fleet.workers, 'd', stub)
    rounds = remote(process, 'd', said)
    with pytest.raises(UserError) as caught, guard.silence():
      rounds.next(state, CLIENTS)
  assert _WORDS not in f'{caught.value} {said}'
  log = tmp_path / 'secrets' / 'error.log'
  if code == 'INTERNAL':
    assert _WORDS in log.read_text()
  else:
    assert 'none is left' in str(caught.value)
    assert re.fullmatch(r'Worker d is lost: [a-z ,]+\. Others do its part\.', said[0])


def test_a_lost_worker_is_asked_back_once_at_a_time(monkeypatch):
  answer = threading.Event()
  slow = types.SimpleNamespace(
    describe=lambda *_: answer.wait() and types.SimpleNamespace(max_concurrent_clients=1),
    connect=lambda _: None,
  )
  monkeypatch.setattr(remote_rounds, 'RemoteWorker', lambda *_: slow)
  lost = remote_rounds._Worker('a:1', None, None)
  attempt = lost.asked_back()
  assert lost.asked_back() is attempt
  answer.set()
  attempt.result(timeout=10)
  # Whoever hands out clients sees to it first.
  assert not lost.is_connected


def test_refuses_an_address_twice(fleet, process):
  with pytest.raises(UserError, match='twice'):
    remote(process, 'aa', [])


@pytest.mark.parametrize('addresses', ['a', 'ab', 'abc'])
def test_noise_is_added_once(fleet, noisy_process, addresses):
  clip, multiplier, cohort = 0.5, 1.2, 3
  rounds = remote(noisy_process, addresses, [])
  nothing = [toy_model.client_data(r, toy_model.examples(0, 0)) for r in RANKS]
  state = noisy_process.initialize()
  before = toy_model.flat(noisy_process.get_model_weights(state))
  after = [
    toy_model.flat(noisy_process.get_model_weights(rounds.next(state, nothing).state))
    for _ in range(10)
  ]
  scale.check_scale(np.stack(after) - before, multiplier * clip / cohort)


@pytest.fixture(scope='module')
def noisy_process():
  spec = privacy.DpSpec(1.2, 0.5, 3)
  return build(
    toy_model.LinearModel(), aggregator=privacy.build_dp_aggregator(spec), client_sums={}
  )


@pytest.mark.slow
def test_on_two_hetlora_workers_of_which_one_is_killed(
  process, state, counts, tmp_path, monkeypatch
):
  monkeypatch.setattr(remote_rounds, 'RemoteWorker', remote_worker.RemoteWorker)
  backbone = hetlora_tff.FrozenBackbone.save(tiny_world.build_backbone(), tmp_path / 'backbone')
  with _served() as (one, first), _served() as (_, second):
    said = []
    rounds = remote_rounds.RemoteRounds(
      process, [first, second], backbone=backbone, say=said.append
    )
    expected = rounds.next(state, CLIENTS)
    check_equal(expected.state, process.next(state, CLIENTS).state)
    drain(counts)
    one.send_signal(signal.SIGSTOP)
    threading.Timer(2.0, one.kill).start()
    check_equal(rounds.next(state, CLIENTS), expected)
    assert drain(counts) == [1] * len(CLIENTS)
    assert [line.split(': ')[0] for line in said] == [f'Worker {first} is lost']
    with pytest.raises(UserError, match=f'{second}: it is busy with the driver on'):
      remote_rounds.RemoteRounds(process, [second], backbone=backbone, say=said.append)
    # Before anything is sent: a driver with another base model than its worker.
    other = dataclasses.replace(backbone, directory=str(tmp_path))
    with pytest.raises(UserError, match=f'{second} lacks the base model'):
      remote_rounds.RemoteRounds(process, [second], backbone=other, say=said.append)


def test_graphs_are_moved_to_where_the_worker_has_the_backbone(fleet, tmp_path):
  ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
  ours.mkdir()
  values = np.arange(8, dtype=np.float32)
  (ours / 'tensor').write_bytes(values.tobytes())

  @tff.tensorflow.computation(np.float32)
  def scaled(factor):
    path = str(ours / 'tensor')
    mapped = tf.raw_ops.ImmutableConst(dtype=tf.float32, shape=[8], memory_region_name=path)
    return collections.OrderedDict(product=factor * tf.reduce_sum(mapped))

  moved = remote_rounds._moved(scaled, str(ours), str(theirs))
  ours.rename(theirs)
  assert moved(2.0)['product'] == 2 * values.sum()


@contextlib.contextmanager
def _served():
  """`hetlora worker` as a process of its own, and its address."""
  with tiny_world.start('worker', '--port', '0', stderr=subprocess.DEVNULL) as process:
    try:
      lines = (re.search(r'Worker on ([\d.:]+)', line) for line in process.stdout)
      yield process, next(line[1] for line in lines if line)
    finally:
      process.kill()


def test_every_part_has_its_share_of_those_who_come_first():
  for number, expected in ((2, [[0, 2, 4], [1, 3]]), (7, [[0], [1], [2], [3], [4]])):
    parts = remote_rounds._parts('abcde', number)
    assert [[int(client['position']) for client in part] for part in parts] == expected
    assert [[client['client'] for client in part] for part in parts] == [
      ['abcde'[position] for position in part] for part in expected
    ]
  assert remote_rounds._parts([], 2) == []
