# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rounds whose clients are spread over `hetlora worker`s.

State, noise and everything else that happens at the server stay here; workers are sent what clients
are sent, and send back sums. A part of the cohort whose worker is lost is given to another, from
the same broadcast, and of every part exactly one result is used. How a cohort is cut depends on its
size and on what workers the run began with, and the parts' sums are added in its order: who trained
a part, and whether it took two attempts, does not show in the result.
"""

import collections
import concurrent.futures
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow_federated as tff

import hetlora_tff
from hetlora_tff.graph_files import rename_files
from hetlora_tff.split_round import build_split_round
from tasks.errors import UserError
from tasks.remote_worker import RemoteWorker
from tasks.threads import in_thread

# Parts of a cohort for each worker, where it is large enough: a slow worker takes fewer, and a lost
# one takes less with it. More of them would cost more requests.
_PARTS_PER_WORKER = 2
# How long a lost worker is given to answer, once a round; the round does not wait for it.
_RETURN_SECONDS = 5.0
# What a request ends with when a worker is lost, and what is said of it: the details that come with
# it may quote clients.
_BROKEN = {
  grpc.StatusCode.UNAVAILABLE: 'the connection broke, or its process did.',
  grpc.StatusCode.FAILED_PRECONDITION: 'it knows of nothing that was sent, as after a new start.',
  grpc.StatusCode.CANCELLED: 'it is shutting down.',
}


class RemoteRounds:
  """Stands in for a process where its rounds are run."""

  def __init__(
    self,
    process: hetlora_tff.HetLoraProcess,
    addresses: Sequence[str],
    *,
    backbone: hetlora_tff.FrozenBackbone | None,
    token: str | None = None,
    say: Callable[[str], None],
  ):
    """Connects to all workers, which must be there and fit.

    Args:
      process: of a method whose round can be split, see `build_split_round`.
      addresses: `host:port` of each worker.
      backbone: that the process computes with, if it does; workers need it, too.
      token: that the workers want, if they do.
      say: is told, in the caller's thread, of workers that are lost and that are back.

    Raises:
      UserError: naming the worker that does not answer, has other versions or lacks the backbone.
      ValueError: if the round cannot be split.
    """
    if len(set(addresses)) < len(addresses):
      raise UserError('--workers names an address twice; a worker takes more clients by itself.')
    self._say = say
    # Why lost workers do not come back; not every round anew.
    self._told: set[str] = set()
    self._workers = [_Worker(address, token, backbone) for address in addresses]
    try:
      for worker, connected in [(w, in_thread(w.connect)) for w in self._workers]:
        connected.result()
        worker.is_connected = True
    except BaseException:
      self.close()
      raise
    self._clients_at_a_time = max(worker.clients_at_a_time for worker in self._workers)
    self._split = build_split_round(process)
    self._backbone = backbone
    # By where workers have the backbone.
    self._partials: dict[str | None, tff.Computation] = {}

  def close(self) -> None:
    """Lets others have the workers, which drop what they hold and compute for this run."""
    for worker in self._workers:
      worker.close()

  def next(self, state: Any, client_data: Sequence[Any]) -> hetlora_tff.HetLoraOutput:
    """As `process.next`, in TFF's current context and on the workers.

    Args:
      state: of the process.
      client_data: of the cohort; of nobody, too.

    Raises:
      UserError: if no worker is left.
      RuntimeError: naming the worker on which the computation itself has failed.
    """
    parts = _parts(client_data, self._num_parts(len(client_data)))
    broadcast = self._split.prepare(state)
    finished = self._split.finish(state, self._train(broadcast, parts))
    return hetlora_tff.HetLoraOutput(
      finished.state, finished.metrics, _device_state(finished.ranks, len(client_data))
    )

  def _partial(self, directory: str | None) -> tff.Computation:
    """The computation on the clients, with its graphs on the backbone in a directory."""
    if directory not in self._partials:
      partial = self._split.partial
      if self._backbone and directory and directory != self._backbone.directory:
        partial = _moved(partial, self._backbone.directory, directory)
      self._partials[directory] = partial
    return self._partials[directory]

  def _num_parts(self, num_clients: int) -> int:
    """As many as there may be without parts too small to keep a worker busy."""
    busy = -(-num_clients // self._clients_at_a_time)
    return max(len(self._workers), min(busy, _PARTS_PER_WORKER * len(self._workers)))

  def _train(self, broadcast: Any, parts: Sequence[Any]) -> list[Any]:
    """The sums of every part, from whichever workers are there."""
    sums: dict[int, Any] = {}
    waiting = collections.deque(range(len(parts)))
    idle = collections.deque(worker for worker in self._workers if worker.is_connected)
    # The index of the part that a worker trains, None for one that is asked to come back.
    running: dict[concurrent.futures.Future, tuple[_Worker, int | None]] = {
      worker.asked_back(): (worker, None) for worker in self._workers if not worker.is_connected
    }
    while len(sums) < len(parts):
      while waiting and idle:
        worker, index = idle.popleft(), waiting.popleft()
        partial = self._partial(worker.backbone_directory)
        future = in_thread(worker.train, partial, broadcast, parts[index])
        running[future] = worker, index
      if not running:
        raise UserError(
          '--workers: none is left; finished rounds are kept. Start the workers again and go on '
          'with --resume.'
        )
      done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
      for future in done:
        worker, index = running.pop(future)
        if index is None:
          worker.returning = None
        try:
          result = future.result()
        except (_LostError, UserError) as error:
          if index is not None:
            worker.is_connected = False
            waiting.appendleft(index)
            self._say(f'Worker {worker.address} is lost: {error} Others do its part.')
          elif str(error) not in self._told:
            self._told.add(str(error))
            self._say(str(error))
          continue
        idle.append(worker)
        if index is None:
          worker.is_connected = True
          self._say(f'Worker {worker.address} is back.')
        else:
          sums[index] = result
    return [sums[index] for index in range(len(parts))]


class _LostError(Exception):
  """The connection to a worker has broken, or its process has."""


class _Worker:
  """One worker as rounds use it; its methods take long and are called in threads.

  Attributes:
    address: `host:port`.
    is_connected: whether it may be given clients; of the thread that hands them out.
    returning: the attempt to come back that is under way, if there is one.
    clients_at_a_time: how many it trains at the same time.
    backbone_directory: where it has the base model, if one is needed.
  """

  def __init__(self, address: str, token: str | None, backbone: hetlora_tff.FrozenBackbone | None):
    self.address = address
    self.is_connected = False
    self.returning: concurrent.futures.Future | None = None
    self.clients_at_a_time = 1
    self.backbone_directory: str | None = None
    self._remote = RemoteWorker(address, token)
    self._backbone = backbone
    self._context: tff.framework.SyncExecutionContext | None = None

  def connect(self, *seconds: float) -> None:
    """Checks that the worker is there and fits; see `RemoteWorker`."""
    self.clients_at_a_time = self._remote.describe(*seconds).max_concurrent_clients
    if self._backbone:
      self.backbone_directory = self._remote.find_backbone(self._backbone)
    # A new one: what the old context has left on a worker that was lost is gone.
    self._context = self._remote.connect(_end_where_connection_broke)

  def asked_back(self) -> concurrent.futures.Future:
    """The attempt to come back: one at a time, for it may outlast a round and two would cross."""
    if self.returning is None:
      self.returning = in_thread(self.connect, _RETURN_SECONDS)
    return self.returning

  def close(self) -> None:
    """Gives the worker up."""
    self._remote.close()

  def train(self, partial: tff.Computation, broadcast: Any, part: Any) -> Any:
    """The sums of a part of the cohort."""
    # Contexts are installed for one thread.
    with tff.framework.get_context_stack().install(self._context):
      try:
        return partial(broadcast, part)
      except _LostError:
        raise
      except Exception as error:
        # No UserError: its text may quote clients.
        raise RuntimeError(f'Worker {self.address} failed: {error}') from error


def _end_where_connection_broke() -> None:
  """Ends a computation whose request did not reach its end; TFF would try again for ever."""
  error = sys.exception()
  if isinstance(error, grpc.RpcError) and error.code() in _BROKEN:
    raise _LostError(_BROKEN[error.code()]) from None


def _moved(computation: tff.Computation, old: str, new: str) -> tff.Computation:
  """A computation with its graphs on another copy of the backbone."""
  message = tff.framework.serialize_computation(computation)
  rename_files(message, lambda path: str(pathlib.Path(new, pathlib.Path(path).relative_to(old))))
  return tff.framework.deserialize_computation(message)


def _parts(client_data: Sequence[Any], number: int) -> list[list[Any]]:
  """Deals a cohort out in up to `number` parts, clients with their positions.

  Each part has its share of those who come first, with most to do.
  """
  clients = [
    collections.OrderedDict(client=client, position=np.int32(position))
    for position, client in enumerate(client_data)
  ]
  number = min(number, len(clients))
  return [clients[part::number] for part in range(number)]


def _device_state(rows: np.ndarray, num_clients: int) -> list[collections.OrderedDict[str, Any]]:
  """Device states in the order of the clients, from rows of (position, rank)."""
  positions, ranks = np.transpose(rows)
  order = np.argsort(positions)
  if not np.array_equal(positions[order], np.arange(num_clients)):
    raise RuntimeError(f'The workers trained clients {positions[order]} of {num_clients}.')
  return [collections.OrderedDict(rank=rank) for rank in ranks[order]]
