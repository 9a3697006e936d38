"""LAMP: magnitude that does not know a tensor's scale, so that one threshold is fair to all tensors of a group."""

from __future__ import annotations

import torch
from torch import Tensor


def lamp(weight: Tensor) -> Tensor:
    """Score every weight by its square over the sum of its tensor's squares that are not smaller.

    The largest weight of every tensor scores 1, so a threshold below 1 empties none. Within a tensor the order is that
    of `magnitude`; among equal magnitudes the lower flat index scores lower.

    Args:
        weight: any shape, floating point.

    Returns:
        The same shape, float32, in [0, 1]; zeros score 0.

    Source: Lee et al. 2021, arXiv:2010.07611, eq. 4.

    >>> lamp(torch.tensor([1.0, -2.0, 2.0])).tolist()  # 1/9, 4/8, 4/4
    [0.1111111119389534, 0.5, 1.0]
    """
    squares = weight.detach().to(torch.float32).flatten().square()
    order = torch.argsort(squares, stable=True)
    ascending = squares[order].double()
    rest = ascending.flip(0).cumsum(0).flip(0)  # of a weight: itself and all that come after it
    scores = torch.empty_like(squares)
    scores[order] = torch.where(rest > 0, ascending / rest, 0.0).to(torch.float32)
    return scores.view(weight.shape)
