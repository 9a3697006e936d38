"""Turn scores and a budget into masks: exact to the element, nested, with caps for single tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.errors import MaskError
from secateur.masks.select import Part, find_cut, keep_above
from secateur.recipe.names import Scope


@dataclass(frozen=True)
class _Share:
    """One tensor in a budget: its part, and the most that it may lose, what is dead already included."""

    path: str
    part: Part
    cap: int

    @property
    def numel(self) -> int:
        return self.part.values.size

    @property
    def num_dead(self) -> int:
        return self.numel - self.part.num_alive

    @property
    def num_free(self) -> int:
        """How much more may be removed."""
        return self.cap - self.num_dead


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
        scope: "global" (one threshold for all tensors) or "tensor" (each tensor its own).
        already: name -> bool, True = alive; missing names are all alive.
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
    """
    _check_numbers(sparsity, max_sparsity, min_keep)
    shares = [
        _share(path, score, (already or {}).get(path), max_sparsity=max_sparsity, min_keep=min_keep)
        for path, score in scores.items()
    ]
    scopes = [[share] for share in shares] if scope == "tensor" else [shares]
    masks: dict[str, Tensor] = {}
    for members in scopes:
        masks |= _spend(members, round(sparsity * sum(share.numel for share in members)))
    return {path: masks[path].view(score.shape).to(score.device) for path, score in scores.items()}


def _check_numbers(sparsity: float, max_sparsity: float | None, min_keep: int) -> None:
    """Refuse shares outside [0, 1) and negative counts."""
    for name, value in (("sparsity", sparsity), ("max_sparsity", max_sparsity)):
        if value is not None and not 0 <= value < 1:
            raise MaskError(f"{name} is {value}; it is the share removed, at least 0 and below 1.")
    if min_keep < 0:
        raise MaskError(f"min_keep is {min_keep}; it is a number of elements, at least 0.")


def _share(path: str, score: Tensor, alive: Tensor | None, *, max_sparsity: float | None, min_keep: int) -> _Share:
    """Check one tensor's scores and work out its cap."""
    if not score.is_floating_point():
        raise MaskError(f"{path}: scores are {score.dtype}; give floating-point numbers, larger = keep.")
    values = _flat(score)
    if values.size and not (math.isfinite(values.min()) and math.isfinite(values.max())):  # NaN goes through both
        raise MaskError(
            f"{path}: scores hold NaN or infinity. Check the weights (did training diverge?) and the score."
        )
    if alive is not None and alive.shape != score.shape:
        raise MaskError(
            f"{path}: the earlier mask has shape {tuple(alive.shape)}, the scores {tuple(score.shape)}. "
            "It belongs to another model or another unit."
        )
    part = Part(values, None if alive is None else _flat(alive))
    cap = part.values.size - min_keep
    if max_sparsity is not None:
        # 0.7 * 10 is 7.000000000000001 in floats, and 0.29 * 100 is 28.999999999999996: neither may move the cap.
        cap = min(cap, math.floor(max_sparsity * part.values.size + 1e-9))
    return _Share(path, part, max(cap, part.values.size - part.num_alive))


def _flat(tensor: Tensor) -> np.ndarray:
    """Show a tensor as a flat array: a view where it can be, float32 for the small float types."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.reshape(-1).numpy()


def _spend(shares: Sequence[_Share], num_removed: int) -> dict[str, Tensor]:
    """Remove so many elements of one scope, what is dead already included."""
    budget = num_removed - sum(share.num_dead for share in shares)
    num_free = sum(share.num_free for share in shares)
    if budget > max(num_free, 0):
        raise MaskError(_too_little(shares, num_removed))
    masks: dict[str, Tensor] = {}
    # Capping a tensor moves its surplus to the others, whose counts can only grow: what met its cap stays capped.
    while budget > 0:
        cut_masks = _cut(shares, budget)
        over = [share for share, mask in zip(shares, cut_masks, strict=True) if _lost(mask) > share.cap]
        if not over:
            return masks | {share.path: mask for share, mask in zip(shares, cut_masks, strict=True)}
        for share in over:
            masks[share.path] = _cut([share], share.num_free)[0] if share.num_free else _alive(share)
            budget -= share.num_free
        shares = [share for share in shares if share.path not in masks]
    return masks | {share.path: _alive(share) for share in shares}


def _cut(shares: Sequence[_Share], budget: int) -> list[Tensor]:
    """Remove the `budget` lowest of what is alive in these tensors."""
    parts = [share.part for share in shares]
    return keep_above(parts, find_cut(parts, budget))


def _lost(mask: Tensor) -> int:
    return mask.numel() - int(np.count_nonzero(mask.numpy()))


def _alive(share: _Share) -> Tensor:
    """Copy a tensor's mask as it is."""
    if share.part.alive is None:
        return torch.ones(share.numel, dtype=torch.bool)
    return torch.from_numpy(share.part.alive.copy())


def _too_little(shares: Sequence[_Share], num_removed: int) -> str:
    """Say with numbers that the caps leave too little to remove."""
    total = sum(share.numel for share in shares)
    most = sum(share.cap for share in shares)
    where = shares[0].path if len(shares) == 1 else f"{len(shares)} tensors, {shares[0].path} first"
    return (
        f"{where}: {num_removed} of {total} elements are to be removed, but max_sparsity and min_keep let at most "
        f"{most} go (a sparsity of {most / max(total, 1):.6g}). Lower sparsity, or loosen the two."
    )
