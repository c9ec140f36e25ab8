# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
import asyncio

from tasks import coroutines


async def _answer():
  return await asyncio.to_thread(lambda: 42)


def test_the_event_loop_of_the_thread_stays():
  loop = asyncio.new_event_loop()
  asyncio.set_event_loop(loop)
  assert coroutines.run(_answer()) == 42
  assert asyncio.get_event_loop() is loop
  loop.close()
  asyncio.set_event_loop(asyncio.new_event_loop())
