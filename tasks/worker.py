# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The TFF runtime of a run: one C++ worker process that never outlives us.

TFF's own local context hands our stdout and stderr to the worker; a worker that is left behind then
holds a user's pipe open for ever. Here the worker gets neither, and the kernel ends it with us,
however we end.

TFF's worker runs whatever it is sent, unauthenticated. Ours listens on a UNIX socket in a directory
that only its user can enter, and that is gone as soon as we are connected: there is no port, nobody
else can connect, and nothing is left behind.
"""

import contextlib
import ctypes
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Any

import grpc
import tensorflow_federated as tff

from tasks import worker_binary
from tasks.cache import own_cache_directory
from tasks.errors import UserError
from tasks.kept import kept

_MAX_MESSAGE_BYTES = 2_000_000_000
# For every channel and server on the way to a worker: a model is one message.
MESSAGE_OPTIONS = (
  ('grpc.max_receive_message_length', _MAX_MESSAGE_BYTES),
  ('grpc.max_send_message_length', _MAX_MESSAGE_BYTES),
)
# The socket is gone by then: a connection that gRPC drops for want of use could not be made anew.
_NEVER_IDLE = ('grpc.client_idle_timeout_ms', 2**31 - 1)
_START_SECONDS = 60.0
# TFF's `--port`: the name of the socket.
_SOCKET = '1'
# The kernel takes no longer path of a socket.
_MAX_SOCKET_BYTES = 107
_PR_SET_PDEATHSIG = 1
_NO_METHOD = '/hetlora_tff.Nobody/Has'


def connect(
  channel: grpc.Channel, check_running: Callable[[], None]
) -> tff.framework.SyncExecutionContext:
  """A TFF context that runs computations on the worker at the end of a channel.

  Args:
    channel: to a TFF worker, or to `hetlora worker`; made with `MESSAGE_OPTIONS`.
    check_running: is called where the error of a failed request is handled; what it raises ends the
      computation. If it returns the error goes on, and TFF tries again without end where the error
      is of the connection.

  Returns:
    The context. It connects when it is first used.
  """
  stub = _Stub(channel, check_running)

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

  def dispose(self, request):
    # Sent when Python drops a value, where nobody can catch what is raised.
    with contextlib.suppress(tff.framework.RetryableError, grpc.RpcError):
      return super().dispose(request)


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
    self._channel: grpc.Channel | None = None

  def __enter__(self) -> 'LocalWorker':
    try:
      self._channel = self._start()
      self._previous = tff.framework.get_context_stack().current
      tff.framework.set_default_context(connect(self._channel, self._end_if_lost))
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

  @property
  def exit_status(self) -> int | None:
    """Of the process if it has ended by itself, negative for a signal; None while it runs."""
    return self._process.poll() if self._process else None

  @property
  def channel(self) -> grpc.Channel:
    """The connection to the running worker."""
    if self._channel is None:
      raise RuntimeError('The worker does not run; enter its context first.')
    return self._channel

  def answers_within(self, seconds: float) -> bool:
    """Whether the process takes requests: one that is stopped, or ends just now, does not."""
    if self._channel is None:
      return False
    try:
      # It has no such method, and says so without any work.
      self._channel.unary_unary(_NO_METHOD)(b'', timeout=seconds)
    except grpc.RpcError as error:
      return error.code() is grpc.StatusCode.UNIMPLEMENTED
    return True

  def restart(self) -> None:
    """Ends the process with all that it computes and holds, and starts another.

    Contexts made on the old `channel` are of no use afterwards.
    """
    if self._process is not None:
      # It has nothing to keep.
      self._process.kill()
    self._stop()
    self._channel = self._start()

  def check_running(self) -> None:
    """Raises a UserError if the process has ended."""
    if self.exit_status is not None:
      raise UserError(
        f'The TFF worker process ended with status {self.exit_status} (-9: out of memory?); '
        'finished rounds are kept, go on with --resume.'
      )

  def _end_if_lost(self) -> None:
    """Ends a computation that TFF would try again for ever, see `connect`."""
    error = sys.exception()
    lost = isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.UNAVAILABLE
    if lost and self._process is not None:
      # The connection ends before the process does.
      with contextlib.suppress(subprocess.TimeoutExpired):
        self._process.wait(timeout=1)
    self.check_running()
    if lost:
      # The socket is gone, so there is no second connection.
      raise UserError(
        'The connection to the TFF worker process was lost; finished rounds are kept, go on with '
        '--resume.'
      )

  def _start(self) -> grpc.Channel:
    """Starts the process and connects to it."""
    program = worker_binary.prepare(own_cache_directory())
    with _socket_directory() as directory:
      self._process = self._launch(program, directory)
      # gRPC reads the path of a UNIX socket as a URI.
      address = f'unix:{urllib.parse.quote(str(directory / _SOCKET))}'
      self._await(lambda seconds: _exists_within(directory / _SOCKET, seconds))
      channel = grpc.insecure_channel(address, [*MESSAGE_OPTIONS, _NEVER_IDLE])
      self._await(lambda seconds: _is_ready_within(channel, seconds))
      return channel

  def _launch(self, program: pathlib.Path, directory: pathlib.Path) -> subprocess.Popen:
    command = [
      str(program),
      f'--port={_SOCKET}',
      f'--max_concurrent_computation_calls={self._max_concurrent_clients}',
    ]
    with _opened_log(self._log_file) as log:
      try:
        return subprocess.Popen(
          command,
          cwd=directory,
          env={**self._thread_counts(), **os.environ},
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=log,
          # Ctrl-C reaches us alone, so that a round can end in order.
          start_new_session=True,
          preexec_fn=_death_with_parent(),
        )
      except OSError as error:
        raise UserError(
          f'Cannot start {program}: {error.strerror}; name a directory from which programs may run '
          'in HETLORA_CACHE.'
        ) from error

  def _thread_counts(self) -> dict[str, str]:
    """Threads of an operation, so that all clients together have one for each core."""
    cores = len(os.sched_getaffinity(0))
    return {'TF_NUM_INTRAOP_THREADS': str(max(1, cores // self._max_concurrent_clients))}

  def _await(self, happens_within: Callable[[float], bool]) -> None:
    """Waits for a step of the start, for as long as the process runs."""
    deadline = time.monotonic() + _START_SECONDS
    while not happens_within(0.1):
      if self.exit_status is not None or time.monotonic() > deadline:
        raise UserError(f'The TFF worker process did not start; its output is in {self._log_file}.')

  def _stop(self) -> None:
    # Not closed: TFF watches it from a thread that would complain.
    process, self._process, self._channel = self._process, None, None
    if process is None:
      return
    process.terminate()
    try:
      process.wait(timeout=5)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def _compile(computation):
  message = tff.framework.serialize_computation(computation)
  digest = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
  return kept('compiled', [digest], lambda: _compiled(computation))


def _compiled(computation):
  # No runtime of TFF's has a protocol for secure sums: they are run as plain ones.
  return tff.backends.native.desugar_and_transform_to_native(
    tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
  )


def _opened_log(path: str | os.PathLike) -> IO[bytes]:
  try:
    # It may quote clients.
    return open(path, 'ab', opener=lambda name, flags: os.open(name, flags, mode=0o600))
  except OSError as error:
    raise UserError(f'Cannot write the log of the TFF worker, {path}: {error.strerror}.') from error


@contextlib.contextmanager
def _socket_directory() -> Iterator[pathlib.Path]:
  """A new directory for the socket, which only we can enter."""
  name = tempfile.mkdtemp(prefix='hetlora-')
  if len(os.fsencode(f'{name}/{_SOCKET}')) > _MAX_SOCKET_BYTES:
    os.rmdir(name)
    name = tempfile.mkdtemp(prefix='hetlora-', dir='/tmp')
  try:
    yield pathlib.Path(name)
  finally:
    shutil.rmtree(name, ignore_errors=True)


def _exists_within(path: pathlib.Path, seconds: float) -> bool:
  deadline = time.monotonic() + seconds
  while not path.exists():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.01)
  return True


def _is_ready_within(channel: grpc.Channel, seconds: float) -> bool:
  try:
    grpc.channel_ready_future(channel).result(seconds)
  except grpc.FutureTimeoutError:
    return False
  return True


def _death_with_parent() -> Callable[[], Any] | None:
  """What a child calls to be killed when this thread ends; None where the kernel cannot."""
  if sys.platform != 'linux':
    return None
  # Looked up here: between fork and exec, a loader's lock may be held by a thread that is gone.
  prctl = ctypes.CDLL(None).prctl
  return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
