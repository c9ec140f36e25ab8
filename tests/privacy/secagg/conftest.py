# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0

import asyncio

import pytest


@pytest.fixture(scope='module', autouse=True)
def event_loop_for_others_fixture():
  """`asyncio.run` leaves a thread without an event loop, and TFF's training loop asks for one."""
  yield
  asyncio.set_event_loop(asyncio.new_event_loop())
