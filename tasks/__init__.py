# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Experiments on the HetLoRA processes: data, text, evaluation, the program loop, the CLI."""
