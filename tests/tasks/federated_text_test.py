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
