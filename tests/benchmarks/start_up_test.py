# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts of a start are read from what a run leaves."""

import pytest

from benchmarks import start_up

# Stands for `tasks.cli`: a run that tells its times, and whose worker goes on for long.
_RUN = """
import datetime, json, pathlib, sys, time
def main():
  root = pathlib.Path(sys.argv[-1])
  root.mkdir()
  def tell(event):
    time.sleep(0.05)
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
    with open(root / 'log.jsonl', 'a') as log:
      print(json.dumps({'time': moment, 'event': event}), file=log)
  for event in ('note', 'started', 'round_started'):
    tell(event)
  if 'fails' in sys.argv:
    return
  (root / 'worker.log').write_text('onednn_verbose,exec,cpu,matmul')
  time.sleep(60)
"""


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
  """A command that stands for `hetlora train`."""
  package = tmp_path / 'path' / 'tasks'
  package.mkdir(parents=True)
  (package / '__init__.py').touch()
  (package / 'cli.py').write_text(_RUN)
  monkeypatch.setenv('PYTHONPATH', str(package.parent))
  monkeypatch.chdir(package.parent)


def test_parts_add_up_and_the_run_is_ended(tmp_path):
  parts = start_up.start_up(tmp_path / 'run', tmp_path / 'cache', [])
  assert list(parts) == [*start_up._PARTS, 'all']
  whole = parts.pop('all')
  assert all(seconds > 0 for seconds in parts.values())
  assert sum(parts.values()) == pytest.approx(whole)
  assert whole < 30


def test_run_that_fails_is_no_start(tmp_path):
  with pytest.raises(RuntimeError, match='before a client trained'):
    start_up.start_up(tmp_path / 'run', tmp_path / 'cache', ['fails'])
