"""NNI's pruners as presets of our scores and schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from secateur.errors import SecateurError
from secateur.masks.scores import Score
from secateur.masks.scores.movement import slim
from secateur.masks.scores.output_rank import output_apoz, output_mean_rank
from secateur.nni_keys import NO_PRESETS
from secateur.registry import choose


@dataclass(frozen=True)
class Preset:
    """What one of NNI's pruners is made of.

    Attributes:
        name: what NNI calls it.
        score: of single elements; see `masks.scores`.
        norm: what makes one score of a block's; see `masks.blocks.NORMS`.
        granularity: what "default" stands for; None: single elements.
    """

    name: str
    score: str | Score
    norm: str
    granularity: str | None = "out_channel"


def _as_it_is(weight: Tensor) -> Tensor:
    """Distances are between the weights themselves, signs included."""
    return weight.float()


PRUNERS: Mapping[str, Preset] = {
    "level": Preset("LevelPruner", "magnitude", "l1", None),
    "l1_norm": Preset("L1NormPruner", "magnitude", "l1"),
    "l2_norm": Preset("L2NormPruner", "magnitude", "l2"),
    "fpgm": Preset("FPGMPruner", _as_it_is, "fpgm"),
    "slim": Preset("SlimPruner", slim, "max"),
    "taylor": Preset("TaylorPruner", "fisher", "l1"),  # (w g)^2, and g is a mean over batches in both
    "movement": Preset("MovementPruner", "movement", "max"),
    "activation_apoz_rank": Preset("ActivationAPoZRankPruner", output_apoz, "max"),  # NNI 2.x, as the next
    "activation_mean_rank": Preset("ActivationMeanRankPruner", output_mean_rank, "max"),
}
# LinearPruner, AGPPruner -> our schedule's kind. LotteryTicketPruner goes by stages: see `recipe.rounds`.
SCHEDULES: Mapping[str, str] = {"linear": "linear", "agp": "cubic"}


def preset_of(pruner: str) -> Preset:
    """Look a pruner up.

    Args:
        pruner: one of PRUNERS.

    Returns:
        Its preset.

    Raises:
        SecateurError: there is no such pruner, with the nearest name; or it is no preset, with what does its work.

    >>> preset_of("l2_norm").granularity
    'out_channel'
    """
    if pruner in NO_PRESETS:
        raise SecateurError(f"pruner: {pruner} {NO_PRESETS[pruner]}")
    return choose(PRUNERS, pruner, "pruner")
