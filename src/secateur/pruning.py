"""A prune stage on the live model: what its scores need to know, every group's masks, and the check of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from secateur.anatomy.roles import Weight
from secateur.anatomy.units import STRUCTURED
from secateur.errors import MaskError
from secateur.masks.group import prune_group
from secateur.masks.hold import revived
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.scores import needs
from secateur.masks.statistics import Statistics
from secateur.masks.tie import HEAD, TABLE, untie
from secateur.plan_groups import group_sparsity, target_of
from secateur.recipe.schema import Group, Prune
from secateur.shaping import gather, gather_evidence, prune_structured
from secateur.state import Live, Run


def prune_live(state: Run, live: Live, settings: Prune) -> dict[str, Any]:
    """Choose what a prune stage removes, and lay the masks on the live model.

    Args:
        state: the run.
        live: the model; its masks are replaced by those that hold from now on.
        settings: the stage.

    Returns:
        JSON-ready facts: of each group, how much of it went.

    Raises:
        SecateurError: a group cannot be pruned so; several processes chose different masks.
    """
    masks, groups = live.masks, []
    evidence, statistics = gather_evidence(state, live, settings), _gather_statistics(state, live, settings)
    for group in settings.groups:
        if group.unit in STRUCTURED:
            found, modes = prune_structured(state, live, group, evidence, masks)
        else:
            masks = _inherited(live, group, masks)
            found, mode = _prune_one(state, live, group, masks, statistics)
            modes: dict[str, Mode] = dict.fromkeys(found, mode)
        # Each group finds what the ones before it removed; where groups overlap, both hold.
        masks = MaskSet({**masks.masks, **found}, {**masks.modes, **modes}, masks.owner)
        groups.append(
            {
                "role": group.role or group.unit,
                "num_weights": len(found),
                "num_removed": sum(int((~mask).sum()) for mask in found.values()),
                "num_elements": sum(mask.numel() for mask in found.values()),
                "sparsity": group_sparsity(group),
                "tie": group.tie,
            }
            | ({"unit": group.unit} if group.unit in STRUCTURED else {})
        )
    live.lay(masks)
    if len(set(state.processes.gather(live.masks.digest()))) > 1:
        raise MaskError("The processes of this run chose different masks: their models differ. Please report this.")
    if back := revived(live.model, live.masks):
        raise MaskError(f"{next(iter(back))}: holds values where its mask removed them. Please report this.")
    return {"groups": groups}


def _gather_statistics(state: Run, live: Live, settings: Prune) -> dict[str, Statistics]:
    """Find out what the scores of single weights need to know, once for all groups, in the first process."""
    wanted: dict[Weight, frozenset[str]] = {}
    for group in settings.groups:
        if group.unit in STRUCTURED or not (names := needs(group.score)):
            continue
        for weight in target_of(group, live.anatomy, live.head).weights:
            wanted[weight] = wanted.get(weight, frozenset()) | names
    return gather(state, live, wanted, settings.calibration)


def _inherited(live: Live, group: Group, masks: MaskSet) -> MaskSet:
    """A head that sees the shared table, or gets a copy of it, has lost what the table had lost."""
    table = masks.masks.get(TABLE)
    if group.tie not in ("view", "untie") or live.head == "untied" or table is None:
        return masks
    mode: Mode = "view" if group.tie == "view" else "hold"
    head = table & masks.masks[HEAD] if HEAD in masks else table.clone()
    return MaskSet({**masks.masks, HEAD: head}, {**masks.modes, HEAD: mode}, masks.owner)


def _prune_one(
    state: Run, live: Live, group: Group, already: MaskSet, statistics: Mapping[str, Statistics]
) -> tuple[dict[str, torch.Tensor], Mode]:
    target = target_of(group, live.anatomy, live.head)
    if group.role in ("lm_head", "embedding") and live.head != "untied" and group.tie:
        if group.tie == "untie":
            untie(live.model)
        live.head = "untied" if group.tie == "untie" else group.tie
    masks = prune_group(
        live.model,
        target.weights,
        already=already,
        sparsity=None if group.pattern else group.sparsity,
        score=group.score,
        scope=group.scope,
        unit=group.unit,
        block=group.block,
        pattern=group.pattern,
        max_sparsity=group.max_sparsity,
        min_keep=group.min_keep,
        seed=state.recipe.seed,
        statistics=statistics,
    )
    return masks, target.mode
