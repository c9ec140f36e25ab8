# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a session; every message names the client or the phase.

After an error a client or a server is as it was before the call, unless it says that it ended.
"""


class SecAggError(Exception):
  """A session cannot go on, or not with this message."""


class MalformedMessageError(SecAggError):
  """Bytes that are no message of this protocol: another length, magic, version or field."""


class ForeignSessionError(SecAggError):
  """A message of another session."""


class AddressError(SecAggError):
  """A message of another sender, or for another recipient."""


class OutOfOrderError(SecAggError):
  """A message, or a call, of a phase that is over or not open yet."""


class ReplayError(OutOfOrderError):
  """A message that was received before."""


class SignatureError(SecAggError):
  """A signature that does not belong to what it stands below."""


class KeyAgreementError(SecAggError):
  """A public key that no honest party has: with it, everybody knows what is agreed on."""


class DecryptionError(SecAggError):
  """An encrypted share that was changed, or is of another sender or session."""


class ContradictionError(SecAggError):
  """A message that does not go with what was said before, or with itself."""


class BelowThresholdError(SecAggError):
  """Fewer clients than a sum must have, or than it takes to recover a secret."""


class ReconstructionError(SecAggError):
  """Shares that give another secret than the one their owner committed to."""
