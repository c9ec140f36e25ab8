# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What happens on a device: data, ranks, training, self-pruning, weights."""
