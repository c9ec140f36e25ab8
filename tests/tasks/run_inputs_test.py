# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import types

from tasks import config, run_inputs
from tasks.run_directory import RunDirectory


def test_remote_workers_are_remembered(tmp_path):
  experiment = types.SimpleNamespace(config=config.RunConfig(), inputs=lambda: {})
  with RunDirectory(tmp_path / 'run', resume=False) as directory:
    for remote, recorded in ((False, False), (True, True), (False, True)):
      run_inputs.record(experiment, directory, remote_workers=remote)
      assert directory.read_json('environment.json')['remote_workers'] is recorded
