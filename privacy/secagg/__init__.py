# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""Secure aggregation: a server learns the sum of its clients' vectors, and nothing else of them.

The protocol of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine
Learning", CCS), with the graph of Bell et al. 2020 ("Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", CCS). `Client` and `Server` turn messages into messages and know no
network; there is no TensorFlow in here.

What it does not do: keep a client from sending a false vector, keep one that misbehaves from ending
the session, or hide who takes part. Who is at the other end of a connection is for the transport to
find out. In SEMI_HONEST mode the server is trusted to pass on the clients' public keys as they are.
"""

from privacy.secagg.client import Client
from privacy.secagg.errors import SecAggError
from privacy.secagg.parameters import Mode, Phase, ProtocolSpec
from privacy.secagg.server import SecureSum, Server

__all__ = ['Client', 'Mode', 'Phase', 'ProtocolSpec', 'SecAggError', 'SecureSum', 'Server']
