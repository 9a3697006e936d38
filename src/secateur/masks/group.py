"""Prune one group of a live model: score, allocate, and give the masks. The model is not changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.anatomy.roles import Weight
from secateur.errors import MaskError
from secateur.masks.allocate import allocate, not_finite
from secateur.masks.mask import MaskSet
from secateur.masks.scores import Score, score_group, score_weight
from secateur.masks.statistics import Statistics
from secateur.masks.units import Block, expand_units, pattern_mask, unit_alive, unit_scores
from secateur.recipe.names import Scope, Unit


def prune_group(
    model: nn.Module,
    weights: Sequence[Weight],
    *,
    already: MaskSet,
    sparsity: float | None = None,
    score: str | Score = "magnitude",
    scope: Scope = "global",
    unit: Unit = "weight",
    block: Block | None = None,
    pattern: str | tuple[int, int] | None = None,
    max_sparsity: float | None = None,
    min_keep: int = 0,
    seed: int = 0,
    statistics: Mapping[str, Statistics] | None = None,
) -> dict[str, Tensor]:
    """Decide which weights of a group stay.

    Args:
        model: the model; its weights are read, not changed.
        weights: the group, from `Anatomy.select`.
        already: masks of earlier stages; what they removed stays removed and counts towards the sparsity.
        sparsity: share of the group's units removed, 0 <= sparsity < 1. With a pattern it follows from it.
        score: see `secateur.masks.scores.find_score`.
        scope: "global" (one threshold for the group), "tensor" (each loses the same share), or "row" (single weights
            alone: each row of each tensor does).
        unit: what is removed whole: "weight", "row" or "column". A unit counts as dead when nothing in it is alive.
        block: (r, c): blocks of r rows and c columns instead.
        pattern: "n:m" keeps n of every m neighbours of a row.
        max_sparsity: the most that any one tensor may lose.
        min_keep: units that every tensor keeps.
        seed: for scores that draw numbers.
        statistics: name -> what calibration batches told of the weight, for scores that ask.

    Returns:
        Name to mask -> bool, the weight's shape, True = keep; in the order of the weights.

    Raises:
        MaskError: options that cannot act together, a shape that does not divide, scores that are not finite, or caps
            that leave too little to remove.
    """
    tensors = {weight.path: model.get_parameter(weight.path) for weight in weights}
    alive = {path: already.masks[path] for path in tensors if path in already.masks}
    if pattern is not None:
        _refuse_with_pattern(unit=unit, block=block, max_sparsity=max_sparsity, min_keep=min_keep)
        return _prune_pattern(tensors, alive, _parse_pattern(pattern, sparsity), score, seed, statistics or {})
    if sparsity is None:
        raise MaskError("A group needs a sparsity or a pattern; this one has neither.")
    if block is not None and unit != "weight":
        raise MaskError(f'unit {unit!r} and block {list(block)} exclude each other: leave unit out ("weight").')
    if scope == "row" and (unit != "weight" or block is not None):
        raise MaskError('scope "row" is for single weights; rows, columns and blocks go by "tensor" or "global".')
    # Tensors that are not compared with each other are done one by one: the scores of one are in memory at a time.
    together = [tensors] if scope == "global" else [{path: tensor} for path, tensor in tensors.items()]
    masks: dict[str, Tensor] = {}
    for part in together:
        masks |= _prune_together(
            part,
            {path: alive[path] for path in part if path in alive},
            statistics or {},
            score=score,
            unit=unit,
            block=block,
            seed=seed,
            scope=scope,
            sparsity=sparsity,
            max_sparsity=max_sparsity,
            min_keep=min_keep,
        )
    return masks


def _prune_together(
    tensors: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    statistics: Mapping[str, Statistics],
    *,
    score: str | Score,
    unit: Unit,
    block: Block | None,
    seed: int,
    **budget: Any,
) -> dict[str, Tensor]:
    """Score tensors that share one threshold, and spend their budget."""
    scores = {
        path: unit_scores(scored, unit, block=block, path=path)
        for path, scored in score_group(tensors, score, seed=seed, statistics=statistics).items()
    }
    units = {
        path: unit_alive(mask, unit, block=block, path=path).to(scores[path].device) for path, mask in alive.items()
    }
    kept = allocate(scores, already=units, **budget)
    masks = {path: expand_units(mask, tensors[path].shape, unit, block=block) for path, mask in kept.items()}
    if unit == "weight" and block is None:
        return masks  # allocate kept the dead dead; larger units may hold single dead weights
    return {path: mask & alive[path].to(mask.device) if path in alive else mask for path, mask in masks.items()}


def _prune_pattern(
    tensors: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    pattern: tuple[int, int],
    score: str | Score,
    seed: int,
    statistics: Mapping[str, Statistics],
) -> dict[str, Tensor]:
    """Lay a pattern on every tensor."""
    masks = {}
    for path, tensor in tensors.items():
        scores = score_weight(tensor, score, path=path, seed=seed, statistics=statistics.get(path))
        if not bool(scores.isfinite().all()):
            raise not_finite(path)
        dead = alive[path].to(scores.device) if path in alive else None
        masks[path] = pattern_mask(scores, *pattern, already=dead, path=path)
    return masks


def _refuse_with_pattern(*, unit: Unit, block: Block | None, max_sparsity: float | None, min_keep: int) -> None:
    """Refuse what cannot act beside a pattern."""
    given = {"unit": unit != "weight", "block": block, "max_sparsity": max_sparsity is not None, "min_keep": min_keep}
    idle = [name for name, value in given.items() if value]
    if idle:
        raise MaskError(f"A pattern fixes what every row loses: {', '.join(idle)} cannot act beside it. Leave it out.")


def _parse_pattern(pattern: str | tuple[int, int], sparsity: float | None) -> tuple[int, int]:
    """Read "n:m" and check a sparsity given beside it."""
    try:
        n, m = (int(part) for part in (pattern.split(":") if isinstance(pattern, str) else pattern))
    except ValueError as error:
        raise MaskError(f'pattern {pattern!r}: write "n:m", n of every m neighbours stay.') from error
    if sparsity is not None and m > 0 and not math.isclose(sparsity, 1 - n / m, abs_tol=1e-9):
        raise MaskError(f"pattern {n}:{m} removes {1 - n / m:g}, sparsity says {sparsity:g}. Leave sparsity out.")
    return n, m


def choose_again(
    weight: Weight,
    target: Tensor,
    input_inverse: Tensor,
    mask: Tensor,
    *,
    score: str | Score,
    scope: Scope,
    statistics: Statistics,
    alive: Tensor | None = None,
) -> Tensor:
    """Choose what stays of a layer once more, when it is known what it aims at and what it reads by then.

    Args:
        weight: the layer's.
        target: the matrix that is aimed at, (out_features, in_features).
        input_inverse: (in_features,), see `masks.statistics`; takes the place of the one in `statistics`.
        mask: what was chosen before.
        score: see `secateur.masks.scores.find_score`.
        scope: see `prune_group`.
        statistics: what calibration batches told of the weight.
        alive: what may stay; None: all.

    Returns:
        As `keep_as_many`.
    """
    told = {**statistics, "input_inverse": input_inverse}
    return keep_as_many(score_weight(target, score, path=weight.path, statistics=told), mask, scope=scope, alive=alive)


def keep_as_many(scores: Tensor, mask: Tensor, *, scope: Scope, alive: Tensor | None = None) -> Tensor:
    """Choose single weights of one matrix anew: as many as a mask keeps, in every row under scope "row".

    Args:
        scores: (out_features, in_features), larger = keep; of equals the first stay.
        mask: bool, the same shape, True = keep: what was chosen before.
        scope: see `prune_group`.
        alive: bool, the same shape: what may stay; None: all.

    Returns:
        bool, the same shape.

    >>> scores, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [True, False]])
    >>> keep_as_many(scores, mask, scope="row").tolist(), keep_as_many(scores, mask, scope="tensor").tolist()
    ([[False, True], [False, True]], [[False, False], [True, True]])
    """
    if alive is not None:
        scores = scores.masked_fill(~alive.to(scores.device), -torch.inf)
    scores, before = (each if scope == "row" else each.view(1, -1) for each in (scores, mask))
    order = scores.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(order.shape[1], device=order.device) < before.sum(1, keepdim=True)
    return torch.zeros_like(first).scatter_(1, order, first).view(mask.shape)
