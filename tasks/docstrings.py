# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The embedded task: from the body of a docstring to its one-line summary.

The data are read from the installed environment itself, so they are on every machine and need no
network. A client is a module: its authors' habits and its subject make it naturally unlike others.

Clients come from TensorFlow and what is built on it (`CLIENT_DISTRIBUTIONS`); the embedded base
model and its tokenizer learned from other distributions only (`tasks.corpus`), and what is near to
a client's text was taken out there. Copies are many in this environment - Keras is there four
times, TensorFlow Probability three times - so a pair is dropped when half of the five-word runs of
its source are in the sources before it or in those after it, or when its target was seen at all.
A pair of a held-out client is also dropped when half of the runs of its source or of its target are
in the text of an earlier split.

In the locked environment 322 modules keep at least 8 pairs, 4,761 in all; the corpus has 12 MB in
26,890 documents.
"""

from __future__ import annotations

import collections
import gzip
import hashlib
import json
import logging
import pathlib
import random
from collections.abc import Iterable, Mapping, Sequence

from tasks import errors, federated_text, harvest, near_duplicates
from tasks.files import replace_file
from tasks.kept import kept
from tasks.task import Request

NAME = 'docstring_summarization'

# In the order of who keeps a text that several hold: TensorFlow bundles copies of some others.
# tf-keras is not here: it is Keras again.
CLIENT_DISTRIBUTIONS = (
  'tensorflow-federated',
  'tensorflow-privacy',
  'dp-accounting',
  'keras',
  'keras-core',
  'keras-nlp',
  'tensorflow-estimator',
  'tensorflow',
  'tensorflow-probability',
  'tensorflow-model-optimization',
  'tensorflow-hub',
  'tensorflow-text',
  'tensorboard',
  'google-vizier',
)

MIN_EXAMPLES = 8
MAX_EXAMPLES = 64
MIN_CLIENTS = 100

_FORMAT = 1
_TARGET_WORDS = range(3, 25)
_MIN_SOURCE_WORDS = 10
_MIN_LETTER_SHARE = 0.6
_HELD_OUT_SHARE = 0.1

_log = logging.getLogger(__name__)

_Clients = dict[str, list[federated_text.Example]]
_Pair = tuple[str, federated_text.Example]


def load_docstring_summarization(request: Request) -> federated_text.FederatedText:
  """Loads the task, harvesting the environment on the first call.

  The pairs depend on the installed versions alone; the seed only decides which client goes to which
  split (by client: 80 % train, 10 % validation, 10 % test). A client that trains holds 8 to 64
  pairs; a held-out one may have lost some to the splits before it.

  Args:
    request: its cache is where the harvest is kept, one file per environment, made if missing; a
      file that does not match its checksum is harvested anew.

  Raises:
    tasks.errors.UserError: if the environment holds too few docstrings, as with a reduced install.
  """
  clients = _cached(request.cache)
  if len(clients) < MIN_CLIENTS:
    raise errors.UserError(
      f'task {NAME} found {len(clients)} modules with at least {MIN_EXAMPLES} docstrings in this '
      f'environment and needs {MIN_CLIENTS}; install requirements.txt in full.'
    )
  digest, seed = hashlib.sha256(repr(clients).encode()).hexdigest(), request.config.seed
  train, validation, test = kept('docstrings', [digest, seed], lambda: _split(clients, seed))
  return federated_text.FederatedText(NAME, train=train, validation=validation, test=test)


def harvest_clients(
  distributions: Sequence[str] = CLIENT_DISTRIBUTIONS,
) -> _Clients:
  """Reads the pairs of all clients from the installed distributions, near duplicates left out.

  Args:
    distributions: names of distributions; those that are not installed are passed over.

  Returns:
    The examples by dotted module name, in the order of the names.
  """
  installed = [name for name in distributions if harvest.version(name) is not None]
  found = (entry for name in installed for entry in harvest.docstrings(name))
  return _distinct(found)


def to_example(entry: harvest.Docstring) -> federated_text.Example | None:
  """Turns one docstring into a pair, or None where it is not a summary of 3-24 words with a body.

  The source is the name of what is documented, with underscores as spaces, and the body; the target
  is the first paragraph. Both are single lines.
  """
  first, *rest = harvest.paragraphs(entry.text) or ['']
  body = ' '.join(rest)
  letters = sum(character.isalpha() or character.isspace() for character in first)
  if (
    len(first.split()) not in _TARGET_WORDS
    or len(body.split()) < _MIN_SOURCE_WORDS
    or first.endswith(':')
    or letters < _MIN_LETTER_SHARE * len(first)
  ):
    return None
  name = ' '.join(entry.name.replace('_', ' ').split())
  return federated_text.Example(source=f'{name}: {body}', target=first)


def _distinct(entries: Iterable[harvest.Docstring]) -> _Clients:
  pairs, targets = [], set()
  for entry in entries:
    example = to_example(entry)
    if example is not None:
      target = near_duplicates.normalise(example.target)
      if target not in targets:
        targets.add(target)
        pairs.append((entry.module, example))
  # The second pass, from the end, finds what is short and within a longer text that came later.
  pairs = _without_repeats(_without_repeats(pairs)[::-1])[::-1]
  clients: _Clients = collections.defaultdict(list)
  for module, example in pairs:
    clients[module].append(example)
  return {
    module: clients[module][:MAX_EXAMPLES]
    for module in sorted(clients)
    if len(clients[module]) >= MIN_EXAMPLES
  }


def _without_repeats(pairs: list[_Pair]) -> list[_Pair]:
  sources, kept = near_duplicates.ShingleIndex(), []
  for module, example in pairs:
    if not sources.repeats(example.source):
      sources.add(example.source)
      kept.append((module, example))
  return kept


def _split(clients: _Clients, seed: int) -> tuple[_Clients, _Clients, _Clients]:
  order = sorted(clients)
  random.Random(seed).shuffle(order)
  size = round(_HELD_OUT_SHARE * len(order))
  parts = order[2 * size :], order[:size], order[size : 2 * size]
  seen = near_duplicates.ShingleIndex()
  train, held_out, final = (
    _unseen({name: clients[name] for name in sorted(p)}, seen) for p in parts
  )
  return train, held_out, final


def _unseen(clients: _Clients, seen: near_duplicates.ShingleIndex) -> _Clients:
  """Leaves out what is near to the text of an earlier split, then remembers the rest.

  Sources repeat none by now, but one-line summaries do: each adds a word to another's.
  """
  kept = {
    name: [e for e in examples if not (seen.repeats(e.target) or seen.repeats(e.source))]
    for name, examples in clients.items()
  }
  kept = {name: examples for name, examples in kept.items() if examples}
  for examples in kept.values():
    seen.update(text for example in examples for text in (example.source, example.target))
  return kept


def _cached(cache_dir: pathlib.Path) -> _Clients:
  path = cache_dir / f'{NAME}-{_environment_key()}.jsonl.gz'
  clients = _read(path)
  if clients is None:
    _log.info('Harvesting docstrings of the installed environment into %s.', path)
    clients = harvest_clients()
    _write(path, clients)
  return clients


def _environment_key() -> str:
  versions = {name: harvest.version(name) for name in CLIENT_DISTRIBUTIONS}
  described = json.dumps([_FORMAT, versions], sort_keys=True)
  return hashlib.sha256(described.encode()).hexdigest()[:16]


def _checksum_path(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + '.sha256')


def _read(path: pathlib.Path) -> _Clients | None:
  if not path.exists():
    return None
  try:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != _checksum_path(path).read_text().split()[0]:
      raise ValueError('its checksum differs')
    clients: _Clients = {}
    for line in gzip.decompress(data).decode().splitlines():
      client, source, target = json.loads(line)
      clients.setdefault(client, []).append(federated_text.Example(source, target))
  except (OSError, EOFError, ValueError, IndexError) as error:
    _log.warning('The cached task %s is damaged (%s); harvesting it again.', path, error)
    return None
  return clients


def _write(path: pathlib.Path, clients: Mapping[str, Sequence[federated_text.Example]]) -> None:
  lines = [
    json.dumps([client, example.source, example.target], ensure_ascii=False) + '\n'
    for client, examples in clients.items()
    for example in examples
  ]
  # Without the time stamp the file, and so its checksum, depends on the content alone.
  data = gzip.compress(''.join(lines).encode(), mtime=0)
  path.parent.mkdir(parents=True, exist_ok=True)
  # The checksum last: a kill in between leaves a pair that does not match and is made anew.
  replace_file(path, data)
  replace_file(_checksum_path(path), f'{hashlib.sha256(data).hexdigest()}  {path.name}\n'.encode())
