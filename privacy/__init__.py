# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""User-level differential privacy: specifications, mechanisms, accounting, ledger and report.

Accounting, ledger and report work without TensorFlow: names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from privacy.accounting import UnsupportedEventError, epsilon
  from privacy.aggregators import build_dp_aggregator, build_dp_sum
  from privacy.ledger import Anchor, Ledger, LedgerError
  from privacy.report import PrivacyReport
  from privacy.secure_aggregators import build_secure_aggregator
  from privacy.secure_sum import Rounding, SecureSumSpec
  from privacy.spec import Clipping, DpSpec, Mechanism, Relation, Sampling

_MODULES = {
  'Anchor': 'ledger',
  'Clipping': 'spec',
  'DpSpec': 'spec',
  'Ledger': 'ledger',
  'LedgerError': 'ledger',
  'Mechanism': 'spec',
  'PrivacyReport': 'report',
  'Relation': 'spec',
  'Rounding': 'secure_sum',
  'Sampling': 'spec',
  'SecureSumSpec': 'secure_sum',
  'UnsupportedEventError': 'accounting',
  'build_dp_aggregator': 'aggregators',
  'build_dp_sum': 'aggregators',
  'build_secure_aggregator': 'secure_aggregators',
  'epsilon': 'accounting',
}

__all__ = [
  'Anchor',
  'Clipping',
  'DpSpec',
  'Ledger',
  'LedgerError',
  'Mechanism',
  'PrivacyReport',
  'Relation',
  'Rounding',
  'Sampling',
  'SecureSumSpec',
  'UnsupportedEventError',
  'build_dp_aggregator',
  'build_dp_sum',
  'build_secure_aggregator',
  'epsilon',
]


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'privacy.{_MODULES[name]}'), name)
