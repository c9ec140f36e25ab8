# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the rivals' programs are called and understood, with stand-ins for them."""

import itertools
import json
import math
import pathlib
import sys

import pytest

from benchmarks import load, peers
from tasks.errors import UserError
from tests.tasks import processes

_PROGRAM = """
import json, pathlib, sys
pathlib.Path('called.json').write_text(json.dumps(sys.argv[1:]))
print('a line of a library')
print({line!r})
"""


def _rivals(directory: pathlib.Path, program: str) -> peers.Peers:
  for name in ('bench_torch.py', 'bench_flower.py'):
    (directory / name).write_text(program)
  return peers.Peers(str(directory), sys.executable)


def _printing(**result) -> str:
  return _PROGRAM.format(line=json.dumps({'bench': 'x', **result}))


@pytest.mark.parametrize(
  ('name', 'rounds'), [('PyTorch + PEFT, a process per core', '2'), (peers.FLOWER, '3')]
)
def test_the_warm_up_and_disturbed_rounds_do_not_count(name, rounds, tmp_path):
  # Flower counts no load for its first round.
  printed = {'round_s': [50, 4, 9], 'foreign_load': [0.01, 1.9], 'losses': [3, 2, 1]}
  rivals = _rivals(tmp_path, _printing(**printed))
  assert rivals.measure(name, 'small', 16, 2) == peers.Result(load.Sample(4, 0.01), 2)
  called = json.loads((tmp_path / 'called.json').read_text())
  given = dict(itertools.pairwise(called))
  assert (given['--preset'], given['--clients'], given['--rounds']) == ('small', '16', rounds)
  assert name == peers.FLOWER or given['--procs'] == '2'


def test_no_round_that_compiles_counts_and_losses_are_those_of_the_same_rounds(tmp_path):
  printed = {'round_s': [50, 20, 20, 4, 4], 'foreign_load': [0] * 5, 'losses': [3, 2, 1, 0, 0]}
  rivals = _rivals(tmp_path, _printing(**printed))
  assert rivals.measure('PyTorch + PEFT, compiled', 'small', 16, 2) == peers.Result(
    load.Sample(4, 0), 2
  )
  called = json.loads((tmp_path / 'called.json').read_text())
  assert '--compile' in called
  assert dict(itertools.pairwise(called))['--warmup-rounds'] == '3'


def test_losses_that_are_not_told_are_no_number(tmp_path):
  rivals = _rivals(tmp_path, _printing(round_s=[9, 4, 4], foreign_load=[0, 0, 0]))
  assert math.isnan(rivals.measure(peers.REFERENCE, 'small', 16, 2).loss)


def test_an_interpreter_without_their_packages_is_named(tmp_path, monkeypatch):
  rivals = _rivals(tmp_path, '')
  monkeypatch.setattr(peers, '_MODULES', ('json',))
  rivals.check()
  monkeypatch.setattr(peers, '_MODULES', ('json', 'no_such', 'nor_this'))
  with pytest.raises(UserError, match=r'--peers-python .*: it cannot import no_such, nor_this\.'):
    rivals.check()


@pytest.mark.parametrize(
  ('program', 'reason'),
  [
    ('raise SystemExit("no torch here")', 'bench_torch.py .* failed: no torch here'),
    ('', 'failed: no output'),
    (_printing(round_s=[], foreign_load=[], error='out of actors'), 'failed: out of actors'),
    (_printing(round_s=[9, 4], foreign_load=[0, 0]), 'ended before its last round'),
  ],
)
def test_a_rival_that_fails_is_named_with_its_reason(program, reason, tmp_path):
  rivals = _rivals(tmp_path, program)
  with pytest.raises(UserError, match=reason):
    rivals.measure('PyTorch + PEFT', 'small', 16, 2)


def test_a_rival_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch):
  monkeypatch.setattr(peers, '_SECONDS', 2.0)
  program = """
import pathlib, subprocess, time
pathlib.Path('child').write_text(str(subprocess.Popen(['sleep', '60']).pid))
time.sleep(60)
"""
  rivals = _rivals(tmp_path, program)
  with pytest.raises(UserError, match='took more than 2 s'):
    rivals.measure('PyTorch + PEFT', 'small', 16, 2)
  assert processes.is_gone_within(int((tmp_path / 'child').read_text()), 10)


@pytest.mark.parametrize('missing', ['--peers', '--peers-python'])
def test_what_is_not_there_is_named(missing, tmp_path):
  _rivals(tmp_path, '')
  places = {'--peers': tmp_path, '--peers-python': sys.executable, missing: tmp_path / 'none'}
  with pytest.raises(UserError, match=f'^{missing}: there is no '):
    peers.Peers(*map(str, places.values()))
