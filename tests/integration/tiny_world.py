# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A base model and a task so small that a whole run takes seconds.

As a program, the command `hetlora` that knows this task.
"""

import json
import pathlib
import signal
import subprocess
import sys
import time

from tasks import cli, config, options, registry

ROOT = pathlib.Path(__file__).parents[2]
SEQUENCE_LENGTH = 32
WIDTH = 16
# Query and value of two layers, d_in = d_out = 16, float32.
BYTES_PER_RANK = 4 * (16 + 16) * 4
RANKS = {'max_rank': 4, 'min_rank': 1}
# What has no meaning in a method.
UNUSED = {'homlora': ('min_rank',), 'full': ('min_rank', 'max_rank', 'alpha')}

_SENTENCES = ('the cat sat on a mat', 'a dog ran to the cat', 'the mat is red', 'dogs and cats ran')


def clients(first: int, number: int):
  """Clients of one to four examples."""
  from tasks.federated_text import Example

  return {
    f'client_{index:02d}': tuple(
      Example(f'{_SENTENCES[(index + turn) % 4]} {index}', _SENTENCES[(index + turn) % 4][:9])
      for turn in range(1 + index % 4)
    )
    for index in range(first, first + number)
  }


def load(unused_request):
  """The task's data."""
  from tasks.federated_text import FederatedText

  return FederatedText('tiny', clients(0, 6), clients(6, 2), clients(8, 3))


def load_with_empty_client(unused_request):
  """Data with a client that has nothing."""
  from tasks.federated_text import FederatedText

  return FederatedText('hollow', {**clients(0, 3), 'client_99': ()}, {}, clients(8, 3))


def load_without_held_out(unused_request):
  """Data that leaves nobody for the evaluation."""
  from tasks.federated_text import FederatedText

  return FederatedText('blind', clients(0, 6), {}, {})


TASKS = {
  'tiny': registry.NamedTask('cats and dogs', load),
  'hollow': registry.NamedTask('an empty client', load_with_empty_client),
  'blind': registry.NamedTask('nobody held out', load_without_held_out),
}


def build_tokenizer():
  """A byte-pair tokenizer of 300 tokens."""
  import keras_nlp

  from tasks import bpe

  vocabulary, merges = bpe.train(_SENTENCES, 300)
  return keras_nlp.models.GPT2Tokenizer(vocabulary=vocabulary, merges=merges)


def build_backbone(seed: int = 0, vocabulary_size: int = 300):
  """A random GPT-2 of two layers."""
  import keras_nlp
  import tensorflow as tf

  tf.keras.utils.set_random_seed(seed)
  return keras_nlp.models.GPT2Backbone(
    vocabulary_size=vocabulary_size,
    num_layers=2,
    num_heads=2,
    hidden_dim=WIDTH,
    intermediate_dim=2 * WIDTH,
    max_sequence_length=SEQUENCE_LENGTH,
  )


def save_preset(directory: pathlib.Path, seed: int = 0) -> pathlib.Path:
  """Writes both as a keras-nlp preset directory."""
  import tensorflow as tf

  from tasks import backbones

  backbone = build_backbone(seed)
  backbones.save_tokenizer(build_tokenizer(), directory)
  serialized = tf.keras.saving.serialize_keras_object(backbone)
  serialized.pop('build_config', None)
  (directory / 'config.json').write_text(json.dumps(serialized))
  (directory / 'metadata.json').write_text(json.dumps({'keras_version': '3.0.0'}))
  backbone.save_weights(str(directory / 'model.weights.h5'))
  return directory


def run_config(backbone: pathlib.Path, /, **changes) -> config.RunConfig:
  """The configuration of a tiny run."""
  values = {
    'task': 'tiny',
    'backbone': str(backbone),
    'sequence_length': SEQUENCE_LENGTH,
    'alpha': 8.0,
    'rounds': 2,
    'clients_per_round': 3,
    'local_steps': 2,
    'batch_size': 2,
    'client_learning_rate': 0.02,
    'eval_every': 2,
    'decode_examples': 2,
    'personalization_clients': 0,
    **RANKS,
  }
  unused = UNUSED.get(changes.get('method'), ())
  return config.RunConfig(**{**values, **dict.fromkeys(unused), **changes})


def flags(backbone: pathlib.Path, /, **changes) -> list[str]:
  """The same as flags."""
  resolved = run_config(backbone, **changes).to_json()
  default = config.RunConfig().to_json()
  return [
    part
    for key, value in resolved.items()
    if value != default[key] or key in changes
    for part in options.as_flag(key, value)
  ]


def command(*arguments: object) -> list[str]:
  """`hetlora` with the tiny tasks, as a process of its own."""
  return [sys.executable, '-m', 'tests.integration.tiny_world', *map(str, arguments)]


def start(*arguments: object, stderr=subprocess.PIPE, stdout=subprocess.PIPE) -> subprocess.Popen:
  """Starts the command in a session of its own, as a terminal would."""
  return subprocess.Popen(
    command(*arguments),
    stdin=subprocess.DEVNULL,
    stdout=stdout,
    stderr=stderr,
    text=True,
    start_new_session=True,
    cwd=ROOT,
  )


def await_text(path: pathlib.Path, wanted: str, process: subprocess.Popen, seconds: float = 120):
  """Waits until a file holds a text."""
  deadline = time.monotonic() + seconds
  while not (path.is_file() and wanted in path.read_text('utf-8', errors='replace')):
    if process.poll() is not None or time.monotonic() > deadline:
      process.kill()
      raise AssertionError(f'{path} never held {wanted!r}: {process.communicate()}')
    time.sleep(0.05)


def workers_of(process: subprocess.Popen) -> list[int]:
  """Process ids of the command's TFF workers: none before it has started one."""
  children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
  commands = {int(child): pathlib.Path(f'/proc/{child}/cmdline') for child in children}
  return [
    child for child, command in commands.items() if b'--max_concurrent' in command.read_bytes()
  ]


def worker_of(process: subprocess.Popen) -> int:
  """Process id of the command's TFF worker."""
  (worker,) = workers_of(process)
  return worker


def is_gone(pid: int, seconds: float = 10) -> bool:
  """Whether a process ends within that time; a zombie has ended."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    try:
      state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except FileNotFoundError:
      return True
    if state == 'Z':
      return True
    time.sleep(0.05)
  return False


def main() -> None:
  """The command line."""
  registry.TASKS.update(TASKS)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  cli.main()


if __name__ == '__main__':
  main()
