# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums over TCP with clients that hang, lie about who they are or are not of the protocol."""

import asyncio
import contextlib
import dataclasses
import functools
import socket
import struct
import threading

import numpy as np
import pytest

from privacy.secagg import greeting, primitives, tcp, wire
from privacy.secagg.errors import BelowThresholdError, MalformedMessageError, SecAggError
from privacy.secagg.parameters import Mode, Phase, ProtocolSpec

_LENGTH, _BITS = 5_000, 20
_HELLO, _WELCOME, _MESSAGE, _END = 1, 2, 3, 4


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
  return _frame(_HELLO, greeting.write(spec, client_id))


async def _tell(port, *frames):
  """Sends these bytes and reads what it is told until it is sent away."""
  reader, writer = await asyncio.open_connection('127.0.0.1', port)
  writer.write(b''.join(frames))
  told = await reader.read()
  writer.close()
  return told


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

  lost = []
  result, _ = _serve(spec, play, deadline=1.0, on_loss=lost.append, **verify)
  assert lost[:2] == ['client 5 did not join', 'client 6 did not join']
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
  lost = []
  play = functools.partial(_join_all, spec)
  result, outcomes = _serve(spec, play, deadline=1.0, on_loss=lost.append)
  there = [0, 1, 2, 3, 4] if phase is Phase.UNMASKING else [0, 2, 3, 4]
  assert list(result.clients) == there
  np.testing.assert_array_equal(result.total, _total(_vectors(5), there))
  assert 'too late' in str(outcomes.pop(1))
  assert outcomes == [len(there)] * 4
  assert lost == [f'dropped client 1 while {phase}: the answer came too late']


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
    ([_frame(_HELLO, b'')], b'a greeting of 0 bytes'),
    ([_frame(_HELLO, bytes(4) + b'other')], b'another version'),
    (
      [_hello(_spec(4, 4), 0)],
      b'the server was started with `threshold` 3, the client with `threshold` 4',
    ),
    (
      [_hello(dataclasses.replace(_spec(), smallest_cohort=4), 0)],
      b'the server was started with no `smallest_cohort`, the client with `smallest_cohort` 4',
    ),
    ([_hello(_spec(), 0), _frame(_MESSAGE, b'junk')], b'cut short'),
    ([_hello(_spec(), 77), _frame(_MESSAGE, bytes(40))], b'Not a message'),
    ([b'GET / HTTP/1.0\r\n\r\n'], b'a frame of'),
  ],
)
def test_strangers_are_sent_away_and_change_nothing(frames, reason):
  spec = _spec()

  async def play(port):
    return await _tell(port, *frames), await _join_all(spec, port)

  lost = []
  result, (told, outcomes) = _serve(spec, play, on_loss=lost.append)
  # Before the end there may be a welcome.
  end = told[5 + 16 :] if told[4] == _WELCOME else told
  assert end[4] == _END
  assert reason in end
  assert end[5:].decode() in lost[0]
  assert (outcomes, len(lost)) == ([4] * 4, 1)
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


def test_what_a_stranger_says_is_cut_and_made_printable():
  hello = greeting.write(_spec(), 0).replace(b'threshold 3', b'threshold \x1b[2J' + b'9' * 500)

  async def play(port):
    frame = _frame(_HELLO, hello)
    return await _tell(port, frame), await _join_all(_spec(), port)

  lost = []
  _serve(_spec(), play, on_loss=lost.append)
  assert lost == [
    'refused client 0: the server was started with `threshold` 3, the client with `threshold`  '
    f'[2J{"9" * 16}'
  ]


def test_with_neighbours_a_client_does_not_know_how_many_are_in_the_sum():
  spec = ProtocolSpec(6, 3, _LENGTH, _BITS, Mode.SEMI_HONEST, neighbours=4)
  result, outcomes = _serve(spec, functools.partial(_join_all, spec))
  assert (len(result.clients), outcomes) == (6, [None] * 6)


def test_a_vector_that_no_frame_holds_is_refused_before_there_is_a_connection():
  spec, place = dataclasses.replace(_spec(), vector_length=1 << 40), {'host': 'x', 'port': 1}
  with pytest.raises(ValueError, match='`vector_length` 1099511627776 makes a message'):
    asyncio.run(tcp.serve(spec, deadline=1.0, **place))
  with pytest.raises(ValueError, match='`vector_length`'):
    asyncio.run(tcp.take_part(spec, 0, np.zeros(1, np.int64), deadline=1.0, **place))
