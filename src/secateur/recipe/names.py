"""Every word that a recipe may use where a choice is asked, once. A test keeps tables elsewhere equal to these."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal[
    "self_attention",
    "cross_attention",
    "feed_forward",
    "lm_head",
    "classifier",
    "embedding",
    "position_embedding",
    "position_bias",
    "norm",
]
Stack = Literal["encoder", "decoder"]
Unit = Literal["weight", "row", "column", "head", "ffn_neuron", "layer", "vocab_row", "hidden_dim"]
Preset = Literal["asymmetric"]
Width = Literal["uniform", "ragged"]
GroupWidth = Literal["uniform", "ragged", "by_heads"]
Scope = Literal["row", "tensor", "global"]
Tie = Literal["view", "both", "untie"]
Score = Literal[
    "magnitude",
    "random",
    "lamp",
    "taylor",
    "fisher",
    "activation",
    "obs",
    "obs_fisher",
    "movement",
    "soft_movement",
]
UnitScore = Literal[
    "l2_norm", "taylor", "fpgm", "activation_mean", "apoz", "spacing", "frequency"
]  # of whole units; magnitude and random go with them too
Schedule = Literal["one_shot", "linear", "cubic"]
NniPruner = Literal[
    "level",
    "l1_norm",
    "l2_norm",
    "fpgm",
    "slim",
    "taylor",
    "movement",
    "activation_apoz_rank",
    "activation_mean_rank",
]
NniSchedule = Literal["linear", "agp", "lottery_ticket"]
NniActivation = Literal["relu"]
NniDistiller = Literal["dynamic_layerwise", "adaptive_1d_layerwise"]
NniLoss = Literal["mse", "kl"]
NniLink = Literal["auto"]
TaskKind = Literal["seq2seq", "classification"]
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
    "accuracy",
    "macro_f1",
]
LABEL_METRICS = ("accuracy", "macro_f1")  # of classification; the others compare texts that were written
Optimizer = Literal["adamw", "adafactor", "sgd"]
LearningRateSchedule = Literal["linear", "cosine", "constant"]
Precision = Literal["auto", "bf16", "fp32"]
LayerMap = Literal["height", "nearest"]
Projection = Literal["needed", "always"]
PseudoLabelUse = Literal["replace", "add"]
Attention = Literal["eager", "sdpa"]
Aim = Literal["layer", "dense"]
WeightsDtype = Literal["fp32", "bf16", "fp16"]
Initialize = Literal["pretrained", "random"]
Keep = Literal["last", "all"]
PackedValues = Literal["fp32", "fp16", "bf16", "int8"]
Target = Literal["ctranslate2", "onnx"]
StageKind = Literal["train", "prune", "cut", "export", "pack", "evaluate"]


LEAVES_MODEL = ("export", "pack", "evaluate")  # the kinds of stages after which the model is the same


def words(literal: object) -> tuple[str, ...]:
    """List the words of one of the literal types above.

    >>> words(Stack)
    ('encoder', 'decoder')
    """
    return get_args(literal)
