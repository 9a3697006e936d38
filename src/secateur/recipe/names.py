"""Every word that a recipe may use where a choice is asked, once. A test keeps tables elsewhere equal to these."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal["self_attention", "cross_attention", "feed_forward", "lm_head", "embedding", "norm", "position_bias"]
Stack = Literal["encoder", "decoder"]
Unit = Literal["weight", "row", "column"]
Scope = Literal["tensor", "global"]
Tie = Literal["view", "both", "untie"]
Score = Literal["magnitude", "random"]
Schedule = Literal["one_shot"]
TaskKind = Literal["seq2seq"]
Metric = Literal[
    "rouge",
    "course_rouge_lsum",
    "bleu",
    "chrf",
    "per",
    "wer",
    "exact_match",
    "mean_length",
    "length_ratio",
    "novelty",
]
Optimizer = Literal["adamw", "adafactor", "sgd"]
LearningRateSchedule = Literal["linear", "cosine", "constant"]
Precision = Literal["bf16", "fp32"]
Attention = Literal["eager", "sdpa"]
WeightsDtype = Literal["fp32", "bf16", "fp16"]
Initialize = Literal["pretrained", "random"]
Keep = Literal["last", "all"]
StageKind = Literal["train", "prune", "evaluate"]

# Words of the design that later versions will understand; today they are refused by name, not as typing errors.
RESERVED_STAGE_KINDS = ("cut", "export", "pack")
RESERVED_UNITS = ("head", "ffn_neuron", "layer", "vocab_row", "hidden_dim")
RESERVED_SCHEDULES = ("linear", "cubic")
RESERVED_TASK_KINDS = ("classification",)
RESERVED_GROUP_KEYS = ("width",)
RESERVED_PRUNE_KEYS = ("train",)  # the training inside a gradual pruning
RESERVED_TRAIN_KEYS = ("rewind",)
RESERVED_VERBS = (
    "cut",
    "export",
    "pack",
    "unpack",
    "bench",
    "sensitivity",
    "search",
    "import",
)


def words(literal: object) -> tuple[str, ...]:
    """List the words of one of the literal types above.

    >>> words(Stack)
    ('encoder', 'decoder')
    """
    return get_args(literal)
