# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the run report: what it says, that it stands alone, and how it treats broken runs."""

import base64
import html.parser
import json
import pathlib
import re
import tempfile

from absl.testing import absltest, parameterized

from tasks import report
from tests.tasks import synthetic_runs

_CONFIG = {
  'task': 'docstrings',
  'method': 'hetlora',
  'rounds': 2,
  'privacy': 'none',
  'targets': ['query', 'value'],
  'client_optimizer': {'learning_rate': 0.002},
}
_METRICS = (
  'round,train_loss,eval_loss,eval_perplexity,eval_rouge_l,upload_bytes,download_bytes,'
  'round_seconds\n0,,4.1,60.34,0.1,,,\n1,3.9,,,,1000,500,2.0\n2,3.5,3.58,35.93,0.2,1000,500,4.0\n'
)
_SUMMARY = {
  'base': {'perplexity': 60.34, 'loss': 4.1, 'rouge_l': 0.121},
  'final': {'perplexity': 35.93, 'loss': 3.58, 'rouge_l': 0.206},
  'relative_perplexity_change': {'mean': -0.4045, 'low': -0.42, 'high': -0.3836, 'clients': 58},
  'rouge_l_change': {'mean': 0.085, 'low': 0.071, 'high': 0.099, 'clients': 57},
  'tiers': [{'rank_up_to': 4, 'clients': 31, 'loss': 3.6, 'perplexity': 36.598}],
  'bytes_by_rank': [{'rank': 1, 'slice_bytes': 100, 'padded_bytes': 800}],
  'command': 'hetlora train --task docstrings',
}
_SAMPLES = [
  {
    'client': '<img src=x onerror=alert(1)>',
    'source': '<script>alert("&")</script>',
    'reference': 'reference text',
    'base': '',
    'tuned': 'tuned text',
  }
]


class _Page(html.parser.HTMLParser):
  """Collects tags, visible text and every address of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.addresses, self.words = [], [], []
    self.feed(text)
    text = ' '.join(' '.join(self.words).split())
    self.text = text.replace('\N{MINUS SIGN}', '-')

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.addresses += [v for k, v in attrs if k in ('src', 'srcset', 'href')]

  def handle_data(self, data):
    self.words.append(data)


class RunReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # absl's create_tempdir needs flags, which pytest does not parse.
    self.directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, **files):
    defaults = {'config.json': _CONFIG, 'metrics.csv': _METRICS}
    for name, content in {**defaults, **files}.items():
      text = content if isinstance(content, str) else json.dumps(content)
      (self.directory / name).write_text(text, encoding='utf-8')

  def write_full(self, **files):
    everything = {
      'summary.json': _SUMMARY,
      'samples.json': _SAMPLES,
      'environment.json': {'python': '3.11.2', 'packages': {'tensorflow': '2.14.1'}},
      'ranks.csv': 'round,rank,clients\n1,1,3\n2,4,2\n',
    }
    self.write(**{**everything, **files})

  def render(self):
    path = report.write_run_report(self.directory)
    self.assertEqual(path, self.directory / 'report.html')
    return _Page(path.read_text(encoding='utf-8'))

  def test_says_the_headline_numbers(self):
    self.write_full()
    text = self.render().text
    self.assertIn('Held-out perplexity is 40.5 % below the untuned base model.', text)
    self.assertIn('60.34 → 35.93', text)
    self.assertIn('-40.5 % (95 % interval -42.0 % to -38.4 % over 58 held-out clients)', text)
    self.assertIn('0.121 → 0.206', text)
    self.assertIn('+0.085 (95 % interval +0.071 to +0.099 over 57 held-out clients)', text)
    self.assertIn('1 kB down, 2 kB up', text)
    self.assertIn('hetlora train --task docstrings', text)

  def test_says_how_long_most_rounds_take(self):
    rows = '1,2.0\n2,4.0\n3,60.0\n'
    self.write_full(**{'metrics.csv': f'round,round_seconds\n{rows}'})
    self.assertIn('a median round takes 4 s on', self.render().text)

  def test_shows_config_environment_tiers_and_samples(self):
    self.write_full()
    text = self.render().text
    for words in (
      'client_optimizer.learning_rate 0.002',
      'targets query, value',
      'packages.tensorflow 2.14.1',
      '4 31 3.600 36.598',
      'Reference reference text Untuned no text Tuned tuned text',
    ):
      self.assertIn(words, text)

  def test_stands_alone(self):
    self.write_full()
    page = self.render()
    self.assertNotEmpty(page.addresses)
    for address in page.addresses:
      self.assertStartsWith(address, 'data:')
    self.assertEqual(page.tags.count('img'), 4)
    raw = (self.directory / 'report.html').read_text(encoding='utf-8')
    self.assertNotRegex(raw, r'url\(|@import|https?://')
    self.assertNotIn('script', page.tags)

  def test_embeds_the_plots_of_the_directory(self):
    self.write_full()
    page = self.render()
    images = {base64.b64decode(a.partition(',')[2]) for a in page.addresses if 'image/png' in a}
    self.assertLen(images, 8)
    for name in ('loss', 'perplexity', 'ranks', 'bytes'):
      self.assertIn((self.directory / 'plots' / f'{name}.png').read_bytes(), images)

  def test_tells_of_single_clients(self):
    self.write_full(**{'summary.json': {**_SUMMARY, **synthetic_runs.client_results()}})
    page = self.render()
    for words in (
      'perplexity, untuned 314.12 252.07 to 376.18 109.94 241.65 619.27 873.18',
      'Rouge-1, tuned 0.117 0.102 to 0.131',
      '13 of 16 clients are better off with an adapter of their own. Left out, with a single'
      ' example each: 3. Both',
      'perplexity, own adapter',
      '32 7 190 183',
      '201.50 → 196.20 -2.6 % (95 % interval -4.0 % to -1.0 % over 16 held-out clients)',
      '1,204 clients with fewer than 20 examples.',
    ):
      self.assertIn(words, page.text)
    self.assertEqual(page.tags.count('img'), 7)
    for name in ('distribution_perplexity', 'distribution_rouge_l', 'personalization'):
      self.assertTrue((self.directory / 'plots' / f'{name}.png').exists())

  def test_headline_of_a_classification_is_its_accuracy(self):
    summary = {
      'base': {'perplexity': 3.0, 'accuracy': 0.31},
      'final': {'perplexity': 1.5, 'accuracy': 0.802},
      'accuracy_change': {'mean': 0.492, 'low': 0.4, 'high': 0.58, 'clients': 9},
    }
    self.write_full(**{'summary.json': summary})
    text = self.render().text
    self.assertIn('Held-out accuracy is 49.2 points above the untuned base model.', text)
    self.assertIn('0.310 → 0.802 +0.492', text)
    self.assertIn('Labels that texts of held-out clients were given', text)
    self.assertNotIn('per target token, pooled', text)

  def test_says_how_text_was_decoded(self):
    for beams, words in ((1, 'Decoded greedily for'), (4, 'Decoded with 4 beams for')):
      self.write_full(**{'config.json': {**_CONFIG, 'num_beams': beams}})
      self.assertIn(words, self.render().text)

  def test_escapes_text_from_users(self):
    self.write_full(**{'config.json': {**_CONFIG, 'task': '</title><script>'}})
    page = self.render()
    self.assertNotIn('script', page.tags)
    self.assertIn('<script>alert("&")</script>', page.text)
    self.assertIn('Client <img src=x onerror=alert(1)>', page.text)

  def test_works_without_optional_files(self):
    self.write()
    page = self.render()
    self.assertIn('Held-out perplexity is 40.5 % below the untuned base model.', page.text)
    for words in (
      'interval', 'Sample predictions', 'by rank', 'one by one', 'of their own', 'left out',
      'Run it again', 'Environment',
    ):  # fmt: skip
      self.assertNotIn(words, page.text)

  @parameterized.named_parameters(
    ('nothing_measured', 'round\n'),
    ('only_the_base', 'round,eval_perplexity\n0,60.0\n'),
    ('only_training', 'round,train_loss\n0,\n1,3.0\n'),
  )
  def test_works_for_interrupted_runs(self, metrics):
    self.write(**{'metrics.csv': metrics})
    self.assertIn('No held-out result of a tuned model', self.render().text)

  def test_says_how_far_an_interrupted_run_came(self):
    self.write(**{'config.json': {**_CONFIG, 'rounds': 40}})
    self.assertIn('rounds 2 of 40', self.render().text)

  def test_says_when_the_result_is_worse_or_unclear(self):
    change = {'mean': 0.02, 'low': -0.01, 'high': 0.05}
    self.write_full(**{'summary.json': {**_SUMMARY, 'relative_perplexity_change': change}})
    self.assertIn(
      '2.0 % above the untuned base model; the interval includes no change.', self.render().text
    )

  @parameterized.named_parameters(
    ('none', 'none', 'No differential privacy.', 'privacy_report.html'),
    ('central', 'central', 'privacy_report.html', 'No differential privacy.'),
  )
  def test_states_the_privacy_of_the_run(self, privacy, said, unsaid):
    self.write(**{'config.json': {**_CONFIG, 'privacy': privacy}})
    text = self.render().text
    self.assertIn(said, text)
    self.assertNotIn(unsaid, text)

  def test_ignores_values_of_another_kind(self):
    odd = {
      'base': None,
      'final': [],
      'tiers': [1],
      'bytes_by_rank': 'x',
      'relative_perplexity_change': {'mean': None},
      'command': None,
      'distribution': {
        'perplexity': {'base': {'deciles': [1, 2], 'worst_decile_mean': 3}, 'final': 4},
        'rouge_l': {'base': {'deciles': [1] * 8 + ['x'], 'worst_decile_mean': 3}},
        'accuracy': [],
      },
      'personalization': {'clients': 2, 'better': 1, 'by_client': [{'before': 1}, 3], 'tiers': 0},
      'left_out': [3],
    }
    self.write_full(**{'summary.json': odd, 'samples.json': [3, {'tuned': 4}]})
    self.assertIn('60.34 → 35.93', self.render().text)

  def test_an_interval_of_one_client_has_no_bounds(self):
    change = {'mean': -0.4045, 'low': None, 'high': None}
    self.write_full(**{'summary.json': {**_SUMMARY, 'relative_perplexity_change': change}})
    self.assertNotIn('-42.0', self.render().text)

  @parameterized.named_parameters(
    ('config', 'config.json', '{"task": '),
    ('config_list', 'config.json', '[]'),
    ('metrics', 'metrics.csv', 'round,train_loss\n0,abc\n'),
    ('summary', 'summary.json', '{'),
    ('samples', 'samples.json', '{}'),
    ('environment', 'environment.json', '1'),
    ('ranks', 'ranks.csv', 'round,rank\n1,1\n'),
  )
  def test_refuses_corrupt_files_in_one_line(self, name, content):
    self.write_full(**{name: content})
    with self.assertRaisesRegex(ValueError, re.escape(name)) as raised:
      report.write_run_report(self.directory)
    self.assertNotIn('\n', str(raised.exception))
    self.assertFalse((self.directory / 'report.html').exists())

  @parameterized.parameters('config.json', 'metrics.csv')
  def test_refuses_missing_files(self, name):
    self.write_full()
    (self.directory / name).unlink()
    with self.assertRaisesRegex(ValueError, re.escape(name)):
      report.write_run_report(self.directory)

  def test_leaves_no_partial_file(self):
    self.write_full()
    self.render()
    names = sorted(path.name for path in self.directory.iterdir())
    self.assertEqual([name for name in names if 'report' in name], ['report.html'])


if __name__ == '__main__':
  absltest.main()
