# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import collections

import numpy as np
import pytest

from hetlora_tff.adapters.backbone import FrozenBackbone
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from hetlora_tff.adapters.merge import merged_kernels
from tasks import text
from tasks.backbones import BaseModel
from tasks.errors import UserError
from tasks.evaluator import Evaluator
from tasks.federated_text import Example, FederatedText, Kind
from tasks.packing import Packer
from tests.integration import tiny_world

_CONFIG = LoraConfig(max_rank=3, alpha=6.0)
_PATHS = [
  f'transformer_layer_{layer}/self_attention/{name}' for layer in (0, 1) for name in _CONFIG.targets
]
_LENGTH = tiny_world.SEQUENCE_LENGTH


@pytest.fixture(scope='module', name='base')
def base_fixture(tmp_path_factory):
  directory = tmp_path_factory.mktemp('base') / 'backbone'
  frozen = FrozenBackbone.save(tiny_world.build_backbone(), directory)
  return BaseModel(frozen, text.Tokenizer(tiny_world.build_tokenizer()))


@pytest.fixture(scope='module', name='clients')
def clients_fixture():
  many = [Example(f'the cat {i} sat', f'a dog {i}', head='a mat') for i in range(40)]
  return {'many': many, **tiny_world.clients(1, 3)}


def _packer(base, kind=Kind.PAIR, **options):
  return Packer(base.tokenizer, kind=kind, sequence_length=_LENGTH, **options)


def _data(**changes):
  return FederatedText('tiny', tiny_world.clients(1, 1), {}, {}, **changes)


def _evaluator(base, clients, config=_CONFIG, kind=Kind.PAIR, labels=(), **changes):
  limits = {'examples_per_client': 100, 'decode_examples': 6, **changes}
  data, packer = _data(kind=kind, labels=labels), _packer(base, kind, labels=labels)
  return Evaluator(base, config, data, clients, packer, **limits)


@pytest.fixture(scope='module', name='evaluator')
def evaluator_fixture(base, clients):
  return _evaluator(base, clients)


def _adapters(seed=0, scale=0.3):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: (scale * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
  width = tiny_world.WIDTH
  return collections.OrderedDict((p, LoraFactors(draw(3, width), draw(width, 3))) for p in _PATHS)


def _without_effect(adapters):
  return collections.OrderedDict(
    (path, LoraFactors(a, np.zeros_like(b))) for path, (a, b) in adapters.items()
  )


def _merged(base, adapters):
  """An ordinary keras-nlp model with `W + scaling b a` written into its kernels."""
  model = tiny_world.build_backbone()
  for path, (a, b) in adapters.items():
    layer, _, name = path.split('/')
    attention = model.get_layer(layer)._self_attention_layer
    dense = getattr(attention, f'_{name}_dense')
    delta = _CONFIG.scaling * (b.astype(np.float64) @ a).T
    dense.kernel.assign_add(delta.reshape(dense.kernel.shape).astype(np.float32))
  return model


def _expected(model, packed):
  """Mean loss and number of what one client's rows score, by NumPy from the hidden states."""
  inputs = {name: packed[name] for name in ('token_ids', 'padding_mask')}
  logits = model.token_embedding(model(inputs), reverse=True).numpy().astype(np.float64)
  logits -= logits.max(-1, keepdims=True)
  log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  next_tokens = packed['token_ids'][:, 1:, np.newaxis]
  picked = np.take_along_axis(log_probabilities[:, :-1], next_tokens, -1)[..., 0]
  weights = packed['loss_weights'][:, :-1]
  return -(picked * weights).sum() / weights.sum(), weights.sum()


def test_losses_equal_those_of_the_merged_model(base, clients, evaluator):
  adapters = _adapters()
  losses = evaluator.losses(adapters)
  model = _merged(base, adapters)
  assert losses.clients == tuple(clients)
  for client, loss, count in zip(*losses, strict=True):
    expected, tokens = _expected(model, _packer(base).rows(clients[client]))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert count == tokens


def test_zero_b_is_the_base_whatever_a_is(base, clients, evaluator):
  first = evaluator.losses(_without_effect(_adapters(1)))
  second = evaluator.losses(_without_effect(_adapters(2)))
  np.testing.assert_array_equal(first.losses, second.losses)
  plain = tiny_world.build_backbone()
  expected = [_expected(plain, _packer(base).rows(e))[0] for e in clients.values()]
  np.testing.assert_allclose(first.losses, expected, rtol=1e-5)
  assert np.abs(evaluator.losses(_adapters(1)).losses - first.losses).max() > 1e-4


def test_only_the_first_examples_of_a_client_count(base, clients):
  limited = _evaluator(base, clients, examples_per_client=2, decode_examples=0)
  adapters = _adapters()
  model = _merged(base, adapters)
  for client, loss, _ in zip(*limited.losses(adapters), strict=True):
    expected = _expected(model, _packer(base).rows(clients[client][:2]))[0]
    assert loss == pytest.approx(expected, rel=1e-5)


def test_clients_take_turns_in_decoding(evaluator, clients):
  written = evaluator.write(_adapters())
  # Client 1 has two examples, client 2 three, client 3 four.
  order = ['many', 'client_01', 'client_02', 'client_03', 'many', 'client_01']
  assert [w.client for w in written] == order
  # Each begins elsewhere, and goes round.
  for turn, w in zip([0, 1, 2, 3, 1, 0], written, strict=True):
    example = clients[w.client][turn % len(clients[w.client])]
    source = f'a mat\n{example.source}' if w.client == 'many' else example.source
    assert (w.source, w.reference) == (source, example.target)


def test_limit_above_what_there_is_decodes_everything(base):
  clients = tiny_world.clients(1, 2)
  evaluator = _evaluator(base, clients, decode_examples=50)
  assert len(evaluator.write(_adapters())) == sum(map(len, clients.values()))


def test_nothing_is_decoded_at_limit_zero(base, clients):
  assert _evaluator(base, clients, decode_examples=0).write(_adapters()) == []


def test_adapters_change_what_is_written(evaluator):
  loud = [w.prediction for w in evaluator.write(_adapters(scale=4.0))]
  quiet = [w.prediction for w in evaluator.write(_without_effect(_adapters()))]
  assert loud != quiet


def test_divergence_is_said_in_one_line(evaluator):
  adapters = _adapters()
  adapters[_PATHS[0]] = LoraFactors(*(np.full_like(x, np.nan) for x in adapters[_PATHS[0]]))
  with pytest.raises(UserError, match='not finite: training has diverged'):
    evaluator.losses(adapters)


def test_a_residual_counts_as_the_product_that_it_equals(evaluator):
  adapters = _adapters()
  corrected = collections.OrderedDict(
    (path, CorrectedFactors(0 * a, b, (_CONFIG.scaling * b @ a).astype(np.float32)))
    for path, (a, b) in adapters.items()
  )
  plain, moved = evaluator.losses(adapters), evaluator.losses(corrected)
  np.testing.assert_allclose(moved.losses, plain.losses, rtol=1e-5)
  assert evaluator.write(corrected) == evaluator.write(adapters)


@pytest.fixture(scope='module', name='full_evaluator')
def full_evaluator_fixture(base, clients):
  return _evaluator(base, clients, config=None)


def _merged_weights(base, adapters):
  weights = collections.OrderedDict((n, w.numpy()) for n, w in base.backbone.weights().items())
  return weights | merged_kernels(base.backbone, _CONFIG, adapters)


def test_all_weights_are_evaluated_as_the_adapters_that_they_hold(base, evaluator, full_evaluator):
  for seed in (0, 1, 0):
    adapters = _adapters(seed, scale=1.0)
    weights = _merged_weights(base, adapters)
    expected, losses = evaluator.losses(adapters), full_evaluator.losses(weights)
    assert losses.clients == expected.clients
    np.testing.assert_allclose(losses.losses, expected.losses, rtol=1e-4)
    assert full_evaluator.write(weights) == evaluator.write(adapters)
  # The comparison says little if all of them write the same.
  assert evaluator.write(_adapters(1, scale=1.0)) != evaluator.write(_adapters(0, scale=1.0))


def test_weights_of_another_model_are_refused(base, full_evaluator):
  weights = base.backbone.weights()
  weights.popitem()
  with pytest.raises(ValueError, match='these differ'):
    full_evaluator.losses(weights)


def test_more_beams_write_what_is_likelier(base, clients, evaluator):
  adapters = _adapters(scale=1.0)
  beams = _evaluator(base, clients, num_beams=3).write(adapters)
  greedy = evaluator.write(adapters)
  assert [w[:3] for w in beams] == [w[:3] for w in greedy]
  assert beams != greedy


def test_running_text_is_scored_as_a_stream_and_not_decoded(base):
  texts = {f'client {n}': [Example('', f'the cat ran {i}') for i in range(9 * n)] for n in (1, 2)}
  evaluator = _evaluator(base, texts, kind=Kind.TEXT)
  adapters = _adapters()
  model, packer = _merged(base, adapters), _packer(base, Kind.TEXT)
  for client, loss, count in zip(*evaluator.losses(adapters), strict=True):
    rows = packer.rows(texts[client])
    expected, tokens = _expected(model, rows)
    assert len(rows['token_ids']) not in (1, len(texts[client]))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert count == tokens
  assert evaluator.measure(adapters).accuracy == {}
  assert evaluator.write(adapters) == []


def test_labels_are_those_of_the_largest_logit(base):
  labels = ('no', 'maybe', 'yes')
  clients = {
    'many': [Example(f'the cat {i} sat', labels[i % 3]) for i in range(40)],
    'one': [Example('a dog', 'yes')],
  }
  evaluator = _evaluator(base, clients, kind=Kind.LABEL, labels=labels)
  adapters = _adapters()
  rng = np.random.default_rng(5)
  head = LoraFactors(rng.normal(size=(3, tiny_world.WIDTH)), rng.normal(size=(3, 3)))
  head = LoraFactors(*(x.astype(np.float32) for x in head))
  model, packer = _merged(base, adapters), _packer(base, Kind.LABEL, labels=labels)
  measured = evaluator.measure(adapters | {'classifier': head})
  written = evaluator.write(adapters | {'classifier': head})
  for client, loss, count in zip(*measured.losses, strict=True):
    rows = packer.rows(clients[client])
    hidden = model({name: rows[name] for name in ('token_ids', 'padding_mask')}).numpy()
    last = rows['padding_mask'].sum(axis=1) - 1
    logits = _CONFIG.scaling * hidden[np.arange(len(last)), last] @ head.a.T @ head.b.T
    odds = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float64)
    right = odds[np.arange(len(last)), rows['labels']] / odds.sum(-1)
    assert loss == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert count == len(clients[client])
    assert measured.accuracy[client] == np.mean(logits.argmax(-1) == rows['labels'])
    predicted = [labels[index] for index in logits.argmax(-1)]
    mine = [w for w in written if w.client == client]
    assert [w.prediction for w in mine] == predicted[: len(mine)]
  assert 0 < measured.accuracy['many'] < 1
  assert [(w.client, w.reference) for w in written[:3]] == [
    ('many', 'no'), ('one', 'yes'), ('many', 'maybe'),
  ]  # fmt: skip
  assert len(written) == 6
