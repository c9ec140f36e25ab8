# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The text the embedded base model was trained on: public documentation that no client holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tasks import errors, federated_text, harvest, near_duplicates

# Documentation of comparable style, by other authors than the clients'. No distribution is in both
# this list and `docstrings.CLIENT_DISTRIBUTIONS`.
CORPUS_DISTRIBUTIONS = (
  'scikit-learn',
  'scipy',
  'numpy',
  'matplotlib',
  'nltk',
  'sqlalchemy',
  'jax',
  'jaxlib',
  'fonttools',
  'hypothesis',
  'rich',
  'h5py',
  'werkzeug',
  'mpmath',
  'pillow',
  'joblib',
  'absl-py',
  'oauthlib',
  'jinja2',
  'markdown',
  'cryptography',
  'psutil',
  'pyparsing',
  'click',
  'typer',
  'pygments',
  'pytest',
  'kagglehub',
  'google-auth',
  'requests',
  'requests-oauthlib',
  'urllib3',
  'attrs',
  'cffi',
  'charset-normalizer',
  'cloudpickle',
  'cycler',
  'decorator',
  'dm-tree',
  'gast',
  'google-pasta',
  'greenlet',
  'grpcio',
  'idna',
  'kiwisolver',
  'markdown-it-py',
  'ml-dtypes',
  'opt-einsum',
  'packaging',
  'portpicker',
  'protobuf',
  'python-dateutil',
  'pyyaml',
  'regex',
  'rouge-score',
  'safetensors',
  'six',
  'sortedcontainers',
  'threadpoolctl',
  'tqdm',
  'wrapt',
)

_MIN_WORDS = 5


def build_corpus(clients: Mapping[str, Sequence[federated_text.Example]]) -> list[str]:
  """Returns the corpus: docstrings, long string literals and READMEs as plain paragraphs.

  Half of the five-word runs decide, as for the clients: a paragraph is dropped when client text
  covers it, a document when earlier documents cover it. What is left is text as people wrote it,
  summary first, and not turned into pairs of body and summary: those are for fine-tuning to teach.

  Args:
    clients: all clients of the task, whatever their split.

  Returns:
    Documents whose paragraphs are lines, in an order that depends on the installed versions alone.

  Raises:
    tasks.errors.UserError: if a distribution of the corpus is not installed.
  """
  missing = [name for name in CORPUS_DISTRIBUTIONS if harvest.version(name) is None]
  if missing:
    raise errors.UserError(
      f'the corpus needs {", ".join(missing)}, which this environment lacks; '
      'install requirements.txt in full.'
    )
  held = near_duplicates.ShingleIndex()
  for examples in clients.values():
    for example in examples:
      held.add(example.source)
      held.add(example.target)
  return list(_distinct(_documents(), held))


def checksum(documents: Iterable[str]) -> str:
  """Returns the SHA-256 of the documents, in their order."""
  digest = hashlib.sha256()
  for document in documents:
    digest.update(document.encode() + b'\0')
  return digest.hexdigest()


def _documents() -> Iterator[str]:
  for distribution in CORPUS_DISTRIBUTIONS:
    for entry in harvest.docstrings(distribution):
      yield entry.text
    yield from harvest.long_strings(distribution)
    yield harvest.read_me(distribution)


def _distinct(documents: Iterable[str], held: near_duplicates.ShingleIndex) -> Iterator[str]:
  seen = near_duplicates.ShingleIndex()
  for document in documents:
    kept = [line for line in harvest.paragraphs(document) if not held.repeats(line)]
    text = '\n'.join(kept)
    if len(text.split()) >= _MIN_WORDS and not seen.repeats(text):
      seen.add(text)
      yield text
