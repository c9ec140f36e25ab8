# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the runs of a test module share: base models, processes, evaluators and the worker.

A tiny run spends nearly all of its time on them. They hold nothing that a run changes: that is in
its state and its directory.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hetlora_tff
from tasks import backbones, method_parts, program
from tasks.config import RunConfig
from tasks.experiment import Experiment
from tasks.worker import LocalWorker

# How long a run goes on, and what it measures on the way.
_OF_THE_RUN = {'rounds', 'target_epsilon', 'eval_every', 'decode_examples'}
# What training reads and an evaluation of held-out clients does not.
_OF_TRAINING = {
  'rounds', 'target_epsilon', 'eval_every', 'clients_per_round', 'privacy', 'noise_multiplier',
  'delta', 'sampling', 'min_separation', 'max_participations', 'population_size',
  'noise_cohort_size', 'audit_canaries', 'insecure_seeded_noise', 'noise_matrix',
  'tree_restart_every', 'clip', 'l2_clip_norm',
}  # fmt: skip


def share(patch: pytest.MonkeyPatch) -> None:
  """Lets runs share until the patch is undone; needs the fixture `tff_runtime`."""
  _share(patch, backbones, 'load_base_model', lambda *args, **kwargs: (args, *kwargs.items()))
  _share(patch, Experiment, 'build_process', lambda made: _key(made.config, _OF_THE_RUN))
  _share(
    patch,
    Experiment,
    'evaluator',
    lambda made, base=None: (_key(made.config, _OF_TRAINING), (base or made.base).backbone.sha256),
  )
  _share(
    patch,
    method_parts,
    'build_personalization',
    lambda config, *_, **__: _key(config, _OF_THE_RUN),
  )
  _share(patch, hetlora_tff.CausalLanguageModel, 'module_shapes', _model_key)
  _share(patch, hetlora_tff, 'build_hetlora_eval_process', _model_key)
  patch.setattr(program, 'LocalWorker', lambda *_, **__: contextlib.nullcontext())


@contextlib.contextmanager
def own_worker() -> Iterator[None]:
  """In here a run starts a worker of its own, as it does outside of tests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(program, 'LocalWorker', LocalWorker)
    yield


def _share(patch: pytest.MonkeyPatch, owner: Any, name: str, key: Callable[..., Any]) -> None:
  build, built = getattr(owner, name), {}

  def shared(*args, **kwargs):
    wanted = key(*args, **kwargs)
    if wanted not in built:
      built[wanted] = build(*args, **kwargs)
    return built[wanted]

  patch.setattr(owner, name, shared)


def _key(config: RunConfig, unread: set[str]) -> str:
  return json.dumps({k: v for k, v in config.to_json().items() if k not in unread})


def _model_key(model: hetlora_tff.CausalLanguageModel, *args: Any, **kwargs: Any) -> tuple:
  return model.backbone.sha256, str(model.batch_spec), repr(args), repr(kwargs)
