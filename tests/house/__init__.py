# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The rules of the repository: imports, sizes, headers, BUILD files, set-up."""
