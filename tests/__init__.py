# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests; the directories mirror the packages, `house` holds the rules of the repository itself."""
