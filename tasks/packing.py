# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
r"""From examples of text to the fixed shapes that models train on and decode from.

- `Kind.PAIR`: a row is `start, head, source, separator, target, end`, then padding. The separator
  is ordinary text, `'\n=>'` by default, so that any vocabulary can write it; the target follows
  with a leading space and its words are split as they are within a sentence. The room of the target
  is fixed for all rows: a training row and the prompt of the same example start with the very same
  tokens, and where a source was cut does not tell how long its target is.
- `Kind.TEXT`: the texts of a client, each ended by the end token, are one stream that is cut into
  full rows.
- `Kind.LABEL`: a row is `start, head, source, end`, then padding; its label is a number.

`start` is what the model saw before every text when it was pretrained, if anything.
"""

from __future__ import annotations

import collections
import enum
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from tasks.federated_text import Example, Kind
from tasks.text import Tokenizer

# Arrays of equal first dimension, by name.
Packed = collections.OrderedDict[str, np.ndarray]

_MAX_TARGET_TOKENS = 32


class Side(enum.Enum):
  """The side on which a source that is too long is cut."""

  START = 'start'
  END = 'end'


class Packer:
  """Makes rows of `sequence_length` tokens, L, of the examples of a client.

  What does not fit is left out: of a source on the side of `truncate_source`; of a head its end,
  beyond half of the room or beyond what the source leaves, if that is more; of a target its end
  (it then keeps no end token: the model must not learn to stop there). The end and start tokens'
  own text may occur in what people wrote, but neither ends nor starts a row: it is dropped.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    *,
    kind: Kind,
    sequence_length: int,
    max_target_tokens: int | None = None,
    truncate_source: Side | str = Side.END,
    labels: Sequence[str] = (),
  ):
    """Nothing is encoded before the first call.

    Args:
      tokenizer: how to encode texts.
      kind: what the examples are.
      sequence_length: tokens per row, L.
      max_target_tokens: of `Kind.PAIR`, the room for a target and its end token; by default a
        third of the row, at most 32 tokens.
      truncate_source: the side on which sources are cut.
      labels: of `Kind.LABEL`, all there are, in the order of their numbers.

    Raises:
      ValueError: if there is no such side, or a row has no room for a source or a target.
    """
    self._tokenizer = tokenizer
    self._kind = kind
    self._length = sequence_length
    default = min(_MAX_TARGET_TOKENS, sequence_length // 3)
    self._max_target_tokens = default if max_target_tokens is None else max_target_tokens
    self._side = Side(truncate_source)
    self._labels = {label: number for number, label in enumerate(labels)}
    self._special = {tokenizer.end_token_id, *tokenizer.start_ids}
    self._line_break = tokenizer.encode('\n')
    after = len(tokenizer.separator_ids) + self._max_target_tokens if kind is Kind.PAIR else 1
    self._room = sequence_length - len(tokenizer.start_ids) - after
    if self._room < 1:
      raise ValueError(
        f'{sequence_length} tokens are too few for a source and the {after} tokens after it; use '
        f'{after + len(tokenizer.start_ids) + 1} or more, or less room for targets.'
      )
    if kind is Kind.PAIR and self._max_target_tokens < 2:
      raise ValueError(
        f'{self._max_target_tokens} tokens are too few for a target and its end; use 2 or more.'
      )

  @property
  def max_target_tokens(self) -> int:
    """Tokens that a row has for a target and its end."""
    return self._max_target_tokens

  def rows(self, examples: Sequence[Example]) -> Packed:
    """Packs the examples of one client for training or for the loss.

    Args:
      examples: n examples, in the order in which `Kind.TEXT` joins them.

    Returns:
      `token_ids` int32 [n, L]; `padding_mask` int32 [n, L], 1 where there is a token; and, of
      `Kind.LABEL`, `labels` int32 [n], else `loss_weights` float32 [n, L], 1 at t where the
      prediction of token t + 1 is scored. The last position is always 0. `Kind.TEXT` has its own
      number of rows, and scores each token of the texts once.

    Raises:
      ValueError: if a target is none of the labels.
    """
    if self._kind is Kind.TEXT:
      return self._text_rows(examples)
    return self._label_rows(examples) if self._kind is Kind.LABEL else self._pair_rows(examples)

  def prompts(self, examples: Sequence[Example]) -> Packed:
    """Packs what comes before the target, as in `rows`, for a target to be decoded.

    Args:
      examples: n examples of `Kind.PAIR`.

    Returns:
      `token_ids` int32 [n, L] and `padding_mask` int32 [n, L]; at least `max_target_tokens`
      positions of each row are free.
    """
    return self._padded(self._prompts(examples))

  def _pair_rows(self, examples: Sequence[Example]) -> Packed:
    prompts = self._prompts(examples)
    targets = self._encode(' ' + example.target.strip() for example in examples)
    end, room = self._tokenizer.end_token_id, self._max_target_tokens
    rows = [prompt + [*target, end][:room] for prompt, target in zip(prompts, targets, strict=True)]
    return self._scored(rows, [len(prompt) - 1 for prompt in prompts])

  def _text_rows(self, examples: Sequence[Example]) -> Packed:
    end = self._tokenizer.end_token_id
    texts = self._encode(example.target for example in examples)
    stream = self._tokenizer.start_ids or [end]
    stream = [*stream, *itertools.chain.from_iterable([*text, end] for text in texts)]
    # Neighbours share a token: it is predicted in the first and read in the second.
    starts = range(0, len(stream) - 1, self._length - 1)
    rows = [stream[start : start + self._length] for start in starts]
    return self._scored(rows, [0] * len(rows))

  def _label_rows(self, examples: Sequence[Example]) -> Packed:
    end = self._tokenizer.end_token_id
    packed = self._padded([[*source, end] for source in self._sources(examples)])
    try:
      numbers = [self._labels[example.target] for example in examples]
    except KeyError as error:
      raise ValueError(f'{error} is none of the labels {", ".join(self._labels)}.') from None
    packed['labels'] = np.array(numbers, np.int32)
    return packed

  def _prompts(self, examples: Sequence[Example]) -> list[list[int]]:
    return [source + self._tokenizer.separator_ids for source in self._sources(examples)]

  def _sources(self, examples: Sequence[Example]) -> list[list[int]]:
    """Start, head and source of each example, with room left for what follows."""
    sources = self._encode(example.source for example in examples)
    heads = self._encode(example.head for example in examples)
    start = self._tokenizer.start_ids
    return [start + self._cut(*parts) for parts in zip(heads, sources, strict=True)]

  def _cut(self, head: list[int], source: list[int]) -> list[int]:
    if head:
      room = max(self._room // 2, self._room - len(source)) - len(self._line_break)
      head = (head[: max(room, 0)] + self._line_break)[: self._room]
    room = self._room - len(head)
    return head + (
      source[max(len(source) - room, 0) :] if self._side is Side.START else source[:room]
    )

  def _encode(self, texts: Iterable[str]) -> list[list[int]]:
    encoded = self._tokenizer.encode_batch(list(texts))
    return [[index for index in ids if index not in self._special] for ids in encoded]

  def _scored(self, rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> Packed:
    """Rows whose tokens are scored from the prediction made at the first position given."""
    packed = self._padded(rows)
    positions = np.arange(self._length)
    first = np.array(firsts, np.int64)[:, np.newaxis]
    last = packed['padding_mask'].sum(axis=1, keepdims=True) - 2
    packed['loss_weights'] = ((positions >= first) & (positions <= last)).astype(np.float32)
    return packed

  def _padded(self, rows: Sequence[Sequence[int]]) -> Packed:
    lengths = np.array([len(row) for row in rows], np.int64)[:, np.newaxis]
    mask = np.arange(self._length) < lengths
    token_ids = np.full(mask.shape, self._tokenizer.pad_token_id, np.int32)
    token_ids[mask] = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
    return collections.OrderedDict(token_ids=token_ids, padding_mask=mask.astype(np.int32))
