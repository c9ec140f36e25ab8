# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`hetlora export --format peft`: a run's adapter and its base model, for Hugging Face.

| in the directory           |                                                                 |
| -------------------------- | --------------------------------------------------------------- |
| `adapter_model.safetensors`, `adapter_config.json` | what PEFT loads                         |
| `base_model/`              | the base as transformers loads it, where the family is known    |
| `README.md`                | what it is, and how to load it                                  |
| `labels.json`              | of a classification                                             |
| `privacy_report.md`        | of the run                                                      |
"""

import json
import pathlib
import shutil
from typing import Any

from hetlora_tff import LoraConfig, staging
from hetlora_tff.adapters import huggingface_model, peft
from hetlora_tff.adapters.classification import CLASSIFIER, ENCODERS
from tasks import artifacts
from tasks.errors import UserError
from tasks.experiment import LABELS
from tasks.exported_run import ExportedRun
from tasks.text import Tokenizer

BASE_MODEL, CARD, PRIVACY_REPORT = 'base_model', 'README.md', 'privacy_report.md'

# keras-nlp's names of the files of a vocabulary to Hugging Face's.
_VOCABULARY_FILES = {
  'vocabulary.json': 'vocab.json',
  'merges.txt': 'merges.txt',
  'vocabulary.txt': 'vocab.txt',
  'vocabulary.spm': 'tokenizer.model',
}


def export_peft(run: ExportedRun, output_dir: pathlib.Path) -> str:
  """Writes a run's adapter with all that Hugging Face PEFT needs to use it, or nothing.

  Args:
    run: a finished run.
    output_dir: where to; must not exist or be empty.

  Returns:
    What was written, in a sentence.

  Raises:
    UserError: if there is no adapter, PEFT could not load it, or it cannot be written.
  """
  backbone = run.base.backbone
  if run.lora is None or not run.adapters:
    raise UserError(
      f'--format peft: {run.directory} trained all weights and has no adapter; --format savedmodel,'
      ' keras or preset exports the model.'
    )
  has_base = huggingface_model.is_known(backbone.class_name)
  if not has_base and (run.directory / artifacts.MODEL).is_dir():
    raise UserError(
      f'--format peft: method {run.config.method} changed the {backbone.class_name} itself, which'
      ' cannot be written for Hugging Face; --format savedmodel exports the merged model.'
    )
  try:
    with staging.staged(output_dir, 'an adapter', ValueError) as draft:
      _write(draft, run, run.lora, has_base=has_base)
  except ValueError as error:
    raise UserError(f'--format peft: {error}') from error
  told = f'the base model in {BASE_MODEL}/ and how to load both in {CARD}'
  if not has_base:
    told = f'how to load it in {CARD}; the base model is yours to get from Hugging Face'
  return f'{output_dir} holds the adapter as Hugging Face PEFT loads it, {told}.'


def _write(directory: pathlib.Path, run: ExportedRun, lora: LoraConfig, *, has_base: bool) -> None:
  """Fills the directory.

  Raises:
    ValueError: if Hugging Face has no such modules.
  """
  backbone = run.base.backbone
  names = peft.save_peft_adapter(
    directory,
    run.adapters,
    lora,
    base_model_name_or_path=BASE_MODEL if has_base else '',
    architecture=backbone.class_name,
    num_heads=backbone.num_heads,
  )
  if names == peft.OWN_NAMES:
    raise ValueError(
      f'{backbone.class_name} or one of the targets {", ".join(lora.targets)} has no known'
      ' counterpart in Hugging Face; --format savedmodel exports the merged model.'
    )
  if has_base:
    _write_base_model(directory / BASE_MODEL, run)
  if run.labels:
    labels = json.dumps(run.labels, indent=1, ensure_ascii=False)
    (directory / LABELS).write_text(labels, 'utf-8')
  report = run.directory / PRIVACY_REPORT
  if report.is_file():
    shutil.copyfile(report, directory / PRIVACY_REPORT)
  (directory / CARD).write_text(_card(run, directory), 'utf-8')


def _write_base_model(directory: pathlib.Path, run: ExportedRun) -> None:
  backbone, tokenizer = run.base
  directory.mkdir()
  huggingface_model.save_huggingface_model(
    directory, backbone, special_tokens=_special_tokens(tokenizer), labels=run.labels
  )
  tokenizer.keras_tokenizer.save_assets(str(directory))
  for ours, theirs in _VOCABULARY_FILES.items():
    if (directory / ours).is_file():
      (directory / ours).rename(directory / theirs)
  config = _tokenizer_config(backbone.class_name, tokenizer)
  (directory / 'tokenizer_config.json').write_text(json.dumps(config, indent=2), 'utf-8')


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int | None]:
  pad, end = tokenizer.pad_token_id, tokenizer.end_token_id
  return {
    'bos_token_id': tokenizer.start_ids[0] if tokenizer.start_ids else None,
    'eos_token_id': end,
    # Hugging Face takes the last token that is none of these for the end of a text.
    'pad_token_id': None if pad == end else pad,
  }


def _tokenizer_config(class_name: str, tokenizer: Tokenizer) -> dict[str, Any]:
  """What Hugging Face's tokenizer needs beside the vocabulary."""
  family = class_name.removesuffix('Backbone')
  kinds = {'OPT': 'GPT2', 'Mistral': 'Llama'}
  config: dict[str, Any] = {'tokenizer_class': f'{kinds.get(family, family)}Tokenizer'}
  keras_tokenizer = tokenizer.keras_tokenizer
  if class_name in ENCODERS:
    return {**config, 'do_lower_case': bool(getattr(keras_tokenizer, 'lowercase', False))}
  config['eos_token'] = keras_tokenizer.id_to_token(tokenizer.end_token_id)
  config['add_bos_token'] = bool(tokenizer.start_ids)
  if tokenizer.start_ids:
    config['bos_token'] = keras_tokenizer.id_to_token(tokenizer.start_ids[0])
  return config


def _card(run: ExportedRun, directory: pathlib.Path) -> str:
  """The page of the adapter, in the form of Hugging Face's model cards."""
  backbone, config = run.base.backbone, run.config
  rows = {
    'Base model': f'{backbone.class_name}, {backbone.num_parameters:,} weights',
    'sha256 of the base': f'`{backbone.sha256}`',
    'Task': config.task,
    'Method': f'{config.method}, federated',
    'Adapted modules': ', '.join(sorted({path.rsplit('/', 1)[-1] for path in run.adapters})),
  }
  if run.lora:
    rows['Rank and scale'] = f'{run.lora.max_rank}, {run.lora.scaling:g}'
  if run.labels:
    rows['Labels'] = ', '.join(run.labels)
  if (directory / PRIVACY_REPORT).exists():
    rows['Privacy'] = f'[{PRIVACY_REPORT}]({PRIVACY_REPORT})'
  has_base = (directory / BASE_MODEL).exists()
  lines = [
    '---',
    'library_name: peft',
    *([f'base_model: ./{BASE_MODEL}'] if has_base else []),
    'tags: [lora]',
    '---',
    f'# A LoRA adapter of {backbone.class_name.removesuffix("Backbone")}',
    '',
    '| | |',
    '|---|---|',
    *(f'| {name} | {value} |' for name, value in rows.items()),
    '',
    '## Use',
    '',
    '```python',
    _usage(run, BASE_MODEL if has_base else 'NAME-OF-THE-BASE-MODEL'),
    '```',
    '',
  ]
  return '\n'.join(lines)


def _usage(run: ExportedRun, base: str) -> str:
  """Python that loads the adapter and computes logits, to be run in the directory."""
  is_encoder = run.base.backbone.class_name in ENCODERS
  kind = 'AutoModelForSequenceClassification' if run.labels else 'AutoModelForCausalLM'
  # In training, a text to classify ends with this token; encoders' tokenizers put it there.
  text = "'A text' + tokenizer.eos_token" if run.labels and not is_encoder else "'A text'"
  lines = [
    'import peft, safetensors.torch, transformers',
    '',
    f"base = transformers.{'AutoModel' if is_encoder else kind}.from_pretrained('{base}')",
    f"tokenizer = transformers.AutoTokenizer.from_pretrained('{base}')",
    "model = peft.PeftModel.from_pretrained(base, '.').eval()",
    f"outputs = model(**tokenizer({text}, return_tensors='pt'))",
  ]
  if not (is_encoder and run.lora):
    return '\n'.join([*lines, 'print(outputs.logits)'])
  head = f'base_model.model.{CLASSIFIER}'
  return '\n'.join(
    [
      *lines,
      '# The classifier reads the first token as it is; Hugging Face has no such head.',
      f"weights = safetensors.torch.load_file('{peft.WEIGHTS_FILE}')",
      f"a, b = (weights[f'{head}.lora_{{side}}.weight'] for side in 'AB')",
      f'print({run.lora.scaling} * outputs.last_hidden_state[:, 0] @ a.T @ b.T)',
    ]
  )
