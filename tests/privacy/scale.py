# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether numbers are Gaussian noise of a scale: true at the right one, false at 2/3 and 3/2."""

import numpy as np
import scipy.stats

# A test of keyed noise cannot be derandomised: it may fail once in a million.
_P_VALUE = 1e-6


def is_gaussian(samples, stddev: float) -> bool:
  """Kolmogorov-Smirnov and the variance; takes some thousands of independent samples."""
  samples = np.ravel(np.float64(samples))
  p_value = scipy.stats.kstest(samples, 'norm', args=(0.0, stddev)).pvalue
  statistic = np.sum(np.square(samples)) / stddev**2
  tail = scipy.stats.chi2(samples.size)
  return bool(min(p_value, tail.cdf(statistic), tail.sf(statistic)) > _P_VALUE)


def check_scale(samples, stddev: float) -> None:
  """Asserts the scale, and that the test would have seen another one."""
  assert is_gaussian(samples, stddev)
  assert not is_gaussian(samples, stddev * 2 / 3)
  assert not is_gaussian(samples, stddev * 3 / 2)


def check_uncorrelated(one, other) -> None:
  """Asserts that two equally long sets of samples have no linear relation."""
  one, other = np.ravel(one), np.ravel(other)
  assert scipy.stats.pearsonr(one, other).pvalue > _P_VALUE
  assert scipy.stats.pearsonr(one, one + other).pvalue < _P_VALUE
