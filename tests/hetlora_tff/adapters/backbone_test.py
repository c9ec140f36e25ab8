# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import re
import shutil

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from hetlora_tff.adapters.backbone import BackboneError, FrozenBackbone

SIZES = {
  'vocabulary_size': 23,
  'num_layers': 2,
  'num_heads': 2,
  'hidden_dim': 8,
  'intermediate_dim': 12,
  'max_sequence_length': 6,
}


def _gpt2(seed=1, **changes):
  tf.keras.utils.set_random_seed(seed)
  model = keras_nlp.models.GPT2Backbone(**{**SIZES, **changes})
  # Fresh biases are zero and fresh norms one: equal tensors hide a mix-up.
  rng = np.random.default_rng(seed)
  for weight in model.weights:
    weight.assign(rng.normal(scale=0.3, size=weight.shape))
  return model


def test_heads_under_every_name():
  falcon = keras_nlp.models.FalconBackbone(
    vocabulary_size=5, num_layers=1, num_attention_heads=2, hidden_dim=4, intermediate_dim=4
  )
  heads = [
    FrozenBackbone('', 'Any', config, 'float32', ()).num_heads
    for config in (SIZES, falcon.get_config(), {'num_query_heads': 2})
  ]
  assert heads == [2, 2, None]


INPUTS = {
  'token_ids': np.array([[1, 5, 22, 3, 0, 0], [7, 2, 4, 9, 11, 1]], np.int32),
  'padding_mask': np.array([[1, 1, 1, 1, 0, 0], [1] * 6], np.int32),
}


@pytest.fixture(scope='module')
def original():
  return _gpt2()


@pytest.fixture(scope='module')
def saved(original, tmp_path_factory):
  return FrozenBackbone.save(original, tmp_path_factory.mktemp('backbone') / 'saved')


@pytest.fixture
def copy(saved, tmp_path):
  """A backbone directory to spoil."""
  return pathlib.Path(shutil.copytree(saved.directory, tmp_path / 'copy'))


def test_round_trip_gives_the_same_outputs(original, saved):
  loaded = FrozenBackbone.load(saved.directory)
  assert loaded == saved
  np.testing.assert_array_equal(loaded.build()(INPUTS), original(INPUTS))
  # A second build finds the same tensors under other variable names.
  np.testing.assert_array_equal(loaded.build()(INPUTS), original(INPUTS))


def test_builds_in_a_graph_that_holds_no_weights(tmp_path):
  wide = _gpt2(vocabulary_size=5000)
  # Before the graph: models made in one leave Keras unable to call the living ones.
  expected = wide(INPUTS)
  frozen = FrozenBackbone.save(wide, tmp_path / 'wide')
  with tf.Graph().as_default() as graph:
    output = frozen.build()({name: tf.constant(value) for name, value in INPUTS.items()})
    initialize = tf.compat.v1.global_variables_initializer()
    with tf.compat.v1.Session(graph=graph) as session:
      session.run(initialize)
      result = session.run(output)
  np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
  stored = 4 * frozen.num_parameters
  assert stored > 160_000
  definition = graph.as_graph_def()
  assert max(len(node.SerializeToString()) for node in definition.node) < 2_000
  mapped = [node for node in definition.node if node.op == 'ImmutableConst']
  assert len(mapped) == len(wide.weights)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_stores_half_precision_and_computes_in_float32(original, tmp_path, dtype):
  frozen = FrozenBackbone.save(original, tmp_path / dtype, dtype=dtype)
  files = list(pathlib.Path(frozen.directory, 'tensors').iterdir())
  assert sum(file.stat().st_size for file in files) == 2 * frozen.num_parameters
  built = frozen.build()
  for mine, theirs in zip(built.weights, original.weights, strict=True):
    assert mine.dtype == tf.float32
    np.testing.assert_array_equal(mine, tf.cast(tf.cast(theirs, dtype), tf.float32))
  np.testing.assert_allclose(built(INPUTS), original(INPUTS), atol=0.1)


def test_built_model_is_frozen(saved):
  assert saved.build().trainable_weights == []


def test_names_what_it_holds(original, saved):
  assert saved.class_name == 'GPT2Backbone'
  assert {name: saved.config[name] for name in SIZES} == SIZES
  assert saved.num_parameters == original.count_params()
  assert pathlib.Path(saved.directory).is_absolute()
  manifest = json.loads(pathlib.Path(saved.directory, 'manifest.json').read_text())
  assert [t['file'] for t in manifest['tensors']][:2] == ['tensors/0000.bin', 'tensors/0001.bin']


def test_digest_follows_the_weights_and_not_the_place(original, saved, tmp_path):
  again = FrozenBackbone.save(original, tmp_path / 'again')
  rebuilt = FrozenBackbone.save(_gpt2(), tmp_path / 'rebuilt')
  other = FrozenBackbone.save(_gpt2(seed=2), tmp_path / 'other')
  half = FrozenBackbone.save(original, tmp_path / 'half', dtype='bfloat16')
  assert re.fullmatch('[0-9a-f]{64}', saved.sha256)
  assert again.sha256 == rebuilt.sha256 == saved.sha256
  assert len({saved.sha256, other.sha256, half.sha256}) == 3


def _flip_a_bit(file):
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)


@pytest.mark.parametrize(
  'spoil',
  [
    _flip_a_bit,
    lambda file: file.write_bytes(file.read_bytes()[:-4]),
    lambda file: file.write_bytes(file.read_bytes() + bytes(4)),
    lambda file: file.write_bytes(b''),
    lambda file: file.unlink(),
    lambda file: (file.unlink(), file.mkdir()),
  ],
  ids=['flipped bit', 'cut', 'grown', 'empty', 'missing', 'directory'],
)
def test_refuses_an_altered_tensor_and_names_it(copy, spoil):
  spoil(copy / 'tensors' / '0003.bin')
  with pytest.raises(BackboneError, match=r'0003\.bin'):
    FrozenBackbone.load(copy)


def _edited(change):
  def edit(text):
    manifest = json.loads(text)
    change(manifest)
    return json.dumps(manifest)

  return edit


@pytest.mark.parametrize(
  'edit',
  [
    lambda text: '',
    lambda text: text[: len(text) // 2],
    lambda text: '[]',
    lambda text: '\udcff',
    _edited(lambda m: m.update(format=99)),
    _edited(lambda m: m.pop('class')),
    _edited(lambda m: m.pop('config')),
    _edited(lambda m: m.pop('tensors')),
    _edited(lambda m: m.update(tensors=7)),
    _edited(lambda m: m.update(tensors=[7])),
    _edited(lambda m: m.update(config=7)),
    _edited(lambda m: m['tensors'][3].pop('sha256')),
    _edited(lambda m: m['tensors'][3].update(extra=1)),
    _edited(lambda m: m['tensors'][3].update(shape=7)),
    _edited(lambda m: m['tensors'][3].update(shape=['a'])),
    _edited(lambda m: m['tensors'][3].update(shape=[1])),
    _edited(lambda m: m['tensors'][3].update(dtype='float99')),
    _edited(lambda m: m['tensors'][3].update(file=7)),
    _edited(lambda m: m['tensors'][3].update(sha256=7)),
  ],
)
def test_refuses_a_malformed_manifest(copy, edit):
  manifest = copy / 'manifest.json'
  manifest.write_bytes(edit(manifest.read_text()).encode('utf-8', 'surrogateescape'))
  with pytest.raises(BackboneError, match=re.escape(str(copy))):
    FrozenBackbone.load(copy)


def test_refuses_a_missing_manifest(tmp_path):
  for directory in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(BackboneError, match=r'manifest\.json'):
      FrozenBackbone.load(directory)


@pytest.mark.parametrize('how', ['relative', 'absolute', 'link'])
def test_refuses_a_file_outside_its_directory(copy, how):
  outside = copy.parent / 'outside.bin'
  inside = copy / 'tensors' / '0003.bin'
  outside.write_bytes(inside.read_bytes())
  if how == 'link':
    inside.unlink()
    inside.symlink_to(outside)
  else:
    name = '../outside.bin' if how == 'relative' else str(outside)
    manifest = json.loads((copy / 'manifest.json').read_text())
    manifest['tensors'][3]['file'] = name
    (copy / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(BackboneError, match='outside its directory'):
    FrozenBackbone.load(copy)


def test_may_lie_behind_a_link(copy):
  link = copy.parent / 'link'
  link.symlink_to(copy)
  assert FrozenBackbone.load(link).sha256 == FrozenBackbone.load(copy).sha256


@pytest.mark.parametrize('change', ['fewer', 'more', 'other shapes', 'unknown class'])
def test_build_refuses_tensors_that_do_not_fit_the_class(copy, change):
  manifest = json.loads((copy / 'manifest.json').read_text())
  if change == 'fewer':
    manifest['tensors'].pop()
  elif change == 'more':
    manifest['tensors'].append(manifest['tensors'][0])
  elif change == 'other shapes':
    manifest['config']['intermediate_dim'] = 13
  else:
    manifest['class'] = 'NoSuchBackbone'
  (copy / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(BackboneError):
    FrozenBackbone.load(copy).build()


def test_save_refuses_a_target_in_use(original, tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'precious').write_text('kept')
  (tmp_path / 'file').write_text('kept')
  for name in ('full', 'file'):
    with pytest.raises(BackboneError, match='not an empty directory'):
      FrozenBackbone.save(original, tmp_path / name)
  assert (tmp_path / 'full' / 'precious').read_text() == 'kept'
  assert (tmp_path / 'file').read_text() == 'kept'


def test_save_takes_an_empty_target_and_makes_parents(original, tmp_path):
  (tmp_path / 'empty').mkdir()
  FrozenBackbone.save(original, tmp_path / 'empty')
  FrozenBackbone.save(original, tmp_path / 'a' / 'b' / 'c')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'empty']


def test_save_that_fails_leaves_nothing(original, tmp_path, monkeypatch):
  monkeypatch.setattr('os.replace', _no_space)
  with pytest.raises(BackboneError, match='No space left'):
    FrozenBackbone.save(original, tmp_path / 'target')
  assert list(tmp_path.iterdir()) == []


def _no_space(*_):
  raise OSError(28, 'No space left on device')


def test_save_refuses_another_dtype(original, tmp_path):
  with pytest.raises(ValueError, match='`dtype` must be one of float32, bfloat16, float16'):
    FrozenBackbone.save(original, tmp_path / 'target', dtype='int8')


def test_weights_have_names_that_last(original, saved, tmp_path):
  names = saved.weight_names
  assert len(set(names)) == len(names) == len(original.weights)
  assert names[:3] == ('0000/token_embedding/embeddings', '0001/position_embedding/embeddings',
                       '0002/gamma')  # fmt: skip
  assert '0010/transformer_layer_0/self_attention/query/kernel' in names
  assert saved.merged(tmp_path / 'copy', {}).weight_names == names


def test_weights_and_variables_are_the_tensors_by_name(saved):
  model, variables = saved.build_with_variables()
  weights = saved.weights()
  assert tuple(weights) == tuple(variables) == saved.weight_names
  assert {id(v) for v in variables.values()} == {id(w) for w in model.weights}
  for name, record in zip(saved.weight_names, saved.tensors, strict=True):
    stored = np.fromfile(pathlib.Path(saved.directory, record.file), np.float32)
    np.testing.assert_array_equal(weights[name], stored.reshape(record.shape))
    np.testing.assert_array_equal(variables[name], weights[name])


def test_merged_replaces_what_it_is_told_and_nothing_else(original, saved, tmp_path):
  name = saved.weight_names[5]
  value = np.random.default_rng(4).normal(size=saved.tensors[5].shape).astype(np.float32)
  merged = saved.merged(tmp_path / 'merged', {name: value})
  assert merged == FrozenBackbone.load(tmp_path / 'merged')
  assert merged.sha256 != saved.sha256
  for other, old in saved.weights().items():
    np.testing.assert_array_equal(merged.weights()[other], value if other == name else old)
  model, variables = saved.build_with_variables()
  variables[name].assign(value)
  np.testing.assert_array_equal(merged.build()(INPUTS), model(INPUTS))
  assert np.abs(model(INPUTS) - original(INPUTS)).max() > 1e-3


def test_merging_nothing_copies(saved, tmp_path):
  copied = saved.merged(tmp_path / 'copy', {})
  assert (copied.sha256, copied.tensors) == (saved.sha256, saved.tensors)
  assert copied.directory != saved.directory


def test_merged_is_exact_whatever_the_base_is_stored_in(original, tmp_path):
  half = FrozenBackbone.save(original, tmp_path / 'half', dtype='bfloat16')
  name = half.weight_names[5]
  value = np.full(half.tensors[5].shape, 1.0 + 2**-20, np.float32)
  merged = half.merged(tmp_path / 'merged', {name: value})
  np.testing.assert_array_equal(merged.weights()[name], value)
  assert [r.dtype for r in merged.tensors].count('bfloat16') == len(merged.tensors) - 1
  np.testing.assert_array_equal(merged.build_with_variables()[1][name], value)


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('0005/beta', np.zeros(8), 'no tensor'),
    ('0002/gamma', np.zeros(7), r'\(8,\), got \(7,\)'),
    ('0002/gamma', np.full(8, np.nan), 'not finite'),
    ('0002/gamma', np.full(8, np.inf), 'not finite'),
  ],
)
def test_merged_refuses_what_does_not_fit(saved, tmp_path, name, value, message):
  with pytest.raises(ValueError, match=message):
    saved.merged(tmp_path / 'merged', {name: value})
  assert list(tmp_path.iterdir()) == []


def test_merged_notices_an_altered_original(copy):
  loaded = FrozenBackbone.load(copy)
  _flip_a_bit(copy / 'tensors' / '0003.bin')
  with pytest.raises(BackboneError, match=r'0003\.bin'):
    loaded.merged(copy.parent / 'merged', {})


def test_merged_that_fails_leaves_nothing(saved, tmp_path, monkeypatch):
  monkeypatch.setattr('os.replace', _no_space)
  with pytest.raises(BackboneError, match='No space left'):
    saved.merged(tmp_path / 'target', {})
  assert list(tmp_path.iterdir()) == []
