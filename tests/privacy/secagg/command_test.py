# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line: sums of processes of which some die, and mistakes, which are one line."""

import contextlib
import pathlib
import socket
import stat
import subprocess
import sys

import numpy as np
import pytest

from privacy.secagg import __main__ as command
from privacy.secagg import tcp
from privacy.secagg.errors import BelowThresholdError
from privacy.secagg.parameters import Mode, ProtocolSpec

_ROOT = pathlib.Path(__file__).parents[3]
_LENGTH, _BITS = 5_000, 20
_PHASES = {
  'share_keys': 'sharing keys',
  'mask': 'sending masked vectors',
  'halfway': 'sending masked vectors',
  'confirm': 'confirming who is in the sum',
  'unmask': 'unmasking',
}
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
    said = [client.communicate(timeout=60)[0] for client in clients]
  codes = [client.returncode for client in clients]
  assert server.returncode == 0
  assert sorted(err.splitlines()) == sorted(
    f'secagg: dropped client {k} while {_PHASES[where]}: the connection is lost'
    for k, where in victims.items()
  )
  assert codes == [-9 if k in victims else 0 for k in range(spec.num_clients)]
  # Whoever dies after its vector has come is in the sum.
  gone = [k for k, where in victims.items() if where in ('share_keys', 'mask', 'halfway')]
  there = [k for k in range(spec.num_clients) if k not in gone]
  assert out.splitlines() == [
    f'sum of {len(there)} clients: {" ".join(map(str, there))}',
    f'written to {tmp_path}/sum.npy: 5000 residues modulo 2^20; those from 524288 on stand for '
    'negative numbers, less by 1048576',
  ]
  for k, line in enumerate(said):
    assert line == ('' if k in victims else f'client {k}: in the sum of {len(there)}\n')
  total = _total(_vectors(spec.num_clients), there)
  np.testing.assert_array_equal(np.load(tmp_path / 'sum.npy'), total)


def test_below_the_threshold_the_server_stops_and_tells_the_clients(tmp_path):
  victims = {0: 'mask', 1: 'mask'}
  with _processes(_spec(4, 3), victims, tmp_path) as (server, *clients):
    out, err = server.communicate(timeout=120)
    said = [client.communicate(timeout=120)[1] for client in clients]
  assert (out, server.returncode) == ('', 2)
  *lost, reason = err.splitlines(keepends=True)
  assert all('while sending masked vectors' in line for line in lost)
  assert reason == ('secagg: 2 clients are left after sending masked vectors; 3 are needed.\n')
  assert list(tmp_path.glob('*sum*')) == []
  assert said == ['', '', reason, reason]
  assert [client.returncode for client in clients] == [-9, -9, 2, 2]


def _client_words(folder, **changes):
  np.save(folder / 'v.npy', _vectors(1)[0])
  flags = {'id': 0, 'vector': folder / 'v.npy', **changes}
  return ['client', *_flags(_spec(), flags.pop('port', 1), **flags)]


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'vector': 'missing.npy'}, 'missing.npy'),
    ({'vector': __file__}, '--vector'),
    ({'threshold': 1}, '--threshold 1 is not more than half'),
    ({'clients': 1}, '--clients must be'),
    ({'smallest-cohort': 9}, '--smallest-cohort must be'),
    ({'length': 0}, '--length must be'),
    ({'neighbours': 3}, '--neighbours 3 is not an even number'),
    ({'neighbours': 2, 'mode': 'malicious'}, '--neighbours is for --mode semi_honest; leave'),
    ({'mode': 'malicious'}, '--verify-keys are needed in --mode malicious; they are missing'),
    ({'port': 99999}, "--port: '99999' is not"),
    ({'port': -1}, "--port: '-1' is not"),
    ({'port': 'x'}, '--port'),
    ({'id': -3}, '--id -3 is not from 0 to 3'),
    ({'length': 99999999999}, '--vector'),
    ({'id': 4}, '4'),
    ({'id': 'x'}, '--id'),
    ({'mode': 'malicious', 'verify-keys': __file__}, f'--verify-keys {__file__}:1'),
    ({'signing-key': __file__}, '--signing-key'),
    ({'deadline': 'x'}, '--deadline'),
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
      ({'output': tmp_path}, 'is a directory'),
      ({'output': '/dev/null'}, 'not a regular file'),
      ({'output': tmp_path / 'sum.npy'}, 'in use'),
      ({'output': tmp_path / 'sum.npy', 'port': -1}, '--port'),
      ({'output': tmp_path / 'sum.npy', 'length': 99999999999}, '--length 99999999999'),
      ({'output': tmp_path / 'sum.npy', 'mode': 'malicious', 'threshold': 3}, 'verify'),
    ):
      words = _flags(_spec(), changes.pop('port', port), **changes)
      assert command.main(['server', *words]) == 2
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
  assert 'client 3 has a key already' in capsys.readouterr().err
  assert command.main([word.replace('3', '4') if word == '3' else word for word in words]) == 2
  assert 'a.key' in capsys.readouterr().err
  assert (key.read_bytes(), keys.read_bytes()) == before


def _serve_instantly(monkeypatch, outcome):
  """Lets the server have its sum, or its error, at once."""

  async def serve(spec, **_):
    if isinstance(outcome, BaseException):
      raise outcome
    return outcome

  monkeypatch.setattr(tcp, 'serve', serve)


def test_an_output_that_cannot_be_written_is_found_before_the_session(
  tmp_path, monkeypatch, capsys
):
  _serve_instantly(monkeypatch, AssertionError('too late'))
  output = tmp_path / 'sum.npy'

  # Whoever runs the tests may be root, whom permissions do not keep out.
  def refuse(**_):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(command.tempfile, 'TemporaryFile', refuse)
  assert command.main(['server', *_flags(_spec(), 0, output=output)]) == 2
  err = capsys.readouterr().err
  assert _is_one_line(err)
  assert f'--output {output}: not writable' in err


def test_a_sum_is_written_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
  total = np.arange(_LENGTH, dtype=np.uint64)
  _serve_instantly(monkeypatch, tcp.SecureSum(total, (0, 1, 2)))
  (tmp_path / 'link.npy').symlink_to('sum.npy')
  words = ['server', *_flags(_spec(), 0, output=tmp_path / 'link.npy')]
  assert command.main(words) == 0
  assert (tmp_path / 'link.npy').is_symlink()
  before = (tmp_path / 'sum.npy').read_bytes()
  np.testing.assert_array_equal(np.load(tmp_path / 'sum.npy'), total)

  def save(file, _):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'save', save)
  assert command.main(words) == 2
  assert 'No space left' in capsys.readouterr().err
  assert (tmp_path / 'sum.npy').read_bytes() == before
  assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
  ('error', 'named'),
  [
    (MemoryError(), 'not enough memory for vectors of this --length'),
    (
      BelowThresholdError('`num_clients` and `x` in MALICIOUS mode'),
      '--clients and --x in --mode m',
    ),
  ],
)
def test_errors_of_the_session_are_one_line_with_flags(error, named, tmp_path, monkeypatch, capsys):
  _serve_instantly(monkeypatch, error)
  assert command.main(['server', *_flags(_spec(), 0, output=tmp_path / 'sum.npy')]) == 2
  err = capsys.readouterr().err
  assert _is_one_line(err)
  assert named in err


@pytest.mark.parametrize('save', [np.savez, lambda file, v: np.save(file, v.astype(object))])
def test_other_files_are_no_vector(save, tmp_path, capsys):
  path = tmp_path / 'z.npz'
  with path.open('wb') as file:
    save(file, _vectors(1)[0])
  assert command.main(_client_words(tmp_path, vector=path)) == 2
  err = capsys.readouterr().err
  assert _is_one_line(err)
  assert f'--vector {path}: not an array that np.save wrote' in err


def test_a_signing_key_is_said_to_be_missing_or_too_much(tmp_path, capsys):
  key, keys = tmp_path / 'a.key', tmp_path / 'all.pub'
  for k in range(4):
    own = key if k == 0 else tmp_path / f'{k}.key'
    assert command.main(_keygen(k, own, keys)) == 0
  malicious = {'mode': 'malicious', 'verify-keys': keys}
  assert command.main(_client_words(tmp_path, **malicious)) == 2
  err = capsys.readouterr().err
  assert err == 'secagg: --signing-key is needed in --mode malicious; it is missing.\n'
  assert command.main(_client_words(tmp_path, **{'signing-key': key})) == 2
  err = capsys.readouterr().err
  assert err == 'secagg: --signing-key is for --mode malicious; leave it out.\n'


def _keygen(client, key, keys):
  return ['keygen', *_words({'id': client, 'signing-key': key, 'verify-keys': keys})]


@pytest.mark.parametrize(
  ('client', 'keys', 'named'),
  [
    (-3, 'all.pub', '--id'),
    (0, '.', 'Is a directory'),
    (0, 'no/all.pub', 'No such file'),
    (0, 'a.key', 'same file'),
    (0, 'junk.pub', 'junk.pub:1'),
  ],
)
def test_keygen_that_fails_leaves_nothing_behind(client, keys, named, tmp_path, capsys):
  (tmp_path / 'junk.pub').write_text('junk\n')
  assert command.main(_keygen(client, tmp_path / 'a.key', tmp_path / keys)) == 2
  err = capsys.readouterr().err
  assert _is_one_line(err)
  assert named in err
  assert [path.name for path in tmp_path.iterdir()] == ['junk.pub']


def test_degree_prints_the_flags_of_a_graph_that_serves(capsys):
  words = _words({'clients': 1000, 'dropped': 100, 'corrupted': 100})
  assert command.main(['degree', *words]) == 0
  assert capsys.readouterr().out == '--neighbours 48 --threshold 27\n'
  for dropped, named in (
    (4, 'leave --neighbours out'),
    (9, '--dropped and --corrupted'),
    (-1, 'd'),
  ):
    words = _words({'clients': 10, 'dropped': dropped, 'corrupted': 4})
    assert command.main(['degree', *words]) == 2
    err = capsys.readouterr().err
    assert _is_one_line(err)
    assert named in err


@pytest.mark.parametrize(
  'said',
  [
    'uint64 residues modulo M = 2^k',
    'from M/2 on stand for negative numbers',
    'more than half of its holders',
    'more than two thirds',
    '`degree` finds',
  ],
)
def test_help_says_what_numbers_mean(said, capsys):
  with pytest.raises(SystemExit):
    command.main(['server', '--help'])
  assert said in ' '.join(capsys.readouterr().out.split())
