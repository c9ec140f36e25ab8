# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""The settings of a run: one table for the configuration file, the flags and the record kept.

No TensorFlow here: `hetlora --help` and a wrong flag answer at once.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from tasks import built_in, methods, privacy_rules, values
from tasks.errors import UserError
from tasks.options import option, settle
from tasks.rules import RULES


def _key(default: Any, help_text: str, check: values.Range | None = None) -> Any:
  return dataclasses.field(default=default, metadata={'help': help_text, 'check': check})


def _open(usual: Any, help_text: str, check: values.Range | None = None) -> Any:
  """A key that other keys decide or restrict; None leaves it to them, and to its usual value."""
  return dataclasses.field(
    default=None, metadata={'help': help_text, 'check': check, 'usual': usual}
  )


def _private(usual: Any, help_text: str, check: values.Range | None = None) -> Any:
  """A key that has a meaning where there is a privacy mechanism."""
  key = {'help': help_text, 'check': check, 'usual': usual, 'panel': 'Privacy'}
  return dataclasses.field(default=None, metadata=key)


def _secure(usual: Any, help_text: str, check: values.Range | None = None) -> Any:
  """A key about secure sums."""
  key = {'help': help_text, 'check': check, 'usual': usual, 'panel': 'Secure aggregation'}
  return dataclasses.field(default=None, metadata=key)


def _data(usual: Any, help_text: str, check: values.Range | None = None) -> Any:
  """A key about the text that is learned from."""
  key = {'help': help_text, 'check': check, 'usual': usual, 'panel': 'Data'}
  return dataclasses.field(default=None, metadata=key)


def _check(field: dataclasses.Field, value: Any) -> None:
  if value is None:
    return
  if isinstance(value, float) and not math.isfinite(value):
    raise UserError(f'{option(field.name)} must be finite, got {value}.')
  problem = field.metadata['check'] and field.metadata['check'](value)
  if problem:
    raise UserError(f'{option(field.name)} {problem}, got {value!r}.')


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All settings of `hetlora train`; every key is a flag of the same name.

  Keys whose default is None depend on keys before them, most of all on the method. They are settled
  when the configuration is made; None then says that a key has no meaning in this run.

  Raises:
    UserError: naming the option and what it takes, or what excludes it.
  """

  task: str = _key(
    'docstring_summarization',
    'What to learn; `hetlora tasks` lists them; MODULE:NAME or FILE.py:NAME is your own.',
  )
  seed: int = _key(0, 'Of initial adapters, ranks, splits, cohorts and data order.', values.seed)
  rounds: int = _key(16, 'Federated rounds.', values.at_least(1))
  clients_per_round: int = _key(10, 'Clients that train in a round.', values.at_least(1))
  backbone: str = _key(
    'embedded',
    'Base model: `embedded`, a backbone directory, a keras-nlp preset name or directory, '
    'or a .keras file.',
  )
  sequence_length: int = _key(128, 'Tokens per example, source and target.', values.at_least(32))
  method: str = _key(
    'hetlora',
    f'How clients train and how their work becomes one model: {", ".join(methods.METHODS)}.',
    values.one_of(*methods.METHODS),
  )
  privacy: str = _private(
    'none',
    'Differential privacy of each client: none; central: noise anew in every round; tree: noise '
    'that adds up less over rounds; or distributed: noise that clients add under a secure sum.',
    values.one_of('none', 'central', 'tree', 'distributed'),
  )
  secure_aggregation: bool = _secure(
    False, 'Sum updates and measurements as integers that a protocol could hide (simulated).'
  )
  targets: tuple[str, ...] = _open(
    ('query', 'value'),
    'Modules to adapt: names or regular expressions, comma-separated.',
    lambda value: None if value else 'needs at least one module name',
  )
  alpha: float = _open(64.0, 'LoRA alpha; the scale is alpha / max_rank for all.', values.positive)
  max_rank: int = _open(32, 'Rank of the server and of the largest device.', values.at_least(1))
  rank_pattern: Mapping[str, int] = _open(
    {},
    'Other ranks than max_rank for some modules, as in PEFT: REGEX:RANK,...',
    values.pattern_ranks,
  )
  rank_dynamics: str = _open(
    'self_pruning',
    'Ranks over time: self_pruning; fixed; or tier: fixed and public, by rank_tiers.',
    values.one_of('self_pruning', 'fixed', 'tier'),
  )
  rank_assignment: str = _open(
    'power_law',
    'First ranks: power_law, tiers, file, data_size (more examples, more ranks) or max.',
    values.one_of('power_law', 'tiers', 'file', 'data_size', 'max'),
  )
  rank_tiers: Mapping[int, float] = _open(
    None, 'Ranks and shares of clients, for tiers: RANK:SHARE,...', values.tier_shares
  )
  rank_file: str = _open(
    None,
    'Ranks, for file: JSON {client: rank} or CSV rows client,rank.',
    lambda value: None if value else 'must name a file',
  )
  rank_exponent: float = _open(
    0.1, 'Skew of the ranks, for power_law: P(r) ~ r^(x - 1); 1 is uniform.', values.positive
  )
  min_rank: int = _open(
    4, 'Smallest rank that is drawn; no device prunes itself below.', values.at_least(1)
  )
  prune_decay: float = _open(0.99, 'Self-pruning decay (gamma); 1 is off.', values.in_unit)
  prune_weight: float = _open(
    0.01, 'Weight of the pruning penalty (lambda) in the loss.', values.at_least(0)
  )
  weights: str = _open(
    'module',
    'Client weights: uniform; examples; or by the norm of what was learned, module or model.',
    values.one_of('uniform', 'examples', 'module', 'model'),
  )
  padding: str = _open(
    'state', 'Zero padding: state, update or none.', values.one_of('state', 'update', 'none')
  )
  distribution: str = _open(
    'broadcast', 'How adapters are sent: broadcast or select.', values.one_of('broadcast', 'select')
  )
  upload_bits: int = _open(
    None,
    'Bits of a number that a client sends: 4, 8 or 16, rounded by chance; left open, a float32.',
    values.one_of(4, 8, 16),
  )
  initial_adapter: str = _open(
    None,
    'PEFT adapter to begin with, a directory; left open, a Gaussian and zeros.',
    lambda value: None if value else 'must name a directory',
  )
  local_steps: int = _key(5, 'Local steps of a client in a round.', values.at_least(1))
  batch_size: int = _key(8, 'Examples per local step.', values.at_least(1))
  client_optimizer: str = _key('adam', 'adam or sgd.', values.one_of('adam', 'sgd'))
  client_learning_rate: float = _open(1e-2, 'Local learning rate.', values.positive)
  server_optimizer: str = _open('sgd', 'sgd or adam.', values.one_of('sgd', 'adam'))
  server_learning_rate: float = _open(1.0, 'Server learning rate.', values.positive)
  noise_multiplier: float = _private(
    None,
    'Standard deviation of the noise, in clips; left open, --target-epsilon decides.',
    values.at_least(0),
  )
  l2_clip_norm: float = _private(
    2.0,
    'Largest norm of what one client sends, all modules together; without privacy there is none'
    ' unless given, which secure sums need.',
    values.positive,
  )
  deviation_from_exact: bool = _open(
    True, "Measure how far each round's result is from the exact mean of what clients ask for."
  )
  clip: str = _private(
    'fixed',
    'Clip: fixed; or adaptive: at a private quantile of the norms.',
    values.one_of('fixed', 'adaptive'),
  )
  clip_quantile: float = _private(
    0.5, 'Share of clients that an adaptive clip leaves as they are.', values.fraction
  )
  target_epsilon: float = _private(
    None,
    'Budget: decides a noise left open, and ends the run before it is passed.',
    values.positive,
  )
  delta: float = _private(
    None, 'The delta of (epsilon, delta); left open, 1 / population_size^1.1.', values.fraction
  )
  sampling: str = _private(
    'poisson',
    'Cohorts: poisson: each client by itself; fixed: of one size; or minsep: nobody twice within '
    'min_separation rounds.',
    values.one_of('poisson', 'fixed', 'minsep'),
  )
  claim_amplification: bool = _private(
    True, 'Count on it that nobody learns who was drawn, which poisson alone allows.'
  )
  min_separation: int = _private(
    None,
    'Rounds from one turn of a client to its next, for minsep.',
    values.at_least(1),
  )
  max_participations: int = _private(
    None,
    'Most turns of a client, for minsep; left open, one every min_separation rounds.',
    values.at_least(1),
  )
  noise_cohort_size: int = _private(
    None,
    'Clients a round of a production run that the noise is scaled to: no guarantee here.',
    values.at_least(1),
  )
  population_size: int = _private(
    None, 'Clients of that production run; left open, those that train here.', values.at_least(1)
  )
  noise_matrix: str = _private(
    'tree', 'Noise of --privacy tree: tree or banded.', values.one_of('tree', 'banded')
  )
  tree_restart_every: int = _private(
    None, 'Rounds of one tree; left open, all.', values.at_least(1)
  )
  weight_reference: float = _private(
    None, 'Norm of what was learned that counts in full, for weights by norm.', values.positive
  )
  mean_weight: float = _private(
    0.5, 'Weight that is expected of a client, of at most 1, for weights by norm.', values.in_unit
  )
  denominator: str = _private(
    'public',
    'Sum of weights by norm: public: as expected; or noised: measured.',
    values.one_of('public', 'noised'),
  )
  public_eval_clients: bool = _private(
    False, 'Held-out clients are no secret; else the report says that they are not covered.'
  )
  audit_canaries: int = _private(
    0, 'Planted clients by whose traces the guarantee is tested.', values.at_least(0)
  )
  insecure_seeded_noise: bool = _private(
    False, 'Noise and cohorts from --seed, to repeat a run: no guarantee.'
  )
  secure_bits: int = _secure(
    16, 'Bits of a number that one client sends into a secure sum.', values.between(2, 32)
  )
  secure_rounding: str = _secure(
    'nearest',
    'Rounding of it: nearest; stochastic; or conditional, the default under privacy: stochastic'
    ' within a bound of the norm.',
    values.one_of('nearest', 'stochastic', 'conditional'),
  )
  secure_threshold: int = _secure(
    None,
    'Fewest clients whose sum is opened; left open, more than two thirds of clients_per_round.',
    values.at_least(2),
  )
  secure_coordinates: int = _secure(
    None,
    'Numbers that one client may change, for what rounding adds to its norm; left open, as model'
    ' and ranks tell.',
    values.at_least(1),
  )
  assumed_colluders: int = _secure(
    0,
    'Of the clients in a sum, how many may tell the server their noise, for --privacy distributed.',
    values.at_least(0),
  )
  eval_every: int = _key(4, 'Rounds between evaluations.', values.at_least(1))
  eval_split: str = _key(
    'test',
    'Held-out clients to evaluate on: test or validation.',
    values.one_of('test', 'validation'),
  )
  eval_examples_per_client: int = _key(
    16, 'Most examples of a held-out client.', values.at_least(1)
  )
  decode_examples: int = _key(
    128, 'Held-out examples to decode for RougeL at start and end; 0 for none.', values.at_least(0)
  )
  eval_clients: int = _data(
    256, 'Most held-out clients to evaluate, drawn by the seed.', values.at_least(1)
  )
  personalization_clients: int = _data(
    16,
    'Held-out clients who train an adapter of their own at the end, to see what it gains.',
    values.at_least(0),
  )
  data_dir: str = _data(
    None,
    'File or directory that the task reads.',
    lambda value: None if value else 'must name a file or directory',
  )
  client_field: tuple[str, ...] = _data(
    None,
    'Field that names the client; several, comma-separated, name one client together.',
    lambda value: None if value else 'needs at least one field',
  )
  text_field: str = _data(None, 'Field of running text, or of the text to classify.')
  source_field: str = _data(None, 'Field of the text to read.')
  target_field: str = _data(None, 'Field of the text to write after it.')
  label_field: str = _data(None, 'Field of the label.')
  labels: tuple[str, ...] = _data(
    None, 'All labels, comma-separated; left open, those in the data.', values.distinct_labels
  )
  id_field: str = _data(None, 'Field that no two records share, if there is one.')
  min_examples: int = _data(
    1, 'Examples that a client needs; others are left out.', values.at_least(1)
  )
  max_examples: int = _data(
    256, 'Most examples of a client; the first ones are taken.', values.at_least(1)
  )
  skip_bad_records: bool = _data(
    False, 'Count and skip records that cannot be used, instead of stopping at the first.'
  )
  truncate_source: str = _data(
    'end', 'Side on which a long source is cut: start or end.', values.one_of('start', 'end')
  )
  max_target_tokens: int = _data(
    None,
    'Room for a target, end token included; left open, a third of the row, at most 32 tokens.',
    values.at_least(2),
  )
  num_beams: int = _data(1, 'Beams to decode with; 1 is greedy.', values.at_least(1))
  compute_dtype: str = _open(
    'float32',
    'Of the products with frozen weights that clients train through: float32 or bfloat16.',
    values.one_of('float32', 'bfloat16'),
  )
  concurrent_clients: int = _key(
    0, 'Clients that train at the same time; 0 for one per core.', values.at_least(0)
  )

  def __post_init__(self):
    fields = dataclasses.fields(self)
    given = {field.name: getattr(self, field.name) for field in fields}
    for field in fields:
      _check(field, given[field.name])
    usual = {field.name: field.metadata['usual'] for field in fields if is_open(field)}
    usual |= {**built_in.usual(self.task), **methods.METHODS[self.method].usual}
    settled = settle(given, usual, RULES)
    if privacy_rules.has_threshold(settled) and settled['secure_threshold'] is None:
      # What a server that lies demands (Bonawitz et al. 2017).
      settled['secure_threshold'] = 2 * self.clients_per_round // 3 + 1
    problem = privacy_rules.problem(settled)
    if problem:
      raise UserError(problem)
    for key, value in settled.items():
      object.__setattr__(self, key, value)
    if self.max_rank is None:
      return
    if given['min_rank'] is None:
      # Of a small largest rank, half: else all devices would have it.
      object.__setattr__(self, 'min_rank', min(self.min_rank, max(1, self.max_rank // 2)))
    for key, ranks in (
      ('min_rank', [self.min_rank]),
      ('rank_tiers', self.rank_tiers or ()),
      ('rank_pattern', self.rank_pattern.values()),
    ):
      for rank in ranks:
        if rank > self.max_rank:
          raise UserError(f'{option(key)} {rank} is above --max-rank {self.max_rank}.')

  def to_json(self) -> dict[str, Any]:
    """All values, as `config.json` keeps them."""
    return dataclasses.asdict(self)


def is_open(field: dataclasses.Field) -> bool:
  """Whether a key may be left to others: its default is None then, and null in a file."""
  return 'usual' in field.metadata


def default(field: dataclasses.Field) -> Any:
  """What a key is where nothing decides it; None if nothing else can."""
  return field.metadata.get('usual', field.default)


def from_text(key: str, text: Any) -> Any:
  """The value of a flag: lists and mappings are made from text, all else is left as it is.

  Raises:
    UserError: naming the option.
  """
  try:
    return values.from_text(TYPES[key], text)
  except ValueError as error:
    form = RunConfig.__dataclass_fields__[key].metadata['help'].rpartition(' ')[2]
    raise UserError(f'{option(key)} must be {form}, got {text!r}.') from error


TYPES: Mapping[str, Any] = typing.get_type_hints(RunConfig)
