"""Whether the entries of an NNI config_list fit each other: groups of one share and one shape, masks to follow."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from secateur.masks.blocks import block_numbers
from secateur.masks.targets import Target

Fault = tuple[tuple[str | int, ...], str]
Found = dict[str, tuple[int, Target]]  # parameter's name -> its entry's index, and what is to go of it


def check_groups(found: Found) -> list[Fault]:
    """Tensors of one group need one share; those of a bundle one shape of blocks, that divides into the parts."""
    faults: list[Fault] = []
    for key, name in (("global_group_id", "pool"), ("dependency_group_id", "bundle")):
        groups: dict[Any, list[tuple[str, int, Target]]] = {}
        for path, (index, target) in found.items():
            if getattr(target, name) is not None:
                groups.setdefault(getattr(target, name), []).append((path, index, target))
        for label, members in groups.items():
            shares = {target.sparsity for _, _, target in members}
            if len(shares) > 1:
                told = f"{label!r} has sparse_ratio {' and '.join(sorted(map(str, shares)))}: one group has one."
                faults.append(((members[-1][1], key), told))
            if name == "bundle":
                faults += _check_bundle(label, members, found)
    return faults


def _check_bundle(label: Any, members: list[tuple[str, int, Target]], found: Found) -> list[Fault]:
    first_path, _, first = members[0]
    numbers = _numbers(first)
    for path, index, target in members[1:]:
        if _numbers(target) != numbers:
            told = f"{label!r}: {path} has {_numbers(target)} blocks, {first_path} {numbers}: no mask fits both."
            return [((index, "dependency_group_id"), told)]
    parts = math.lcm(*(target.parts for _, _, target in members))
    total = first.num_units
    if total % parts:
        told = f"{label!r}: {total} blocks do not divide into {parts} parts."
        return [((members[0][1], "internal_metric_block"), told)]
    for path, index, target in members:
        found[path] = (index, replace(target, parts=parts))
    return []


def _numbers(target: Target) -> tuple[int, ...]:
    return block_numbers(target.shape, target.block, path=target.path) if target.block else target.shape


def check_follows(found: Found) -> list[Fault]:
    """What is followed has to be pruned by its own scores, and to fit."""
    faults: list[Fault] = []
    for path, (index, target) in list(found.items()):
        if target.follow is None:
            continue
        source = found.get(target.follow.path)
        if source is None or not source[1].is_scored:
            if target.path.endswith("bias") and target.follow.path == f"{target.path.removesuffix('bias')}weight":
                del found[path]  # NNI's default beside a weight that is not pruned: nothing to follow
                continue
            told = (
                f"{path} is to follow {target.follow.path}, which no entry prunes by a ratio or threshold of its own."
            )
            faults.append(((index, "align"), told))
        elif not _fits(target, source[1]):
            told = (
                f"{path} cannot take over dims {list(target.follow.dims)} of {target.follow.path}: shapes do not fit."
            )
            faults.append(((index, "align"), told))
    return faults


def _fits(target: Target, source: Target) -> bool:
    assert target.follow is not None
    rank = len(source.shape)
    if any(not -rank <= dim < rank for dim in target.follow.dims):
        return False
    dims = sorted({dim % rank for dim in target.follow.dims})
    along = [source.shape[dim] for dim in dims]
    if target.block is None:
        return along == list(target.shape[-len(along) :])
    free = [whole for size, whole in zip(target.block, target.shape, strict=True) if not size == whole != 1]
    return along == free and all(size in (1, whole) for size, whole in zip(target.block, target.shape, strict=True))
