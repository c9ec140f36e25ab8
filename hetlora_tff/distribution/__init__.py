# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the server's adapters reach clients of different ranks."""

from hetlora_tff.distribution.broadcast import build_truncating_broadcast
from hetlora_tff.distribution.select import RankSelect

__all__ = ['RankSelect', 'build_truncating_broadcast']
