# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of all measures and their intervals against hand-made numbers and simulation."""

import math

import numpy as np
from absl.testing import absltest, parameterized

from tasks import metrics


def _losses(losses, counts):
  return metrics.ClientLosses(tuple(range(len(losses))), np.array(losses), np.array(counts))


class PerplexityTest(parameterized.TestCase):
  def test_is_the_exponential_of_the_mean_loss(self):
    self.assertAlmostEqual(metrics.perplexity(4 * math.log(8.0), 4), 8.0)

  def test_overflow_is_infinite(self):
    self.assertEqual(metrics.perplexity(1e6, 1), math.inf)

  @parameterized.parameters((1.0, 0), (1.0, -3), (1.0, math.nan), (math.nan, 2), (math.inf, 2))
  def test_refuses_what_has_no_perplexity(self, nll_sum, token_count):
    with self.assertRaises(ValueError):
      metrics.perplexity(nll_sum, token_count)


class ClientLossesTest(parameterized.TestCase):
  def test_pools_tokens_within_a_client(self):
    result = metrics.client_losses(['b', 'a', 'b'], [6.0, 5.0, 2.0], [3, 5, 1])
    self.assertEqual(result.clients, ('b', 'a'))
    np.testing.assert_allclose(result.losses, [2.0, 1.0])
    np.testing.assert_allclose(result.token_counts, [4, 5])
    self.assertAlmostEqual(metrics.pooled_perplexity(result), math.exp(13 / 9))

  def test_leaves_out_clients_without_target_tokens(self):
    result = metrics.client_losses(['a', 'b'], [0.0, 3.0], [0, 2])
    self.assertEqual(result.clients, ('b',))

  @parameterized.named_parameters(
    ('empty', [], [], [], 'nll_sums is empty'),
    ('lengths', ['a'], [1.0, 2.0], [1, 1], 'got 1, 2 and 2'),
    ('not_finite', ['a', 'a'], [1.0, math.nan], [1, 1], 'value 1 is nan'),
    ('negative', ['a'], [1.0], [-1], 'negative'),
    ('no_tokens', ['a'], [1.0], [0], 'no example has a target token'),
  )
  def test_refuses(self, clients, nll_sums, token_counts, message):
    with self.assertRaisesRegex(ValueError, message):
      metrics.client_losses(clients, nll_sums, token_counts)

  def test_client_means_weigh_examples_equally(self):
    means = metrics.client_means(['a', 'b', 'a'], [0.2, 0.5, 0.6])
    self.assertEqual(list(means), ['a', 'b'])
    np.testing.assert_allclose(list(means.values()), [0.4, 0.5])


class MeanIntervalTest(parameterized.TestCase):
  def test_by_hand(self):
    # t(0.975, 2) = 4.302653 from a printed table; standard error 1 / sqrt(3).
    result = metrics.mean_interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose(result, [2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], 1e-6)

  def test_covers_as_often_as_it_says(self):
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
      interval = metrics.mean_interval(generator.normal(1.0, 2.0, size=6), confidence=0.9)
      hits += interval.low <= 1.0 <= interval.high
    # Four standard errors of a binomial share of 2000.
    self.assertAlmostEqual(hits / 2000, 0.9, delta=4 * math.sqrt(0.09 / 2000))

  def test_one_value_has_no_bounds(self):
    self.assertEqual(metrics.mean_interval([3.0]), metrics.Interval(3.0, None, None))

  @parameterized.parameters(([],), ([1.0, math.inf],), ([[1.0]],))
  def test_refuses_values(self, values):
    with self.assertRaisesRegex(ValueError, 'values'):
      metrics.mean_interval(values)

  @parameterized.parameters(0.0, 1.0, 95.0)
  def test_refuses_confidence(self, confidence):
    with self.assertRaisesRegex(ValueError, 'confidence'):
      metrics.mean_interval([1.0, 2.0], confidence)


class PairedRelativeIntervalTest(parameterized.TestCase):
  def test_mean_is_the_ratio_of_the_pooled_perplexities(self):
    before, after = _losses([3.0, 4.0, 3.5], [10, 200, 40]), _losses([2.5, 3.9, 3.1], [10, 200, 40])
    interval = metrics.paired_relative_interval(before, after)
    ratio = metrics.pooled_perplexity(after) / metrics.pooled_perplexity(before)
    self.assertAlmostEqual(interval.mean, ratio - 1)
    self.assertLess(interval.low, interval.mean)
    self.assertGreater(interval.high, interval.mean)

  def test_equal_counts_are_a_plain_t_interval_of_the_logarithms(self):
    before, after = _losses([3.0, 4.0, 3.5], [7, 7, 7]), _losses([2.9, 3.7, 3.0], [7, 7, 7])
    expected = np.expm1(metrics.mean_interval(after.losses - before.losses))
    np.testing.assert_allclose(metrics.paired_relative_interval(before, after), expected)

  def test_clients_with_more_tokens_weigh_more_by_hand(self):
    # Weights 1/4 and 3/4 of differences 0 and -1: mean -0.75, residuals 0.375 and -0.375, standard
    # error 0.375; t(0.975, 1) = 12.706205 from a printed table.
    before, after = _losses([3.0, 3.0], [10, 30]), _losses([3.0, 2.0], [10, 30])
    margin = 12.706205 * 0.375
    np.testing.assert_allclose(
      metrics.paired_relative_interval(before, after),
      np.expm1([-0.75, -0.75 - margin, -0.75 + margin]),
      rtol=1e-6,
    )

  def test_pairing_ignores_how_hard_the_clients_are(self):
    before = _losses([1.0, 5.0, 9.0], [4, 5, 6])
    after = _losses([0.9, 4.9, 8.9], [4, 5, 6])
    np.testing.assert_allclose(
      metrics.paired_relative_interval(before, after), [math.expm1(-0.1)] * 3, rtol=1e-6
    )

  def test_covers_as_often_as_it_says_with_unequal_clients(self):
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
      counts = generator.integers(50, 150, 30)
      start = generator.normal(4.0, 1.0, 30)
      end = start + generator.normal(-0.2, 0.1, 30)
      interval = metrics.paired_relative_interval(_losses(start, counts), _losses(end, counts))
      hits += interval.low <= math.expm1(-0.2) <= interval.high
    self.assertAlmostEqual(hits / 1000, 0.95, delta=4 * math.sqrt(0.95 * 0.05 / 1000))

  def test_refuses_other_clients_or_tokens(self):
    one, other = _losses([1.0, 2.0], [3, 4]), _losses([1.0, 2.0], [3, 5])
    with self.assertRaisesRegex(ValueError, 'same target tokens'):
      metrics.paired_relative_interval(one, other)
    with self.assertRaisesRegex(ValueError, 'same clients'):
      metrics.paired_relative_interval(one, one._replace(clients=(1, 0)))


class DistributionTest(parameterized.TestCase):
  def test_by_hand(self):
    # 21 clients of 0 to 20: a decile is every second one, and the worst tenth is three of them.
    values = list(range(21))
    for high_is_worse, worst in ((True, 19.0), (False, 1.0)):
      found = metrics.distribution(values[::-1], high_is_worse=high_is_worse)
      self.assertEqual(found['clients'], 21)
      self.assertAlmostEqual(found['mean'], 10.0)
      np.testing.assert_allclose(found['deciles'], np.arange(2, 20, 2))
      self.assertAlmostEqual(found['worst_decile_mean'], worst)
      np.testing.assert_allclose([found['low'], found['high']], metrics.mean_interval(values)[1:])

  def test_worst_tenth_is_at_least_one_client(self):
    found = metrics.distribution([3.0, 1.0, 2.0], high_is_worse=True)
    self.assertEqual(found['worst_decile_mean'], 3.0)

  def test_one_client_has_no_spread(self):
    found = metrics.distribution([3.0], high_is_worse=False)
    self.assertEqual((found['low'], found['high']), (None, None))
    self.assertEqual(found['deciles'], [3.0] * 9)

  @parameterized.parameters(([],), ([1.0, math.nan],))
  def test_refuses(self, values):
    with self.assertRaisesRegex(ValueError, 'values'):
      metrics.distribution(values, high_is_worse=True)

  def test_perplexities_have_geometric_means(self):
    found = metrics.perplexity_distribution(_losses(np.log([2.0, 8.0, 16.0]).tolist(), [7, 1, 1]))
    self.assertAlmostEqual(found['mean'], 256.0 ** (1 / 3))
    self.assertAlmostEqual(found['worst_decile_mean'], 16.0)
    self.assertAlmostEqual(found['deciles'][4], 8.0)
    self.assertEqual(found['clients'], 3)
    self.assertTrue(0 < found['low'] < found['mean'] < found['high'])

  def test_perplexities_are_finite_whatever_the_loss(self):
    found = metrics.perplexity_distribution(_losses([math.log(3.0), 1e5], [7, 1]))
    self.assertTrue(np.isfinite([found['mean'], found['high'], found['worst_decile_mean']]).all())


class RougeTest(parameterized.TestCase):
  def test_by_hand(self):
    # Stemmed: 'return the weight sum here' and 'return sum the quickli'. They have three words in
    # common, no two neighbours, and of subsequences 'return the' or 'return sum'.
    scores = metrics.rouge_scores(['Returns the weighted sum here'], ['return sum the quickly'])
    f_measure = lambda common, ours, theirs: 2 * common / (ours + theirs)  # noqa: E731
    self.assertAlmostEqual(scores['rouge_1'][0], f_measure(3, 4, 5))
    self.assertAlmostEqual(scores['rouge_2'][0], 0.0)
    self.assertAlmostEqual(scores['rouge_l'][0], f_measure(2, 4, 5))
    scores = metrics.rouge_scores(['add all the numbers'], ['add the numbers'])
    self.assertAlmostEqual(scores['rouge_2'][0], f_measure(1, 2, 3))
    self.assertAlmostEqual(scores['rouge_l'][0], f_measure(3, 3, 4))

  def test_extremes(self):
    references = ['Add numbers.', 'Add numbers.', '']
    scores = metrics.rouge_scores(references, ['Add numbers.', '', 'x'])
    self.assertEqual(scores, {name: [1.0, 0.0, 0.0] for name in metrics.ROUGE})

  @parameterized.parameters(([], [], 'empty'), (['a'], ['a', 'b'], 'got 1 and 2'))
  def test_refuses(self, references, predictions, message):
    with self.assertRaisesRegex(ValueError, message):
      metrics.rouge_scores(references, predictions)


if __name__ == '__main__':
  absltest.main()
