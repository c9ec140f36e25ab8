# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the rivals' programs are called and understood, with stand-ins for them."""

import itertools
import json
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
  rivals = _rivals(tmp_path, _printing(round_s=[50, 4, 9], foreign_load=[0.01, 1.9]))
  assert rivals.measure(name, 'small', 16, 2) == load.Sample(4, 0.01)
  called = json.loads((tmp_path / 'called.json').read_text())
  given = dict(itertools.pairwise(called))
  assert (given['--preset'], given['--clients'], given['--rounds']) == ('small', '16', rounds)
  assert name == peers.FLOWER or given['--procs'] == '2'


@pytest.mark.parametrize(
  ('program', 'reason'),
  [
    ('raise SystemExit("no torch here")', 'bench_torch.py .* failed: no torch here'),
    ('', 'failed: no output'),
    (_printing(round_s=[], foreign_load=[], error='out of actors'), 'failed: out of actors'),
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
  (tmp_path / 'bench_torch.py').touch()
  places = {'--peers': tmp_path, '--peers-python': sys.executable, missing: tmp_path / 'none'}
  with pytest.raises(UserError, match=f'^{missing}: there is no '):
    peers.Peers(*map(str, places.values()))
