# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one exception of the program layer that a user is meant to read."""


class UserError(Exception):
  """A mistake that the user can mend: printed as one line on stderr, exit code 2."""
