# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A round cut where its messages are, so that several runtimes can share its clients.

    driver                    runtimes, each with some of the clients       driver
    S --prepare--> broadcast --partial--> sums of its clients, new ranks --finish--> S', metrics

`prepare` and `finish` run once a round and hold everything that happens at the server: noise is
drawn once, whoever trained the clients. `partial` is one plain computation without a server state,
so it may be given up and run again elsewhere as long as its result is used once.
"""

import collections
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from hetlora_tff.process import HetLoraProcess


class FinishedRound(NamedTuple):
  """Result of `SplitRound.finish`.

  Attributes:
    state: as that of `HetLoraOutput`.
    metrics: likewise.
    ranks: int32 `[clients, 2]`, rows of (position, rank that the device has from now on), in any
      order.
  """

  state: Any
  metrics: Any
  ranks: Any


class SplitRound(NamedTuple):
  """`HetLoraProcess.next` in three computations.

  Attributes:
    prepare: `(S -> B)`, what is sent to every client.
    partial: `(<B@SERVER, {<client=D, position=int32>}@CLIENTS> -> A@SERVER)`: the sums over these
      clients, D being a client's data of `next`; positions tell the clients of a round apart.
    finish: `(<S@SERVER, {A}@CLIENTS> -> FinishedRound@SERVER)`, from the sums of all parts of a
      cohort, in a fixed order; of no part for an empty cohort.
  """

  prepare: tff.Computation
  partial: tff.Computation
  finish: tff.Computation


def build_split_round(process: HetLoraProcess) -> SplitRound:
  """Splits a process's round.

  A round in parts is the round in one piece but for the order in which floating-point numbers are
  added: sums are exact under secure aggregation, whose modular sums stay modular. What clients are
  sent has to follow from the state without chance: `finish` may derive it anew.

  Args:
    process: of any method, private or not.

  Raises:
    ValueError: if a round is more than one broadcast and one aggregation after it: clients that
      select what they download, or a measured `deviation_from_exact`.
  """
  # The graphs as they are: workers optimise what they run.
  config = tf.compat.v1.ConfigProto()
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  try:
    form = tff.backends.mapreduce.get_map_reduce_form_for_computation(
      _with_positions(process), grappler_config=config
    )
  except ValueError as error:
    raise ValueError(
      'The round cannot be split: only one broadcast with one aggregation after it can, so neither '
      '`RankSelect` nor `measures_deviation`.'
    ) from error
  return SplitRound(form.prepare, _build_partial(form), _build_finish(form, process))


def _with_positions(process: HetLoraProcess) -> tff.Computation:
  """`next` with device states that leave as rows: the form has no place for values at clients."""
  state_type, data_type = process.next.type_signature.parameter
  row_type = collections.OrderedDict(position=np.int32, rank=np.int32)
  rows_type = tff.TensorType(np.int32, [None, 2])

  @tff.tensorflow.computation
  def no_rows():
    return tf.compat.v1.placeholder_with_default(tf.zeros([0, 2], tf.int32), [None, 2])

  @tff.tensorflow.computation(rows_type, row_type)
  def add_row(rows, row):
    return tf.concat([rows, [[row['position'], row['rank']]]], axis=0)

  @tff.tensorflow.computation(rows_type, rows_type)
  def join(rows, more):
    return tf.concat([rows, more], axis=0)

  @tff.tensorflow.computation(rows_type)
  def unchanged(rows):
    return rows

  positioned_type = collections.OrderedDict(client=data_type.member, position=np.int32)

  @tff.federated_computation(state_type, tff.FederatedType(positioned_type, tff.CLIENTS))
  def next_fn(state, client_data):
    output = process.next(state, client_data['client'])
    rows = tff.federated_zip(
      collections.OrderedDict(position=client_data['position'], rank=output.device_state['rank'])
    )
    ranks = tff.federated_aggregate(rows, no_rows(), add_row, join, unchanged)
    return output.state, tff.federated_zip((output.metrics, ranks))

  return next_fn


def _build_partial(form: tff.backends.mapreduce.MapReduceForm) -> tff.Computation:
  @tff.tensorflow.computation(form.merge.type_signature.result)
  def unchanged(sums):
    return sums

  @tff.federated_computation(
    tff.FederatedType(form.prepare.type_signature.result, tff.SERVER),
    tff.FederatedType(form.work.type_signature.parameter[0], tff.CLIENTS),
  )
  def partial(broadcast, client_data):
    received = tff.federated_broadcast(broadcast)
    sent = tff.federated_map(form.work, (client_data, received))
    return tff.federated_zip(
      (
        tff.federated_aggregate(sent[0], form.zero(), form.accumulate, form.merge, unchanged),
        tff.federated_secure_sum_bitwidth(sent[1], form.secure_sum_bitwidth()),
        tff.federated_secure_sum(sent[2], form.secure_sum_max_input()),
        tff.backends.mapreduce.federated_secure_modular_sum(
          sent[3], form.secure_modular_sum_modulus()
        ),
      )
    )

  return partial


def _build_finish(
  form: tff.backends.mapreduce.MapReduceForm, process: HetLoraProcess
) -> tff.Computation:
  output_type = process.next.type_signature.result
  sums_type = (form.merge.type_signature.result, *form.work.type_signature.result[1:])

  @tff.federated_computation(
    process.next.type_signature.parameter[0], tff.FederatedType(sums_type, tff.CLIENTS)
  )
  def finish(state, sums):
    total = (
      tff.federated_aggregate(sums[0], form.zero(), form.merge, form.merge, form.report),
      # The limits of secure sums are those of one client; these are sums already.
      tff.federated_sum(sums[1]),
      tff.federated_sum(sums[2]),
      tff.backends.mapreduce.federated_secure_modular_sum(
        sums[3], form.secure_modular_sum_modulus()
      ),
    )
    new_state, (metrics, ranks) = tff.federated_map(form.update, (state, total))
    return FinishedRound(
      _in_containers(new_state, output_type.state.member),
      _in_containers(metrics, output_type.metrics.member),
      ranks,
    )

  return finish


def _in_containers(value, type_: tff.Type):
  """The value in the Python containers of a type; a form of TFF's forgets its own."""

  @tff.tensorflow.computation(type_)
  def unchanged(structure):
    return structure

  return tff.federated_map(unchanged, value)
