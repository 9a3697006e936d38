"""Blocks of a tensor of any rank: what is removed at once where neither a row nor a column is, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from secateur.errors import MaskError
from secateur.masks.scores.fpgm import fpgm
from secateur.registry import choose

# From (*numbers of blocks, elements of a block) to one number a block. They are sums and norms, not means: of two
# blocks of like elements the larger scores higher.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda blocks: blocks.norm(p=1, dim=-1),
    "l2": lambda blocks: blocks.norm(p=2, dim=-1),
    "fpgm": lambda blocks: fpgm(blocks.flatten(0, -2)).float().view(blocks.shape[:-1]),
    "max": lambda blocks: blocks.amax(-1),
}


def as_blocks(tensor: Tensor, block: Sequence[int], *, path: str = "tensor") -> Tensor:
    """Lay a tensor out by blocks.

    Args:
        tensor: any rank from 1 on.
        block: the size of a block in each dimension.
        path: the tensor's name, for messages.

    Returns:
        (numbers of blocks in each dimension, elements of one block).

    Raises:
        MaskError: the tensor does not divide into the blocks.

    >>> import torch
    >>> as_blocks(torch.arange(8).view(2, 4), (2, 2)).tolist()
    [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    numbers = block_numbers(tensor.shape, block, path=path)
    split = tensor.reshape([size for pair in zip(numbers, block, strict=True) for size in pair])
    rank = tensor.dim()
    order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
    return split.permute(order).reshape(*numbers, -1)


def block_numbers(shape: Sequence[int], block: Sequence[int], *, path: str = "tensor") -> tuple[int, ...]:
    """Count the blocks in each dimension.

    >>> block_numbers((4, 6), (2, 6))
    (2, 1)
    """
    if len(shape) != len(block) or any(whole % size for whole, size in zip(shape, block, strict=True)):
        sizes = " x ".join(map(str, block))
        raise MaskError(
            f"{path}: shape {' x '.join(map(str, shape))} does not divide into blocks of {sizes}. Exclude it, or "
            "choose a block that divides."
        )
    return tuple(whole // size for whole, size in zip(shape, block, strict=True))


def spread_blocks(mask: Tensor, block: Sequence[int]) -> Tensor:
    """Turn one value a block into one an element.

    Args:
        mask: (numbers of blocks in each dimension).
        block: the size of a block in each dimension.

    Returns:
        The tensor's shape.

    >>> import torch
    >>> spread_blocks(torch.tensor([[True, False]]), (2, 1)).tolist()
    [[True, False], [True, False]]
    """
    for dim, size in enumerate(block):
        mask = mask.repeat_interleave(size, dim)
    return mask


def score_blocks(scores: Tensor, block: Sequence[int] | None, norm: str, *, path: str = "scores") -> Tensor:
    """Score blocks by the scores of their elements.

    Args:
        scores: of single elements.
        block: the size of a block in each dimension; None: single elements, which score their own absolute value under
            a norm.
        norm: one of NORMS.
        path: the tensor's name, for messages.

    Returns:
        (numbers of blocks in each dimension), or the scores' shape; float32, larger = keep.

    Raises:
        MaskError: the tensor does not divide into the blocks, or single elements are to be judged by their distances.

    >>> import torch
    >>> score_blocks(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), (1, 2), "l2").tolist()
    [[5.0], [1.0]]
    """
    if block is None:
        if norm == "fpgm":
            raise MaskError(f"{path}: fpgm judges blocks by their distances, not single elements. Give a granularity.")
        return scores if norm == "max" else scores.abs()
    return choose(NORMS, norm, "norm")(as_blocks(scores.float(), block, path=path))
