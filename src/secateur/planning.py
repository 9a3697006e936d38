"""What a recipe would do to a model, told from config.json alone: nothing is loaded, no memory is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.anatomy.check import anatomy_of, meta_model
from secateur.anatomy.roles import Anatomy, Weight
from secateur.anatomy.shrink import Kept, is_ragged, shrink
from secateur.anatomy.stored import read_config
from secateur.anatomy.units import STRUCTURED, places
from secateur.errors import AnatomyError, RecipeError
from secateur.masks.mask import Mode
from secateur.masks.structure import spaced
from secateur.recipe.schema import Cut, Group, Recipe, Stage, Train

HEAD = "lm_head.weight"
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
OPTIMIZER_BYTES = {"adamw": 8, "adafactor": 1, "sgd": 4}  # per parameter; adafactor keeps rows and columns only


@dataclass(frozen=True)
class PlannedGroup:
    """One group of a prune stage: how many tensors and elements it has, how many are gone after it.

    `exact` is False where the count depends on the scores (units of unequal sizes, or groups that overlap an earlier
    one in part).
    """

    role: str
    tie: str | None
    num_weights: int
    num_elements: int
    num_removed: int
    exact: bool


@dataclass(frozen=True)
class PlannedStage:
    """A stage and the counts after it; memory without activations, `steps` only where the rows are known."""

    name: str
    kind: str
    groups: tuple[PlannedGroup, ...]
    counted_ratio: float
    stored_ratio_packed: float
    stored_ratio_plain: float
    num_parameters: int
    num_bytes: int
    steps: int | None
    memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """A whole plan; `disk_bytes` is the most that the run folder takes at any time."""

    family: str
    dense_parameters: int
    stages: tuple[PlannedStage, ...]
    disk_bytes: int


@dataclass(frozen=True)
class Target:
    """The tensors that a group's masks go onto, and how: `mode` is hold or view."""

    weights: tuple[Weight, ...]
    mode: Mode


@dataclass
class _State:
    """What earlier stages did: the plan walks through the stages with it."""

    anatomy: Anatomy
    head: str  # tied, view, both, untied
    dense: int  # parameters of the model as it was given
    kept: Kept
    removed: dict[str, int] = field(default_factory=dict)
    loose: dict[str, float] = field(default_factory=dict)  # share of each tensor that masks on single weights remove
    open_rows: bool = False  # whether rows of the table go of which only the texts tell how many
    ragged: bool = False  # whether a group asked for widths of its own in each layer
    cut_ragged: bool = False  # whether the model is ragged now

    def mask_units(self) -> dict[str, int]:
        """Count what is gone of every tensor, when units go beside what single weights lost."""
        after = {}
        for weight in self.anatomy.unique():
            left = round(self.kept.elements(weight) * (1.0 - self.loose.get(weight.path, 0.0)))
            if left < weight.numel:
                after[weight.path] = weight.numel - left
        return after

    @property
    def num_parameters(self) -> int:
        extra = self.anatomy[HEAD].numel if self.head == "untied" and not self.anatomy[HEAD].owns else 0
        return self.anatomy.num_parameters + extra


def head_policy(anatomy: Anatomy) -> str:
    """Say how a model's head stands to its embedding table: tied or untied."""
    return "untied" if anatomy[HEAD].owns else "tied"


def target_of(group: Group, anatomy: Anatomy, head: str) -> Target:
    """Find the tensors of a group and check its tie policy.

    Args:
        group: a group of a recipe.
        anatomy: of the model as given.
        head: how the head stands before this stage: tied, untied, or the policy of an earlier stage (view, both).

    Returns:
        The weights, and how they are masked.

    Raises:
        AnatomyError: nothing is selected, or the tie policy is missing or cannot act.
    """
    assert group.role is not None  # recipe/rules.py sees to it
    weights = anatomy.select(role=group.role, stack=group.stack, layers=group.layers, match=group.match)
    if group.role not in ("lm_head", "embedding"):
        return Target(weights, "hold")
    if head == "untied" and group.tie not in (None, "untie"):
        raise AnatomyError([f"tie: {group.tie} cannot act: this model's head is a table of its own. Leave tie out."])
    if head == "untied":
        return Target(weights, "hold")
    if group.tie is None:
        raise AnatomyError(
            [
                f"tie: is required: {HEAD} and shared.weight (the embedding) are one tensor. Choose one of "
                "view (the head is masked, the embedding stays whole: the report's way), "
                "both (the zeros go into the table itself, the embedding loses them too), "
                "untie (the head gets a table of its own first; the model grows)."
            ]
        )
    if head in ("view", "both") and group.tie != head:
        raise AnatomyError([f"tie: {group.tie} contradicts tie: {head} of an earlier stage. Use {head} here too."])
    if group.role == "embedding" and group.tie == "view":
        raise AnatomyError(["tie: view masks the head alone. For the embedding choose both or untie."])
    if group.tie == "both":
        return Target((anatomy["shared.weight"],), "hold")
    return Target(weights, "view" if group.tie == "view" else "hold")


def units_of(group: Group, weight: Weight) -> tuple[int, int]:
    """Count a tensor's units.

    Args:
        group: says what a unit is.
        weight: a matrix.

    Returns:
        Number of units, and elements per unit.

    Raises:
        AnatomyError: the unit does not fit the shape.
    """
    fault = None
    if len(weight.shape) != 2 and (group.unit != "weight" or group.block or group.pattern):
        fault = "is no matrix"
    elif group.block and (weight.shape[0] % group.block[0] or weight.shape[1] % group.block[1]):
        fault = f"cannot be cut into blocks of {group.block[0]} x {group.block[1]}"
    elif group.pattern and weight.shape[-1] % int(group.pattern.split(":")[1]):
        fault = f"has rows that are no multiple of {group.pattern.split(':')[1]} long (pattern {group.pattern})"
    if fault:
        raise AnatomyError([f"{weight.path}: shape {' x '.join(map(str, weight.shape))} {fault}."])
    if group.block:
        size = group.block[0] * group.block[1]
    else:
        sizes = {"weight": 1, "row": weight.shape[-1], "column": weight.shape[0]}
        size = sizes[group.unit]
    return weight.numel // size, size


def group_sparsity(group: Group) -> float:
    """Share of its elements that a group loses; a pattern n:m says it by itself.

    >>> group_sparsity(Group(role="feed_forward", pattern="2:4"))
    0.5
    """
    if group.pattern:
        keep, of = map(int, group.pattern.split(":"))
        return 1.0 - keep / of
    return group.sparsity or 0.0


def _planned_units(group: Group, state: _State) -> PlannedGroup:
    """Plan a group of whole units; what goes of every tensor is told by `_State.mask_units`."""
    found = places(state.anatomy, group.unit, role=group.role, stack=group.stack, layers=group.layers)
    total = sum(place.num_units for place in found)
    gone, exact = 0, True
    for place in found:
        if group.sparsity is None:
            exact, state.open_rows = False, True  # the texts decide
            continue
        count = place.num_units - round(group.sparsity * place.num_units)
        if count < max(1, group.min_keep):
            raise AnatomyError(
                [
                    f"sparsity: {group.sparsity:g} leaves {count} of {place.num_units} {group.unit}s in {place.name}; "
                    f"at least {max(1, group.min_keep)} must stay. Lower it."
                ]
            )
        gone += place.num_units - count
        if place.unit == "layer":
            assert place.stack is not None
            before = state.kept.layers.get(place.stack, tuple(range(place.num_units)))
            chosen = spaced(len(before), min(count, len(before)))
            state.kept.keep_layers(place.stack, tuple(before[index] for index in chosen))
        else:
            state.kept.keep(place, count)
    state.ragged |= group.width == "ragged"
    paths = {piece.weight.path for place in found for piece in place.slices}
    return PlannedGroup(group.unit, None, len(paths), total, gone, exact and group.width == "uniform")


def _planned_group(group: Group, state: _State) -> tuple[PlannedGroup, dict[str, int]]:
    target = target_of(group, state.anatomy, state.head)
    units = {weight.path: units_of(group, weight) for weight in target.weights}
    sparsity = group_sparsity(group)
    total = sum(count for count, _ in units.values())
    _check_caps(group, {path: count for path, (count, _) in units.items()}, sparsity)
    sizes = {size for _, size in units.values()}
    before = {path: state.removed.get(path, 0) for path in units}
    known = len({bool(value) for value in before.values()}) == 1
    elements = sum(weight.numel for weight in target.weights)
    if group.scope == "tensor" or group.pattern:
        after = {path: max(before[path], round(sparsity * count) * size) for path, (count, size) in units.items()}
        exact = True
    else:
        number = round(sparsity * total)
        exact = len(sizes) == 1 and known
        removed = number * sizes.copy().pop() if len(sizes) == 1 else round(sparsity * elements)
        removed = max(removed, sum(before.values()))
        after = _spread(removed, {weight.path: weight.numel for weight in target.weights})
    state.loose.update({weight.path: after[weight.path] / weight.numel for weight in target.weights})
    plan = PlannedGroup(group.role or group.unit, group.tie, len(target.weights), elements, sum(after.values()), exact)
    return plan, after


def _spread(number: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Share a number out in proportion to sizes, exactly in sum; where one threshold will cut is not known yet."""
    total, shares, given, seen = sum(sizes.values()), {}, 0, 0
    for path, size in sizes.items():
        seen += size
        shares[path] = number * seen // total - given
        given += shares[path]
    return shares


def _check_caps(group: Group, units: Mapping[str, int], sparsity: float) -> None:
    """Refuse a sparsity that the caps per tensor do not leave room for."""
    share = 1.0 if group.max_sparsity is None else group.max_sparsity
    caps = {path: min(math.floor(share * count + 1e-9), count - group.min_keep) for path, count in units.items()}
    room = {path: max(0, cap) for path, cap in caps.items()}
    if group.scope == "tensor":
        tight = [path for path, count in units.items() if round(sparsity * count) > room[path]]
    else:
        tight = list(units)[:1] if round(sparsity * sum(units.values())) > sum(room.values()) else []
    if tight:
        raise AnatomyError(
            [
                f"sparsity {sparsity:g} cannot be reached: max_sparsity and min_keep leave room for "
                f"{sum(room.values()):,} of {sum(units.values()):,} units ({tight[0]})."
            ]
        )


def _plan_prune(groups: Sequence[Group], state: _State) -> tuple[tuple[PlannedGroup, ...], list[str]]:
    """Walk one prune stage; the faults found are returned, not raised, so that all of them are told at once."""
    planned, faults = [], []
    claimed: dict[str, int] = {}
    for index, group in enumerate(groups):
        where = f"groups.{index} ({group.role or group.unit})"
        try:
            if group.unit in STRUCTURED:
                planned.append(_planned_units(group, state))
                state.removed.update(state.mask_units())
                continue
            plan, after = _planned_group(group, state)
        except AnatomyError as error:
            faults += [f"{where}: {fault}" for fault in error.faults[:1]] + list(error.faults[1:])
            continue
        twice = [path for path in after if path in claimed]
        if twice:
            faults.append(
                f"{where}: overlaps groups.{claimed[twice[0]]} in {len(twice)} tensors ({twice[0]}, ...). Each weight "
                "may stand in one group of a stage: narrow one of the two with stack, layers or match."
            )
        claimed.update(dict.fromkeys(after, index))
        if group.role in ("lm_head", "embedding") and state.head != "untied" and group.tie:
            state.head = "untied" if group.tie == "untie" else group.tie
        state.removed.update(after)
        planned.append(plan)
    return tuple(planned), faults


def _steps(train: Train, rows: int | None) -> int | None:
    if rows is None:
        return None
    return math.ceil(train.epochs * math.ceil(math.ceil(rows / train.batch_size) / train.accumulation))


def make_plan(recipe: Recipe, model: str, *, train_rows: int | None = None) -> Plan:
    """Plan a recipe.

    Args:
        recipe: a valid recipe.
        model: its model's folder or hub id, resolved.
        train_rows: rows of the training split, for the steps; None leaves them open.

    Returns:
        Counts after every stage; exact wherever scores do not decide them.

    Raises:
        RecipeError: a group selects nothing, groups overlap, a tie policy is missing or cannot act, a unit does not
            fit; all faults of all stages at once.
        CheckpointError: the model's config.json cannot be read.
    """
    config, raw = read_config(model, trust_remote_code=recipe.trust_remote_code)
    anatomy = anatomy_of(meta_model(config, {} if recipe.initialize == "random" else raw))
    return plan_stages(recipe, anatomy, train_rows=train_rows)


def plan_stages(recipe: Recipe, anatomy: Anatomy, *, train_rows: int | None = None) -> Plan:
    """Plan a recipe for a model whose anatomy is known; see `make_plan`."""
    state = _State(anatomy, head_policy(anatomy), anatomy.num_parameters, Kept(anatomy), cut_ragged=is_ragged(anatomy))
    stages, faults = [], []
    for stage in recipe.stages:
        groups: tuple[PlannedGroup, ...] = ()
        if stage.cut:
            faults += [f"stages.{stage.name}.cut: {fault}" for fault in _plan_cut(stage.cut, state)]
        if stage.export and stage.export.to == "ctranslate2" and state.cut_ragged:
            faults.append(
                f"stages.{stage.name}.export: {stage.export.to} cannot hold a ragged model: its layers differ in "
                "width. Cut with width: uniform, or export to onnx."
            )
        if stage.prune:
            groups, found = _plan_prune(stage.prune.groups, state)
            where = f"stages.{stage.name}.prune."
            faults += [f"{where}{fault}" if fault.startswith("groups.") else f"  {fault}" for fault in found]
        if stage.train and stage.train.weights != "fp32" and state.head == "view":
            rounding = f"stages.{stage.name}.train.weights: {stage.train.weights}"
            faults.append(f"{rounding} cannot act under tie: view. Use fp32.")
        stages.append(_planned_stage(stage, groups, state, train_rows))
    if recipe.initialize == "random" and recipe.stages[0].kind == "evaluate":
        first = recipe.stages[0].name
        faults.append(f"stages.{first}: a model that starts at random has nothing to evaluate yet. Train it first.")
    if faults:
        raise RecipeError(faults, "The recipe does not fit its model:")
    return Plan(anatomy.family, anatomy.num_parameters, tuple(stages), _disk(recipe, stages))


def _plan_cut(cut: Cut, state: _State) -> list[str]:
    if state.cut_ragged:
        return ["the model is ragged already. Cut it once, after all the pruning."]
    if not state.kept.anything and not any(state.removed.values()) and not state.open_rows:
        return ["no stage before it removes whole units. Prune some first: unit: head, ffn_neuron, layer, ..."]
    ragged = (cut.width or ("ragged" if state.ragged else "uniform")) == "ragged"
    smaller = shrink(state.kept, ragged=ragged)
    if state.kept.anything and smaller.num_parameters == state.anatomy.num_parameters and not state.open_rows:
        return [
            "nothing could be cut: one width serves all layers of both stacks, and somewhere all units stay. Prune "
            "them everywhere alike, or write width: ragged."
        ]
    state.anatomy = smaller
    state.cut_ragged = is_ragged(smaller) or (ragged and state.ragged)  # scores may part layers that are alike here
    state.kept, state.ragged = Kept(smaller), False
    loose = {}
    for weight in state.anatomy.weights:  # shares stay as they are: which weights went does not depend on units
        share = state.loose.get(weight.path, 0.0)
        if share:
            loose[weight.path] = share
    state.loose = loose
    state.removed = {path: round(share * state.anatomy[path].numel) for path, share in loose.items()}
    return []


def _planned_stage(
    stage: Stage,
    groups: tuple[PlannedGroup, ...],
    state: _State,
    train_rows: int | None,
) -> PlannedStage:
    train = stage.train
    dense = state.dense
    gone = dense - state.anatomy.num_parameters  # cut out; an untied head is in num_parameters below
    viewed = state.removed.get(HEAD, 0) if state.head == "view" else 0
    held = sum(state.removed.values()) - viewed
    live = state.num_parameters - held
    head = state.anatomy[HEAD].numel if state.head == "view" else 0
    stored = state.num_parameters + head
    training = OPTIMIZER_BYTES[train.optimizer] + 8 if train else 4
    return PlannedStage(
        name=stage.name,
        kind=stage.kind,
        groups=groups,
        counted_ratio=(dense - gone - held - viewed) / dense,
        stored_ratio_packed=live / dense,
        stored_ratio_plain=(live + head - viewed) / dense,
        num_parameters=stored,
        num_bytes=_num_bytes(stage, stored, live, state.removed),
        steps=_steps(train, train_rows) if train else None,
        memory_bytes=state.num_parameters * training,
    )


def _num_bytes(stage: Stage, stored: int, live: int, removed: Mapping[str, int]) -> int:
    """Bytes of what a stage writes; of an export or packed file without scales, norms apart and compression."""
    if stage.export:
        return stored * BYTES["int8" if stage.export.int8 else "fp32"]
    if stage.pack:
        return live * BYTES[stage.pack.values] + (stored // 8 if any(removed.values()) else 0)
    return stored * BYTES[stage.train.weights if stage.train else "fp32"]


def _disk(recipe: Recipe, stages: Sequence[Any]) -> int:
    """The most bytes at one time: kept stages, the final model, and two of the trainer's checkpoints."""
    models = [stage.num_bytes for stage in stages if stage.kind != "evaluate"] or [0]  # an export or pack is smaller
    kept = sum(models) if recipe.keep == "all" else 2 * max(models)
    trainings = [stage for stage in stages if stage.kind == "train"]
    trainer = max((2 * (stage.memory_bytes - 4 * stage.num_parameters) for stage in trainings), default=0)
    return kept + max(models) + max(0, trainer)
