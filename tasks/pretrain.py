# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes the embedded base model: `python -m tasks.pretrain --seed 0 --output-dir DIR --steps N`.

Central next-token training of a small GPT-2 on `tasks.corpus`, whose text no client holds. The same
seed, steps and environment give the same model; `--minutes` stops by the clock instead, and then
how far it gets depends on the machine.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from rich import progress

from tasks import base_model, bpe, corpus, docstrings, errors, harvest, text

BACKBONE_CONFIG: collections.OrderedDict[str, Any] = collections.OrderedDict(
  vocabulary_size=8192,
  num_layers=4,
  num_heads=4,
  hidden_dim=256,
  intermediate_dim=1024,
  dropout=0.0,
  max_sequence_length=128,
)

_HELD_OUT_EVERY = 50  # documents
_LOG_EVERY = 20  # steps
_CHECK_EVERY = 200  # steps
_RECORDED_VERSIONS = ('tensorflow', 'keras', 'keras-nlp', 'numpy')


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  """How to train.

  Attributes:
    seed: decides initial weights and the order of the text.
    steps: optimizer steps; the most there are, where `minutes` is given too.
    minutes: time after which the learning rate has decayed and training ends; None for no limit.
    batch_size: sequences per step.
    peak_learning_rate: of AdamW, after `warmup` and before the cosine decay to a tenth of itself.
    warmup: share of the training over which the learning rate rises.
    weight_decay: of AdamW.
    l2_clip_norm: bound on the gradient's global norm.

  Raises:
    ValueError: if steps, minutes or batch_size is not positive.
  """

  seed: int
  steps: int
  minutes: float | None = None
  batch_size: int = 16
  peak_learning_rate: float = 1.5e-3
  warmup: float = 0.04
  weight_decay: float = 0.05
  l2_clip_norm: float = 1.0

  def __post_init__(self):
    for name in ('steps', 'batch_size'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}.')
    if self.minutes is not None and self.minutes <= 0:
      raise ValueError(f'minutes must be positive, got {self.minutes}.')


def learning_rate(config: PretrainConfig, done: float) -> float:
  """Returns the learning rate when the share `done` of the training, in [0, 1], is over."""
  if done < config.warmup:
    return config.peak_learning_rate * (done + 1e-3) / (config.warmup + 1e-3)
  decay = 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup)))
  return config.peak_learning_rate * (0.1 + 0.9 * decay)


def windows(
  documents: Sequence[Sequence[int]],
  end_token_id: int,
  length: int,
  order: Sequence[int] | np.ndarray,
) -> np.ndarray:
  """Returns int32 [n, length]: documents in `order`, each ended, as one stream cut into rows."""
  stream = [index for place in order for index in (*documents[place], end_token_id)]
  rows = len(stream) // length
  return np.asarray(stream[: rows * length], np.int32).reshape(rows, length)


def batches(
  documents: Sequence[Sequence[int]], end_token_id: int, length: int, config: PretrainConfig
) -> Iterator[np.ndarray]:
  """Yields int32 [batch_size, length] without end; every pass has its own order of documents.

  Raises:
    ValueError: if the documents do not fill one batch.
  """
  generator = np.random.default_rng(config.seed)
  while True:
    rows = windows(documents, end_token_id, length, generator.permutation(len(documents)))
    if len(rows) < config.batch_size:
      raise ValueError(f'the corpus fills {len(rows)} rows; batch_size is {config.batch_size}.')
    generator.shuffle(rows)
    for start in range(0, len(rows) - config.batch_size + 1, config.batch_size):
      yield rows[start : start + config.batch_size]


class Pretrainer:
  """A backbone, its optimizer and the two functions that run them.

  Args:
    backbone: a keras-nlp backbone with a `token_embedding` that also reads out.
    config: how to train.
  """

  def __init__(self, backbone: Any, config: PretrainConfig):
    self.backbone = backbone
    self._config = config
    self._variables = backbone.trainable_variables
    self._optimizer = tf.keras.optimizers.AdamW(
      config.peak_learning_rate, weight_decay=config.weight_decay, beta_2=0.98
    )
    self._optimizer.exclude_from_weight_decay(var_names=['bias', 'layer_norm', 'gamma', 'beta'])
    self._optimizer.build(self._variables)
    self._train = tf.function(self._train_step, autograph=False)
    self._loss = tf.function(self._mean_loss, autograph=False)

  def train(self, rows: np.ndarray, done: float) -> tf.Tensor:
    """Makes one step on int32 [batch, length] and returns the mean loss in nats, a scalar."""
    self._optimizer.learning_rate.assign(learning_rate(self._config, done))
    return self._train(tf.constant(rows))

  def held_out_loss(self, rows: np.ndarray) -> float:
    """Returns the mean next-token loss in nats over int32 [n, length]."""
    size = self._config.batch_size
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    losses = [float(self._loss(tf.constant(part))) for part in parts]
    return float(np.average(losses, weights=[len(part) for part in parts]))

  def _train_step(self, rows: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
      loss = self._mean_loss(rows)
    gradients = tape.gradient(loss, self._variables)
    gradients, _ = tf.clip_by_global_norm(gradients, self._config.l2_clip_norm)
    self._optimizer.apply_gradients(zip(gradients, self._variables, strict=True))
    return loss

  def _mean_loss(self, rows: tf.Tensor) -> tf.Tensor:
    hidden = self.backbone({'token_ids': rows, 'padding_mask': tf.ones_like(rows)})
    logits = self.backbone.token_embedding(hidden[:, :-1], reverse=True)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=rows[:, 1:], logits=logits)
    return tf.reduce_mean(losses)


def pretrain(config: PretrainConfig, output_dir: pathlib.Path, command: Sequence[str]) -> None:
  """Builds corpus, tokenizer and model, and writes the assets into `output_dir`.

  `log.jsonl` there has the losses; the assets are written anew at every check of the held-out loss,
  so that an interrupted run leaves the model of its last check.

  Args:
    config: how to train.
    output_dir: where to; made if missing.
    command: what to record as the command.

  Raises:
    tasks.errors.UserError: if the environment lacks a distribution of the corpus.
  """
  output_dir.mkdir(parents=True, exist_ok=True)
  documents = corpus.build_corpus(docstrings.harvest_clients())
  vocabulary, merges = bpe.train(documents, BACKBONE_CONFIG['vocabulary_size'])
  facts = {
    'command': list(command),
    'config': dataclasses.asdict(config),
    'corpus_sha256': corpus.checksum(documents),
    'corpus_documents': len(documents),
    'corpus_distributions': {name: harvest.version(name) for name in corpus.CORPUS_DISTRIBUTIONS},
    'versions': {name: harvest.version(name) for name in _RECORDED_VERSIONS},
  }
  tf.keras.utils.set_random_seed(config.seed)
  tf.config.experimental.enable_op_determinism()
  backbone = base_model.build_backbone(BACKBONE_CONFIG)

  def save(results):
    base_model.save_assets(
      output_dir, backbone, BACKBONE_CONFIG, (vocabulary, merges), {**facts, **results}
    )

  save({'steps': 0})
  tokenizer = text.Tokenizer(base_model.embedded_tokenizer(output_dir))
  encoded = tokenizer.encode_batch(documents)
  length = BACKBONE_CONFIG['max_sequence_length']
  held_out = encoded[::_HELD_OUT_EVERY]
  train = [ids for index, ids in enumerate(encoded) if index % _HELD_OUT_EVERY]
  facts['corpus_tokens'] = sum(map(len, encoded))
  _run(
    Pretrainer(backbone, config),
    config,
    batches(train, tokenizer.end_token_id, length, config),
    windows(held_out, tokenizer.end_token_id, length, range(len(held_out))),
    save,
    output_dir / 'log.jsonl',
  )


def _run(
  trainer: Pretrainer,
  config: PretrainConfig,
  stream: Iterator[np.ndarray],
  held_out: np.ndarray,
  save: Callable[[dict[str, Any]], None],
  log_path: pathlib.Path,
) -> None:
  started = time.monotonic()
  recent = collections.deque(maxlen=_CHECK_EVERY)
  columns = (*progress.Progress.get_default_columns(), progress.TextColumn('{task.fields[loss]}'))
  with progress.Progress(*columns) as bar, log_path.open('w') as log:
    task = bar.add_task('Pre-training', total=1.0, loss='')
    for step in itertools.count(1):
      done = _share_done(config, step - 1, started)
      recent.append(float(trainer.train(next(stream), done)))
      done = _share_done(config, step, started)
      if step % _LOG_EVERY == 0:
        _log(log, step=step, seconds=round(time.monotonic() - started), train_loss=recent[-1])
      if step % _CHECK_EVERY == 0 or done >= 1:
        results = {
          'steps': step,
          'train_loss': round(float(np.mean(list(recent))), 4),
          'held_out_loss': round(trainer.held_out_loss(held_out), 4),
        }
        save(results)
        _log(log, **results)
      bar.update(task, completed=done, loss=f'loss {recent[-1]:.3f}')
      if done >= 1:
        break


def _share_done(config: PretrainConfig, steps: int, started: float) -> float:
  minutes = (time.monotonic() - started) / 60
  by_clock = minutes / config.minutes if config.minutes else 0.0
  return min(1.0, max(steps / config.steps, by_clock))


def _log(file, **fields) -> None:
  file.write(json.dumps(fields) + '\n')
  file.flush()


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(prog='python -m tasks.pretrain', description=__doc__)
  parser.add_argument('--seed', type=int, required=True)
  parser.add_argument('--output-dir', type=pathlib.Path, required=True)
  parser.add_argument('--steps', type=int, default=3200)
  parser.add_argument('--minutes', type=float, default=None)
  parsed = parser.parse_args(arguments)
  # oneDNN multiplies in bfloat16 and sums in float32: half the time where the processor can.
  tf.config.optimizer.set_experimental_options({'auto_mixed_precision_onednn_bfloat16': True})
  command = ['python', '-m', 'tasks.pretrain', '--seed', str(parsed.seed)]
  command += ['--steps', str(parsed.steps), '--output-dir', 'DIR']
  command += ['--minutes', str(parsed.minutes)] if parsed.minutes is not None else []
  try:
    config = PretrainConfig(seed=parsed.seed, steps=parsed.steps, minutes=parsed.minutes)
    pretrain(config, parsed.output_dir, command)
  except (errors.UserError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
