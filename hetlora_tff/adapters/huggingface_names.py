# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a keras-nlp module lives in the Hugging Face model of the same architecture.

keras-nlp's attention kernels `[d, heads, head_dim]` flatten to the rows `heads * head_dim` of
Hugging Face's projections, and its rotary embedding rotates halves as Hugging Face's does, so most
modules are renamed and nothing else. Some models fuse several projections into one matrix; there a
module is a block of rows.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
  """The rows and the ranks that one module's factors take in an adapter of the file.

  The adapter's `lora_B [groups * total, ranks]`, seen as `[groups, total, ranks]`, holds the
  module's `b` in `[:, start : start + size, rank_start : rank_start + rank]`; its `lora_A` holds
  `a` in the rows `rank_start : rank_start + rank`.
  """

  module: str
  rank_start: int
  rank: int
  groups: int
  start: int
  size: int
  total: int


@dataclasses.dataclass(frozen=True)
class Stack:
  """The repeated layers of an architecture.

  Attributes:
    ours: name of a layer in keras-nlp without its number.
    theirs: path of a layer in Hugging Face, `{}` for the number.
    modules: our path within a layer to theirs.
    fused: their fused modules to our paths in the order of their blocks; paths within one inner
      tuple have blocks of one size.
    per_head: whether the blocks of a fused attention matrix repeat for every head.
  """

  ours: str
  theirs: str
  modules: Mapping[str, str]
  fused: Mapping[str, tuple[tuple[str, ...], ...]] = dataclasses.field(default_factory=dict)
  per_head: bool = False


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The naming of one architecture.

  Attributes:
    stacks: its stacks of layers.
    task_type: PEFT's task type; it decides which Hugging Face class the names belong to.
    fan_in_fan_out: whether Hugging Face stores the weights as `[d_in, d_out]`.
  """

  stacks: tuple[Stack, ...]
  task_type: str
  fan_in_fan_out: bool = False

  @property
  def head(self) -> str | None:
    """The classifier that is ours: a matrix without a bias on the last token's hidden state.

    All causal models have it at Hugging Face. Their encoders have a dense layer in between.
    """
    return 'score' if self.task_type == 'CAUSAL_LM' else None


def _attention(ours: str, theirs: str, names: str) -> dict[str, str]:
  kinds = ('query', 'key', 'value', 'output')
  return {
    f'{ours}/{kind}': f'{theirs}{name}' for kind, name in zip(kinds, names.split(), strict=True)
  }


def _feedforward(intermediate: str, output: str) -> dict[str, str]:
  return {'feedforward_intermediate': intermediate, 'feedforward_output': output}


def _fused_attention(ours: str, theirs: str) -> dict[str, tuple[tuple[str, ...], ...]]:
  return {theirs: ((f'{ours}/query', f'{ours}/key', f'{ours}/value'),)}


def _layers(ours: str, theirs: str, *modules: dict[str, str]) -> Stack:
  return Stack(ours, theirs, collections.ChainMap(*modules))


_LLAMA = Architecture(
  (
    _layers(
      'transformer_layer_',
      'model.layers.{}.',
      _attention('self_attention', 'self_attn.', 'q_proj k_proj v_proj o_proj'),
      _feedforward('mlp.up_proj', 'mlp.down_proj'),
      {'feedforward_gate': 'mlp.gate_proj'},
    ),
  ),
  'CAUSAL_LM',
)

_BERT = Architecture(
  (
    _layers(
      'transformer_layer_',
      'encoder.layer.{}.',
      _attention('self_attention', 'attention.', 'self.query self.key self.value output.dense'),
      _feedforward('intermediate.dense', 'output.dense'),
    ),
  ),
  'FEATURE_EXTRACTION',
)

_BART_ATTENTION = 'q_proj k_proj v_proj out_proj'

_ARCHITECTURES = {
  'GPT2Backbone': Architecture(
    (
      Stack(
        'transformer_layer_',
        'transformer.h.{}.',
        {
          'self_attention/output': 'attn.c_proj',
          **_feedforward('mlp.c_fc', 'mlp.c_proj'),
        },
        _fused_attention('self_attention', 'attn.c_attn'),
      ),
    ),
    'CAUSAL_LM',
    fan_in_fan_out=True,
  ),
  'OPTBackbone': Architecture(
    (
      _layers(
        'transformer_layer_',
        'model.decoder.layers.{}.',
        _attention('self_attention', 'self_attn.', _BART_ATTENTION),
        _feedforward('fc1', 'fc2'),
      ),
    ),
    'CAUSAL_LM',
  ),
  'BloomBackbone': Architecture(
    (
      Stack(
        'transformer_layer_',
        'transformer.h.{}.',
        {
          'self_attention/output': 'self_attention.dense',
          'mlp_intermediate': 'mlp.dense_h_to_4h',
          'mlp_output': 'mlp.dense_4h_to_h',
        },
        _fused_attention('self_attention', 'self_attention.query_key_value'),
        per_head=True,
      ),
    ),
    'CAUSAL_LM',
  ),
  'FalconBackbone': Architecture(
    (
      Stack(
        'transformer_layer_',
        'transformer.h.{}.',
        {
          'attention/output': 'self_attention.dense',
          'dense_h_to_4h': 'mlp.dense_h_to_4h',
          'dense_4h_to_h': 'mlp.dense_4h_to_h',
        },
        _fused_attention('attention', 'self_attention.query_key_value'),
        per_head=True,
      ),
    ),
    'CAUSAL_LM',
  ),
  'LlamaBackbone': _LLAMA,
  'Llama3Backbone': _LLAMA,
  'MistralBackbone': _LLAMA,
  'Phi3Backbone': Architecture(
    (
      Stack(
        'transformer_layer_',
        'model.layers.{}.',
        {'attention/output': 'self_attn.o_proj', 'feedforward_output': 'mlp.down_proj'},
        {
          # Key and value may have fewer heads than the query.
          'self_attn.qkv_proj': (('attention/query',), ('attention/key', 'attention/value')),
          'mlp.gate_up_proj': (('feedforward_gate', 'feedforward_intermediate'),),
        },
      ),
    ),
    'CAUSAL_LM',
  ),
  'BertBackbone': _BERT,
  'ElectraBackbone': _BERT,
  'RobertaBackbone': _BERT,
  'XLMRobertaBackbone': _BERT,
  'DistilBertBackbone': Architecture(
    (
      _layers(
        'transformer_layer_',
        'transformer.layer.{}.',
        _attention('self_attention', 'attention.', 'q_lin k_lin v_lin out_lin'),
        _feedforward('ffn.lin1', 'ffn.lin2'),
      ),
    ),
    'FEATURE_EXTRACTION',
  ),
  'BartBackbone': Architecture(
    (
      _layers(
        'transformer_encoder_layer_',
        'model.encoder.layers.{}.',
        _attention('self_attention', 'self_attn.', _BART_ATTENTION),
        _feedforward('fc1', 'fc2'),
      ),
      _layers(
        'transformer_decoder_layer_',
        'model.decoder.layers.{}.',
        _attention('self_attention', 'self_attn.', _BART_ATTENTION),
        _attention('cross_attention', 'encoder_attn.', _BART_ATTENTION),
        _feedforward('fc1', 'fc2'),
      ),
    ),
    'SEQ_2_SEQ_LM',
  ),
}


def find(architecture: str | None) -> Architecture | None:
  """The naming of a keras-nlp backbone class such as `'GPT2Backbone'`, or None if unknown."""
  return None if architecture is None else _ARCHITECTURES.get(architecture)


def place(
  names: Architecture, sizes: Mapping[str, tuple[int, int]], num_heads: int | None
) -> dict[str, Place]:
  """Places modules in the Hugging Face model.

  Args:
    names: the architecture.
    sizes: module path to (rank, d_out).
    num_heads: attention heads; needed where fused blocks repeat for every head.

  Returns:
    Module path to place, in the order of `sizes`, without the modules that have no counterpart or
    whose rows cannot be told from what is given.
  """
  ranks_used = collections.Counter()
  places = {}
  for path, (rank, d_out) in sizes.items():
    located = _locate(names, path)
    if located is None:
      continue
    prefix, stack, number, inner = located
    module, groups, start, total = stack.modules.get(inner), 1, 0, d_out
    if module is None:
      siblings = {
        other[len(prefix) :]: size for other, (_, size) in sizes.items() if other.startswith(prefix)
      }
      block = _block(stack, inner, siblings, num_heads)
      if block is None:
        continue
      module, groups, start, total = block
    module = stack.theirs.format(number) + module
    places[path] = Place(module, ranks_used[module], rank, groups, start, d_out // groups, total)
    ranks_used[module] += rank
  return places


def same_module(name: str, theirs: str) -> bool:
  """Whether a module of some Hugging Face class is one of the class that `place` names.

  The classes of an architecture differ in what stands before its layers: `h.0.mlp.c_fc` of the bare
  GPT-2 is `transformer.h.0.mlp.c_fc` with a head on it.
  """
  core = theirs.partition('.')[2]
  return name == core or name.endswith(f'.{core}')


def _locate(names: Architecture, path: str):
  for stack in names.stacks:
    match = re.fullmatch(rf'({stack.ours}(\d+)/)(.+)', path)
    if match:
      prefix, number, inner = match.groups()
      fused = (part for blocks in stack.fused.values() for twins in blocks for part in twins)
      if inner in stack.modules or inner in fused:
        return prefix, stack, number, inner
  return None


def _block(stack: Stack, inner: str, siblings: Mapping[str, int], num_heads: int | None):
  """Returns (their module, groups, first row, rows) of one fused block, per group."""
  module, blocks = next(
    (module, blocks) for module, blocks in stack.fused.items() if any(inner in b for b in blocks)
  )
  rows = {}
  for twins in blocks:
    known = [siblings[part] for part in twins if part in siblings]
    if not known:
      return None
    rows.update(dict.fromkeys(twins, known[0]))
  groups = num_heads if stack.per_head else 1
  if not groups or any(size % groups for size in rows.values()):
    return None
  parts = list(rows)
  start = sum(rows[part] for part in parts[: parts.index(inner)])
  return module, groups, start // groups, sum(rows.values()) // groups
