# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the plots: what is drawn, what is left out, and which files are refused."""

import io
import pathlib
import tempfile

import matplotlib.image
import numpy as np
from absl.testing import absltest, parameterized

from tasks import plots

_METRICS = 'round,train_loss,eval_loss,eval_perplexity\n0,,4.0,54.6\n1,3.9,,\n2,3.5,3.6,36.6\n'
_RANKS = 'round,rank,clients\n1,1,3\n1,8,1\n2,1,4\n'
_BYTES = [plots.RankBytes(8, 8000, 8000), plots.RankBytes(1, 1000, 8000)]


def _pixels(png, color, tolerance=0.02):
  """Counts the pixels of a PNG that have a colour given as '#rrggbb'."""
  image = matplotlib.image.imread(io.BytesIO(png))[..., :3]
  target = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  return int((np.abs(image - target).max(axis=-1) < tolerance).sum())


class PlotsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # absl's create_tempdir needs flags, which pytest does not parse.
    self.directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, metrics=_METRICS, ranks=_RANKS):
    (self.directory / 'metrics.csv').write_text(metrics, encoding='utf-8')
    if ranks is not None:
      (self.directory / 'ranks.csv').write_text(ranks, encoding='utf-8')

  def test_writes_every_plot(self):
    self.write()
    images = plots.draw_run(self.directory, _BYTES)
    self.assertEqual(list(images), ['loss', 'perplexity', 'ranks', 'bytes'])
    for name, path in plots.write_plots(self.directory, images).items():
      self.assertEqual(path, self.directory / 'plots' / f'{name}.png')
      self.assertStartsWith(path.read_bytes(), b'\x89PNG')

  def test_leaves_out_what_was_not_measured(self):
    self.write('round,train_loss,eval_perplexity\n0,,\n1,,\n', ranks=None)
    self.assertEmpty(plots.draw_run(self.directory))
    self.write('round,train_loss\n0,\n1,2.0\n', ranks='round,rank,clients\n')
    self.assertEqual(list(plots.draw_run(self.directory)), ['loss'])

  def test_draws_each_series_in_its_colour(self):
    self.write()
    table = plots.read_table(self.directory / 'metrics.csv')
    both = plots.draw_loss(table)
    self.assertGreater(_pixels(both, plots.LIGHT.first), 500)
    self.assertGreater(_pixels(both, plots.LIGHT.second), 500)
    train = plots.draw_loss({k: v for k, v in table.items() if k != 'eval_loss'})
    self.assertGreater(_pixels(train, plots.LIGHT.first), 500)
    self.assertEqual(_pixels(train, plots.LIGHT.second), 0)

  def test_base_line_needs_round_zero(self):
    with_base = {'round': np.array([0.0, 1.0]), 'eval_perplexity': np.array([9.0, 5.0])}
    without = {'round': np.array([1.0, 2.0]), 'eval_perplexity': np.array([9.0, 5.0])}
    drawn = [
      _pixels(plots.draw_perplexity(table), plots.LIGHT.muted) for table in (with_base, without)
    ]
    self.assertGreater(drawn[0], drawn[1] + 1000)

  def test_bars_grow_with_the_slice(self):
    small = plots.draw_bytes([plots.RankBytes(1, 1000, 8000)])
    large = plots.draw_bytes([plots.RankBytes(1, 4000, 8000)])
    ratio = _pixels(large, plots.LIGHT.first) / _pixels(small, plots.LIGHT.first)
    self.assertBetween(ratio, 3.0, 4.5)

  def test_many_ranks_are_thinned_to_smallest_and_largest(self):
    rows = plots._thinned([plots.RankBytes(rank, rank, 50) for rank in range(50, 0, -1)])
    self.assertLen(rows, 14)
    self.assertEqual((rows[0].rank, rows[-1].rank), (1, 50))
    self.assertLen({row.rank for row in rows}, 14)

  def test_rank_grid_adds_up_clients(self):
    self.write(ranks='round,rank,clients\n2,8,1\n1,1,3\n2,8,2\n2,,\n')
    rounds, levels, grid = plots._rank_grid(plots.read_table(self.directory / 'ranks.csv'))
    np.testing.assert_array_equal(rounds, [1, 2])
    np.testing.assert_array_equal(levels, [1, 8])
    np.testing.assert_array_equal(grid, [[3, 0], [0, 3]])

  @parameterized.named_parameters(
    ('one_round', 'round,eval_perplexity\n0,5.5\n', 'round,rank,clients\n1,4,1\n'),
    ('flat', 'round,eval_perplexity\n0,5\n1,5\n', 'round,rank,clients\n1,4,2\n2,4,2\n'),
    ('huge', 'round,eval_perplexity\n0,5\n1,1e300\n2,inf\n', None),
  )
  def test_draws_degenerate_runs(self, metrics, ranks):
    self.write(metrics, ranks)
    names = ['perplexity'] + (['ranks'] if ranks else [])
    self.assertEqual(list(plots.draw_run(self.directory)), names)

  def test_dark_theme_has_a_dark_background(self):
    self.write()
    image = plots.draw_run(self.directory, theme=plots.DARK)['loss']
    self.assertGreater(_pixels(image, plots.DARK.background), 300_000)
    self.assertGreater(_pixels(image, plots.DARK.second), 500)

  @parameterized.named_parameters(
    ('empty', '', r'metrics\.csv: column round is missing'),
    ('no_round', 'loss\n1\n', r'metrics\.csv: column round is missing'),
    ('text', 'round,eval_loss\n0,1\n1,abc\n', r'metrics\.csv: line 3, column eval_loss'),
    ('torn', 'round,eval_loss\n0,1\n1\n', r'metrics\.csv: line 3 has 1 cells'),
  )
  def test_refuses_malformed_files_by_name_and_line(self, metrics, message):
    self.write(metrics)
    with self.assertRaisesRegex(ValueError, message):
      plots.draw_run(self.directory)

  def test_refuses_a_missing_or_binary_file(self):
    with self.assertRaisesRegex(ValueError, r'metrics\.csv: cannot be read'):
      plots.draw_run(self.directory)
    (self.directory / 'metrics.csv').write_bytes(b'round\n\xff\xfe\n')
    with self.assertRaisesRegex(ValueError, r'metrics\.csv: cannot be read'):
      plots.draw_run(self.directory)

  def test_empty_cells_are_not_measured(self):
    self.write()
    table = plots.read_table(self.directory / 'metrics.csv')
    rounds, values = plots.measured(table, 'eval_loss')
    np.testing.assert_array_equal(rounds, [0, 2])
    np.testing.assert_array_equal(values, [4.0, 3.6])
    self.assertEmpty(plots.measured(table, 'absent')[0])

  @parameterized.parameters((999, '999 B'), (262144, '262 kB'), (1.5e6, '1.5 MB'), (2e12, '2 TB'))
  def test_formats_bytes(self, value, text):
    self.assertEqual(plots.format_bytes(value), text)


if __name__ == '__main__':
  absltest.main()
