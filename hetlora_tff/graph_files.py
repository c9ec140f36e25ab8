# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The files that the graphs inside a computation name, and how to give them other names.

A frozen backbone is in a graph as `ImmutableConst` operations, each with the path of a tensor. TFF
keeps a graph as a packed `GraphDef`, anywhere in the message that a computation is.
"""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_PACKED = 'google.protobuf.Any'
_MAPPED, _PATH = 'ImmutableConst', 'memory_region_name'


def rename_files(message: Any, rename: Callable[[str], str]) -> None:
  """Gives every file that a computation maps into memory another name, in place.

  Args:
    message: what `tff.framework.serialize_computation` returns.
    rename: the new name of a file by the old one.
  """
  for packed in _graphs(message):
    graph = tf.compat.v1.GraphDef()
    packed.Unpack(graph)
    nodes = [node for node in _nodes(graph) if node.op == _MAPPED]
    for node in nodes:
      path = node.attr[_PATH].s.decode()
      node.attr[_PATH].s = rename(path).encode()
    if nodes:
      packed.Pack(graph)


def _graphs(message: Any) -> Iterator[Any]:
  """All packed graphs in a protocol message."""
  if message.DESCRIPTOR.full_name == _PACKED:
    if message.Is(tf.compat.v1.GraphDef.DESCRIPTOR):
      yield message
    return
  for field, value in message.ListFields():
    if field.message_type is None:
      continue
    for part in value if field.label == field.LABEL_REPEATED else [value]:
      yield from _graphs(part)


def _nodes(graph: tf.compat.v1.GraphDef) -> Iterator[Any]:
  """The nodes of a graph and of the functions that it calls."""
  yield from graph.node
  for function in graph.library.function:
    yield from function.node_def
