# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What TCP and files do to sums: peers that do not read, crowds, TLS, planted links, torn lists."""

import asyncio
import datetime
import ipaddress
import ssl
import struct

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from privacy.secagg import __main__ as command
from privacy.secagg import greeting, tcp
from privacy.secagg.parameters import Mode, ProtocolSpec

_SPEC = ProtocolSpec(4, 3, 50, 20, Mode.SEMI_HONEST)
_VECTORS = np.arange(200, dtype=np.int64).reshape(4, 50)
_HELLO, _WELCOME, _MESSAGE, _END = 1, 2, 3, 4
_MUCH = 1 << 25


def _frame(kind, body):
  return struct.pack('>IB', len(body), kind) + body


async def _start(**more):
  """A server that runs, and its port."""
  listening = asyncio.get_running_loop().create_future()
  told = {'on_listening': lambda _, port: listening.set_result(port)}
  place = {'host': '127.0.0.1', 'port': 0, 'deadline': 20.0}
  serving = asyncio.create_task(tcp.serve(_SPEC, **place, **told, **more))
  return serving, await listening


def _join(client_id, port, **more):
  place = {'host': '127.0.0.1', 'port': port, 'deadline': 20.0} | more
  return asyncio.create_task(tcp.take_part(_SPEC, client_id, _VECTORS[client_id], **place))


async def _outcomes(*tasks):
  """What came of tasks, which a bug must not let hang."""
  _, late = await asyncio.wait(tasks, timeout=10)
  assert not late
  return await asyncio.gather(*tasks, return_exceptions=True)


async def _told(reader):
  return await asyncio.wait_for(reader.read(), 10)


async def _left():
  """The tasks that are left when all had time to end."""
  await asyncio.sleep(0.05)
  return asyncio.all_tasks() - {asyncio.current_task()}


def test_a_client_gives_up_on_a_server_that_does_not_read(monkeypatch):
  monkeypatch.setattr(tcp, 'answer', lambda *_: bytes(_MUCH))

  async def play():
    read, given_up = [], asyncio.Event()

    async def hang(reader, writer):
      writer.write(_frame(_WELCOME, bytes(16)) + _frame(_MESSAGE, b''))
      await given_up.wait()
      read.append(len(await reader.read()))
      writer.close()

    listener = await asyncio.start_server(hang, '127.0.0.1', 0)
    client = _join(0, listener.sockets[0].getsockname()[1], deadline=0.3)
    (outcome,) = await _outcomes(client)
    given_up.set()
    listener.close()
    await _outcomes(*asyncio.all_tasks() - {asyncio.current_task()})
    return outcome, read

  outcome, read = asyncio.run(play())
  assert isinstance(outcome, TimeoutError)
  # What the client had not sent by then, it does not send later.
  assert read[0] < _MUCH


def test_a_peer_that_does_not_read_does_not_keep_a_connection_open(monkeypatch):
  monkeypatch.setattr(tcp, '_PARTING', 0.1)

  async def play():
    ended = asyncio.get_running_loop().create_future()

    async def end(reader, writer):
      writer.write(bytes(_MUCH))
      tcp._Connection(reader, writer, 1.0).end('no more')
      await writer.wait_closed()
      ended.set_result(None)

    listener = await asyncio.start_server(end, '127.0.0.1', 0)
    _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    await asyncio.wait_for(ended, 5)
    listener.close()
    writer.close()

  asyncio.run(play())


def test_a_server_that_is_cancelled_leaves_nothing_open(monkeypatch):
  cancelled = []

  async def admit(self, stranger, honest=tcp._Attendance._admit):
    try:
      await honest(self, stranger)
    except asyncio.CancelledError:
      cancelled.append(stranger)
      raise

  monkeypatch.setattr(tcp._Attendance, '_admit', admit)

  async def play():
    serving, port = await _start()
    client = _join(0, port)
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    await asyncio.sleep(0.2)
    serving.cancel()
    outcomes = await _outcomes(serving, client)
    said = await _told(reader)
    writer.close()
    return outcomes, said, await _left()

  (stopped, client), said, left = asyncio.run(play())
  assert isinstance(stopped, asyncio.CancelledError)
  assert isinstance(client, tcp.SessionEndedError)
  assert said == _frame(_END, b'the server broke off the session')
  assert (len(cancelled), left) == (1, set())


def test_a_bug_ends_the_session_for_all(monkeypatch):
  stopped = []

  async def ask(self, client_id, _):
    if client_id == 2:
      raise ZeroDivisionError
    try:
      await asyncio.sleep(60)
    finally:
      stopped.append(client_id)

  monkeypatch.setattr(tcp._Attendance, '_ask', ask)

  async def play():
    serving, port = await _start()
    outcomes = await _outcomes(serving, *(_join(k, port) for k in range(4)))
    return [type(outcome) for outcome in outcomes], list(stopped), await _left()

  outcomes, stopped_by_then, left = asyncio.run(play())
  assert outcomes == [ZeroDivisionError] + [tcp.SessionEndedError] * 4
  assert (sorted(stopped_by_then), left) == ([0, 1, 3], set())


def test_a_bug_that_a_stranger_meets_ends_the_stranger_alone(monkeypatch):
  def read(hello):
    if hello == b'bug':
      raise ZeroDivisionError
    return honest(hello)

  honest = greeting.read
  monkeypatch.setattr(greeting, 'read', read)

  async def play():
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    serving, port = await _start()
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(_frame(_HELLO, b'bug'))
    said = await _told(reader)
    writer.close()
    return said, await _outcomes(serving, *(_join(k, port) for k in range(4)))

  said, (result, *_) = asyncio.run(play())
  assert said == _frame(_END, b'the server broke off the session')
  np.testing.assert_array_equal(result.total, _VECTORS.sum(axis=0))


def test_a_session_that_has_begun_does_not_listen(monkeypatch):
  async def play():
    serving, port = await _start()
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    seen = []

    async def run(self, honest=tcp._Attendance.run):
      # Who was about to join is told at once, not at the end.
      seen.append(await _told(reader))
      try:
        await asyncio.open_connection('127.0.0.1', port)
      except ConnectionRefusedError as error:
        seen.append(error)
      await honest(self)

    monkeypatch.setattr(tcp._Attendance, 'run', run)
    outcomes = await _outcomes(serving, *(_join(k, port) for k in range(4)))
    writer.close()
    return seen, outcomes

  (said, refused), (result, *_) = asyncio.run(play())
  assert b'the session has begun' in said
  assert isinstance(refused, ConnectionRefusedError)
  assert result.clients == (0, 1, 2, 3)


def test_who_is_accepted_too_late_is_not_heard():
  async def play():
    attendance = tcp._Attendance(_SPEC, None, bytes(16), 20.0, lambda _: None)
    attendance.dismiss()
    listener = await asyncio.start_server(attendance.accept, '127.0.0.1', 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    said = await _told(reader)
    listener.close()
    writer.close()
    return said

  assert asyncio.run(play()) == _frame(_END, b'the session has begun without this client')


def test_a_crowd_of_strangers_neither_grows_nor_fills_the_log():
  lost = []

  async def play():
    serving, port = await _start(on_loss=lost.append)
    crowd = [await asyncio.open_connection('127.0.0.1', port) for _ in range(40)]
    # 2 n + 16 may be there at a time.
    said = await asyncio.gather(*(_told(reader) for reader, _ in crowd[:16]))
    told = list(lost)
    outcomes = await _outcomes(serving, *(_join(k, port) for k in range(4)))
    for _, writer in crowd:
      writer.close()
    return said, told, outcomes

  said, told, (result, *_) = asyncio.run(play())
  assert all(b'too many' in text for text in said)
  line = 'refused a client: too many are about to join'
  assert told == [line] * 10 + ['refused others too, which are not listed']
  assert lost == told
  np.testing.assert_array_equal(result.total, _VECTORS.sum(axis=0))


def test_an_end_without_a_reason_is_not_said_to_be_the_servers():
  lost = []

  async def play():
    serving, port = await _start(on_loss=lost.append)
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(_frame(_HELLO, greeting.write(_SPEC, 0)) + _frame(_END, b''))
    await _told(reader)
    writer.close()
    await _outcomes(serving, *(_join(k, port) for k in range(4)))

  asyncio.run(play())
  assert lost == ['refused client 0: the session was ended early, without a reason']


def _certificate(folder):
  """A context for each side, of a certificate that both have and that stands for itself."""
  key = ec.generate_private_key(ec.SECP256R1())
  name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'secagg test')])
  now = datetime.datetime.now(datetime.UTC)
  address = x509.IPAddress(ipaddress.ip_address('127.0.0.1'))
  builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
  builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
  builder = builder.not_valid_before(now - datetime.timedelta(days=1))
  builder = builder.not_valid_after(now + datetime.timedelta(days=1))
  builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
  builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
  certificate = builder.sign(key, hashes.SHA256())
  form, encoding = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
  path = folder / 'both.pem'
  private = key.private_bytes(encoding, form, serialization.NoEncryption())
  path.write_bytes(private + certificate.public_bytes(encoding))
  server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=path)
  server.verify_mode = ssl.CERT_REQUIRED
  client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=path)
  for context in (server, client):
    context.load_cert_chain(path)
  return server, client, ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=path)


def test_over_tls_only_clients_with_a_certificate_take_part(tmp_path):
  server, client, nobody = _certificate(tmp_path)
  lost = []

  async def play():
    serving, port = await _start(ssl=server, on_loss=lost.append)
    strangers = await _outcomes(_join(0, port, ssl=nobody), _join(0, port))
    outcomes = await _outcomes(serving, *(_join(k, port, ssl=client) for k in range(4)))
    return strangers, outcomes

  strangers, (result, *sizes) = asyncio.run(play())
  assert all(isinstance(error, OSError | EOFError) for error in strangers)
  assert (sizes, lost) == ([4] * 4, [])
  np.testing.assert_array_equal(result.total, _VECTORS.sum(axis=0))


@pytest.mark.parametrize('guessed', [False, True])
def test_a_sum_does_not_go_where_a_planted_link_points(guessed, tmp_path, monkeypatch, capsys):
  async def serve(*_, **__):
    return tcp.SecureSum(np.arange(50, dtype=np.uint64), (0, 1, 2))

  monkeypatch.setattr(tcp, 'serve', serve)
  victim, output = tmp_path / 'victim', tmp_path / 'sum.npy'
  victim.write_bytes(b'precious')
  (tmp_path / f'.secagg-{command.os.getpid()}.tmp').symlink_to(victim)
  if guessed:
    monkeypatch.setattr(command.secrets, 'token_hex', lambda _: 'guessed')
    (tmp_path / '.secagg-guessed.tmp').symlink_to(victim)
  flags = ['--clients', '4', '--threshold', '3', '--length', '50', '--modulus-bits', '20']
  words = ['server', *flags, '--port', '0', '--output', f'{output}']
  assert command.main(words) == (2 if guessed else 0)
  assert ('File exists' in capsys.readouterr().err) == guessed
  assert output.exists() != guessed
  assert victim.read_bytes() == b'precious'


def _keygen(client, folder):
  files = ['--signing-key', f'{folder}/{client}.key', '--verify-keys', f'{folder}/all.pub']
  return command.main(['keygen', '--id', f'{client}', *files])


def test_keygen_mends_a_list_without_an_end(tmp_path):
  keys = tmp_path / 'all.pub'
  assert _keygen(0, tmp_path) == 0
  keys.write_bytes(keys.read_bytes().rstrip())
  assert (_keygen(1, tmp_path), _keygen(2, tmp_path)) == (0, 0)
  assert [line[:2] for line in keys.read_text().splitlines()] == ['0 ', '1 ', '2 ']
  assert list(command._read_verify_keys(keys)) == [0, 1, 2]


@pytest.mark.parametrize('mode', [0o640, 0o604, 0o620])
def test_a_signing_key_that_is_open_to_others_is_refused(mode, tmp_path):
  assert _keygen(0, tmp_path) == 0
  key = tmp_path / '0.key'
  assert len(command._read_signing_key(key)) == 32
  key.chmod(mode)
  with pytest.raises(command._UsageError, match='open to others; run chmod 600'):
    command._read_signing_key(key)
