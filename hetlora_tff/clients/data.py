# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Client data that carries the client's rank."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff


def pack_client_data(rank: int, examples: Any) -> collections.OrderedDict[str, Any]:
  """One client's input to a HetLoRA process.

  Args:
    rank: the client's rank.
    examples: a `tf.data.Dataset` of batches.

  Returns:
    `OrderedDict(rank=..., examples=...)`: TFF takes only sequences as client data, so the rank
    travels as a sequence of one element.
  """
  return collections.OrderedDict(
    rank=tf.data.Dataset.from_tensors(np.int32(rank)), examples=examples
  )


class RankedClientData:
  """A `tff.simulation.datasets.ClientData` whose clients have ranks; see `with_ranks`."""

  def __init__(
    self,
    client_data: tff.simulation.datasets.ClientData,
    ranks: Mapping[str, int],
    max_rank: int | None,
  ):
    """Not called by users: see `with_ranks`."""
    self._client_data = client_data
    self._ranks = dict(ranks)
    self._max_rank = max_rank

  @property
  def client_ids(self) -> list[str]:
    """All clients."""
    return self._client_data.client_ids

  @property
  def ranks(self) -> Mapping[str, int]:
    """The rank that each device has now."""
    return dict(self._ranks)

  def client_data(self, client_id: str) -> collections.OrderedDict[str, Any]:
    """The client's input to a HetLoRA process.

    Raises:
      ValueError: for an unknown client.
    """
    self._check_known(client_id)
    examples = self._client_data.create_tf_dataset_for_client(client_id)
    return pack_client_data(self._ranks[client_id], examples)

  def select(self, client_ids: Iterable[str]) -> list[collections.OrderedDict[str, Any]]:
    """The inputs of a cohort: what `client_selection_fn` of TFF's training loop returns."""
    return [self.client_data(client_id) for client_id in client_ids]

  def with_device_state(
    self, client_ids: Sequence[str], device_state: Sequence[Mapping[str, Any]]
  ) -> 'RankedClientData':
    """Gives the devices of a cohort what `HetLoraProcess.next` returned for them.

    Args:
      client_ids: the cohort, in the order in which it was passed to `next`.
      device_state: the third result of `next`.

    Raises:
      ValueError: for an unknown client, a rank outside `[1, max_rank]`, or another number of
        states than of clients.
    """
    if len(client_ids) != len(device_state):
      raise ValueError(
        f'`device_state` must have one entry per client, got {len(device_state)} for '
        f'{len(client_ids)} clients.'
      )
    ranks = dict(self._ranks)
    for client_id, state in zip(client_ids, device_state, strict=True):
      self._check_known(client_id)
      check_rank(client_id, state['rank'], self._max_rank)
      ranks[client_id] = int(state['rank'])
    return RankedClientData(self._client_data, ranks, self._max_rank)

  def _check_known(self, client_id: str) -> None:
    if client_id not in self._ranks:
      raise ValueError(f'There is no client {client_id!r}.')


def with_ranks(
  client_data: tff.simulation.datasets.ClientData,
  ranks: Mapping[str, int],
  max_rank: int | None = None,
) -> RankedClientData:
  """Adds a rank to every client of a TFF simulation dataset.

  Args:
    client_data: clients whose datasets yield batches.
    ranks: rank by client id.
    max_rank: the `max_rank` of the process, if the ranks are to be checked against it here rather
      than by the first round.

  Raises:
    ValueError: naming the first client whose rank is missing or outside `[1, max_rank]`.
  """
  for client_id in client_data.client_ids:
    if client_id not in ranks:
      raise ValueError(f'Client {client_id!r} has no rank.')
    check_rank(client_id, ranks[client_id], max_rank)
  known = {client_id: int(ranks[client_id]) for client_id in client_data.client_ids}
  return RankedClientData(client_data, known, max_rank)


def check_rank(client_id: str, rank: int, max_rank: int | None) -> None:
  """Raises a `ValueError` that names the client if its rank is not in `[1, max_rank]`."""
  # Not `int(rank)`: that fails by itself, without the client's name, for NaN and infinity.
  if rank % 1 != 0 or rank < 1 or (max_rank is not None and rank > max_rank):
    bound = 'at least 1' if max_rank is None else f'in [1, {max_rank}]'
    raise ValueError(f'The rank of client {client_id!r} must be an integer {bound}, got {rank}.')
