"""What a prune or a cut stage would take from a model, told group by group without its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.roles import Anatomy, Weight
from secateur.anatomy.shrink import Kept, is_ragged, shrink
from secateur.anatomy.units import STRUCTURED, Place, own_biases, places
from secateur.errors import AnatomyError
from secateur.masks.mask import Mode
from secateur.masks.structure import spaced
from secateur.masks.tie import HEAD
from secateur.recipe.schema import Cut, Group

Key = TypeVar("Key")


@dataclass(frozen=True)
class PlannedGroup:
    """One group of a prune stage: how many tensors and elements it has, how many are gone after it.

    `exact` is False where the count depends on the scores (units of unequal sizes, or groups that overlap an earlier
    one in part). `stack` is encoder or decoder where the group says so.
    """

    role: str
    tie: str | None
    num_weights: int
    num_elements: int
    num_removed: int
    exact: bool
    stack: str | None = None


@dataclass(frozen=True)
class Target:
    """The tensors that a group's masks go onto, and how: `mode` is hold or view."""

    weights: tuple[Weight, ...]
    mode: Mode


@dataclass
class PlanState:
    """What earlier stages did: the plan walks through the stages with it.

    Attributes:
        anatomy: of the model as it is after the last cut.
        head: how the head stands to the table: tied, view, both, untied.
        dense: parameters of the model as it was given.
        kept: the whole units that stay.
        loose: tensor -> share that masks on single weights remove of what its units leave.
        open_rows: whether rows of the table go of which only the texts tell how many.
        ragged: whether a group asked for widths of its own in each layer.
        cut_ragged: whether the model is ragged now.
    """

    anatomy: Anatomy
    head: str
    dense: int
    kept: Kept
    loose: dict[str, float] = field(default_factory=dict)
    open_rows: bool = False
    ragged: bool = False
    cut_ragged: bool = False

    def left(self, weight: Weight) -> int:
        """How many elements of a tensor no mask removes, whole units and single weights together."""
        return round(self.kept.elements(weight) * (1.0 - self.loose.get(weight.path, 0.0)))

    def removed(self, weight: Weight) -> int:
        """How many elements of a tensor masks remove; those that a cut took away are gone from its shape."""
        return weight.numel - self.left(weight)

    def remove(self, weight: Weight, count: int) -> None:
        """Say that masks remove so many elements of a tensor, those of its units included."""
        stay = self.kept.elements(weight)
        self.loose[weight.path] = max(0.0, 1.0 - (weight.numel - count) / stay) if stay else 0.0

    @property
    def tensors(self) -> tuple[Weight, ...]:
        """The tensors that the model is made of: a head that a stage untied is one of them."""
        own = self.anatomy.head if self.head == "untied" and self.anatomy.shares_head else None
        return (*self.anatomy.unique(), *([] if own is None else [own]))

    @property
    def masks_anything(self) -> bool:
        """Whether any mask removes anything."""
        return any(self.removed(weight) for weight in self.anatomy.weights)

    @property
    def num_counted(self) -> int:
        """Dense parameters that are neither cut out nor removed by a mask, an entry of a shared table counted once."""
        counted = sum(self.left(weight) for weight in self.anatomy.unique())
        if self.anatomy.shares_head:
            table = self.left(self.anatomy.table)
            counted -= table - round(table * (1.0 - self.loose.get(HEAD, 0.0)))
        return counted

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, zeros included."""
        return sum(weight.numel for weight in self.tensors)


def head_policy(anatomy: Anatomy) -> str:
    """Say how a model's head stands to its embedding table: tied or untied."""
    return "tied" if anatomy.shares_head else "untied"


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
                f"tie: is required: {HEAD} and {anatomy.table.path} (the embedding) are one tensor. Choose one of "
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
        return Target((anatomy.table,), "hold")
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


def _planned_units(group: Group, state: PlanState) -> PlannedGroup:
    """Plan a group of whole units."""
    found = places(state.anatomy, group.unit, role=group.role, stack=group.stack, layers=group.layers)
    total, gone = sum(place.num_units for place in found), 0
    for place, removed in zip(found, _units_removed(group, found, state), strict=True):
        gone += removed
        count = place.num_units - removed
        if place.unit == "layer":
            assert place.stack is not None
            before = state.kept.layers.get(place.stack, tuple(range(place.num_units)))
            chosen = spaced(len(before), min(count, len(before)))
            state.kept.keep_layers(place.stack, tuple(before[index] for index in chosen))
        else:
            state.kept.keep(place, count)
    state.open_rows |= group.sparsity is None
    state.ragged |= group.width != "uniform"
    paths = {piece.weight.path for place in found for piece in place.slices}
    exact = group.sparsity is not None and group.width == "uniform"
    return PlannedGroup(group.unit, None, len(paths), total, gone, exact, group.stack)


def _units_removed(group: Group, found: Sequence[Place], state: PlanState) -> list[int]:
    """Count the units that go at every place, what went before included.

    Args:
        group: of whole units.
        found: its places.
        state: what went before.

    Returns:
        A number for each place. Rows that the texts decide on count as none; with ragged widths, where the scores
        decide, the places share the group's number by their room.

    Raises:
        AnatomyError: the numbers leave too few units.
    """
    least = max(1, group.min_keep)
    before = [place.num_units - state.kept.of(place) for place in found]
    total = sum(place.num_units for place in found)
    if group.sparsity is None:
        if least > total:
            raise AnatomyError(
                [f"min_keep: {group.min_keep:,} rows are to stay, and the table has {total:,}. Lower it."]
            )
        return before
    if group.width == "uniform":
        for place in found:
            count = place.num_units - round(group.sparsity * place.num_units)
            if count < least:
                raise AnatomyError(
                    [
                        f"sparsity: {group.sparsity:g} leaves {count} of {place.num_units} {group.unit}s in "
                        f"{place.name}; at least {least} must stay. Lower it."
                    ]
                )
        return [max(gone, round(group.sparsity * place.num_units)) for place, gone in zip(found, before, strict=True)]
    caps = [_cap(place.num_units, group.max_sparsity, least) for place in found]
    room = [max(0, cap - gone) for cap, gone in zip(caps, before, strict=True)]
    number = round(group.sparsity * total)
    if number - sum(before) > sum(room):
        cap = "" if group.max_sparsity is None else f" and loses {group.max_sparsity:g} at most"
        raise AnatomyError(
            [
                f"sparsity: {group.sparsity:g} removes {number} of {total} {group.unit}s, but every place keeps "
                f"{least} at least{cap}, which lets {sum(before) + sum(room)} go. Lower it, or loosen these limits."
            ]
        )
    extra = spread(max(0, number - sum(before)), dict(enumerate(room)))
    return [gone + extra[index] for index, gone in enumerate(before)]


def _cap(count: int, max_sparsity: float | None, min_keep: int) -> int:
    """The most units that one tensor or place may lose; see `masks.allocate` for the small number."""
    share = 1.0 if max_sparsity is None else max_sparsity
    return min(math.floor(share * count + 1e-9), count - min_keep)


def _planned_group(group: Group, state: PlanState) -> tuple[PlannedGroup, dict[str, int]]:
    target = target_of(group, state.anatomy, state.head)
    units = {weight.path: units_of(group, weight) for weight in target.weights}
    sparsity = group_sparsity(group)
    total = sum(count for count, _ in units.values())
    _check_caps(group, {path: count for path, (count, _) in units.items()}, sparsity)
    sizes = {size for _, size in units.values()}
    before = {weight.path: state.removed(weight) for weight in target.weights}
    known = len({bool(value) for value in before.values()}) == 1
    elements = sum(weight.numel for weight in target.weights)
    if group.scope != "global" or group.pattern:
        after = {path: max(before[path], round(sparsity * count) * size) for path, (count, size) in units.items()}
        exact = True
    else:
        exact = len(sizes) == 1 and known
        removed = round(sparsity * total) * max(sizes) if len(sizes) == 1 else round(sparsity * elements)
        alive = {weight.path: weight.numel - before[weight.path] for weight in target.weights}
        extra = spread(max(0, removed - sum(before.values())), alive)
        after = {path: before[path] + extra[path] for path in before}
    about = (len(target.weights), elements, sum(after.values()), exact, group.stack)
    plan = PlannedGroup(group.role or group.unit, group.tie, *about)
    return plan, after


def spread(number: int, sizes: Mapping[Key, int]) -> dict[Key, int]:
    """Share a number out in proportion to sizes, exactly in sum; where one threshold will cut is not known yet."""
    total, shares, given, seen = max(1, sum(sizes.values())), {}, 0, 0
    for key, size in sizes.items():
        seen += size
        shares[key] = number * seen // total - given
        given += shares[key]
    return shares


def _check_caps(group: Group, units: Mapping[str, int], sparsity: float) -> None:
    """Refuse a sparsity that the caps per tensor do not leave room for."""
    room = {path: max(0, _cap(count, group.max_sparsity, group.min_keep)) for path, count in units.items()}
    if group.scope != "global":
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


def plan_prune(groups: Sequence[Group], state: PlanState) -> tuple[tuple[PlannedGroup, ...], list[str]]:
    """Walk one prune stage; the faults found are returned, not raised, so that all of them are told at once."""
    planned, faults = [], []
    claimed: dict[str, int] = {}
    for index, group in enumerate(groups):
        where = f"groups.{index} ({group.role or group.unit})"
        try:
            if group.unit in STRUCTURED:
                planned.append(_planned_units(group, state))
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
        for path, count in after.items():
            state.remove(state.anatomy[path], count)
        planned.append(plan)
    return tuple(planned), faults


def plan_cut(cut: Cut, state: PlanState) -> list[str]:
    """Make the plan's model as small as a cut stage would; the faults found are returned."""
    if state.cut_ragged and not FAMILIES[state.anatomy.family].layer_norm:
        return ["the model is ragged already. Cut it once, after all the pruning."]
    if not state.masks_anything and not state.open_rows:
        return ["no stage before it removes whole units. Prune some first: unit: head, ffn_neuron, layer, ..."]
    ragged = (cut.width or ("ragged" if state.ragged else "uniform")) == "ragged"
    smaller = shrink(state.kept, ragged=ragged)
    if state.kept.anything and smaller.num_parameters == state.anatomy.num_parameters and not state.open_rows:
        return [
            "nothing could be cut: one width serves all layers of both stacks, and somewhere all units stay. Prune "
            "them everywhere alike, or write width: ragged."
        ]
    # Shares of single weights stay as they are: which of them went does not depend on the units.
    state.loose = {new: state.loose[old] for old, new in _renamed(state.kept) if old in state.loose}
    state.anatomy = smaller
    state.cut_ragged = is_ragged(smaller) or (ragged and state.ragged)  # scores may part layers that are alike here
    state.kept, state.ragged = Kept(smaller), False
    return []


def _renamed(kept: Kept) -> list[tuple[str, str]]:
    """Pair every tensor that a cut leaves with its name after the cut: layers are numbered anew."""
    pairs = []
    for weight in kept.anatomy.weights:
        layers = kept.layers.get(weight.stack) if weight.stack is not None else None
        shared = weight.role == "position_bias" and not own_biases(kept.anatomy)
        if layers is None or weight.layer is None or shared:
            pairs.append((weight.path, weight.path))
        elif weight.layer in layers:
            place = layers.index(weight.layer)
            pairs.append((weight.path, weight.path.replace(f".{weight.layer}.", f".{place}.", 1)))
    return pairs
