# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums of real processes that die, hang, lie about who they are or are started wrongly."""

import asyncio
import contextlib
import pathlib
import socket
import stat
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest

from privacy.secagg import __main__ as command
from privacy.secagg import primitives, tcp, wire
from privacy.secagg.errors import BelowThresholdError, MalformedMessageError, SecAggError
from privacy.secagg.parameters import Mode, Phase, ProtocolSpec

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_LENGTH, _BITS = 5_000, 20
_HELLO, _WELCOME, _MESSAGE, _END = 1, 2, 3, 4
# A client process that kills itself where others answer; `halfway` kills it inside its vector.
_VICTIM = """
import os, signal, struct, sys
from privacy.secagg import __main__, client, tcp

def die(*_):
  os.kill(os.getpid(), signal.SIGKILL)

async def send(self, kind, body):
  self.writer.write((struct.pack('>IB', len(body), kind) + body)[:6_000])
  await self.writer.drain()
  if len(body) > 6_000:
    die()

halfway = sys.argv[1] == 'halfway'
setattr(*((tcp._Connection, 'send', send) if halfway else (client.Client, sys.argv[1], die)))
sys.exit(__main__.main(sys.argv[2:]))
"""


def _spec(clients=4, threshold=3, mode=Mode.SEMI_HONEST):
  return ProtocolSpec(clients, threshold, _LENGTH, _BITS, mode)


def _vectors(clients):
  return np.random.default_rng(0).integers(0, 1 << _BITS, [clients, _LENGTH], np.uint64)


def _total(vectors, clients):
  return vectors[list(clients)].sum(axis=0) % np.uint64(1 << _BITS)


def _serve(spec, play, deadline=20.0, **keys):
  """Serves while `play(port)` goes on; what came of the session, and of the play."""

  async def session():
    listening = asyncio.get_running_loop().create_future()
    place = {'host': '127.0.0.1', 'port': 0, 'deadline': deadline}
    told = {'on_listening': lambda _, port: listening.set_result(port)}
    serving = asyncio.create_task(tcp.serve(spec, **place, **told, **keys))
    played = await play(await listening)
    return (await asyncio.gather(serving, return_exceptions=True))[0], played

  return asyncio.run(session())


def _join(spec, client_id, port, vector=None, **keys):
  """Starts a client with its own vector, or another."""
  if vector is None:
    vector = _vectors(spec.num_clients)[client_id]
  place = {'host': '127.0.0.1', 'port': port, 'deadline': 20.0}
  return asyncio.create_task(tcp.take_part(spec, client_id, vector, **place, **keys))


async def _join_all(spec, port):
  clients = (_join(spec, k, port) for k in range(spec.num_clients))
  return await asyncio.gather(*clients, return_exceptions=True)


def _frame(kind, body):
  return struct.pack('>IB', len(body), kind) + body


def _hello(spec, client_id):
  return _frame(_HELLO, struct.pack('>I', client_id) + tcp._describe(spec))


async def _tell(port, *frames):
  """Sends these bytes and reads what it is told until it is sent away."""
  reader, writer = await asyncio.open_connection('127.0.0.1', port)
  writer.write(b''.join(frames))
  told = await reader.read()
  writer.close()
  return told


def _flags(spec, port, **more):
  flags = {'clients': spec.num_clients, 'threshold': spec.threshold, 'mode': spec.mode.value}
  flags |= {'length': _LENGTH, 'modulus-bits': _BITS, 'port': port, **more}
  return _words(flags)


def _start(*words, victim=None):
  program = ['-m', 'privacy.secagg'] if victim is None else ['-c', _VICTIM, victim]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  return subprocess.Popen([sys.executable, *program, *words], cwd=_ROOT, text=True, **pipes)


@contextlib.contextmanager
def _processes(spec, victims, folder):
  """A server process and its clients, some of which will die; each ends with the context."""
  vectors, more = _vectors(spec.num_clients), {}
  if spec.mode is Mode.MALICIOUS:
    more = {'verify-keys': folder / 'clients.pub'}
    for k in range(spec.num_clients):
      key = folder / f'{k}.key'
      assert command.main(['keygen', '--id', f'{k}', '--signing-key', f'{key}', *_words(more)]) == 0
  server = _start('server', *_flags(spec, 0, output=folder / 'sum.npy', deadline=60, **more))
  started = [server]
  try:
    port = int(server.stdout.readline().rpartition(':')[2])
    for k in range(spec.num_clients):
      np.save(folder / f'{k}.npy', vectors[k])
      own = {'id': k, 'vector': folder / f'{k}.npy', **more}
      if spec.mode is Mode.MALICIOUS:
        own['signing-key'] = folder / f'{k}.key'
      started.append(_start('client', *_flags(spec, port, **own), victim=victims.get(k)))
    yield started
  finally:
    for process in started:
      process.kill()
      process.communicate()


def _is_one_line(err):
  return err.startswith('secagg: ') and err.count('\n') == 1


def _words(flags):
  return [text for key, value in flags.items() for text in (f'--{key}', str(value))]


@pytest.mark.parametrize(
  ('spec', 'victims'),
  [
    (_spec(9, 5), {0: 'share_keys', 3: 'mask', 4: 'halfway', 8: 'unmask'}),
    (_spec(10, 7, Mode.MALICIOUS), {1: 'mask', 2: 'confirm', 9: 'unmask'}),
  ],
  ids=['semi_honest', 'malicious'],
)
def test_sum_of_processes_of_which_some_are_killed(spec, victims, tmp_path):
  with _processes(spec, victims, tmp_path) as (server, *clients):
    out, err = server.communicate(timeout=120)
    codes = [client.wait(timeout=60) for client in clients]
  assert (err, server.returncode) == ('', 0)
  assert codes == [-9 if k in victims else 0 for k in range(spec.num_clients)]
  # Whoever dies after its vector has come is in the sum.
  gone = [k for k, where in victims.items() if where in ('share_keys', 'mask', 'halfway')]
  there = [k for k in range(spec.num_clients) if k not in gone]
  assert out == f'sum of {len(there)} clients: {" ".join(map(str, there))}\n'
  total = _total(_vectors(spec.num_clients), there)
  np.testing.assert_array_equal(np.load(tmp_path / 'sum.npy'), total)


def test_below_the_threshold_the_server_stops_and_tells_the_clients(tmp_path):
  victims = {0: 'mask', 1: 'mask'}
  with _processes(_spec(4, 3), victims, tmp_path) as (server, *clients):
    out, err = server.communicate(timeout=120)
    said = [client.communicate(timeout=120)[1] for client in clients]
  assert (out, server.returncode) == ('', 2)
  assert _is_one_line(err)
  assert not (tmp_path / 'sum.npy').exists()
  assert said == ['', '', err, err]
  assert [client.returncode for client in clients] == [-9, -9, 2, 2]


@pytest.mark.parametrize('mode', list(Mode))
def test_who_never_joins_or_hangs_is_left_out(mode):
  spec = _spec(7, 5, mode)
  signing, verify = [{}] * 7, {}
  if mode is Mode.MALICIOUS:
    keys = [primitives.new_signing_key() for _ in range(7)]
    verify = {'verify_keys': {k: primitives.verify_key(key) for k, key in enumerate(keys)}}
    signing = [{'signing_key': key} for key in keys]

  async def play(port):
    # 5 says who it is and no more; 6 does not come.
    hanging = await asyncio.open_connection('127.0.0.1', port)
    hanging[1].write(_hello(spec, 5))
    await asyncio.gather(*(_join(spec, k, port, **signing[k], **verify) for k in range(5)))
    hanging[1].close()

  result, _ = _serve(spec, play, deadline=1.0, **verify)
  assert result.clients == (0, 1, 2, 3, 4)
  np.testing.assert_array_equal(result.total, _total(_vectors(7), range(5)))


@pytest.mark.parametrize('phase', [Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.UNMASKING])
def test_who_hangs_in_a_phase_is_left_out_and_told(phase, monkeypatch):
  spec = _spec(5, 3)
  honest = tcp.answer

  def answer(client, message, vector):
    hangs = client._id == 1 and client.next_phase is phase
    said = honest(client, message, vector)
    return b'' if hangs else said

  async def send(self, kind, body, honest=tcp._Connection.send):
    if kind != _MESSAGE or body:
      await honest(self, kind, body)

  monkeypatch.setattr(tcp, 'answer', answer)
  monkeypatch.setattr(tcp._Connection, 'send', send)
  result, outcomes = _serve(spec, lambda port: _join_all(spec, port), deadline=1.0)
  there = [0, 1, 2, 3, 4] if phase is Phase.UNMASKING else [0, 2, 3, 4]
  assert list(result.clients) == there
  np.testing.assert_array_equal(result.total, _total(_vectors(5), there))
  assert 'too late' in str(outcomes.pop(1))
  assert outcomes == [None] * 4


def test_a_message_longer_than_the_phase_allows_is_not_read(monkeypatch):
  spec, honest = _spec(), tcp.answer
  most = wire.message_bytes(spec, Phase.SHARE_KEYS, wire.Direction.TO_SERVER)

  def answer(client, message, vector):
    said = honest(client, message, vector)
    return said + b'x' if client._id == 2 and len(said) == most else said

  monkeypatch.setattr(tcp, 'answer', answer)
  result, outcomes = _serve(spec, lambda port: _join_all(spec, port))
  assert result.clients == (0, 1, 3)
  assert str(outcomes[2]) == f'a frame of {most + 1} bytes, where {most} are the most'


@pytest.mark.parametrize(
  ('frames', 'reason'),
  [
    ([struct.pack('>IB', 2**32 - 1, _HELLO)], b'a frame of 4294967295 bytes'),
    ([_frame(_MESSAGE, b'')], b'a frame of kind 3, where 1 was due'),
    ([_frame(_HELLO, b'')], b'the server was started for'),
    ([_hello(_spec(4, 4), 0)], b'threshold 3,'),
    ([_hello(_spec(), 0), _frame(_MESSAGE, b'junk')], b'cut short'),
    ([_hello(_spec(), 77), _frame(_MESSAGE, bytes(40))], b'Not a message'),
    ([b'GET / HTTP/1.0\r\n\r\n'], b'a frame of'),
  ],
)
def test_strangers_are_sent_away_and_change_nothing(frames, reason):
  spec = _spec()

  async def play(port):
    return await _tell(port, *frames), await _join_all(spec, port)

  result, (told, outcomes) = _serve(spec, play)
  # Before the end there may be a welcome.
  end = told[5 + 16 :] if told[4] == _WELCOME else told
  assert end[4] == _END
  assert reason in end
  assert outcomes == [None] * 4
  np.testing.assert_array_equal(result.total, _total(_vectors(4), range(4)))


def test_a_second_client_of_the_same_id_does_not_take_the_place_of_the_first():
  spec, vectors = _spec(), _vectors(4)

  async def play(port):
    first = _join(spec, 0, port)
    await asyncio.sleep(0.2)
    second = await asyncio.gather(_join(spec, 0, port, vectors[1]), return_exceptions=True)
    await asyncio.gather(first, *(_join(spec, k, port) for k in (1, 2, 3)))
    return second[0]

  result, second = _serve(spec, play)
  assert isinstance(second, tcp.SessionEndedError)
  np.testing.assert_array_equal(result.total, _total(vectors, range(4)))


def test_too_few_is_an_error_of_the_session():
  spec = _spec()

  async def play(port):
    return await asyncio.gather(*(_join(spec, k, port) for k in (1, 3)), return_exceptions=True)

  error, outcomes = _serve(spec, play, deadline=0.5)
  assert isinstance(error, BelowThresholdError)
  assert [type(outcome) for outcome in outcomes] == [tcp.SessionEndedError] * 2
  assert [str(outcome) for outcome in outcomes] == [str(error)] * 2


@contextlib.contextmanager
def _fake_server(reply):
  """The port of a server that answers anything with these bytes and hangs up."""
  with socket.create_server(('127.0.0.1', 0)) as listener:

    def answer():
      connection, _ = listener.accept()
      with connection:
        connection.recv(4096)
        connection.sendall(reply)

    thread = threading.Thread(target=answer)
    thread.start()
    yield listener.getsockname()[1]
    thread.join()


@pytest.mark.parametrize(
  ('reply', 'error'),
  [
    (b'', EOFError),
    (_frame(_WELCOME, bytes(16))[:9], EOFError),
    (struct.pack('>IB', 2**32 - 1, _WELCOME), MalformedMessageError),
    (struct.pack('>IB', 2**32 - 1, _END), MalformedMessageError),
    (_frame(_WELCOME, bytes(15)), SecAggError),
    (_frame(_WELCOME, bytes(16)) + _frame(_MESSAGE, bytes(99)), SecAggError),
    (_frame(_END, b'no\x1b[2J room'), tcp.SessionEndedError),
  ],
)
def test_a_client_survives_any_server(reply, error):
  place = {'host': '127.0.0.1', 'deadline': 5.0}
  with _fake_server(reply) as port, pytest.raises(error) as caught:
    asyncio.run(tcp.take_part(_spec(), 0, _vectors(4)[0], port=port, **place))
  assert str(caught.value).isprintable()


def _client_words(folder, **changes):
  np.save(folder / 'v.npy', _vectors(1)[0])
  flags = {'id': 0, 'vector': folder / 'v.npy', **changes}
  return ['client', *_flags(_spec(), flags.pop('port', 1), **flags)]


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'vector': 'missing.npy'}, 'missing.npy'),
    ({'vector': __file__}, '--vector'),
    ({'threshold': 1}, '`threshold` 1 is not more than half'),
    ({'id': 4}, '4'),
    ({'id': 'x'}, '--id'),
    ({'mode': 'malicious', 'verify-keys': __file__}, f'--verify-keys {__file__}:1'),
    ({'signing-key': __file__}, '--signing-key'),
    ({'mode': 'kind'}, '--mode'),
    ({'deadline': -1}, '--deadline'),
    ({}, 'no server listens'),
  ],
)
def test_errors_of_the_client_are_one_line(changes, named, tmp_path, capsys):
  assert command.main(_client_words(tmp_path, **changes)) == 2
  _, err = capsys.readouterr()
  assert _is_one_line(err)
  assert named in err


@pytest.mark.parametrize(
  'vector',
  [
    np.zeros(_LENGTH + 1, np.int64),
    np.zeros([_LENGTH, 1], np.int64),
    np.zeros(_LENGTH, np.float32),
    np.full(_LENGTH, 1 << _BITS, np.uint64),
    np.full(_LENGTH, -(1 << _BITS), np.int64),
  ],
)
def test_other_vectors_are_refused_before_anything_is_sent(vector, tmp_path, capsys):
  np.save(tmp_path / 'other.npy', vector)
  assert command.main(_client_words(tmp_path, vector=tmp_path / 'other.npy')) == 2
  _, err = capsys.readouterr()
  assert _is_one_line(err)
  assert f'--vector {tmp_path}/other.npy: ' in err


def test_errors_of_the_server_are_one_line(tmp_path, capsys):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    for changes, named in (
      ({'output': tmp_path / 'no' / 'sum.npy'}, '--output'),
      ({'output': tmp_path / 'sum.npy'}, 'in use'),
      ({'output': tmp_path / 'sum.npy', 'mode': 'malicious', 'threshold': 3}, 'verify'),
    ):
      assert command.main(['server', *_flags(_spec(), port, **changes)]) == 2
      _, err = capsys.readouterr()
      assert _is_one_line(err)
      assert named in err
  assert command.main([]) == 2


def test_a_signing_key_is_its_owners_alone_and_never_replaced(tmp_path, capsys):
  key, keys = tmp_path / 'a.key', tmp_path / 'all.pub'
  words = ['keygen', '--id', '3', '--signing-key', f'{key}', '--verify-keys', f'{keys}']
  assert command.main(words) == 0
  assert stat.S_IMODE(key.stat().st_mode) == 0o600
  before = key.read_bytes(), keys.read_bytes()
  assert command.main(words) == 2
  assert 'a.key' in capsys.readouterr().err
  assert (key.read_bytes(), keys.read_bytes()) == before
