# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports of the toy model, whose weights lie in a backbone directory as those of a real one."""

import functools
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import hetlora_tff
import privacy
from hetlora_tff import aggregation
from hetlora_tff.adapters.layout import adapters_type
from hetlora_tff.adapters.model import BatchLoss
from hetlora_tff.distribution import RankSelect
from tests.hetlora_tff import toy_model

pytestmark = pytest.mark.usefixtures('tff_runtime')

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = tff.learning.models.ModelWeights(toy_model.random_adapters(3), ())
RANKS = (1, 3)
# Of both factors of both modules.
NUMBERS = 4 * (3 + 5) + 4 * (5 + 2)
GRID = privacy.SecureSumSpec(bits=16, largest_cohort=8, l2_clip_norm=0.5, coordinates=NUMBERS)


class MappedModel(toy_model.LinearModel):
  """The toy model, its frozen weights mapped from files."""

  def __init__(self, backbone):
    super().__init__()
    self._backbone = backbone

  def build(self, config):
    def loss_fn(adapters, batch):
      value = batch['x']
      for factors, weight in zip(adapters.values(), self._backbone.weights().values(), strict=True):
        value = tf.matmul(
          value, weight + config.scaling * tf.matmul(factors.b, factors.a), transpose_b=True
        )
      total = tf.reduce_sum(tf.square(value - batch['y']))
      return BatchLoss(total, tf.cast(tf.shape(value)[0], tf.float32))

    return loss_fn


def write_backbone(directory, scale=1.0):
  (directory / 'tensors').mkdir(parents=True)
  records = []
  for place, (name, value) in enumerate(toy_model.frozen_weights().items()):
    file, data = f'tensors/{place:04d}.bin', (scale * value).tobytes()
    (directory / file).write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    record = {'name': name, 'file': file, 'shape': value.shape, 'dtype': 'float32'}
    records.append({**record, 'sha256': sha256})
  manifest = {'format': 1, 'class': 'Toy', 'config': {}, 'dtype': 'float32', 'tensors': records}
  (directory / 'manifest.json').write_text(json.dumps(manifest))
  return hetlora_tff.FrozenBackbone.load(directory)


def data():
  return [toy_model.client_data(r, toy_model.examples(r, 4)) for r in RANKS]


def state_after(process, start):
  state = process.next(start, data()).state.global_model_weights.trainable
  return {path: (np.array(state[path].a), np.array(state[path].b)) for path in toy_model.SHAPES}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('exports')


@pytest.fixture(scope='module')
def mapped(folder):
  """The export, where the backbone has moved to since, the weights after a round, the process."""
  backbone = write_backbone(folder / 'secret_place')
  process = hetlora_tff.build_hetlora_process(MappedModel(backbone), toy_model.CONFIG)
  deployed = hetlora_tff.save_daf(
    folder / 'mapped',
    process.as_learning_process(),
    backbone=backbone,
    model_weights=WEIGHTS,
    notes=['A note.'],
  )
  expected = state_after(process, deployed.initial_state())
  moved = (folder / 'secret_place').rename(folder / 'moved')
  return folder / 'mapped', moved, expected, process.as_learning_process()


@functools.cache
def noised(mechanism=privacy.Mechanism.GAUSSIAN, secure=False):
  options = {'sampling': privacy.Sampling.MIN_SEPARATION, 'min_separation': 2,
             'max_participations': 3} if mechanism is privacy.Mechanism.TREE else {}  # fmt: skip
  spec = privacy.DpSpec(
    1.0, 0.5, 3, mechanism=mechanism, secure_sum=GRID if secure else None, **options
  )
  return hetlora_tff.build_hetlora_process(
    toy_model.LinearModel(),
    toy_model.CONFIG,
    aggregator=privacy.build_dp_aggregator(spec),
    client_sums={},
  ).as_learning_process()


@pytest.fixture(scope='module')
def secure(folder):
  directory = folder / 'secure'
  hetlora_tff.save_daf(directory, noised(secure=True), privacy={'z': 1.0})
  return directory


def test_a_fresh_process_does_the_same_round_on_the_moved_backbone(mapped, folder):
  directory, moved, expected, _ = mapped
  script = f"""
    import numpy as np, tensorflow_federated as tff, hetlora_tff
    from tasks.worker import LocalWorker
    from tests.hetlora_tff import deployment_test as t
    deployed = hetlora_tff.load_daf({str(directory)!r}, {str(moved)!r})
    reduced = tff.backends.mapreduce.get_computation_for_map_reduce_form(deployed.map_reduce_form)
    with LocalWorker(2):
      start = deployed.initial_state()
      for name, round_fn in (('daf', deployed.next), ('mrf', reduced)):
        weights = deployed.model_weights(round_fn(start, t.data())[0])
        np.savez({str(folder)!r} + '/' + name, **weights)
  """
  log = folder / 'log'
  with log.open('wb') as output:
    subprocess.run(
      [sys.executable, '-c', textwrap.dedent(script)],
      stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, timeout=240, check=False,
    )  # fmt: skip
  for name in ('daf', 'mrf'):
    assert (folder / f'{name}.npz').exists(), log.read_text()[-2000:]
    found = np.load(folder / f'{name}.npz')
    for path, (a, b) in expected.items():
      np.testing.assert_array_equal(found[f'trainable/{path}/a'], a)
      np.testing.assert_array_equal(found[f'trainable/{path}/b'], b)
      assert not np.array_equal(b, WEIGHTS.trainable[path].b)


def test_no_file_names_this_machine(mapped, folder):
  directory, *_ = mapped
  files = [path for path in directory.rglob('*') if path.is_file()]
  assert len(files) == 18
  for path in files:
    content = path.read_bytes()
    for place in (folder, ROOT, sys.prefix, pathlib.Path.home()):
      assert os.fsencode(place) not in content
    assert (b'secret_place' in content) == (path.name == 'manifest.json')  # Its last part only.


def test_the_manifest_tells_messages_data_and_backbone(mapped):
  directory, moved, *_ = mapped
  manifest = json.loads((directory / 'manifest.json').read_text())
  download = {t['name']: t for t in manifest['download']['tensors']}
  assert download['0/trainable/first/b'] == {
    'name': '0/trainable/first/b', 'dtype': 'float32', 'shape': [5, 4], 'bytes': 80
  }  # fmt: skip
  assert manifest['download']['bytes'] == 4 * NUMBERS
  # The update, two weights, and the measurements: two floats, an int32, seven int64 and four.
  assert manifest['upload']['bytes'] == 4 * NUMBERS + 4 * 2 + 4 * 3 + 8 * (7 + 4)
  assert {t['operator'] for t in manifest['upload']['tensors']} == {'federated_sum'}
  assert manifest['client_data'] == [
    {'name': 'rank', 'dtype': 'int32', 'shape': [], 'sequence': True},
    {'name': 'examples/x', 'dtype': 'float32', 'shape': [None, 3], 'sequence': True},
    {'name': 'examples/y', 'dtype': 'float32', 'shape': [None, 2], 'sequence': True},
  ]
  sha256 = hetlora_tff.FrozenBackbone.load(moved).sha256
  assert manifest['backbone']['sha256'] == sha256
  assert manifest['backbone']['directory_name'] == 'secret_place'
  assert manifest['notes'] == ['A note.']
  assert manifest['versions']['tensorflow-federated'] == tff.__version__


def test_secure_sums_stay_secure(secure):
  deployed = hetlora_tff.load_daf(secure)
  tff.test.assert_not_contains_unsecure_aggregation(deployed.next)
  assert deployed.manifest['secure_sums'] == [
    {'operator': 'federated_secure_modular_sum', 'modulus': GRID.modulus, 'numbers': NUMBERS}
  ]
  bits = GRID.sum_bits
  sizes = [-(-n * bits // 8) for n in (4 * 3, 5 * 4, 4 * 5, 2 * 4)]
  assert deployed.manifest['upload']['bytes'] == sum(sizes)
  assert deployed.manifest['privacy'] == {'z': 1.0}


def test_noise_is_never_that_of_another_round(secure):
  deployed = hetlora_tff.load_daf(secure)
  start = deployed.initial_state()
  first, again = (deployed.model_weights(deployed.next(start, data())[0]) for _ in range(2))
  for name, value in first.items():
    assert not np.any(value == again[name])


@pytest.mark.slow
def test_seeds_of_a_tree_are_those_of_a_start(folder):
  directory = folder / 'tree'
  hetlora_tff.save_daf(directory, noised(privacy.Mechanism.TREE))
  deployed = hetlora_tff.load_daf(directory)
  one, other = (deployed.tensors(deployed.initialize()) for _ in range(2))
  assert [name for name in one if not np.array_equal(one[name], other[name])]


def rewrite(directory, name, change):
  """Changes a file, and what the manifest says of it."""
  path, manifest = directory / name, json.loads((directory / 'manifest.json').read_text())
  path.write_bytes(change(path.read_bytes()))
  manifest['files'][name] = hashlib.sha256(path.read_bytes()).hexdigest()
  (directory / 'manifest.json').write_text(json.dumps(manifest))


def remanifest(**changes):
  def damage(directory):
    path = directory / 'manifest.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

  return damage


WORK = 'distribute_aggregate_form/client_work.pb'
DAMAGES = {
  'a missing part': (lambda d: (d / WORK).unlink(), 'Cannot read .*client_work.pb: No such file'),
  'a cut part': (
    lambda d: (d / WORK).write_bytes((d / WORK).read_bytes()[:-9]), 'client_work.pb .*altered'
  ),
  'no protocol message': (
    lambda d: rewrite(d, WORK, lambda data: b'\xff' + data[:99]), 'client_work.pb holds no comp'
  ),
  'another part': (
    lambda d: rewrite(d, WORK, lambda _: (d / 'initialize.pb').read_bytes()), 'do not fit together'
  ),
  'an unknown tensor': (
    lambda d: rewrite(d, WORK, lambda data: data.replace(b'backbone:1', b'backbone:7')),
    'client_work.pb maps .backbone:7',
  ),
  'a path': (
    lambda d: rewrite(d, WORK, lambda data: data.replace(b'backbone:1', b'/etc/shado')),
    'client_work.pb maps ./etc/shado',
  ),
  'weights of another model': (
    lambda d: rewrite(d, 'model_weights.safetensors', lambda _: b'\x02\0\0\0\0\0\0\0{}'),
    'model_weights.safetensors holds no weights of this model: trainable/first/a is missing',
  ),
  'no manifest': (lambda d: (d / 'manifest.json').unlink(), 'Cannot read .*manifest.json'),
  'a torn manifest': (
    lambda d: (d / 'manifest.json').write_text('{"kind": '), 'manifest.json is not a manifest'
  ),
  'binary': (lambda d: (d / 'manifest.json').write_bytes(b'\xff\0'), 'is not a manifest'),
  'another format': (remanifest(format=2), 'has format 2, this reads 1'),
  'another kind': (remanifest(kind='x'), 'not the manifest of an exported process'),
  'a field of another type': (remanifest(files=[]), "lacks or misnames 'files'"),
  'no digest of the backbone': (remanifest(backbone={}), 'sha256 of its backbone'),
  'another version': (
    remanifest(versions={'tensorflow-federated': '0.1'}),
    f'with tensorflow-federated 0.1, this is {tff.__version__}',
  ),
}  # fmt: skip


@pytest.mark.parametrize(('damage', 'message'), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_export_is_named(mapped, tmp_path, damage, message):
  directory = shutil.copytree(mapped[0], tmp_path / 'export')
  damage(directory)
  with pytest.raises(hetlora_tff.DeploymentError, match=message) as caught:
    hetlora_tff.load_daf(directory, mapped[1])
  assert '\n' not in str(caught.value)


def test_the_backbone_is_asked_for_and_verified(mapped, tmp_path):
  directory, moved, *_ = mapped
  with pytest.raises(hetlora_tff.DeploymentError, match=r'Toy of sha256 .*: give `backbone_dir`'):
    hetlora_tff.load_daf(directory)
  other = write_backbone(tmp_path / 'other', scale=2.0)
  with pytest.raises(hetlora_tff.DeploymentError, match=f'holds Toy of sha256 {other.sha256}'):
    hetlora_tff.load_daf(directory, other.directory)
  cut = shutil.copytree(moved, tmp_path / 'cut')
  (cut / 'tensors/0001.bin').write_bytes(b'')
  with pytest.raises(hetlora_tff.BackboneError, match=r'0001\.bin is not the tensor'):
    hetlora_tff.load_daf(directory, cut)


@pytest.mark.parametrize('lacking', ['sums', pytest.param('broadcast', marks=pytest.mark.slow)])
def test_what_has_no_form_is_refused(tmp_path, lacking):
  model, parts = toy_model.LinearModel(), {'aggregator': aggregation.StackingFactory()}
  if lacking == 'broadcast':
    type_ = adapters_type(model.module_shapes(toy_model.CONFIG), toy_model.MAX_RANK)
    parts = {'distributor': RankSelect(type_, toy_model.CONFIG)}
  process = hetlora_tff.build_hetlora_process(model, toy_model.CONFIG, **parts)
  with pytest.raises(hetlora_tff.DeploymentError, match='has no DistributeAggregateForm'):
    hetlora_tff.save_daf(tmp_path / 'export', process.as_learning_process())
  assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_an_export_that_fails(tmp_path):
  def differs(deployed):
    assert deployed.manifest['check'] is None
    raise ValueError('another state')

  write_backbone(tmp_path / 'backbone')
  with pytest.raises(ValueError, match='another state'):
    hetlora_tff.save_daf(tmp_path / 'export', noised(secure=True), verify=differs)
  half = {path: f._replace(a=f.a[:2]) for path, f in WEIGHTS.trainable.items()}
  weights = tff.learning.models.ModelWeights(half, ())
  with pytest.raises(ValueError, match='trainable/first/a must be float32 of shape'):
    hetlora_tff.save_daf(tmp_path / 'export', noised(secure=True), model_weights=weights)
  assert [path.name for path in tmp_path.iterdir()] == ['backbone']


def test_a_graph_on_files_of_no_backbone_is_refused(mapped, tmp_path):
  with pytest.raises(hetlora_tff.DeploymentError, match=r'0000\.bin into memory, which is not in'):
    hetlora_tff.save_daf(tmp_path / 'export', mapped[3])
