# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Batched greedy and beam decoding of keras-nlp language models with a key-value cache."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import keras_nlp
import numpy as np
import tensorflow as tf


class _GreedySampler(keras_nlp.samplers.GreedySampler):
  """keras-nlp's greedy sampler that stops once every row has ended or has all its new tokens.

  The stock loop runs to the end of the token buffer unless every row has produced an end token;
  in a batch of prompts of unequal length that is far more than `max_new_tokens` steps, and models
  that have not learned to end would always pay for it.
  """

  def __init__(self, max_new_tokens: int, end_token_id: int):
    super().__init__()
    self._max_new_tokens = max_new_tokens
    self._end_token_id = end_token_id

  def __call__(self, next, prompt, *, mask, index, cache=None, **unused):
    mask = tf.cast(mask, tf.bool)
    limits = _lengths(mask) + self._max_new_tokens

    def unfinished(prompt, cache, index):
      del cache
      ended = tf.reduce_any(tf.equal(prompt, self._end_token_id) & ~mask, axis=-1)
      return tf.reduce_any(~ended & (index < limits))

    def step(prompt, cache, index):
      logits, _, cache = next(prompt, cache, index)
      token = tf.cast(self.get_next_token(self.compute_probabilities(logits)), prompt.dtype)
      token = tf.where(mask[:, index], prompt[:, index], token)
      return _written(prompt, index, token), cache, index + 1

    # One row may be longer than another, so the buffer is the only bound that holds for all.
    prompt, _, _ = tf.while_loop(
      unfinished,
      step,
      (prompt, cache, tf.cast(index, tf.int32)),
      maximum_iterations=tf.shape(prompt)[1] - tf.cast(index, tf.int32),
    )
    return prompt


class _BeamSampler(keras_nlp.samplers.BeamSampler):
  """keras-nlp's beam sampler with every row on its own.

  In a batch of prompts of unequal length, the stock loop lets beams of a longer prompt part, and
  counts their probabilities, while that prompt is still being read; and a row that has ended is
  extended, and its best beam changes, until all rows have ended. Here a row's beams are those that
  the stock loop has for its prompt alone, whatever is decoded with it.
  """

  def __init__(self, num_beams: int, max_new_tokens: int, end_token_id: int):
    super().__init__(num_beams=num_beams)
    self._max_new_tokens = max_new_tokens
    self._end_token_id = end_token_id

  def __call__(self, next, prompt, *, mask, index, cache=None, **unused):
    beams, num_rows = self.num_beams, tf.shape(prompt)[0]
    lengths = _lengths(tf.cast(mask, tf.bool))
    prompt, cache, mask = tf.nest.map_structure(
      lambda x: tf.repeat(x, beams, axis=0), (prompt, cache, tf.cast(mask, tf.bool))
    )
    first = tf.range(num_rows)[:, tf.newaxis] * beams

    def unfinished(prompt, cache, index, scores):
      del cache, scores
      new_end = tf.reduce_any(tf.equal(prompt, self._end_token_id) & ~mask, axis=-1)
      ended = tf.reduce_all(tf.reshape(new_end, [num_rows, beams]), axis=-1)
      return ~ended & (index < lengths + self._max_new_tokens)

    def step(prompt, cache, index, scores):
      growing = unfinished(prompt, cache, index, scores) & (index >= lengths)
      logits, _, cache = next(prompt, cache, index)
      choices = tf.math.log(self.compute_probabilities(logits)) + tf.reshape(scores, [-1, 1])
      size = tf.shape(choices)[-1]
      best, choice = tf.math.top_k(tf.reshape(choices, [num_rows, beams * size]), k=beams)
      growing = growing[:, tf.newaxis]
      scores = tf.where(growing, best, scores)
      origin = tf.reshape(first + tf.where(growing, choice // size, tf.range(beams)), [-1])
      prompt, cache = tf.nest.map_structure(lambda x: tf.gather(x, origin), (prompt, cache))
      token = tf.where(growing, choice % size, tf.reshape(prompt[:, index], [num_rows, beams]))
      return _written(prompt, index, tf.reshape(token, [-1])), cache, index + 1, scores

    # At first only one beam of a row counts: the others are copies of it.
    scores = tf.tile([[0.0] + [-1e9] * (beams - 1)], [num_rows, 1])
    prompt, _, _, scores = tf.while_loop(
      lambda *state: tf.reduce_any(unfinished(*state)),
      step,
      (prompt, cache, tf.cast(index, tf.int32), scores),
      maximum_iterations=tf.shape(prompt)[1] - tf.cast(index, tf.int32),
    )
    return tf.gather(prompt, first[:, 0] + tf.argmax(scores, axis=-1, output_type=tf.int32))


def _lengths(mask: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(tf.cast(mask, tf.int32), axis=-1)


def _written(prompt: tf.Tensor, index: tf.Tensor, token: tf.Tensor) -> tf.Tensor:
  """The prompts `[n, length]` with the tokens `[n]` at one position."""
  rows = tf.range(tf.shape(prompt)[0])
  where = tf.stack([rows, tf.fill(tf.shape(rows), index)], axis=1)
  return tf.tensor_scatter_nd_update(prompt, where, token)


def _causal_lm_class(backbone: tf.keras.Model) -> type:
  for cls in type(backbone).__mro__:
    if cls.__name__.endswith('Backbone'):
      name = cls.__name__.removesuffix('Backbone') + 'CausalLM'
      if name != 'CausalLM' and hasattr(keras_nlp.models, name):
        return getattr(keras_nlp.models, name)
  raise ValueError(
    f'backbone: keras-nlp has no causal language model for {type(backbone).__name__}, so it cannot'
    ' generate text; use a decoder such as GPT2Backbone or LlamaBackbone.'
  )


def _checked_lengths(token_ids: np.ndarray, padding_mask: np.ndarray) -> np.ndarray:
  """Returns the number of real tokens of every prompt, int32 [n]."""
  if token_ids.ndim != 2 or token_ids.shape != padding_mask.shape:
    raise ValueError(
      'prompts: token_ids and padding_mask must both be [n, length]; got shapes'
      f' {token_ids.shape} and {padding_mask.shape}.'
    )
  real = padding_mask != 0
  lengths = real.sum(axis=1).astype(np.int32)
  if not np.array_equal(real, np.arange(token_ids.shape[1]) < lengths[:, np.newaxis]):
    raise ValueError('prompts: padding_mask must be 1 on a prefix of every row and 0 after it.')
  if np.any(lengths == 0):
    row = int(np.argmin(lengths))
    raise ValueError(f'prompts: row {row} is empty; every prompt needs at least one token.')
  return lengths


class Decoder:
  """Decodes, greedily or with beams, with the cached generation that keras-nlp has for a backbone.

  The tokens are those of `CausalLM.compile(sampler='greedy')`, or `keras_nlp.samplers.BeamSampler`,
  and `generate` of each prompt alone, up to float rounding; that sampler adds up log-probabilities,
  without regard to length, also of what it writes after an end while another beam goes on.
  Generation is traced once. Nothing of the adapters is baked into the trace: variables of layers
  are read at each call, and tensors that layers are bound to are arguments (see `bind`).

  Edge cases: a prompt that is continued by the end token yields an empty list; no prompts yield an
  empty list; an end token inside a prompt ends nothing; another number of prompts or another length
  is not traced anew.
  """

  def __init__(
    self,
    backbone: tf.keras.Model,
    *,
    max_new_tokens: int,
    end_token_id: int,
    batch_size: int = 16,
    bind: Callable[[Any], contextlib.AbstractContextManager] | None = None,
    num_beams: int = 1,
  ):
    """Builds the decoder; nothing is traced before the first `decode`.

    Args:
      backbone: A keras-nlp backbone, with or without LoRA layers.
      max_new_tokens: Most tokens to generate for a prompt, the end token included.
      end_token_id: The token id that ends a text.
      batch_size: Rows that are decoded together: prompts, or beams of as many whole prompts as
        that is. The cache is copied at every step, so beyond what fits the processor's own cache a
        larger batch is slower.
      bind: Makes a context in which the backbone's layers use the given adapters, a structure of
        tensors; `functools.partial(layers.bound, lora_layers)` is one. Needed only where `decode`
        is given adapters.
      num_beams: Continuations of a prompt that are kept at each step; 1 is greedy decoding.

    Raises:
      ValueError: If keras-nlp has no causal language model for the backbone, or a number is out of
        range.
    """
    counts = {'max_new_tokens': max_new_tokens, 'batch_size': batch_size, 'num_beams': num_beams}
    for name, value in counts.items():
      if value < 1:
        raise ValueError(f'{name} must be at least 1; got {value}.')
    if end_token_id < 0:
      raise ValueError(f'end_token_id must not be negative; got {end_token_id}.')
    self._model = _causal_lm_class(backbone)(backbone=backbone, preprocessor=None)
    self._model.sampler = (
      _GreedySampler(max_new_tokens, end_token_id)
      if num_beams == 1
      else _BeamSampler(num_beams, max_new_tokens, end_token_id)
    )
    self._max_new_tokens = max_new_tokens
    self._end_token_id = end_token_id
    self._batch_size = max(1, batch_size // num_beams)
    self._max_sequence_length = getattr(backbone, 'max_sequence_length', None)
    self._bind = bind
    # XLA cannot read memory-mapped weights, and compiling it takes longer than most evaluations.
    self._generate = tf.function(self._generate_batch, autograph=False, jit_compile=False)

  def _generate_batch(self, token_ids: tf.Tensor, padding_mask: tf.Tensor, adapters: Any):
    inputs = {'token_ids': token_ids, 'padding_mask': padding_mask}
    with contextlib.nullcontext() if self._bind is None else self._bind(adapters):
      return self._model.generate_step(inputs)['token_ids']

  def _traced(self, adapters: Any) -> Callable[..., tf.Tensor]:
    batch = tf.TensorSpec([None, None], tf.int32)
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), adapters)
    return self._generate.get_concrete_function(batch, batch, specs)

  def decode(self, prompts: Mapping[str, np.ndarray], adapters: Any = None) -> list[list[int]]:
    """Returns the continuation of every prompt, in the order of the prompts.

    Args:
      prompts: `token_ids` and `padding_mask`, integer arrays of shape [n, length]; 1 in the mask
        marks a real token, and padding comes last.
      adapters: A structure of tensors to bind for this call; other shapes are traced anew.

    Returns:
      For each prompt at most `max_new_tokens` token ids, cut before the end token.

    Raises:
      ValueError: If the arrays are malformed, a prompt and its new tokens do not fit into the
        backbone's position embedding, or there are adapters and no `bind`.
    """
    if (adapters is None) != (self._bind is None):
      raise ValueError(
        'adapters: give them to decode exactly when the decoder was built with bind.'
      )
    token_ids = np.asarray(prompts['token_ids'], np.int32)
    lengths = _checked_lengths(token_ids, np.asarray(prompts['padding_mask']))
    if not len(lengths):
      return []
    self._check_fits(int(lengths.max()))
    adapters = tf.nest.map_structure(tf.convert_to_tensor, () if adapters is None else adapters)
    decoded: list[list[int]] = [[] for _ in lengths]
    # Rows of a batch wait for each other, so neighbours in length share one.
    order = np.argsort(lengths, kind='stable')
    for start in range(0, len(order), self._batch_size):
      rows = order[start : start + self._batch_size]
      batch = self._decode_batch(token_ids[rows], lengths[rows], adapters)
      for row, tokens in zip(rows, batch, strict=True):
        decoded[row] = tokens
    return decoded

  def _check_fits(self, longest: int) -> None:
    width = longest + self._max_new_tokens
    if self._max_sequence_length is not None and width > self._max_sequence_length:
      raise ValueError(
        f'prompts: a prompt of {longest} tokens and max_new_tokens={self._max_new_tokens} need'
        f' {width} positions, but the backbone has {self._max_sequence_length}; shorten the prompts'
        ' or lower max_new_tokens.'
      )

  def _decode_batch(
    self, token_ids: np.ndarray, lengths: np.ndarray, adapters: Any
  ) -> list[list[int]]:
    width = int(lengths.max()) + self._max_new_tokens
    mask = (np.arange(width) < lengths[:, np.newaxis]).astype(np.int32)
    # The end token may also be the padding token: what is not yet written must be neither.
    buffer = np.full_like(mask, 1 if self._end_token_id == 0 else 0)
    for row, (tokens, length) in enumerate(zip(token_ids, lengths, strict=True)):
      buffer[row, :length] = tokens[:length]
    generate = self._traced(adapters)
    generated = generate(tf.constant(buffer), tf.constant(mask), adapters).numpy()
    return [self._cut(*row) for row in zip(generated, lengths.tolist(), strict=True)]

  def _cut(self, row: np.ndarray, length: int) -> list[int]:
    tokens = row[length : length + self._max_new_tokens].tolist()
    return tokens[: tokens.index(self._end_token_id)] if self._end_token_id in tokens else tokens
