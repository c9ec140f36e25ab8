# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one run works out and the next would work out alike, kept in the user's own cache.

Tracing and compiling a learning process takes longer than a round of it. What is kept is found by
what it was made of, our own source code and the versions below it included, so it is never out of
date. It is executed, as the bytecode that Python keeps is: it must be nobody else's to change.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import pickle
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tensorflow_federated as tff

# Beside `deserialize_computation`, which forgets Python's containers, nothing public reads it.
from tensorflow_federated.proto.v0 import computation_pb2

from tasks import harvest
from tasks.cache import is_ours, kept_directory
from tasks.files import replace_file

_T = TypeVar('_T')
_VERSIONS = ('tensorflow', 'tensorflow-federated', 'keras', 'keras-nlp')
# What takes less is not worth a file.
_WORTH_SECONDS = 0.5
# The newest of a kind stay.
_MOST_FILES = 32
_DIGEST_BYTES = hashlib.sha256().digest_size


def kept(kind: str, parts: Sequence[Any], make: Callable[[], _T]) -> _T:
  """What `make` returns for `parts`, made by an earlier run if there was one.

  A cache that cannot be used is none: the value is made anew.

  Args:
    kind: a word; the name of a directory.
    parts: values for JSON that determine the result, together with this software.
    make: makes it; what it raises is raised.

  Returns:
    The value; computations, TFF's types and whatever else can be pickled.
  """
  key = json.dumps([software(), *parts], sort_keys=True).encode()
  name = f'{kind}/{hashlib.sha256(key).hexdigest()[:32]}'
  with contextlib.suppress(Exception):  # No home, or whatever damage leads to.
    return _read(kept_directory() / name)
  started = time.monotonic()
  value = make()
  if time.monotonic() - started > _WORTH_SECONDS:
    # A full disk, or a value that is of this process alone.
    with contextlib.suppress(Exception):
      _write(kept_directory() / name, value)
  return value


@functools.cache
def software() -> str:
  """A digest of our own source code and of the versions below it."""
  versions = [platform.python_version(), *map(harvest.version, _VERSIONS)]
  digest = hashlib.sha256(repr(versions).encode())
  root = pathlib.Path(__file__).parents[1]
  for package in ('hetlora_tff', 'privacy', 'tasks'):
    for file in sorted((root / package).rglob('*.py')):
      digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
  return digest.hexdigest()


def _read(path: pathlib.Path) -> Any:
  for directory in _directories(path):
    _check_ours(directory)
  with open(path, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
    # Of what is open: under this name there may be another file by now.
    _check_ours(file.fileno())
    content = file.read()
  digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
  if hashlib.sha256(data).digest() != digest:
    raise ValueError('cut or altered')
  value = pickle.loads(data)
  with contextlib.suppress(OSError):  # A cache that cannot be written.
    os.utime(path)
  return value


def _write(path: pathlib.Path, value: Any) -> None:
  stream = io.BytesIO()
  _Pickler(stream).dump(value)
  data = stream.getvalue()
  for directory in _directories(path):
    # `mode` is for the last one only.
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_ours(directory)
  replace_file(path, hashlib.sha256(data).digest() + data, mode=0o600)
  newest_first = sorted(path.parent.iterdir(), key=lambda file: -file.stat().st_mtime)
  for file in newest_first[_MOST_FILES:]:
    file.unlink(missing_ok=True)


def _directories(path: pathlib.Path) -> list[pathlib.Path]:
  """Those of ours that lead to a file of the cache, outermost first."""
  return [path.parent.parent, path.parent]


def _check_ours(path: pathlib.Path | int) -> None:
  if not is_ours(path):
    raise PermissionError('Others can change what is kept.')


class _Pickler(pickle.Pickler):
  """Knows what of TFF does not pickle by itself."""

  def reducer_override(self, value: Any) -> Any:
    """See the base class."""
    if isinstance(value, tff.framework.ConcreteComputation):
      data = tff.framework.serialize_computation(value).SerializeToString(deterministic=True)
      return _computation, (data, value.type_signature)
    if isinstance(value, tff.StructWithPythonType):
      return tff.StructWithPythonType, (tff.structure.to_elements(value), value.python_container)
    if isinstance(value, tff.StructType):
      return tff.StructType, (tff.structure.to_elements(value),)
    if isinstance(value, tff.framework.PlacementLiteral):
      # TFF compares placements by identity.
      return _placement, (value.uri,)
    return NotImplemented


def _computation(
  data: bytes, type_signature: tff.FunctionType
) -> tff.framework.ConcreteComputation:
  return tff.framework.ConcreteComputation(
    computation_proto=computation_pb2.Computation.FromString(data),  # pyright: ignore
    context_stack=tff.framework.get_context_stack(),
    # The message knows nothing of Python's containers.
    annotated_type=type_signature,
  )


def _placement(uri: str) -> tff.framework.PlacementLiteral:
  return tff.CLIENTS if uri == tff.CLIENTS.uri else tff.SERVER
