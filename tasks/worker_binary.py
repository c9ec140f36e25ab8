# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""TFF's worker program, made to listen on a UNIX socket instead of on every network interface.

TFF has no flag for the address: `--port=N` becomes `[::]:N`, open to whoever reaches the machine,
and the worker runs whatever it is sent. gRPC takes `unix:N` at the same place, a file `N` in the
directory that the process runs in. So the cache holds a copy of the program in which that one
string, of the same length, is another.
"""

import mmap
import os
import pathlib
import shutil
import threading

import tensorflow_federated as tff

from tasks.cache import is_ours
from tasks.errors import UserError

_EVERYWHERE, _UNIX_SOCKET = b'\0[::]:\0', b'\0unix:\0'
_MODE = 0o700


def prepare(cache: pathlib.Path) -> pathlib.Path:
  """The program that listens on a UNIX socket, copied the first time.

  Args:
    cache: where the copy is kept, about 300 MB, one for each version of TFF.

  Returns:
    The copy. Started in a directory with `--port=N` it listens on the socket `N` there.

  Raises:
    UserError: if this TFF has no worker, its worker listens in another way, or the copy cannot be
      written.
  """
  source = _worker_of_tff()
  size = source.stat().st_size
  copy = cache / 'workers' / f'tensorflow_federated-{tff.__version__}-{size}'
  try:
    copy.parent.mkdir(mode=_MODE, parents=True, exist_ok=True)
    if not copy.is_file() or copy.stat().st_size != size:
      _copy(source, copy)
    for path in (copy.parent, copy):
      if not is_ours(path):
        raise UserError(
          f'{path} belongs to another user or can be written by others, and it is executed; remove '
          'it.'
        )
  except OSError as error:
    raise UserError(
      f"Cannot write TFF's worker, {size >> 20} MiB, to {copy.parent}: {error.strerror}; make room "
      'or name another directory in XDG_CACHE_HOME.'
    ) from error
  return copy


def _worker_of_tff() -> pathlib.Path:
  binary = pathlib.Path(tff.__file__).parent / 'data' / 'worker_binary'
  if not binary.is_file():
    raise UserError(f'This tensorflow-federated has no worker at {binary}; reinstall it.')
  return binary


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies with the other address, all of it or nothing; others may do so at the same time."""
  place = _place_of_address(source)
  draft = target.with_name(f'.{target.name}.{os.getpid()}.{threading.get_ident()}.draft')
  try:
    shutil.copyfile(source, draft)
    with open(draft, 'r+b') as file:
      file.seek(place)
      file.write(_UNIX_SOCKET)
      file.flush()
      os.fsync(file.fileno())
    draft.chmod(_MODE)
    os.replace(draft, target)
  finally:
    draft.unlink(missing_ok=True)


def _place_of_address(binary: pathlib.Path) -> int:
  with open(binary, 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
    place = content.find(_EVERYWHERE)
    if place < 0 or content.find(_EVERYWHERE, place + 1) >= 0:
      raise UserError(
        f'{binary} does not listen on `[::]` in the way of TFF 0.87, so it cannot be kept off the '
        f'network; install the locked tensorflow-federated, this is {tff.__version__}.'
      )
    return place
