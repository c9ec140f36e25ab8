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
