"""NNI's config_list in a prune stage: what it selects, what a plan can tell of it, and its masks on the live model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.anatomy.roles import Anatomy, Weight
from secateur.errors import AnatomyError, RecipeError
from secateur.interop.nni import HEADING, Chosen, read_targets
from secateur.interop.nni_modules import ops_of_anatomy
from secateur.interop.nni_pruners import SCHEDULES, preset_of
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.scores import needs
from secateur.masks.statistics import LEARNED, Statistics
from secateur.masks.targets import Target, prune_targets
from secateur.nni_keys import OF_OUTPUTS
from secateur.plan_groups import PlannedGroup, PlanState, spread, target_of
from secateur.recipe.nni_rules import schedules_itself
from secateur.recipe.schema import Group, Prune
from secateur.retrain.schedule import CountedSteps, Steps

SLIM_SCALE = 1.0  # NNI's regular_scale where none is given
SCORE_RATE = 1.0e-2  # of Adam on scores and factors, fixed in NNI


def chosen_by(prune: Prune, anatomy: Anatomy, head: str) -> Chosen:
    """Find what a stage's config_list selects.

    Args:
        prune: a stage with nni_config_list.
        anatomy: of the model as it is before the stage.
        head: how the head stands before it; see `planning.head_policy`.

    Returns:
        The tensors, and which of them the tie policy decided about.

    Raises:
        AnatomyError: the list does not fit the model, or the tie policy is missing or cannot act; all faults.
    """
    assert prune.nni_config_list is not None
    tie = prune.tie
    if head == "untied" and tie == "untie":
        tie = None  # the head is a table of its own already: what was asked for holds
    ops = ops_of_anatomy(anatomy, untied=head == "untied")
    granularity = preset_of(prune.nni_pruner.name).granularity
    try:
        chosen = read_targets(prune.nni_config_list, ops, granularity=granularity, tie=tie)
    except RecipeError as error:
        raise AnatomyError([f"nni_{fault}" for fault in error.faults], HEADING) from error
    for group in head_groups(prune, chosen):
        target_of(group, anatomy, head)  # an earlier stage's policy holds
    _check_outputs(prune, chosen, anatomy)
    if prune.nni_pruner.name == "slim" and chosen.tied and tie == "view":
        told = "slim's factors would end in the embedding too. Choose untie, or exclude lm_head."
        raise AnatomyError([f"tie: {told}"])
    if comes_back(prune):
        odd = [target.path for target in chosen.targets if not _masked_in_forward(target.path, anatomy)]
        if odd or (chosen.tied and tie == "both"):
            name = odd[0] if odd else next(iter(chosen.tied))
            told = "what went may come back only in the matrices of linear layers. Prune it at once, in another stage."
            raise AnatomyError([f"nni_config_list: {name}: {told}"])
    return chosen


def _check_outputs(prune: Prune, chosen: Chosen, anatomy: Anatomy) -> None:
    """Refuse tensors whose channels give nothing that could be ranked."""
    if prune.nni_pruner.name not in OF_OUTPUTS:
        return
    odd = [target.path for target in chosen.targets if target.is_scored and not _is_linear(target.path, anatomy)]
    if odd:
        told = f"{prune.nni_pruner.name} ranks what a linear layer gives, and this is none. Exclude it."
        if odd[0] in chosen.tied and prune.tie == "both":
            told = f"{prune.nni_pruner.name} ranks what the head gives, not the table. Write tie: view, or untie."
        raise AnatomyError([f"nni_config_list: {odd[0]}: {told}"])


def _is_linear(path: str, anatomy: Anatomy) -> bool:
    return anatomy[path].role not in ("embedding", "position_embedding", "norm", "position_bias")


def _masked_in_forward(path: str, anatomy: Anatomy) -> bool:
    return _is_linear(path, anatomy) and path.endswith(".weight")


def comes_back(prune: Prune) -> bool:
    """Tell whether a stage's masks are found anew at each step, from weights that keep what was masked."""
    return schedules_itself(prune.model_dump()) or prune.schedule.regrow


def head_groups(prune: Prune, chosen: Chosen) -> tuple[Group, ...]:
    """Say what a config_list asks of the head, in the words of a group."""
    if not chosen.tied or prune.tie is None:
        return ()
    return (Group(role="lm_head", sparsity=0.0, tie=prune.tie),)


def steps_of(prune: Prune) -> Steps | CountedSteps:
    """Say when a gradual stage takes its steps: NNI's numbers count the training's, else its own schedule tells."""
    pruner, schedule = prune.nni_pruner, prune.schedule
    if not schedules_itself(prune.model_dump()):
        return Steps(schedule.kind, schedule.start, schedule.end, schedule.every)
    if pruner.name == "movement":
        assert pruner.warmup_step is not None and pruner.cooldown_begin_step is not None
        return CountedSteps("cubic", pruner.warmup_step, pruner.cooldown_begin_step, 1)
    if pruner.name == "slim":
        assert pruner.training_steps is not None
        return CountedSteps("linear", 0, pruner.training_steps, pruner.training_steps)
    assert pruner.schedule is not None and pruner.interval_steps is not None and pruner.total_times is not None
    return CountedSteps(
        SCHEDULES[pruner.schedule], 0, pruner.interval_steps * pruner.total_times, pruner.interval_steps
    )


def learned_settings(prune: Prune, chosen: Chosen) -> dict[str, Any] | None:
    """Say how the scores of a stage are learned, as `retrain.movement.ScoreLearner` takes it; none where none are."""
    if prune.nni_pruner.name not in ("movement", "slim"):
        return None
    scored = [target for target in chosen.targets if target.is_scored]
    scale = prune.nni_pruner.regular_scale
    return {
        "paths": [target.path for target in scored],
        "soft": (),
        "learning_rate": SCORE_RATE,
        "regularization": SLIM_SCALE if scale is None else scale,
        "blocks": {target.path: target.block for target in scored if target.block},
        "slim": prune.nni_pruner.name == "slim",
    }


def statistics_for(prune: Prune, chosen: Chosen, anatomy: Anatomy) -> dict[Weight, frozenset[str]]:
    """List what the stage's pruner needs to know of calibration rows, weight by weight."""
    names = _gathered(prune)
    return {anatomy[target.path]: names for target in chosen.targets if target.is_scored} if names else {}


def reads_rows(prune: Prune) -> bool:
    """Tell whether the stage's pruner has to read training rows."""
    return prune.nni_config_list is not None and bool(_gathered(prune))


def _gathered(prune: Prune) -> frozenset[str]:
    return needs(preset_of(prune.nni_pruner.name).score).difference(LEARNED)


def choose_masks(
    model: nn.Module,
    anatomy: Anatomy,
    prune: Prune,
    chosen: Chosen,
    *,
    share: float,
    already: MaskSet,
    statistics: Mapping[str, Statistics],
    seed: int,
) -> tuple[MaskSet, list[dict[str, Any]]]:
    """Choose a stage's masks beside those that hold already; the model is not changed.

    Args:
        model: the live model.
        anatomy: its map.
        prune: the stage.
        chosen: from `chosen_by`.
        share: of everything that is asked for, above 0 and at most 1.
        already: masks that hold; what they removed counts.
        statistics: what the score needs beside the weights.
        seed: of scores that draw numbers.

    Returns:
        All masks, and JSON-ready facts of each role.
    """
    preset = preset_of(prune.nni_pruner.name)
    targets = [target.scaled(share) for target in chosen.targets]
    found = prune_targets(
        targets,
        {target.path: model.get_parameter(target.path) for target in targets},
        score=preset.score,
        norm=preset.norm,
        already={path: mask for path, mask in already.masks.items() if path in {target.path for target in targets}},
        statistics=statistics,
        seed=seed,
    )
    views = chosen.tied if prune.tie == "view" else frozenset()
    modes: dict[str, Mode] = {path: "view" if path in views else "hold" for path in found}
    masks = MaskSet({**already.masks, **found}, {**already.modes, **modes}, already.owner)
    return masks, _facts(prune, chosen, anatomy, {path: masks.removed(path) for path in found})


def _facts(prune: Prune, chosen: Chosen, anatomy: Anatomy, removed: Mapping[str, int]) -> list[dict[str, Any]]:
    facts = []
    for role, members in _by_role(chosen.targets, anatomy).items():
        elements = sum(anatomy[target.path].numel for target in members)
        gone = sum(removed.get(target.path, 0) for target in members)
        tie = prune.tie if any(target.path in chosen.tied for target in members) else None
        about = {"role": role, "num_weights": len(members), "num_removed": gone, "num_elements": elements}
        facts.append(about | {"sparsity": gone / elements, "tie": tie})
    return facts


def _by_role(targets: Sequence[Target], anatomy: Anatomy) -> dict[str, list[Target]]:
    found: dict[str, list[Target]] = {}
    for target in targets:
        found.setdefault(anatomy[target.path].role, []).append(target)
    return found


def plan_nni(prune: Prune, state: PlanState) -> tuple[tuple[PlannedGroup, ...], list[str]]:
    """Walk a prune stage with a config_list; the faults found are returned."""
    try:
        chosen = chosen_by(prune, state.anatomy, state.head)
    except AnatomyError as error:
        return (), list(error.faults)
    after, sure = _planned(chosen.targets, state)
    planned = []
    for role, members in _by_role(chosen.targets, state.anatomy).items():
        tie = prune.tie if any(target.path in chosen.tied for target in members) else None
        elements = sum(state.anatomy[target.path].numel for target in members)
        gone = sum(after[target.path] for target in members)
        exact = all(target.path in sure for target in members)
        planned.append(PlannedGroup(role, tie, len(members), elements, gone, exact))
    if chosen.tied and prune.tie and state.head != "untied":
        state.head = "untied" if prune.tie == "untie" else prune.tie
    for path, count in after.items():
        state.remove(state.anatomy[path], count)
    return tuple(planned), []


def _planned(targets: Sequence[Target], state: PlanState) -> tuple[dict[str, int], set[str]]:
    """Elements that go of each tensor, those gone before included; and the tensors that are part of an exact sum."""
    before = {target.path: state.removed(state.anatomy[target.path]) for target in targets}
    after, sure, pools = dict(before), set[str](), dict[Any, list[Target]]()
    for target in targets:
        if target.sparsity is None:
            least = int(target.num_units * (target.min_sparsity or 0.0)) * target.size
            after[target.path] = max(before[target.path], least)
        elif target.pool is not None and target.bundle is None:
            pools.setdefault(target.pool, []).append(target)
        else:
            count = int(target.num_units * target.bounded(target.sparsity)) * target.size
            after[target.path] = max(before[target.path], count)
            sure |= {target.path} if not before[target.path] or target.block is None else set()
    for members in pools.values():
        sizes = {target.path: state.anatomy[target.path].numel for target in members}
        number = int(sum(sizes.values()) * (members[0].sparsity or 0.0))
        units, roles = {target.size for target in members}, {state.anatomy[path].role for path in sizes}
        if len(units) == 1:
            number -= number % max(units)
        after |= {path: max(before[path], count) for path, count in spread(number, sizes).items()}
        bounded = any(target.min_sparsity or target.max_sparsity for target in members)
        if len(units) == len(roles) == 1 and not bounded and not any(before[path] for path in sizes):
            sure |= set(sizes)
    return after, sure
