# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The TFF runtime of a run: one C++ worker process that never outlives us.

TFF's own local context hands our stdout and stderr to the worker; a worker that is left behind then
holds a user's pipe open for ever. Here the worker gets neither, and the kernel ends it with us,
however we end.

TFF's worker listens on all interfaces and runs whatever it is sent, unauthenticated: for as long as
a run lasts, its port must not be reachable by anyone who is not trusted.
"""

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc
import portpicker
import tensorflow_federated as tff

from tasks.errors import UserError

_MAX_MESSAGE_BYTES = 2_000_000_000
_CHANNEL_OPTIONS = [
  ('grpc.max_receive_message_length', _MAX_MESSAGE_BYTES),
  ('grpc.max_send_message_length', _MAX_MESSAGE_BYTES),
]
_START_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


class _Stub(tff.framework.RemoteExecutorGrpcStub):
  """Asks whether the worker still runs when a request fails: TFF would try again without end."""

  def __init__(self, channel: grpc.Channel, check_running: Callable[[], None]):
    super().__init__(channel)
    self._check_running = check_running

  def _request(self, send: Callable, request):
    try:
      return send(request)
    except (tff.framework.RetryableError, grpc.RpcError):
      self._check_running()
      raise

  def get_executor(self, request):
    return self._request(super().get_executor, request)

  def create_value(self, request):
    return self._request(super().create_value, request)

  def create_struct(self, request):
    return self._request(super().create_struct, request)

  def create_call(self, request):
    return self._request(super().create_call, request)

  def create_selection(self, request):
    return self._request(super().create_selection, request)

  def compute(self, request):
    return self._request(super().compute, request)


class LocalWorker:
  """Runs TFF computations in one C++ worker process; a context manager.

  Inside the `with` block the worker's context is TFF's default.
  """

  def __init__(self, max_concurrent_clients: int, log_file: str | os.PathLike | None = None):
    """Initializes the worker; the process starts on entry.

    Args:
      max_concurrent_clients: how many clients train at the same time, at least 1.
      log_file: where the worker's own output goes; nowhere by default.
    """
    if max_concurrent_clients < 1:
      raise ValueError(f'`max_concurrent_clients` must be >= 1, got {max_concurrent_clients}.')
    self._max_concurrent_clients = max_concurrent_clients
    self._log_file = log_file or os.devnull
    self._process: subprocess.Popen | None = None
    self._previous = None

  def __enter__(self) -> 'LocalWorker':
    port = portpicker.pick_unused_port()
    self._process = self._start(port)
    try:
      self._previous = tff.framework.get_context_stack().current
      tff.framework.set_default_context(self._connect(port))
    except BaseException:
      # An interrupted entry has no exit.
      self._stop()
      raise
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    tff.framework.set_default_context(self._previous)
    self._stop()

  @property
  def pid(self) -> int | None:
    """Process id of the running worker."""
    return self._process.pid if self._process else None

  def _start(self, port: int) -> subprocess.Popen:
    command = [
      str(_worker_binary()),
      f'--port={port}',
      f'--max_concurrent_computation_calls={self._max_concurrent_clients}',
    ]
    with open(self._log_file, 'ab') as log:
      return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # Ctrl-C reaches us alone, so that a round can end in order.
        start_new_session=True,
        preexec_fn=_death_with_parent(),
      )

  def _connect(self, port: int) -> tff.framework.SyncExecutionContext:
    channel = grpc.insecure_channel(f'localhost:{port}', _CHANNEL_OPTIONS)
    stub = _Stub(channel, self._check_running)
    self._await_ready(stub)

    def stack(cardinalities):
      cardinalities.setdefault(tff.CLIENTS, 0)
      executor = tff.framework.RemoteExecutor(stub, stream_structs=False)
      executor.set_cardinalities(cardinalities)
      return executor

    return tff.framework.SyncExecutionContext(
      executor_fn=tff.framework.ResourceManagingExecutorFactory(executor_stack_fn=stack),
      compiler_fn=_compile,
      transform_args=tff.tensorflow.transform_args,
      transform_result=tff.tensorflow.transform_result,
    )

  def _await_ready(self, stub: tff.framework.RemoteExecutorGrpcStub) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not stub.is_ready:
      ended = self._process is None or self._process.poll() is not None
      if ended or time.monotonic() > deadline:
        self._stop()
        raise UserError(f'The TFF worker process did not start; its output is in {self._log_file}.')
      time.sleep(0.05)

  def _check_running(self) -> None:
    status = self._process.poll() if self._process else None
    if status is not None:
      raise UserError(
        f'The TFF worker process ended with status {status} (-9: out of memory?); finished rounds '
        'are kept, go on with --resume.'
      )

  def _stop(self) -> None:
    process, self._process = self._process, None
    if process is None:
      return
    process.terminate()
    try:
      process.wait(timeout=5)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def _compile(computation):
  # No runtime of TFF's has a protocol for secure sums: they are run as plain ones.
  return tff.backends.native.desugar_and_transform_to_native(
    tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
  )


def _worker_binary() -> pathlib.Path:
  binary = pathlib.Path(tff.__file__).parent / 'data' / 'worker_binary'
  if not binary.is_file():
    raise UserError(f'This tensorflow-federated has no worker at {binary}; reinstall it.')
  return binary


def _death_with_parent() -> Callable[[], Any] | None:
  """What a child calls to be killed when this thread ends; None where the kernel cannot."""
  if sys.platform != 'linux':
    return None
  # Looked up here: between fork and exec, a loader's lock may be held by a thread that is gone.
  prctl = ctypes.CDLL(None).prctl
  return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
