"""Turn scores and a budget into masks: exact to the element, nested, with caps for single tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from secateur.errors import MaskError
from secateur.masks.select import CHUNK, Part, find_cut, keep_above
from secateur.recipe.names import Scope


@dataclass(frozen=True)
class Share:
    """One tensor in a budget.

    Attributes:
        path: its name.
        numel: its elements.
        num_dead: how many of them are removed already.
        cap: the most that it may lose, what is dead already included; see `cap_of`.
        least: the least that it has to lose, what is dead already included.
    """

    path: str
    numel: int
    num_dead: int
    cap: int
    least: int = field(default=0, kw_only=True)

    @property
    def num_free(self) -> int:
        """How much more may be removed."""
        return self.cap - self.num_dead

    @property
    def num_due(self) -> int:
        """How much more must be removed."""
        return max(0, self.least - self.num_dead)


@dataclass(frozen=True)
class _Scored(Share):
    """A tensor whose scores are in memory."""

    part: Part


AnyShare = TypeVar("AnyShare", bound=Share)
Outcome = TypeVar("Outcome")


def allocate(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: Scope = "global",
    already: Mapping[str, Tensor] | None = None,
    max_sparsity: float | None = None,
    min_keep: int = 0,
) -> dict[str, Tensor]:
    """Remove the lowest-scoring elements until the budget is spent.

    Exactly round(sparsity x n) of the ORIGINAL n elements of a scope are removed, the lower flat index (in the order of
    the tensors) first among equals. What is dead already stays dead and counts towards the number; if more than the
    number is dead, that is kept. A tensor that meets its cap loses exactly the cap, and the others share the rest.

    Args:
        scores: name -> importance, any shape, floating point, larger = keep. Under global scope the tensors' scores
            are compared with each other.
        sparsity: share of the scope removed, 0 <= sparsity < 1.
        scope: "global" (one threshold for all tensors), "tensor" (each tensor its own), or "row" (each row its own: of
            the number that a tensor loses each of its rows loses the same, or one more where that costs least).
        already: name -> bool, True = alive; missing names are all alive. A row that lacks more than its part keeps
            what it has, and the others of its tensor lose less.
        max_sparsity: the most that any one tensor may lose, 0 <= max_sparsity < 1 (rounded down to elements).
        min_keep: elements that every tensor keeps.

    Returns:
        The same names in the same order; bool, the scores' shapes and devices, True = keep.

    Raises:
        MaskError: a number is out of range, a score is not finite, shapes differ, or the caps leave too little to
            remove.

    >>> masks = allocate({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 4.0])}, 0.5)
    >>> masks["a"].tolist(), masks["b"].tolist()
    ([True, False], [False, True])
    >>> masks = allocate({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 0.5])}, 0.5, min_keep=1)
    >>> masks["a"].tolist(), masks["b"].tolist()
    ([True, False], [True, False])
    >>> rows = torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]])
    >>> allocate({"a": rows}, 0.5, scope="row")["a"].tolist()
    [[True, True, False], [False, False, True]]
    """
    check_numbers(sparsity, max_sparsity, min_keep)
    shares = [
        _share(path, score, (already or {}).get(path), max_sparsity=max_sparsity, min_keep=min_keep)
        for path, score in scores.items()
    ]
    scopes = [shares] if scope == "global" else [[share] for share in shares]
    masks: dict[str, Tensor] = {}
    for members in scopes:
        number = round(sparsity * sum(share.numel for share in members))
        cut = partial(_cut_rows, scores[members[0].path].shape[-1]) if scope == "row" and members else _cut
        masks |= spend(members, number, cut=cut, lost=_lost, leave=_alive)
    return {path: masks[path].view(score.shape).to(score.device) for path, score in scores.items()}


def remove_lowest(
    scores: Mapping[str, Tensor],
    num_removed: int,
    *,
    already: Mapping[str, Tensor] | None = None,
    least: Mapping[str, int] | None = None,
    most: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Remove a number of the lowest-scoring elements of all tensors together, between bounds for single tensors.

    A tensor that would lose more than its most, or less than its least, loses exactly that, and the others share the
    rest. Among equals the lower flat index (in the order of the tensors) goes first.

    Args:
        scores: name -> importance, any shape, floating point, larger = keep.
        num_removed: elements, what is dead already included; where more is dead, or due by `least`, more goes.
        already: name -> bool, True = alive; missing names are all alive.
        least: name -> elements that go in any case; missing names: 0.
        most: name -> elements that may go; missing names: all.

    Returns:
        The same names in the same order; bool, the scores' shapes and devices, True = keep.

    Raises:
        MaskError: a score is not finite, shapes differ, or the bounds leave too little to remove.

    >>> scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([4.0, 5.0, 6.0])}
    >>> masks = remove_lowest(scores, 3, least={"b": 1}, most={"a": 2})
    >>> masks["a"].tolist(), masks["b"].tolist()
    ([False, False, True], [False, True, True])
    """
    shares = []
    for path, score in scores.items():
        share = _share(path, score, (already or {}).get(path), max_sparsity=None, min_keep=0)
        cap = max(min(share.cap, (most or {}).get(path, share.cap)), share.num_dead)
        shares.append(replace(share, cap=cap, least=min((least or {}).get(path, 0), cap)))
    due = sum(max(share.least, share.num_dead) for share in shares)
    masks = spend(shares, max(num_removed, due), cut=_cut, lost=_lost, leave=_alive)
    return {path: masks[path].view(score.shape).to(score.device) for path, score in scores.items()}


def check_numbers(sparsity: float, max_sparsity: float | None, min_keep: int) -> None:
    """Refuse shares outside [0, 1) and negative counts.

    Args:
        sparsity: share removed.
        max_sparsity: the most that one tensor may lose; None for no limit.
        min_keep: elements that every tensor keeps.

    Raises:
        MaskError: one of them is out of its range.
    """
    for name, value in (("sparsity", sparsity), ("max_sparsity", max_sparsity)):
        if value is not None and not 0 <= value < 1:
            raise MaskError(f"{name} is {value}; it is the share removed, at least 0 and below 1.")
    if min_keep < 0:
        raise MaskError(f"min_keep is {min_keep}; it is a number of elements, at least 0.")


def cap_of(numel: int, num_dead: int, *, max_sparsity: float | None, min_keep: int) -> int:
    """Work out the most that a tensor may lose in all; never less than it has lost.

    >>> cap_of(10, 0, max_sparsity=0.7, min_keep=0), cap_of(10, 9, max_sparsity=None, min_keep=4)
    (7, 9)
    """
    cap = numel - min_keep
    if max_sparsity is not None:
        # 0.7 * 10 is 7.000000000000001 in floats, and 0.29 * 100 is 28.999999999999996: neither may move the cap.
        cap = min(cap, math.floor(max_sparsity * numel + 1e-9))
    return max(cap, num_dead)


def not_finite(path: str) -> MaskError:
    """Make the error for scores that cannot be compared, to be raised."""
    return MaskError(f"{path}: scores hold NaN or infinity. Check the weights (did training diverge?) and the score.")


def _share(path: str, score: Tensor, alive: Tensor | None, *, max_sparsity: float | None, min_keep: int) -> _Scored:
    """Check one tensor's scores and work out its cap."""
    if not score.is_floating_point():
        raise MaskError(f"{path}: scores are {score.dtype}; give floating-point numbers, larger = keep.")
    values = _flat(score)
    if values.size and not (math.isfinite(values.min()) and math.isfinite(values.max())):  # NaN goes through both
        raise not_finite(path)
    if alive is not None and alive.shape != score.shape:
        raise MaskError(
            f"{path}: the earlier mask has shape {tuple(alive.shape)}, the scores {tuple(score.shape)}. "
            "It belongs to another model or another unit."
        )
    part = Part(values, None if alive is None else _flat(alive))
    numel, num_dead = part.values.size, part.values.size - part.num_alive
    cap = cap_of(numel, num_dead, max_sparsity=max_sparsity, min_keep=min_keep)
    return _Scored(path, numel, num_dead, cap, part)


def _flat(tensor: Tensor) -> np.ndarray:
    """Show a tensor as a flat array: a view where it can be, float32 for the small float types."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.reshape(-1).numpy()


def spend(
    shares: Sequence[AnyShare],
    num_removed: int,
    *,
    cut: Callable[[Sequence[AnyShare], int], Sequence[Outcome]],
    lost: Callable[[Outcome], int],
    leave: Callable[[AnyShare], Outcome],
) -> dict[str, Outcome]:
    """Remove so many elements of one scope, what is dead already included, within the tensors' caps.

    Args:
        shares: the scope's tensors, in the order that decides among equals.
        num_removed: of their elements.
        cut: removes so many of what is alive in some of them, together, whatever their caps; an outcome for each.
        lost: counts what a tensor lacks in an outcome.
        leave: gives the outcome of a tensor that loses nothing more.

    Returns:
        The tensors' names -> outcome.

    Raises:
        MaskError: the caps leave too little to remove.
    """
    budget = num_removed - sum(share.num_dead for share in shares)
    num_free = sum(share.num_free for share in shares)
    if budget > max(num_free, 0):
        raise MaskError(_too_little(shares, num_removed))
    found: dict[str, Outcome] = {}
    # Capping a tensor moves its surplus to the others, whose counts can only grow: what met its cap stays capped. What
    # lost less than its least takes from the others instead. Whichever of the two is more is settled first, for it
    # cannot be undone by the other.
    while budget > 0:
        outcomes = cut(shares, budget)
        counts = [lost(outcome) for outcome in outcomes]
        surplus = sum(max(0, count - share.cap) for share, count in zip(shares, counts, strict=True))
        wanting = sum(max(0, share.least - count) for share, count in zip(shares, counts, strict=True))
        if not surplus and not wanting:
            return found | {share.path: outcome for share, outcome in zip(shares, outcomes, strict=True)}
        for share, count in zip(shares, counts, strict=True):
            bound = share.num_free if surplus >= wanting else share.num_due
            if (count > share.cap) if surplus >= wanting else (count < share.least):
                found[share.path] = cut([share], bound)[0] if bound else leave(share)
                budget -= bound
        shares = [share for share in shares if share.path not in found]
    return found | {share.path: leave(share) for share in shares}


def _cut(shares: Sequence[_Scored], budget: int) -> list[Tensor]:
    """Remove the `budget` lowest of what is alive in these tensors."""
    parts = [share.part for share in shares]
    return keep_above(parts, find_cut(parts, budget))


def _cut_rows(columns: int, shares: Sequence[_Scored], budget: int) -> list[Tensor]:
    """Remove `budget` elements of what is alive in one tensor, of every row as nearly the same number as can be."""
    [share] = shares
    values = share.part.values.reshape(-1, columns)
    alive = _alive(share).view(-1, columns).numpy()
    gone = columns - np.count_nonzero(alive, axis=1)
    level = _level(gone, share.num_dead + budget)
    number = np.maximum(gone, level)  # what each row lacks in the end, but for the few that lose one more
    following, cost = np.zeros(len(values), np.int64), np.full(len(values), np.inf)
    step = max(1, CHUNK // columns)
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        ranked = np.argsort(np.where(alive[part], values[part], -np.inf), axis=1, kind="stable")
        np.put_along_axis(alive[part], ranked, np.arange(columns) >= number[part, None], axis=1)
        if level < columns:
            following[part] = ranked[:, level]
            cost[part] = np.take_along_axis(values[part], ranked[:, level, None], axis=1)[:, 0]
    cost[gone > level] = np.inf
    further = np.argsort(cost, kind="stable")[: share.num_dead + budget - int(number.sum())]
    alive[further, following[further]] = False
    return [torch.from_numpy(alive).view(-1)]


def _level(gone: np.ndarray, number: int) -> int:
    """Find the most that every row can lack so that all rows together lack no more than `number`.

    >>> _level(np.array([0, 0, 5]), 10), _level(np.array([0, 0, 5]), 7)
    (2, 1)
    """
    low, high = 0, number // len(gone)
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.maximum(gone, middle).sum()) <= number:
            low = middle
        else:
            high = middle - 1
    return low


def _lost(mask: Tensor) -> int:
    return mask.numel() - int(np.count_nonzero(mask.numpy()))


def _alive(share: _Scored) -> Tensor:
    """Copy a tensor's mask as it is."""
    if share.part.alive is None:
        return torch.ones(share.numel, dtype=torch.bool)
    return torch.from_numpy(share.part.alive.copy())


def _too_little(shares: Sequence[Share], num_removed: int) -> str:
    """Say with numbers that the caps leave too little to remove."""
    total = sum(share.numel for share in shares)
    most = sum(share.cap for share in shares)
    where = shares[0].path if len(shares) == 1 else f"{len(shares)} tensors, {shares[0].path} first"
    return (
        f"{where}: {num_removed} of {total} elements are to be removed, but max_sparsity and min_keep let at most "
        f"{most} go (a sparsity of {most / max(total, 1):.6g}). Lower sparsity, or loosen the two."
    )
