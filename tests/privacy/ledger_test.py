# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The ledger under kills, edits and other runs."""

import dataclasses
import datetime
import json
import os

import dp_accounting
import pytest

from privacy import events
from privacy.ledger import Anchor, Ledger, LedgerError
from privacy.secure_sum import SecureSumSpec
from privacy.spec import DpSpec, Mechanism, Sampling

_SPEC = DpSpec(
  noise_multiplier=1.0,
  l2_clip_norm=0.5,
  clients_per_round=10,
  sampling=Sampling.POISSON,
  population_size=100,
)
_TREE = DpSpec(
  noise_multiplier=1.0,
  l2_clip_norm=0.5,
  clients_per_round=10,
  mechanism=Mechanism.TREE,
  sampling=Sampling.MIN_SEPARATION,
  min_separation=2,
)


_SKELLAM = DpSpec(
  noise_multiplier=1.0,
  l2_clip_norm=0.5,
  clients_per_round=10,
  mechanism=Mechanism.SKELLAM,
  secure_sum=SecureSumSpec(bits=8, largest_cohort=10, l2_clip_norm=0.5, coordinates=100),
  smallest_cohort=7,
)


@pytest.fixture(name='path')
def _path(tmp_path):
  return tmp_path / 'ledger.jsonl'


def _begin(path, spec=_SPEC, config='c0ffee', **facts):
  ledger = Ledger(path)
  ledger.begin(spec, config, **{'delta': 1e-5, 'target_epsilon': None, **facts})
  return ledger


def _run(path, rounds=3):
  ledger = _begin(path)
  for number in range(1, rounds + 1):
    ledger.start_round(number)
  return ledger


def _numbers(ledger):
  return [entry.get('round') for entry in ledger.rounds]


def test_rounds_of_client_noise_are_independent_and_their_spec_is_kept(path):
  ledger = _begin(path, _SKELLAM)
  ledger.start_round(1)
  ledger.start_round(1)
  read = Ledger(path)
  assert read.spec == _SKELLAM
  once = events.round_event(_SKELLAM, amplified=False)
  assert read.event(amplified=False) == dp_accounting.SelfComposedDpEvent(once, 2)
  with pytest.raises(LedgerError, match='not a round'):
    ledger.start_round(2, tree=0, leaf=0)
  _begin(path, _SKELLAM)
  other = dataclasses.replace(_SKELLAM, smallest_cohort=8)
  with pytest.raises(LedgerError, match='spec'):
    _begin(path, other)


def test_rounds_are_kept_in_order(path):
  ledger = _run(path)
  for seen in (ledger, Ledger(path)):
    assert _numbers(seen) == [1, 2, 3]
    assert seen.spec == _SPEC
    assert seen.run['delta'] == 1e-5
    assert seen.anchor == ledger.anchor
    assert [entry['kind'] for entry in seen.entries] == ['run', 'round', 'round', 'round']
  assert ledger.anchor.entries == 4
  sampled = events.round_event(_SPEC, amplified=True)
  assert ledger.event(amplified=True) == dp_accounting.SelfComposedDpEvent(sampled, 3)
  assert ledger.event(amplified=False).event == dp_accounting.GaussianDpEvent(1.0)


def test_file_appears_with_the_first_entry(path):
  assert Ledger(path).anchor == Anchor(0, '0' * 64)
  assert not path.exists()
  with pytest.raises(LedgerError, match='did not begin'):
    Ledger(path).start_round(1)
  assert not path.exists()


def test_round_is_on_the_disk_before_it_may_run(path, monkeypatch):
  synced = []
  fsync = os.fsync

  def seen(file):
    synced.append(os.fstat(file).st_ino)
    fsync(file)

  monkeypatch.setattr(os, 'fsync', seen)
  ledger = _begin(path)
  assert synced == [path.stat().st_ino, path.parent.stat().st_ino]
  ledger.start_round(1)
  assert synced[2:] == [path.stat().st_ino]
  assert path.read_bytes().endswith(b'\n')


def test_beginning_again_is_only_for_the_same_run(path):
  anchor = _run(path).anchor
  assert _begin(path).anchor == anchor
  other = dataclasses.replace(_SPEC, noise_multiplier=0.5)
  for change, name in (
    ({'spec': other}, 'spec'),
    ({'config': 'decaf'}, 'config_sha256'),
    ({'delta': 1e-4}, 'delta'),
    ({'more': 1}, 'more'),
  ):
    with pytest.raises(LedgerError, match=f'another run, with another {name}'):
      _begin(path, **change)
  with pytest.raises(LedgerError, match='target_epsilon'):
    Ledger(path).begin(_SPEC, 'c0ffee', delta=1e-5)
  assert Ledger(path).anchor == anchor


def test_facts_are_compared_as_json_has_them(path):
  _begin(path, tiers=(1, 2))
  _begin(path, tiers=(1, 2))
  with pytest.raises(LedgerError, match='tiers'):
    _begin(path, tiers=(1, 3))


def test_every_cut_is_seen_and_counts_no_less(path):
  _run(path)
  data = path.read_bytes()
  ends = [index for index, byte in enumerate(data) if byte == ord('\n')]
  for length in range(len(data)):
    path.write_bytes(data[:length])
    ledger = Ledger(path)
    whole = sum(end <= length for end in ends)
    is_cut = length > 0 and length not in ends and length - 1 not in ends
    assert ledger.anchor.entries == whole
    assert len(ledger.rounds) == max(0, whole - 1) + is_cut
    # Reading changes nothing.
    assert path.read_bytes() == data[:length]


@pytest.mark.parametrize('length', [0, 1, 300, -650, -400, -200, -3, -2, -1])
def test_next_entry_tells_of_a_cut(path, length):
  _run(path)
  data = path.read_bytes()[:length]
  path.write_bytes(data)
  counted, whole = len(Ledger(path).rounds), Ledger(path).anchor.entries
  is_cut = length not in (0, -1)
  _begin(path).start_round(9)
  again = Ledger(path)
  assert path.read_bytes().startswith(data)
  assert len(again.rounds) == counted + 1
  assert [entry['kind'] for entry in again.entries[whole:]].count('torn') == is_cut
  again.check_anchor(_begin(path).anchor)


def test_cut_while_a_cut_is_told_of(path):
  _run(path)
  cut = path.read_bytes()[:-20]
  path.write_bytes(cut)
  _begin(path).start_round(3)
  data = path.read_bytes()
  another = data.rindex(b'\n', 0, -1) + 1
  for length in range(len(cut), len(data), 3):
    path.write_bytes(data[:length])
    # What was cut while it told of a cut is the same cut; what came after it is another start.
    counted = len(Ledger(path).rounds)
    assert counted == (3 if length <= another else 4)
    _begin(path).start_round(4)
    assert len(Ledger(path).rounds) == counted + 1


def test_every_flipped_byte_is_found_or_counts_no_less(path):
  _run(path)
  data = path.read_bytes()
  last = data.rindex(b'\n', 0, -1) + 1
  found = 0
  for index in range(len(data)):
    for flip in (4, 128):
      changed = bytearray(data)
      changed[index] ^= flip
      path.write_bytes(changed)
      try:
        ledger = Ledger(path)
      except LedgerError as error:
        found += str(path) in str(error) and 'line' in str(error)
        continue
      # As if a kill had cut the last line; the anchor of a checkpoint tells.
      assert index >= last
      assert len(ledger.rounds) == 3
      assert ledger.rounds[-1]['kind'] == 'torn'
      with pytest.raises(LedgerError):
        ledger.check_anchor(Anchor(4, '0' * 64))
      found += 1
  assert found == 2 * len(data)


@pytest.mark.parametrize('change', ['remove', 'swap', 'copy', 'blank', 'number'])
def test_edits_are_found(path, change):
  _run(path)
  lines = path.read_bytes().splitlines(keepends=True)
  if change == 'remove':
    del lines[1]
  elif change == 'swap':
    lines[1], lines[2] = lines[2], lines[1]
  elif change == 'copy':
    lines.insert(2, lines[1])
  elif change == 'blank':
    lines.insert(2, b'\n')
  else:
    lines[2] = lines[2].replace(b'"round":2', b'"round":7')
  path.write_bytes(b''.join(lines))
  with pytest.raises(LedgerError, match=r'line [23]: not'):
    Ledger(path)


def test_entry_of_another_ledger_is_found(path):
  _run(path, 1)
  _begin(path.with_name('other'), config='decaf').start_round(1)
  lines = [file.read_bytes().splitlines(keepends=True) for file in (path, path.with_name('other'))]
  path.write_bytes(lines[0][0] + lines[1][1])
  with pytest.raises(LedgerError, match='line 2: not'):
    Ledger(path)


def test_last_entry_that_is_edited_is_found(path):
  _run(path)
  data = path.read_bytes()
  path.write_bytes(data.replace(b'"round":3', b'"round":4'))
  with pytest.raises(LedgerError, match='line 4'):
    Ledger(path)
  path.write_bytes(data.replace(b'"round":3', b'"round": 3'))
  with pytest.raises(LedgerError, match='line 4'):
    Ledger(path)
  path.write_bytes(data + b'[NaN]\n')
  with pytest.raises(LedgerError, match='line 5'):
    Ledger(path)


def test_anchor_tells_what_the_chain_cannot(path):
  ledger = _run(path)
  anchor = ledger.anchor
  ledger.check_anchor(anchor)
  ledger.start_round(4)
  Ledger(path).check_anchor(anchor)
  Ledger(path).check_anchor(Anchor(0, '0' * 64))
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join(lines[:3]))
  with pytest.raises(LedgerError, match='has 3 entries, but had 4'):
    Ledger(path).check_anchor(anchor)
  # As long, but with another round.
  cut = Ledger(path)
  cut.start_round(8)
  with pytest.raises(LedgerError, match='line 4'):
    Ledger(path).check_anchor(anchor)


def test_one_process_at_a_time(path):
  first = _begin(path)
  second = _begin(path)
  first.start_round(1)
  with pytest.raises(LedgerError, match='changed since'):
    second.start_round(1)
  first.start_round(2)
  assert _numbers(Ledger(path)) == [1, 2]


def test_failed_write_is_not_written_over(path, monkeypatch):
  ledger = _run(path)
  write = os.write

  def half(file, data):
    write(file, data[: len(data) // 2])
    raise OSError('disk full')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', half)
    with pytest.raises(OSError, match='full'):
      ledger.start_round(4)
  with pytest.raises(LedgerError, match='changed since'):
    ledger.start_round(4)
  assert len(Ledger(path).rounds) == 4


def test_leaves_count_once(path):
  ledger = _begin(path, _TREE)
  for start in ((1, 0, 0), (2, 0, 1), (2, 0, 1)):
    ledger.start_round(*start)
  starts = [events.Start(1, 0, 0), events.Start(2, 0, 1)]
  expected = events.started_event(_TREE, starts, amplified=False)
  assert Ledger(path).event(amplified=False) == expected
  assert len(ledger.starts) == 3
  ledger.start_round(2, 1, 0)
  assert ledger.event(amplified=False).noise_multiplier < expected.noise_multiplier


def test_torn_start_is_a_leaf_of_its_own(path):
  ledger = _begin(path, _TREE)
  ledger.start_round(1, 0, 0)
  ledger.start_round(2, 0, 1)
  path.write_bytes(path.read_bytes()[:-30])
  torn = Ledger(path)
  assert torn.starts == ((1, 0, 0), (None, None, None))
  starts = [events.Start(1, 0, 0), events.Start(None)]
  assert torn.event(amplified=False) == events.started_event(_TREE, starts, amplified=False)


@pytest.mark.parametrize(
  ('spec', 'start'),
  [
    (_SPEC, (1, 0, 0)),
    (_SPEC, (-1,)),
    (_TREE, (1,)),
    (_TREE, (1, 0)),
    (_TREE, (2, 0, 0)),
  ],
)
def test_round_that_does_not_fit_is_not_written(path, spec, start):
  ledger = _begin(path, spec)
  if spec is _TREE:
    ledger.start_round(1, 0, 0)
  anchor = ledger.anchor
  with pytest.raises(LedgerError):
    ledger.start_round(*start)
  assert Ledger(path).anchor == anchor


def test_claim_that_the_spec_does_not_make_is_refused(path):
  ledger = _begin(path, _TREE)
  with pytest.raises(LedgerError, match='claims no amplification'):
    ledger.event(amplified=True)


def test_lines_are_plain_json(path):
  _run(path)
  for index, line in enumerate(path.read_text('ascii').splitlines()):
    entry = json.loads(line)
    assert entry['index'] == index
    # Without a time of day, which would tell how long a round took.
    assert datetime.date.fromisoformat(entry['date'])
    assert len(entry['hash']) == len(entry['previous']) == 64


def test_releases_are_noted_and_cost_nothing(path):
  ledger = _begin(path, _TREE)
  ledger.start_round(1, 0, 0)
  before = ledger.event(amplified=False)
  assert ledger.last_release == 0
  ledger.release(1)
  again = Ledger(path)
  assert again.last_release == 1
  assert again.event(amplified=False) == before
  assert len(again.rounds) == 1
  with pytest.raises(LedgerError, match='round 2 was not started'):
    again.release(2)
