"""Units larger than one weight: rows, columns, blocks, and n of every m neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import MaskError
from secateur.recipe.names import Unit

Block = tuple[int, int]


def unit_scores(score: Tensor, unit: Unit, *, block: Block | None = None, path: str = "scores") -> Tensor:
    """Score units by the mean over their elements (with `magnitude`: the L1 norm, made comparable between sizes).

    Args:
        score: (rows, columns), or any shape for unit "weight" without a block.
        unit: "weight", "row" or "column".
        block: (r, c) makes blocks of r rows and c columns the units; unit must then be "weight".
        path: the tensor's name, for messages.

    Returns:
        (rows,), (columns,), (rows / r, columns / c), or the score itself for unit "weight".

    Raises:
        MaskError: the tensor has no rows and columns, or does not divide into the blocks.

    >>> unit_scores(torch.tensor([[1.0, 3.0], [4.0, 0.0]]), "row").tolist()
    [2.0, 2.0]
    >>> unit_scores(torch.tensor([[1.0, 3.0], [4.0, 0.0]]), "weight", block=(2, 1)).tolist()
    [[2.5, 1.5]]
    """
    if block is not None:
        return _blocks(score, block, path=path).mean(dim=(1, 3))
    if unit == "weight":
        return score
    _check_matrix(score, unit, path)
    return score.mean(dim=1 if unit == "row" else 0)


def unit_alive(mask: Tensor, unit: Unit, *, block: Block | None = None, path: str = "mask") -> Tensor:
    """Say which units have anything alive in them; arguments and shapes as in `unit_scores`.

    >>> unit_alive(torch.tensor([[True, False], [False, False]]), "row").tolist()
    [True, False]
    """
    if block is not None:
        return _blocks(mask, block, path=path).any(dim=3).any(dim=1)
    if unit == "weight":
        return mask
    _check_matrix(mask, unit, path)
    return mask.any(dim=1 if unit == "row" else 0)


def expand_units(
    mask: Tensor, shape: torch.Size | tuple[int, ...], unit: Unit, *, block: Block | None = None
) -> Tensor:
    """Turn a mask of units into a mask of elements.

    Args:
        mask: bool, one per unit, as `unit_scores` shaped them.
        shape: (rows, columns) of the weight.
        unit: as for `unit_scores`.
        block: as for `unit_scores`.

    Returns:
        bool, the weight's shape.

    >>> expand_units(torch.tensor([True, False]), (2, 2), "column").tolist()
    [[True, False], [True, False]]
    """
    if block is not None:
        (rows, columns), (r, c) = mask.shape, block
        return mask[:, None, :, None].expand(rows, r, columns, c).reshape(shape)
    if unit == "weight":
        return mask
    return (mask[:, None] if unit == "row" else mask[None, :]).expand(shape).contiguous()


def pattern_mask(
    score: Tensor, num_kept: int, num_neighbours: int, *, already: Tensor | None = None, path: str = "scores"
) -> Tensor:
    """Keep n of every m neighbours along the last dimension: the n best, the higher index first among equals.

    Args:
        score: any shape whose last dimension m divides; finite, larger = keep.
        num_kept: n, 1 <= n < m.
        num_neighbours: m.
        already: bool, the score's shape, True = alive. The dead are removed first and stay dead.
        path: the tensor's name, for messages.

    Returns:
        bool, the score's shape, True = keep; n true in every m neighbours, fewer where fewer were alive.

    Raises:
        MaskError: the pattern is none, or the last dimension does not divide.

    >>> pattern_mask(torch.tensor([0.1, 4.0, 2.0, 3.0]), 2, 4).tolist()
    [False, True, False, True]
    """
    if not 1 <= num_kept < num_neighbours:
        raise MaskError(f"{path}: pattern {num_kept}:{num_neighbours} is none; n of every m stay, 1 <= n < m.")
    if score.dim() == 0 or score.shape[-1] % num_neighbours:
        raise MaskError(
            f"{path}: its last dimension does not divide by {num_neighbours} (shape {tuple(score.shape)}); "
            f"pattern {num_kept}:{num_neighbours} does not fit. Leave it out with `match`, or change the pattern."
        )
    num_removed = num_neighbours - num_kept
    groups = score.reshape(-1, num_neighbours)
    alive = None if already is None else already.reshape(-1, num_neighbours)
    mask = torch.empty(groups.shape, dtype=torch.bool, device=score.device)
    rows = max(1, (1 << 20) // num_neighbours)  # about a million elements at a time, so the ranks stay small
    for start in range(0, len(groups), rows):
        chunk = groups[start : start + rows]
        if alive is not None:
            chunk = chunk.masked_fill(~alive[start : start + rows], -torch.inf)
        mask[start : start + rows] = _ranks(chunk) >= num_removed
    kept = mask.view(score.shape)
    return kept if already is None else kept & already


def _ranks(groups: Tensor) -> Tensor:
    """Rank every row's entries: how many entries of its row go before it, lower index first among equals."""
    ranks = torch.zeros(groups.shape, dtype=torch.int16, device=groups.device)
    for other in range(groups.shape[-1]):
        column = groups[:, other : other + 1]
        ranks[:, :other] += column < groups[:, :other]
        ranks[:, other + 1 :] += column <= groups[:, other + 1 :]
    return ranks


def _blocks(tensor: Tensor, block: Block, *, path: str) -> Tensor:
    """View a matrix as (rows / r, r, columns / c, c)."""
    r, c = block
    if tensor.dim() != 2 or tensor.shape[0] % r or tensor.shape[1] % c:
        raise MaskError(
            f"{path}: shape {tuple(tensor.shape)} does not divide into blocks of {r} x {c}. "
            "Leave it out with `match`, or choose a block that divides."
        )
    return tensor.reshape(tensor.shape[0] // r, r, tensor.shape[1] // c, c)


def _check_matrix(tensor: Tensor, unit: Unit, path: str) -> None:
    if tensor.dim() != 2:
        raise MaskError(f"{path}: shape {tuple(tensor.shape)} has no {unit}s; unit {unit!r} needs a matrix.")
