"""Masks that are told tensor by tensor: by a share, a threshold, together with others, or after another's mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from secateur.errors import MaskError
from secateur.masks.allocate import remove_lowest
from secateur.masks.blocks import as_blocks, score_blocks, spread_blocks
from secateur.masks.mixed import keep_from, mixed_threshold
from secateur.masks.scores import Score, score_weight
from secateur.masks.statistics import Statistics


@dataclass(frozen=True)
class Follow:
    """A mask that is taken from another one.

    Attributes:
        path: the tensor whose mask is followed.
        dims: its dimensions that count: along them, what has anything alive stays.
    """

    path: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """One tensor, and what is to go of it. Numbers are rounded down to whole blocks.

    Attributes:
        path: the parameter's name.
        shape: of the parameter.
        block: the size of what goes at once, in each dimension; None: single elements.
        sparsity: share that goes, 0 to below 1; of all tensors of a pool together.
        threshold: blocks that score below it go; beside it no sparsity.
        min_sparsity: share that goes in any case.
        max_sparsity: share that goes at most.
        pool: tensors of the same name have one threshold together.
        bundle: tensors of the same name get the same mask, that of their mean score.
        parts: equal parts of a bundle that each lose the same share.
        follow: a mask to take over, alone or beside a threshold.
    """

    path: str
    shape: tuple[int, ...]
    block: tuple[int, ...] | None = None
    sparsity: float | None = None
    threshold: float | None = None
    min_sparsity: float | None = None
    max_sparsity: float | None = None
    pool: str | int | None = None
    bundle: str | int | None = None
    parts: int = 1
    follow: Follow | None = None

    @property
    def is_scored(self) -> bool:
        """Whether its own scores decide."""
        return self.sparsity is not None or self.threshold is not None

    @property
    def size(self) -> int:
        """Elements of a block."""
        return prod(self.block) if self.block else 1

    @property
    def num_units(self) -> int:
        """How many blocks it has."""
        return prod(self.shape) // self.size

    def scaled(self, share: float) -> Target:
        """Ask for a share of everything that is asked for.

        >>> Target("w", (4,), sparsity=0.5).scaled(0.5).sparsity
        0.25
        """

        def part(value: float | None) -> float | None:
            return None if value is None else value * share

        return replace(
            self,
            sparsity=part(self.sparsity),
            threshold=part(self.threshold),
            min_sparsity=part(self.min_sparsity),
            max_sparsity=part(self.max_sparsity),
        )

    def bounded(self, sparsity: float) -> float:
        """Put a share between its bounds; a bound of 0 is none."""
        return min(self.max_sparsity or 1.0, max(self.min_sparsity or 0.0, sparsity))


def prune_targets(
    targets: Sequence[Target],
    weights: Mapping[str, Tensor],
    *,
    score: str | Score = "magnitude",
    norm: str = "l1",
    already: Mapping[str, Tensor] | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Decide what of each tensor stays.

    Args:
        targets: no two of one path.
        weights: parameter name -> tensor, of all targets that are scored.
        score: of single elements; see `masks.scores.find_score`.
        norm: what makes one score of a block's; see `masks.blocks.NORMS`.
        already: name -> bool, True = alive; what is dead stays dead and counts.
        statistics: name -> what calibration batches told of the weight, for scores that ask.
        seed: for scores that draw numbers.

    Returns:
        Parameter name -> bool, its shape, True = keep, in the order of the targets.

    Raises:
        MaskError: scores are missing or not finite, blocks do not divide a tensor, or the bounds leave too little to
            remove.

    >>> target = Target("w", (2, 2), block=(1, 2), sparsity=0.5)
    >>> prune_targets([target], {"w": torch.tensor([[1.0, 2.0], [0.0, 2.0]])})["w"].tolist()
    [[True, True], [False, False]]
    """
    scored = [target for target in targets if target.is_scored]
    alive = already or {}
    scores = {}
    for target in scored:
        single = score_weight(
            weights[target.path], score, path=target.path, seed=seed, statistics=(statistics or {}).get(target.path)
        )
        scores[target.path] = score_blocks(single, target.block, norm, path=target.path)
    units = {target.path: _units_alive(target, alive[target.path]) for target in targets if target.path in alive}
    kept: dict[str, Tensor] = {}
    for rule, members in _rules(scored):
        kept |= rule(members, {target.path: scores[target.path] for target in members}, units)
    masks: dict[str, Tensor] = {}
    for target in scored:
        mask = spread_blocks(kept[target.path], target.block) if target.block else kept[target.path]
        masks[target.path] = mask & alive[target.path].to(mask.device) if target.path in alive else mask
    return _follow_all(targets, masks, alive)


Rule = Callable[[Sequence[Target], Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]


def _rules(targets: Sequence[Target]) -> list[tuple[Rule, list[Target]]]:
    """Put together what is decided together."""
    found: dict[tuple[str, object], tuple[Rule, list[Target]]] = {}
    for target in targets:
        if target.threshold is not None:
            key, rule = ("alone", target.path), _by_threshold
        elif target.bundle is not None:
            key, rule = ("bundle", target.bundle), _bundled
        elif target.pool is not None:
            key, rule = ("pool", target.pool), _pooled
        else:
            key, rule = ("alone", target.path), _by_share
        found.setdefault(key, (rule, []))[1].append(target)
    return list(found.values())


def _by_share(
    members: Sequence[Target], scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    (target,) = members
    number = int(target.num_units * target.bounded(target.sparsity or 0.0))
    return remove_lowest(scores, number, already=alive)


def _by_threshold(
    members: Sequence[Target], scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    (target,) = members
    assert target.threshold is not None
    below = int((scores[target.path] < target.threshold).sum()) / target.num_units
    if below == target.bounded(below):
        kept = keep_from(scores, target.threshold)
        living = alive.get(target.path)
        return kept if living is None else {target.path: kept[target.path] & living.to(kept[target.path].device)}
    return remove_lowest(scores, int(target.num_units * target.bounded(below)), already=alive)


def _pooled(members: Sequence[Target], scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One threshold for several tensors, each between its own bounds."""
    number = int(sum(prod(target.shape) for target in members) * (members[0].sparsity or 0.0))
    least = {target.path: int(target.num_units * (target.min_sparsity or 0.0)) for target in members}
    most = {target.path: int(target.num_units * (target.max_sparsity or 1.0)) for target in members}
    room = sum(most[target.path] * target.size for target in members)
    if all(target.max_sparsity for target in members):
        number = min(number, room)
    sizes = {target.size for target in members}
    if len(sizes) == 1:
        return remove_lowest(scores, number // sizes.pop(), already=alive, least=least, most=most)
    return _mixed(list(members), scores, alive, number, least, most)


def _mixed(
    members: list[Target],
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    number: int,
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> dict[str, Tensor]:
    """One threshold for blocks of several sizes; a tensor that would leave its bounds is settled at them first."""
    room = sum(most[target.path] * target.size for target in members)
    if number > room:
        raise MaskError(
            f"{members[0].path} and what is pruned with it: {number} elements are to be removed, and max_sparsity "
            f"lets {room} go. Lower sparsity, or raise it."
        )
    kept: dict[str, Tensor] = {}
    while members:
        dead = {target.path: _num_dead(alive.get(target.path)) for target in members}
        found = _below(members, scores, alive, number - sum(dead[target.path] * target.size for target in members))
        lost = {path: _num_dead(mask) for path, mask in found.items()}
        bounds = {path: min(max(count, least[path]), max(most[path], dead[path])) for path, count in lost.items()}
        odd = [target for target in members if bounds[target.path] != lost[target.path]]
        if not odd:
            return kept | found
        for target in odd:
            kept |= remove_lowest({target.path: scores[target.path]}, bounds[target.path], already=alive)
            number -= _num_dead(kept[target.path]) * target.size
        members = [target for target in members if target.path not in kept]
    return kept


def _below(
    members: Sequence[Target], scores: Mapping[str, Tensor], alive: Mapping[str, Tensor], budget: int
) -> dict[str, Tensor]:
    living = {
        target.path: alive[target.path].to(scores[target.path].device)
        if target.path in alive
        else torch.ones_like(scores[target.path], dtype=torch.bool)
        for target in members
    }
    if budget <= 0:
        return living
    parts = [(scores[target.path][living[target.path]], target.size) for target in members]
    threshold = mixed_threshold(parts, budget)
    kept = keep_from({target.path: scores[target.path] for target in members}, threshold)
    return {path: mask & living[path] for path, mask in kept.items()}


def _bundled(members: Sequence[Target], scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One mask for several tensors: the lowest mean scores go, in each part as many."""
    total = scores[members[0].path].clone()
    for target in members[1:]:
        total += scores[target.path]
    mean, parts = (total / len(members)).flatten(), members[0].parts
    living = torch.ones_like(mean, dtype=torch.bool)
    for target in members:
        if target.path in alive:
            living &= alive[target.path].flatten().to(living.device)
    number = int(mean.numel() // parts * (members[0].sparsity or 0.0))
    kept = [
        remove_lowest({members[0].path: part}, number, already={members[0].path: known})[members[0].path]
        for part, known in zip(mean.chunk(parts), living.chunk(parts), strict=True)
    ]
    mask = torch.cat(kept).view(scores[members[0].path].shape)
    return {target.path: mask.clone() for target in members}


def _follow_all(
    targets: Sequence[Target], masks: Mapping[str, Tensor], alive: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Add the masks that follow others, in the order of the targets."""
    found: dict[str, Tensor] = {}
    for target in targets:
        mask = masks.get(target.path)
        if target.follow is not None and (mask is None or target.threshold is not None):
            led = _followed(target, masks[target.follow.path])
            mask = led if mask is None else mask & led
            if target.path in alive:
                mask = mask & alive[target.path].to(mask.device)
        if mask is not None:
            found[target.path] = mask
    return found


def _followed(target: Target, source: Tensor) -> Tensor:
    """Take what has anything alive along some dimensions of a mask for a tensor."""
    assert target.follow is not None
    dims = {dim % source.dim() for dim in target.follow.dims}
    others = [dim for dim in range(source.dim()) if dim not in dims]
    along = source.any(others) if others else source
    rank = len(target.shape)
    if target.block is not None:  # its whole dimensions are those that do not matter
        shape = [1 if size == whole != 1 else None for size, whole in zip(target.block, target.shape, strict=True)]
        sizes = iter(along.shape)
        along = along.reshape([next(sizes) if size is None else size for size in shape][:rank])
    return along.expand(target.shape).clone()


def _units_alive(target: Target, mask: Tensor) -> Tensor:
    return as_blocks(mask, target.block, path=target.path).any(-1) if target.block else mask


def _num_dead(alive: Tensor | None) -> int:
    return 0 if alive is None else alive.numel() - int(alive.sum())


__all__ = ["Follow", "Target", "prune_targets"]
