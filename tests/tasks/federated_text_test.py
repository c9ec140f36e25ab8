# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import pytest

from tasks import federated_text

_EXAMPLES = [federated_text.Example('body', 'summary')]


def test_holds_three_splits():
  data = federated_text.FederatedText('t', {'a': _EXAMPLES}, {'b': _EXAMPLES}, {})
  assert data.train['a'][0].target == 'summary'
  assert not data.test


@pytest.mark.parametrize(
  ('splits', 'message'),
  [
    (({}, {'b': _EXAMPLES}, {}), 'train .* no clients'),
    (({'a': _EXAMPLES}, {}, {'a': _EXAMPLES}), "'a' .* both train and test"),
    (({'a': _EXAMPLES}, {'b': []}, {}), "'b' .* no example"),
  ],
)
def test_bad_splits_are_named(splits, message):
  with pytest.raises(ValueError, match=message):
    federated_text.FederatedText('t', *splits)


def test_digest_tells_every_difference_but_the_order_of_clients():
  other = [federated_text.Example('bod', 'ysummary')]
  splits = (
    ({'a': _EXAMPLES, 'b': other}, {}, {'c': _EXAMPLES}),
    ({'a': _EXAMPLES, 'b': _EXAMPLES}, {}, {'c': _EXAMPLES}),
    ({'a': _EXAMPLES, 'd': other}, {}, {'c': _EXAMPLES}),
    ({'a': _EXAMPLES, 'b': other}, {}, {'c': _EXAMPLES * 2}),
    ({'a': _EXAMPLES, 'b': other}, {'c': _EXAMPLES}, {}),
    ({'a': _EXAMPLES}, {'b': other}, {'c': _EXAMPLES}),
    ({'a': _EXAMPLES + other, 'b': other}, {}, {'c': _EXAMPLES}),
    ({'a': other + _EXAMPLES, 'b': other}, {}, {'c': _EXAMPLES}),
  )
  digests = [federated_text.FederatedText('t', *parts).sha256 for parts in splits]
  assert len(set(digests)) == len(splits)
  turned = dict(reversed(splits[0][0].items()))
  assert federated_text.FederatedText('t', turned, *splits[0][1:]).sha256 == digests[0]


def test_split_is_by_name_and_seed_alone():
  names = [f'client {number}' for number in range(2000)]
  parts = federated_text.split_clients(names, 7)
  assert sorted(name for part in parts for name in part) == sorted(names)
  assert all(
    abs(len(part) / 2000 - share) < 0.02 for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True)
  )
  again = federated_text.split_clients([*reversed(names), 'one more'], 7)
  assert [set(part) - {'one more'} for part in again] == [set(part) for part in parts]
  other = federated_text.split_clients(names, 8)
  assert len(set(other[1]) & set(parts[1])) < 60


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize(('number', 'sizes'), [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1))])
def test_a_few_clients_are_split_so_that_somebody_is_everywhere(number, sizes, seed):
  parts = federated_text.split_clients([str(name) for name in range(number)], seed)
  assert sorted(name for part in parts for name in part) == [str(name) for name in range(number)]
  assert tuple(map(len, parts)) == sizes


def test_a_million_sizes_need_no_text():
  class Lazy(dict):
    sizes = {'a': 3}

    def __getitem__(self, name):
      raise AssertionError(f'{name} was read')

  data = federated_text.FederatedText('t', Lazy(a=None), {}, {})
  assert federated_text.sizes(data.train) == {'a': 3}
