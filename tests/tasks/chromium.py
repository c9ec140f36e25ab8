# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium that opens our pages and says what is wrong with them.

It speaks the browser's own protocol over two pipes, so that it needs no driver and no port.
"""

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time

PROGRAM = pathlib.Path('/usr/bin/chromium')
_FLAGS = (
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
  '--disable-extensions', '--disable-dev-shm-usage', '--hide-scrollbars',
  '--remote-debugging-pipe',
)  # fmt: skip
_SECONDS = 60
# The browser reads its third file and writes its fourth.
_READS, _WRITES = 3, 4

# Returns a list of problems. Nothing may be wider than the page unless something around it scrolls.
_INSPECT = r"""
(async () => {
  await Promise.all(Array.from(document.images, image => image.decode().catch(() => {})));
  const problems = [];
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) {
    problems.push(`the page is ${page.scrollWidth} wide in a window of ${page.clientWidth}`);
  }
  const scrolls = element => element && element !== document.body &&
    (['auto', 'scroll'].includes(getComputedStyle(element).overflowX) ||
     scrolls(element.parentElement));
  for (const element of document.body.querySelectorAll('*')) {
    const box = element.getBoundingClientRect();
    const name = `<${element.localName} class="${element.className.baseVal ?? element.className}">`;
    if (box.width && (box.right > page.clientWidth + 1 || box.left < -1) && !scrolls(element)) {
      problems.push(`${name} leaves the window`);
    }
  }
  for (const figure of document.querySelectorAll('figure, img')) {
    const image = figure.matches('img') ? figure : figure.querySelector('img');
    const box = image && image.getBoundingClientRect();
    if (!image || !image.naturalWidth || box.width < 50 || box.height < 50 ||
        !image.checkVisibility({opacityProperty: true, visibilityProperty: true})) {
      problems.push(`figure ${figure.id || figure.src?.slice(0, 40)} does not show`);
      continue;
    }
    const stretched = box.width * image.naturalHeight / (box.height * image.naturalWidth);
    if (Math.abs(stretched - 1) > 0.03) {
      problems.push(`figure ${figure.id} is distorted`);
    }
  }
  const channels = text => text.match(/[\d.]+/g).map(Number);
  const luminance = rgb => rgb.slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const color = channels(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0.99) return color;
    }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (const seen = new Set(); texts.nextNode();) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || seen.has(element) || !element.checkVisibility()) continue;
    seen.add(element);
    const style = getComputedStyle(element);
    const said = texts.currentNode.data.trim().slice(0, 40);
    if (parseFloat(style.fontSize) < 12) problems.push(`"${said}" is smaller than 12 pixels`);
    const pair = [luminance(channels(style.color)), luminance(ground(element))];
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < 4.5) problems.push(`"${said}" has a contrast of only ${contrast.toFixed(1)}`);
  }
  return problems;
})()
"""


def _above_fixed(number: int) -> int:
  """The same open file under a number that the browser does not use."""
  copy = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
  os.close(number)
  return copy


class Chromium:
  """A running browser; a context manager."""

  def __enter__(self) -> 'Chromium':
    self._stack = contextlib.ExitStack()
    home = self._stack.enter_context(
      tempfile.TemporaryDirectory(prefix='chromium-', ignore_cleanup_errors=True)
    )
    to_read, self._out = map(_above_fixed, os.pipe())
    self._in, to_write = map(_above_fixed, os.pipe())
    # The numbers of its files are fixed: a shell moves ours there.
    moved = f'exec "$0" "$@" {_READS}<&{to_read} {_WRITES}>&{to_write}'
    self._process = subprocess.Popen(
      ['/bin/bash', '-c', moved, str(PROGRAM), *_FLAGS, f'--user-data-dir={home}'],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      pass_fds=(to_read, to_write),
      env={**os.environ, 'HOME': home},
      start_new_session=True,
    )
    os.close(to_read)
    os.close(to_write)
    self._watchdog = threading.Timer(4 * _SECONDS, self._process.kill)
    self._watchdog.start()
    self._number, self._buffer, self._events = 0, b'', []
    self._session = None
    target = self._ask('Target.createTarget', url='about:blank')['targetId']
    attached = self._ask('Target.attachToTarget', targetId=target, flatten=True)
    self._session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log'):
      self._ask(f'{domain}.enable')
    return self

  def __exit__(self, *unused_error) -> None:
    self._watchdog.cancel()
    self._process.terminate()
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._out)
    os.close(self._in)
    self._stack.close()

  def open(self, path: pathlib.Path, *, width: int, dark: bool = False) -> None:
    """Shows a page in a window of some width."""
    self._events.clear()
    scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
    self._ask('Emulation.setEmulatedMedia', features=[scheme])
    size = {'width': width, 'height': 844, 'deviceScaleFactor': 1, 'mobile': False}
    self._ask('Emulation.setDeviceMetricsOverride', **size)
    self._ask('Page.navigate', url=path.resolve().as_uri())
    self._await('Page.loadEventFired')

  def problems(self) -> list[str]:
    """What is wrong with the open page: errors, figures that do not show, text out of sight."""
    answer = self._ask(
      'Runtime.evaluate', expression=_INSPECT, awaitPromise=True, returnByValue=True
    )
    if 'exceptionDetails' in answer:
      raise RuntimeError(answer['exceptionDetails']['exception']['description'])
    errors = [
      event['params']
      for event in self._events
      if event['method'] == 'Runtime.exceptionThrown'
      or event['params'].get('type') in ('error', 'assert')
      or event['params'].get('entry', {}).get('level') == 'error'
    ]
    return [f'console: {json.dumps(error)}' for error in errors] + answer['result']['value']

  def screenshot(self, path: pathlib.Path) -> None:
    """Writes a PNG of the whole open page."""
    shot = self._ask('Page.captureScreenshot', captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(shot['data']))

  def _ask(self, method: str, **parameters) -> dict:
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': parameters}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._out, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._read()
      if answer.get('id') == self._number:
        if 'error' in answer:
          raise RuntimeError(f'{method}: {answer["error"]}')
        return answer['result']
      self._events.append(answer)

  def _await(self, method: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not any(event['method'] == method for event in self._events):
      if time.monotonic() > deadline:
        raise TimeoutError(method)
      self._events.append(self._read())

  def _read(self) -> dict:
    while b'\0' not in self._buffer:
      data = os.read(self._in, 1 << 20)
      if not data:
        raise OSError(f'{PROGRAM} ended with status {self._process.wait()}')
      self._buffer += data
    message, _, self._buffer = self._buffer.partition(b'\0')
    return json.loads(message)
