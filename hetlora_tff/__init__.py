# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""HetLoRA: federated LoRA with a rank of its own on every device, as TFF processes."""

from hetlora_tff.adapters.backbone import BackboneError, FrozenBackbone
from hetlora_tff.adapters.classification import ClassificationModel
from hetlora_tff.adapters.config import LoraConfig
from hetlora_tff.adapters.factors import CorrectedFactors, LoraFactors
from hetlora_tff.adapters.layout import TrainedFactors
from hetlora_tff.adapters.model import AdapterModel, CausalLanguageModel, FullModel
from hetlora_tff.clients.data import with_ranks
from hetlora_tff.clients.messages import Padding
from hetlora_tff.clients.ranks import data_size_ranks, tier_ranks, truncated_power_law_ranks
from hetlora_tff.clients.training import LocalTraining
from hetlora_tff.clients.weights import ClientWeighting
from hetlora_tff.deployment import load_daf, save_daf
from hetlora_tff.deployment_manifest import DeploymentError
from hetlora_tff.evaluation import build_hetlora_eval_process
from hetlora_tff.full_fine_tuning import build_full_process
from hetlora_tff.message_sizes import MessageSizes
from hetlora_tff.personalization import build_hetlora_personalization_eval
from hetlora_tff.process import HetLoraOutput, HetLoraProcess, build_hetlora_process

__all__ = [
  'AdapterModel',
  'BackboneError',
  'CausalLanguageModel',
  'ClassificationModel',
  'ClientWeighting',
  'CorrectedFactors',
  'DeploymentError',
  'FrozenBackbone',
  'FullModel',
  'HetLoraOutput',
  'HetLoraProcess',
  'LocalTraining',
  'LoraConfig',
  'LoraFactors',
  'MessageSizes',
  'Padding',
  'TrainedFactors',
  'build_full_process',
  'build_hetlora_eval_process',
  'build_hetlora_personalization_eval',
  'build_hetlora_process',
  'data_size_ranks',
  'load_daf',
  'save_daf',
  'tier_ranks',
  'truncated_power_law_ranks',
  'with_ranks',
]
