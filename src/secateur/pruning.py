"""A prune stage on the live model: what its scores need to know, every group's masks, and the check of all of them.

`gradual` does the same again and again while a model is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from secateur.anatomy.roles import Weight
from secateur.anatomy.units import STRUCTURED
from secateur.errors import MaskError
from secateur.interop.nni import Chosen
from secateur.masks.group import choose_again, prune_group
from secateur.masks.hold import revived
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.scores import ADJUSTING, needs
from secateur.masks.statistics import LEARNED, Statistics
from secateur.masks.tie import HEAD, table_of, untie
from secateur.masks.unit_scores import OF_OUTPUTS
from secateur.nni_stage import (
    choose_masks,
    chosen_by,
    head_groups,
    statistics_for,
)
from secateur.plan_groups import group_sparsity, target_of
from secateur.recipe.schema import Calibration, Group, Prune
from secateur.shaping import gather, gather_evidence, make_up, prune_structured
from secateur.state import Live, Run

MASKS = "masks.safetensors"  # what a checkpoint calls the masks that held when it was written


def asks_rows(group: Group) -> bool:
    """Tell whether a group's score has to read training rows.

    Args:
        group: of a prune stage.

    Returns:
        Whether it asks for gradients, activations or counts.

    Raises:
        MaskError: its score is a function of the caller's own, and there is none.
    """
    if group.unit in STRUCTURED:
        return group.score in ("taylor", "frequency", *OF_OUTPUTS)
    return bool(needs(group.score).difference(LEARNED))


def learns(group: Group) -> bool:
    """Tell whether a group's score is learned while its stage trains."""
    return group.unit not in STRUCTURED and not needs(group.score).isdisjoint(LEARNED)


def prune_live(state: Run, live: Live, settings: Prune) -> dict[str, Any]:
    """Choose what a prune stage removes at once, and lay the masks on the live model.

    Args:
        state: the run.
        live: the model; its masks are replaced by those that hold from now on.
        settings: the stage.

    Returns:
        JSON-ready facts: of each group, how much of it went.

    Raises:
        SecateurError: a group cannot be pruned so; several processes chose different masks.
    """
    chosen = nni_choice(live, settings)
    settle_heads(live, tied_groups(settings, chosen))
    if chosen is not None:
        masks, groups = choose_from_config(state, live, settings, chosen, live.masks)
        known: Mapping[str, Statistics] = {}
    else:
        masks, groups, known = choose(state, live, settings.groups, settings.calibration, live.masks)
    lay(state, live, make_up_for(state, live, settings, masks, known, live.masks))
    return {"groups": groups}


def choose(
    state: Run,
    live: Live,
    chosen: Sequence[Group],
    calibration: Calibration,
    already: MaskSet,
    learned: Mapping[str, Statistics] = MappingProxyType({}),
) -> tuple[MaskSet, list[dict[str, Any]], dict[str, Statistics]]:
    """Choose the masks of groups beside those that hold already; the model is not changed.

    Args:
        state: the run.
        live: the model.
        chosen: the groups, each with the sparsity that it has to reach.
        calibration: which rows scores read.
        already: what is gone.
        learned: by path, what scores learned while the stage trained.

    Returns:
        All masks, JSON-ready facts of each group, and what scores were told of single weights.

    Raises:
        SecateurError: a group cannot be pruned so.
    """
    masks, facts = already, []
    evidence = gather_evidence(state, live, chosen, calibration)
    statistics = dict(_gather_statistics(state, live, chosen, calibration))
    statistics |= {path: {**statistics.get(path, {}), **found} for path, found in learned.items()}
    for group in chosen:
        if group.unit in STRUCTURED:
            found, modes = prune_structured(state, live, group, evidence, masks)
        else:
            masks = _inherited(live, group, masks)
            found, mode = _prune_one(state, live, group, masks, statistics)
            modes: dict[str, Mode] = dict.fromkeys(found, mode)
        # Each group finds what the ones before it removed; where groups overlap, both hold.
        masks = MaskSet({**masks.masks, **found}, {**masks.modes, **modes}, masks.owner)
        facts.append(
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
    return masks, facts, statistics


def nni_choice(live: Live, settings: Prune) -> Chosen | None:
    """Find what NNI's config_list selects, where a stage has one.

    Args:
        live: the model.
        settings: the stage.

    Returns:
        What is selected; None where the stage has groups.
    """
    return None if settings.nni_config_list is None else chosen_by(settings, live.anatomy, live.head)


def tied_groups(settings: Prune, chosen: Chosen | None) -> Sequence[Group]:
    """List the groups whose tie policy is to be settled.

    Args:
        settings: the stage.
        chosen: what NNI's config_list selects; None: the stage has groups.

    Returns:
        Groups; some may be of roles that tie nothing.
    """
    return settings.groups if chosen is None else head_groups(settings, chosen)


def choose_from_config(
    state: Run,
    live: Live,
    settings: Prune,
    chosen: Chosen,
    already: MaskSet,
    *,
    share: float = 1.0,
    learned: Mapping[str, Statistics] = MappingProxyType({}),
) -> tuple[MaskSet, list[dict[str, Any]]]:
    """Choose the masks that NNI's config_list asks for, beside those that hold already.

    Args:
        state: the run.
        live: the model.
        settings: the stage.
        chosen: what its config_list selects.
        already: what is gone.
        share: how much of what the stage removes in all, 0 to 1.
        learned: by path, what scores learned while the stage trained.

    Returns:
        All masks, and JSON-ready facts of each entry.

    Raises:
        SecateurError: an entry cannot be pruned so.
    """
    for group in head_groups(settings, chosen):
        already = _inherited(live, group, already)
    wanted = statistics_for(settings, chosen, live.anatomy)
    statistics = {**gather(state, live, wanted, settings.calibration), **learned}
    return choose_masks(
        live.model,
        live.anatomy,
        settings,
        chosen,
        share=share,
        already=already,
        statistics=statistics,
        seed=state.recipe.seed,
    )


def make_up_for(
    state: Run, live: Live, settings: Prune, masks: MaskSet, known: Mapping[str, Statistics], already: MaskSet
) -> MaskSet:
    """Adjust what stays of layers that obs judged; a head that is a view of the table cannot be adjusted alone.

    Args:
        state: the run.
        live: the model; its weights change.
        settings: the stage.
        masks: what is to hold once `lay` was called.
        known: what scores were told, by path.
        already: what is gone and may not come back.

    Returns:
        What is to hold: where layers aim at the dense model's outputs, each one's mask is chosen when it is its turn.
    """
    judged: dict[Weight, list[Group]] = {}
    for group in settings.groups:
        if group.score in ADJUSTING and group.unit not in STRUCTURED:
            for weight in target_of(group, live.anatomy, live.head).weights:
                judged.setdefault(weight, []).append(group)
    held = {weight for weight in judged if masks.modes[weight.path] == "hold"}
    if not held:
        return masks
    paths = {weight.path for weight in held}
    others = {path: mask for path, mask in masks.masks.items() if path not in paths}
    kept = {path: live.masks.masks[path] for path in paths if path in live.masks}  # until it is their turn
    modes: dict[str, Mode] = {path: masks.modes[path] for path in {*others, *kept}}
    live.lay(MaskSet({**others, **kept}, modes, masks.owner))
    order = {weight.path: place for place, weight in enumerate(live.anatomy.weights)}  # as they follow one another
    following = sorted(held, key=lambda weight: (order.get(weight.path, len(order)), weight.path))
    chosen = {weight: masks.masks[weight.path] for weight in following}

    def again(weight: Weight, target: torch.Tensor, inverse: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        group, *others = judged[weight]
        if others or group.unit != "weight" or group.block or group.pattern:
            return mask
        if any(each.unit in STRUCTURED for each in settings.groups) or settings.schedule.regrow:
            return mask  # what goes with a unit, or what may still come back, is chosen already
        told, alive = known[weight.path], already.masks.get(weight.path)
        asked: dict[str, Any] = {"score": group.score, "scope": group.scope}
        return choose_again(weight, target, inverse, mask, **asked, statistics=told, alive=alive)

    laid = make_up(state, live, chosen, settings.calibration, again if settings.calibration.aim == "dense" else None)
    return MaskSet({**masks.masks, **laid}, masks.modes, masks.owner)


def lay(state: Run, live: Live, masks: MaskSet) -> None:
    """Lay masks on the live model, and check them.

    Args:
        state: the run.
        live: the model.
        masks: what holds from now on.

    Raises:
        MaskError: several processes chose different masks, or what is gone holds values.
    """
    live.lay(masks)
    if len(set(state.processes.gather(live.masks.digest()))) > 1:
        raise MaskError("The processes of this run chose different masks: their models differ. Please report this.")
    if back := revived(live.model, live.masks):
        raise MaskError(f"{next(iter(back))}: holds values where its mask removed them. Please report this.")


def _gather_statistics(
    state: Run, live: Live, groups: Sequence[Group], calibration: Calibration
) -> dict[str, Statistics]:
    """Find out what the scores of single weights need to know, once for all groups, in the first process."""
    wanted: dict[Weight, frozenset[str]] = {}
    for group in groups:
        if group.unit in STRUCTURED or not (names := needs(group.score).difference(LEARNED)):
            continue
        for weight in target_of(group, live.anatomy, live.head).weights:
            wanted[weight] = wanted.get(weight, frozenset()) | names
    return gather(state, live, wanted, calibration)


def _inherited(live: Live, group: Group, masks: MaskSet) -> MaskSet:
    """A head that sees the shared table has lost what the table had lost."""
    table = masks.masks.get(table_of(live.model))
    if group.tie != "view" or live.head != "view" or table is None:
        return masks
    head = table & masks.masks[HEAD] if HEAD in masks else table.clone()
    return MaskSet({**masks.masks, HEAD: head}, {**masks.modes, HEAD: "view"}, masks.owner)


def settle_heads(live: Live, groups: Sequence[Group]) -> None:
    """Do what the groups' tie policies ask of the head: a copy of the table has lost what the table had lost.

    Args:
        live: the model; its head may be untied.
        groups: of the stage; those of other roles are passed over.
    """
    for group in groups:
        if group.role not in ("lm_head", "embedding") or live.head == "untied" or not group.tie:
            continue
        live.head = "untied" if group.tie == "untie" else group.tie
        if group.tie == "untie":
            untie(live.model)
            if (table := live.masks.masks.get(table_of(live.model))) is not None:
                modes: dict[str, Mode] = {**live.masks.modes, HEAD: "hold"}
                live.lay(MaskSet({**live.masks.masks, HEAD: table.clone()}, modes, live.masks.owner))


def _prune_one(
    state: Run, live: Live, group: Group, already: MaskSet, statistics: Mapping[str, Statistics]
) -> tuple[dict[str, torch.Tensor], Mode]:
    target = target_of(group, live.anatomy, live.head)
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
