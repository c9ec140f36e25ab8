# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The built-in tasks as a configuration sees them: what they are, read and need."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# What a task may read of the configuration, and others have no use for.
DATA_KEYS = (
  'data_dir', 'client_field', 'text_field', 'source_field', 'target_field', 'label_field',
  'id_field', 'labels', 'min_examples', 'max_examples', 'skip_bad_records',
)  # fmt: skip
_OF_RECORDS = ('data_dir', 'min_examples', 'max_examples', 'skip_bad_records')


@dataclasses.dataclass(frozen=True)
class BuiltIn:
  """A built-in task.

  Attributes:
    description: one line for `hetlora tasks`.
    reads: those of `DATA_KEYS` that have a meaning for it.
    needs: those among them that have to be given.
    usual: what keys are in its runs, where they are otherwise than usual.
    shares_clients: whether held-out text is of clients that train.
    quotes_others: whether a client's examples hold what others wrote to it.
  """

  description: str
  reads: tuple[str, ...] = ()
  needs: tuple[str, ...] = ()
  usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  shares_clients: bool = False
  quotes_others: bool = False


BUILT_IN: Mapping[str, BuiltIn] = {
  'docstring_summarization': BuiltIn(
    'Body of a docstring -> its one-line summary. Clients are the Python modules of the installed '
    'environment.',
  ),
  'multi_session_chat': BuiltIn(
    'Persona and turns so far -> the next response. Clients are the speakers of Multi-Session Chat '
    "as ParlAI ships it (--data-dir: session_1/train.txt, ...); each one's last session is held "
    'out.',
    reads=_OF_RECORDS,
    needs=('data_dir',),
    usual={'truncate_source': 'start'},
    shares_clients=True,
    quotes_others=True,
  ),
  'reddit_summarization': BuiltIn(
    'Post -> its TL;DR. Clients are the authors of Webis TL;DR or Reddit TIFU JSON lines '
    '(--data-dir); a post of the latter that names none is a client of its own.',
    reads=_OF_RECORDS,
    needs=('data_dir',),
  ),
  'stackoverflow': BuiltIn(
    "Questions and answers, word by word. Clients are the users of TFF's Stack Overflow, which is "
    'downloaded (to --data-dir, if given).',
    reads=('data_dir', 'max_examples'),
  ),
  'text_classification': BuiltIn(
    'Text -> its label, on encoders, too. JSON lines (--data-dir) with --client-field, '
    '--text-field and --label-field.',
    reads=(*_OF_RECORDS, 'client_field', 'text_field', 'label_field', 'labels', 'id_field'),
    needs=('data_dir', 'client_field', 'text_field', 'label_field'),
    # The head sees hidden states as they are: at what suits inner layers, it overshoots.
    usual={'client_learning_rate': 1e-3},
  ),
  'text_jsonl': BuiltIn(
    'Your own JSON lines (--data-dir): --source-field -> --target-field, or running text of '
    '--text-field. Clients are the values of --client-field.',
    reads=(*_OF_RECORDS, 'client_field', 'text_field', 'source_field', 'target_field', 'id_field'),
    needs=('data_dir', 'client_field'),
  ),
}


def usual(name: str) -> Mapping[str, Any]:
  """What keys usually are in runs of a task; nothing of its own for one that is not built in."""
  return BUILT_IN[name].usual if name in BUILT_IN else {}
