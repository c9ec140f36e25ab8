# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Our pages in a real browser: no error, figures to be seen, readable on a telephone."""

import json
import pathlib
import re

import matplotlib.image
import pytest

from tasks import compare, privacy_report, report
from tests.tasks import chromium, synthetic_private_runs, synthetic_runs

pytestmark = pytest.mark.skipif(
  not chromium.PROGRAM.exists(), reason=f'there is no {chromium.PROGRAM} (Debian package chromium)'
)
_WIDTHS = (390, 1280)
_PRIVATE_KINDS = ('poisson', 'tree', 'projection', 'none')


@pytest.fixture(scope='module', name='browser')
def browser_fixture():
  with chromium.Chromium() as browser:
    yield browser


@pytest.fixture(scope='module', name='pages')
def pages_fixture(tmp_path_factory):
  """Each of our pages, with all of its parts."""
  root = tmp_path_factory.mktemp('pages')
  settings = {
    'hetlora': {},
    'homlora': {'rounds': 6},
    'svd': {'deviation': 1e-9},
    'full': {'upload': 2e8, 'deviation': None},
  }
  runs = [
    synthetic_runs.write(root / f'{method}{seed}', method=method, seed=seed, **changes)
    for method, changes in settings.items()
    for seed in range(2)
  ]
  tiers = {'rank_assignment': 'tiers', 'rank_tiers': {'4': 0.5, '32': 0.5}, 'local_steps': 20}
  runs.append(synthetic_runs.write(root / 'tiers', method='svd', seed=0, **tiers))
  compare.compare(runs, root / 'out')
  change = {'mean': -0.4, 'low': -0.42, 'high': -0.38, 'clients': 58}
  synthetic_runs.change_json(
    runs[0] / 'summary.json',
    relative_perplexity_change=change,
    bytes_by_rank=[{'rank': 4, 'slice_bytes': 100, 'padded_bytes': 800}],
    tiers=[{'rank_up_to': 4, 'clients': 31, 'loss': 3.6, 'perplexity': 36.598}],
    command='hetlora train ' + '--flag value ' * 30,
    **synthetic_runs.client_results(),
  )
  (runs[0] / 'ranks.csv').write_text('round,rank,clients\n1,1,3\n2,4,2\n')
  sample = {'client': 'c' * 99, 'source': 'x' * 500, 'reference': 'r', 'base': '', 'tuned': 't'}
  (runs[0] / 'samples.json').write_text(json.dumps([sample]))
  pages = {
    'comparison': root / 'out/comparison.html',
    'run': report.write_run_report(runs[0]),
  }
  for kind in _PRIVATE_KINDS:
    run = synthetic_private_runs.write(root / kind, kind)
    privacy_report.write_privacy_report(run)
    pages[kind] = run / 'privacy_report.html'
  return pages


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', _WIDTHS)
@pytest.mark.parametrize('name', ['comparison', 'run', *_PRIVATE_KINDS])
def test_page_has_no_problem(browser, pages, name, width, dark):
  browser.open(pages[name], width=width, dark=dark)
  assert browser.problems() == []


@pytest.mark.parametrize(
  ('name', 'figures'), [('comparison', 4), ('run', 7), ('poisson', 2), ('none', 0)]
)
def test_page_has_its_figures(pages, name, figures):
  assert pages[name].read_text().count('<figure') == figures


def _planted(page: pathlib.Path, directory: pathlib.Path, old: str, new: str) -> pathlib.Path:
  text, number = re.subn(old, lambda _: new, page.read_text(), count=1)
  assert number == 1
  path = directory / 'planted.html'
  path.write_text(text)
  return path


@pytest.mark.parametrize(
  ('old', 'new', 'said'),
  [
    ('</main>', '<script>missing()</script></main>', 'missing is not defined'),
    ('</main>', '<script>console.error("planted")</script></main>', 'planted'),
    ('</main>', '<img src="absent.png" width="90" height="90"></main>', 'does not show'),
    ('</main>', '<div style="width: 1500px">wide</div></main>', 'is 15'),
    ('</main>', '<p style="position: absolute; left: -200px">out</p></main>', 'leaves the window'),
    ('</main>', '<p style="color: #999; background: #fff">pale</p></main>', 'contrast'),
    ('</main>', '<p style="font-size: 7px">small</p></main>', 'smaller than 12 pixels'),
    ('display: block; width: 100%', 'display: none; width: 100%', 'does not show'),
    ('height: auto;', 'height: 40px;', 'does not show'),
    ('height: auto;', 'height: 900px;', 'distorted'),
    (r'\.scroll \{ overflow-x: auto;', '.scroll {', 'wide in a window'),
    ('data:image/png;base64,iVBOR', 'data:image/png;base64,iVBOX', 'does not show'),
  ],
  ids=[
    'exception', 'console', 'lost_image', 'overflow', 'left', 'contrast', 'size', 'hidden', 'flat',
    'distorted', 'table', 'broken_image',
  ],
)  # fmt: skip
def test_planted_problem_is_found(browser, pages, tmp_path, old, new, said):
  dark = 'iVBOX' in new  # The first image of a figure is its dark one.
  browser.open(_planted(pages['comparison'], tmp_path, old, new), width=390, dark=dark)
  assert said in '\n'.join(browser.problems())


def test_dark_page_is_dark(browser, pages, tmp_path):
  means = []
  for dark in (False, True):
    browser.open(pages['comparison'], width=390, dark=dark)
    browser.screenshot(tmp_path / 'page.png')
    means.append(matplotlib.image.imread(tmp_path / 'page.png')[..., :3].mean())
  assert means[0] > 0.8
  assert means[1] < 0.3
